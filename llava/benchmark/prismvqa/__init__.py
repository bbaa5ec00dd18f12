"""PrismVQA: rendered scenes with questions whose answers are known, balanced and blind to guessing."""
