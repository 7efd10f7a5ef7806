"""Where pictures come from: archive, packed arrays, splits, batches."""
