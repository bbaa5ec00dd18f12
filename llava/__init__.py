"""LLaVA with compressed visual tokens: a vision tower, VisualPrism, a language model."""

__version__ = "0.2.0"
