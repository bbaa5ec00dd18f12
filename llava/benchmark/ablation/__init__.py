"""Rank projectors: train and score each on PrismVQA with the same recipe, data order and initial reader."""
