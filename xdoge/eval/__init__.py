"""How good a model is in each language: perplexity and benchmarks, in one table."""
