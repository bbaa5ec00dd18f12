"""Pure metrics: standard library and numpy alone."""

from llava.eval.metrics.proportion import wilson_interval
from llava.eval.metrics.text_match import exact_match

__all__ = ["exact_match", "wilson_interval"]
