"""The library: what `import tinynet` offers. The commands call the same functions."""
