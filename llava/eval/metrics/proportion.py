"""How far an accuracy can be trusted: the interval of a proportion."""

import math


def wilson_interval(correct: int, total: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval of `correct / total`.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Args:
        correct: successes, 0..total.
        total: trials; 0 trials say nothing, so the interval is (0, 1).
        z: standard normal quantile; 1.96 is 95%.
    Returns:
        (low, high), fractions in 0..1.
    Raises:
        ValueError: if not 0 <= correct <= total.
    """
    if not 0 <= correct <= total:
        raise ValueError(f"wilson_interval: correct must be in 0..total, got {correct} of {total}.")
    if total == 0:
        return 0.0, 1.0
    share = correct / total
    shrink = 1 + z * z / total
    centre = (share + z * z / (2 * total)) / shrink
    half = z / shrink * math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)
