"""Turn a model into an engine, prove that it is the same, and time it."""
