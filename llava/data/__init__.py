"""Turns records on disk into padded batches."""
