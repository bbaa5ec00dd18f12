"""MM-Vet: open questions that need several abilities at once, each answer judged from 0 to 1.

Source: Yu et al., "MM-Vet: evaluating large multimodal models for integrated capabilities", 2023.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from llava.errors import UserError
from llava.eval.metrics.table import Table, mean_table

CAPABILITIES = ("rec", "ocr", "know", "gen", "spat", "math")


class MMVetAnswer(NamedTuple):
    score: float  # 0..1
    capabilities: Sequence[str]  # members of CAPABILITIES


def parse_correctness(reply: str) -> float | None:
    """Return the number from 0.0 to 1.0 that a judge's reply begins with, or None if there is none."""
    try:
        value = float(reply.split()[0])
    except (IndexError, ValueError):
        return None
    return value if 0 <= value <= 1 else None


def mmvet_table(answers: Iterable[MMVetAnswer]) -> Table:
    """Return mean scores: over all, by ability, and by the set of abilities needed (as "only ocr, math").

    Returns:
        {"overall" | ability | "only ...": {"score": Score}}, fractions in 0..1.
    Raises:
        UserError: if there are no answers, or for an unknown ability.
    """
    return mean_table("score", ((row.score, _labels(row.capabilities)) for row in answers), CAPABILITIES)


def _labels(capabilities: Sequence[str]) -> list[str]:
    if unknown := set(capabilities) - set(CAPABILITIES):
        raise UserError(
            f"MM-Vet: unknown capability {min(unknown)!r}; expected some of {', '.join(CAPABILITIES)}."
        )
    needed = [name for name in CAPABILITIES if name in capabilities]
    return [*needed, f"only {', '.join(needed)}"]
