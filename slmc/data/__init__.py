"""From an interaction log to a dataset: sources, readers, splits, packed batches."""
