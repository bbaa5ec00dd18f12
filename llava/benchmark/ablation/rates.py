"""Chooses each row's own learning rate: a study before the study, scored on scenes left out of training."""

import dataclasses
import statistics
from collections import Counter
from collections.abc import Sequence

from llava.benchmark.ablation.settings import QUESTION_ONLY, Row, Study, Table, runs_of
from llava.benchmark.ablation.tables import lines_of

TITLE = "Learning rates of the projector, on scenes left out of training"


def searched_rows(study: Study) -> list[Row]:
    """The rows whose rate is chosen: those with a projector that give no rate themselves."""
    return [
        row for row in study.rows if row.projector != QUESTION_ONLY and row.projector_learning_rate is None
    ]


def name_at(row: Row, rate: float) -> str:
    return f"{row.name} at {rate:g}"


def search_of(study: Study) -> Study:
    """The study that trains each searched row at each of the study's rates, with the first seed."""
    rows = tuple(
        dataclasses.replace(
            row,
            name=name_at(row, rate),
            seeds=study.seeds[:1],
            projector_learning_rate=rate,
            marks={"row": row.name},
        )
        for row in searched_rows(study)
        for rate in study.rates or ()
    )
    return dataclasses.replace(
        study,
        data=dataclasses.replace(study.data, score_on="validation"),
        rows=rows,
        tables={TITLE: Table(tuple(row.name for row in rows), marks=("row",))},
        rates=None,
        reference=None,
    )


def with_best_rates(study: Study, results: Sequence[dict]) -> Study:
    """The study with the best rate of each searched row, by the mean accuracy over families and all s.

    Args:
        results: those of search_of(study). A row that is not done at all rates gets no seeds, so no runs.
    """
    search = search_of(study)
    wanted = Counter(run.row.name for run in runs_of(search))
    done = Counter(result["name"] for result in results)
    means: dict[str, list[float]] = {}
    for line in lines_of(search, results):
        means.setdefault(line.row.name, []).extend(line.means)

    def chosen(row: Row) -> Row:
        names = {rate: name_at(row, rate) for rate in study.rates or ()}
        if any(done[name] < wanted[name] for name in names.values()):
            return dataclasses.replace(row, seeds=())
        best = max(names, key=lambda rate: statistics.mean(means[names[rate]]))
        return dataclasses.replace(row, projector_learning_rate=best)

    searched = searched_rows(study)
    rows = tuple(chosen(row) if row in searched else row for row in study.rows)
    return dataclasses.replace(study, rows=rows, rates=None)
