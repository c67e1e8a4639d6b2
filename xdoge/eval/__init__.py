"""Evaluation of models in each language: perplexity and benchmarks, in one table."""
