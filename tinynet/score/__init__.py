"""Views, merges and metrics of probabilities."""
