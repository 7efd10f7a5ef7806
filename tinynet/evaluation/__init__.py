"""Scores of runs, pretrained networks, folders and stored probabilities."""
