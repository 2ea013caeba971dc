"""Train an LLM teacher and distil it, block by block, into a student of a few layers."""
