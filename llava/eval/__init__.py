"""Ask a model questions (generation), keep the answers (records), score them (tasks, metrics)."""

# Tokens of a batch unless told otherwise: 8 GB of keys and values for a 7B model in half precision.
TOKEN_BUDGET = 16384
