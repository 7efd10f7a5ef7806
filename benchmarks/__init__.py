"""Measurements behind the figures of README and recipes; each writes JSON to benchmarks/results."""
