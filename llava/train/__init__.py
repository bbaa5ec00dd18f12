"""Training: command-line flags, trainable parameters, the trainer, and the files that a run writes."""
