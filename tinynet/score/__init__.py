"""Views, merges of their probabilities, and metrics."""
