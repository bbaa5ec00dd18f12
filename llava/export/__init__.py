"""Exports a model to a folder that transformers, and tools built on it, load; also converts it back."""
