"""Figures of what a run wrote down."""
