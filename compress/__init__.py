"""Make a trained recommender smaller: quantization and pruning, one technique a file."""
