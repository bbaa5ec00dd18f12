"""Projectors ranked: trained and scored on PrismVQA by one recipe, same data order, same start."""
