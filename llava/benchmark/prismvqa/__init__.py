"""PrismVQA: rendered scenes with questions whose answers are known and cannot be guessed from the text."""
