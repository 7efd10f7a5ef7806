"""Data: the archive, packed arrays, splits and batches."""
