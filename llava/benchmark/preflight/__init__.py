"""Whether a machine is ready for a training script, and how long the run will take."""
