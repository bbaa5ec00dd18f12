"""95% confidence intervals of a proportion and of a mean."""

import math
from collections.abc import Sequence

import numpy as np

from llava.errors import UserError

RESAMPLES = 2000
SEED = 0


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's score interval of `correct / total`.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        correct: successes, 0..total.
        total: trials; for 0 trials the interval is (0, 1).
        z: standard normal quantile; 1.96 is 95%.
    Returns:
        (low, high), fractions in 0..1.
    Raises:
        UserError: if not 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise UserError(f"wilson_interval: correct must be in 0..total, got {correct} of {total}.")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    shrink = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    scores: Sequence[float], *, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Return the 95% percentile bootstrap interval of the mean of `scores`; their order does not matter.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", 1979. Equal scores give an interval
    of width 0; if few questions are all right or all wrong, `wilson_interval` is more informative.

    Returns:
        (low, high), in the unit of the scores.
    Raises:
        UserError: if there are no scores.
    """
    return percentile_interval(resampled_means(scores, np.random.default_rng(seed), resamples))


def resampled_means(
    scores: Sequence[float], rng: np.random.Generator, resamples: int = RESAMPLES
) -> np.ndarray:
    """Return the means of `resamples` draws of len(scores) scores with replacement, float64[resamples].

    The counts of the distinct scores in a draw are multinomial, so scores need not be drawn one by one.
    """
    if not len(scores):
        raise UserError("bootstrap: expected at least one score, got none.")
    values, counts = np.unique(np.asarray(scores, dtype=np.float64), return_counts=True)
    total = len(scores)
    return rng.multinomial(total, counts / total, size=resamples) @ values / total


def percentile_interval(resampled: np.ndarray) -> tuple[float, float]:
    """Return the bounds of the middle 95% of the resampled values, float64[resamples]."""
    low, high = np.quantile(resampled, (0.025, 0.975))
    return float(low), float(high)
