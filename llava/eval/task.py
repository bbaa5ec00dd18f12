"""What a benchmark is: its files, its questions, and how answers become scores or a submission."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from llava.eval.metrics import Table


@dataclass(frozen=True)
class File:
    """A file or folder that a benchmark needs.

    Args:
        path: below the benchmark's folder; may be a pattern (a*.json), of which one must be there.
        source: where to get it: an address, or the command that makes it.
    """

    path: str
    source: str


@dataclass(frozen=True)
class Scores:
    """What a benchmark's answers are worth.

    Args:
        table: {part: {measure: Score}}, as the tables of `llava.eval.metrics`.
        headline: (part, measure) of the number that is quoted.
        credit: {question_id: 0..1}, what each answer was given; the report shows wrong answers first.
        points: measures that are points; the others are fractions, shown in percent.
        unparsed: answers that name no option, or on which the judge's reply has no score.
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
    """A benchmark. Answers reach `score`, `export` and `judge` as {question_id: text}, one for each row.

    Args:
        name: in --tasks, and of the folder of its results.
        title: as papers write it.
        folder: below --data-root.
        needs: what must be there before anything starts.
        load: from that folder to question rows {"question_id" (its own), "text": the user's whole turn, the
            answer's instruction included, "image"?: a path relative to the folder, the bytes of an encoded
            image, or a list of these, "answer"?: what the report shows as expected (a text or a list of
            texts), "group"?: the same for rows that are scored together, and whatever scoring needs}.
        max_new_tokens: longest answer, tokens.
        score: (rows, answers) to scores, where the right answers are known.
        export: (rows, answers, folder) writes the submission's files there and gives their paths.
        submit_to: where those go.
        judge: (rows, answers, ask) to scores by a judging model; ask(prompt, system text) gives its reply.
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
        """As a Markdown list: its name, what comes of its answers, its files and their sources."""
        ways = ["scored here"] if self.score else ["scored by a judge, --judge-url"] if self.judge else []
        ways += [f"a submission for {self.submit_to}"] if self.submit_to else []
        lines = [f"- `{self.name}`, {self.title}: {'; '.join(ways)}"]
        for source in dict.fromkeys(file.source for file in self.needs):
            paths = [data_root / self.folder / file.path for file in self.needs if file.source == source]
            lines.append(f"  - {', '.join(f'`{path}`' for path in paths)}: {source}")
        return "\n".join(lines)

    def missing(self, data_root: Path) -> list[str]:
        """A line for each file that is not there: which, and where it comes from."""
        folder = data_root / self.folder
        return [
            f"{self.name}: {folder / file.path} is missing; {file.source}"
            for file in self.needs
            if next(folder.glob(file.path), None) is None
        ]
