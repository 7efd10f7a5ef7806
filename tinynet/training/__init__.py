"""Recipes, cached features, the training loop, and the stages of a run."""
