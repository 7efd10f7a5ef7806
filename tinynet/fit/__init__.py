"""Recipes, cached features, the loop and checkpoints."""
