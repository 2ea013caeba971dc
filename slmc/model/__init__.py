"""The sequential recommender over an LLM backbone, and SASRec."""
