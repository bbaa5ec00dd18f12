"""Training: arguments, what learns, the trainer, and what a run leaves behind."""
