"""A model folder that transformers and what is built on it load by themselves, and the way back."""
