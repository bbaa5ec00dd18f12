"""Causal language models that see: one configuration and one class a family."""
