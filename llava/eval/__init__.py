"""Ask a model questions (generation), keep the answers (records), score them (tasks, metrics)."""
