"""The model room: vision tower, projector, merge, language model, and how they are loaded."""
