"""Backbones with named depths, and heads on what they say."""
