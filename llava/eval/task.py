"""The definition of a benchmark: its files, its questions, and how answers become scores or a submission."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava.eval.metrics import Table


@dataclass(frozen=True)
class File:
    """A file or folder that a benchmark needs.

    Args:
        path: its path below the benchmark's folder, or a pattern (a*.json) that some file must match.
        source: where to get it: an address, or the command that makes it.
    """

    path: str
    source: str


@dataclass(frozen=True)
class Scores:
    """The scores of a benchmark's answers.

    Args:
        table: {part: {measure: Score}}, like the tables of `llava.eval.metrics`.
        headline: (part, measure) of the number to quote.
        credit: {question_id: 0..1}, the credit of each answer; the report shows wrong answers first.
        points: the measures that are in points; the others are fractions, shown in percent.
        unparsed: number of answers that name no option, or for which the judge's reply has no score.
    """

    table: Table
    headline: tuple[str, str]
    credit: dict
    points: tuple[str, ...] = ()
    unparsed: int = 0

    def __post_init__(self):
        part, measure = self.headline
        assert measure in self.table[part]


@dataclass(frozen=True)
class Task:
    """A benchmark. `score`, `export` and `judge` get the answers as {question_id: text}, one for each row.

    Args:
        name: its name in --tasks, and the name of the folder of its results.
        title: its name in papers.
        folder: its folder below --data-root.
        needs: the files that must exist before anything starts.
        load: reads from that folder question rows {"question_id" (unique), "text": the user's whole turn,
            including how to answer, "image"?: a path relative to the folder, the bytes of an encoded image,
            or a list of these, "answer"?: what the report shows as expected (a text or a list of texts),
            "group"?: the same for rows that are scored together, and other fields that scoring needs}.
        max_new_tokens: maximum answer length in tokens.
        score: computes scores from (rows, answers), if the right answers are known.
        export: takes (rows, answers, folder), writes the submission's files there and returns their paths.
        submit_to: where to submit those files.
        judge: takes (rows, answers, ask) and returns a judging model's scores; ask(prompt, system text)
            returns its reply.
    """

    name: str
    title: str
    folder: str
    needs: tuple[File, ...]
    load: Callable[[Path], list[dict]]
    max_new_tokens: int = 16
    score: Callable[[list[dict], dict], Scores] | None = None
    export: Callable[[list[dict], dict, Path], list[Path]] | None = None
    submit_to: str = ""
    judge: Callable[[list[dict], dict, Callable[..., str]], Scores] | None = None

    def describe(self, data_root: Path) -> str:
        """Return a Markdown list of its name, how it is scored or submitted, its files and their sources."""
        ways = ["scored here"] if self.score else ["scored by a judge, --judge-url"] if self.judge else []
        ways += [f"a submission for {self.submit_to}"] if self.submit_to else []
        lines = [f"- `{self.name}`, {self.title}: {'; '.join(ways)}"]
        for source in dict.fromkeys(file.source for file in self.needs):
            paths = [data_root / self.folder / file.path for file in self.needs if file.source == source]
            lines.append(f"  - {', '.join(f'`{path}`' for path in paths)}: {source}")
        return "\n".join(lines)

    def missing(self, data_root: Path) -> list[str]:
        """Return a line for each missing file, with its path and its source."""
        folder = data_root / self.folder
        return [
            f"{self.name}: {folder / file.path} is missing; {file.source}"
            for file in self.needs
            if next(folder.glob(file.path), None) is None
        ]
