"""Backbones with named layers, classifiers, pretrained weights and checkpoints."""
