"""Causal language models with vision: one configuration and one class for each family."""
