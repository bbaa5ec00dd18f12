"""Records on disk to padded batches."""
