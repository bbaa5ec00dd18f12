"""Projectors: vision features to the language model's tokens."""
