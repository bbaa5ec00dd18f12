"""Files of evaluation with random damage: either an error says what to correct, or all values are right."""

import json
from contextlib import suppress
from pathlib import Path

import benchmarks
import open_benchmarks
import pytest
from benchmarks import write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llava.errors import UserError
from llava.eval import report
from llava.eval.judge import Judge
from llava.eval.metrics import Score
from llava.eval.records import AnswerFile, check_questions, load_questions
from llava.eval.task import Scores
from llava.eval.tasks import TASKS
from llava.published import COMMANDS

pytestmark = pytest.mark.slow

TEXT_FILES = (".json", ".jsonl", ".tsv", ".txt")
BUILDERS = {**benchmarks.BUILDERS, **open_benchmarks.BUILDERS}
del BUILDERS["mmmu"]  # its files are parquet, which is not text
VALUES = [
    None,
    True,
    0,
    -1,
    10**400,
    1.5,
    1e308,
    "",
    "yes",
    "1",
    "\ud800",
    "a/\0b",
    [],
    [None],
    [[]],
    {},
    {"a": 1},
]


def answers_to(rows: list[dict], path: Path) -> Path:
    """An answers file with the answer "no" to each question."""
    write_jsonl(
        path, [{"question_id": row["question_id"], "prompt": row["text"], "text": "no"} for row in rows]
    )
    return path


def task_reader(name: str):
    def build(folder: Path):
        data = BUILDERS[name](folder / "data")

        def run():
            task = TASKS[name]
            rows = check_questions(task.load(data), name)
            answers = {row["question_id"]: "no" for row in rows}
            for act in filter(None, (task.score, task.export and (lambda *made: task.export(*made, folder)))):
                act(rows, answers)

        return [path for path in data.rglob("*") if path.suffix in TEXT_FILES], run

    return build


def command_reader(command: str, name: str, flags, published=None):
    """Returns a reader: a command that reads a benchmark's files and the answers.

        Args:
    flags: maps the benchmark's folder, the answers file and the output's path to the command line.
    published: maps an answer row to a row in the command's own format.
    """

    def build(folder: Path):
        data = BUILDERS[name](folder / "data")
        answers = answers_to(TASKS[name].load(data), folder / "m.jsonl")
        if published:
            rows = [published(json.loads(line)) for line in answers.read_text().splitlines()]
            write_jsonl(answers, rows)
        argv = [str(part) for part in flags(data, answers, folder / "out" / "out.json")]
        files = [path for path in data.rglob("*") if path.suffix in TEXT_FILES]
        return [answers, answers, *files], lambda: COMMANDS[command].main(argv)

    return build


def textvqa_reader(folder: Path):
    data = benchmarks.textvqa(folder)
    answers = answers_to(load_questions(data / "llava_textvqa_val_v051_ocr.jsonl"), folder / "m.jsonl")
    annotations = data / "TextVQA_0.5.1_val.json"
    argv = ["--annotation-file", str(annotations), "--result-file", str(answers)]
    return [answers, annotations], lambda: COMMANDS["llava.eval.eval_textvqa"].main(argv)


def vqav2_reader(folder: Path):
    data, split = benchmarks.vqav2(folder), "llava_vqav2_mscoco_test-dev2015"
    answers = data / "answers" / split / "m" / "merge.jsonl"
    answers_to(load_questions(data / f"{split}.jsonl"), answers)
    argv = ["--dir", str(data), "--split", split, "--ckpt", "m"]
    command = COMMANDS["scripts/convert_vqav2_for_submission.py"]
    return [answers, data / f"{split}.jsonl"], lambda: command.main(argv)


def easy_vqa_reader(folder: Path):
    questions, train, answers = folder / "test.jsonl", folder / "train.jsonl", folder / "m.jsonl"
    rows = [
        {"question_id": i, "text": "What color is it?", "answer": "red", "category": "color"}
        for i in range(3)
    ]
    write_jsonl(questions, rows)
    write_jsonl(train, rows)
    answers_to(rows, answers)
    argv = ["--question-file", questions, "--answers-file", answers, "--train-question-file", train]
    argv = [*map(str, argv), "--output", str(folder / "out.json")]
    return [questions, train, answers], lambda: COMMANDS["llava.eval.eval_easy_vqa"].main(argv)


def resumed_reader(folder: Path):
    """Returns a reader of a run's files: questions, its answers so far, and those of another process."""
    questions = [{"question_id": i, "text": f"Größe {i}?", "image": "a.png"} for i in range(4)]
    write_jsonl(folder / "q.jsonl", questions)
    for path in folder.glob("a.jsonl*"):
        path.unlink()
    for process in range(2):
        answers = AnswerFile(folder / "a.jsonl", questions, "m", {"conv_mode": "v1"}, process)
        answers.append(questions[process], "süß")

    def run():
        asked = load_questions(folder / "q.jsonl")
        answers = AnswerFile(folder / "a.jsonl", asked, "m", {"conv_mode": "v1"})
        for question in asked:
            if (question["question_id"], question["text"]) not in answers.answered:
                answers.append(question, "neu")
        answers.finish()
        assert len(answers.answered) == len(asked)

    return [folder / "a.jsonl", folder / "a.jsonl.part1", folder / "q.jsonl"], run


def judge_reader(folder: Path):
    write_jsonl(folder / "judge.jsonl", [{"key": f"{i}", "prompt": "?", "reply": "5 5"} for i in range(3)])
    return [folder / "judge.jsonl"], lambda: Judge("http://localhost:1", "j", "NONE", folder / "judge.jsonl")


def report_reader(folder: Path):
    score = Score(0.5, 0.4, 0.6, 8)
    scores = Scores({"overall": {"m": score}, "a": {"m": score, "n": score}}, ("overall", "m"), {}, ("n",))
    result = {
        **{"name": "gqa", "title": "GQA", "model_id": "m", "model_path": "models/m", "questions": 8},
        **{"settings": {"top_p": None, "max_new_tokens": 16}, "limit": None, "skipped": [[3, "no image"]]},
        **{"visual_tokens": 144.0, "timing": {"answers": 8, "seconds": 2.0}, "versions": {"torch": "2"}},
        **{"submission": ["a.json"], "submit_to": "a server", "scores": report.scores_as_json(scores)},
        "server_score": None,
    }
    sample = {"question": "?", "said": "no", "expected": "yes", "credit": 0.0, "pictures": ["data:"]}
    (folder / "gqa").mkdir(exist_ok=True)
    (folder / "gqa" / "result.json").write_text(json.dumps(result))
    (folder / "gqa" / "samples.json").write_text(json.dumps([sample, sample]))

    def run():
        report.check_folder(folder, "m", {"top_p": None})
        report.write_report(folder)

    return [folder / "gqa" / "result.json", folder / "gqa" / "samples.json"], run


def docvqa_row(row: dict) -> dict:
    return {"questionId": row["question_id"], "answer": row["text"]}


def upload_flags(data, answers, out):
    return ["--src", answers, "--dst", out]


READERS = {
    **{name: task_reader(name) for name in BUILDERS},
    "eval_pope": command_reader(
        "llava.eval.eval_pope",
        "pope",
        lambda data, answers, out: [
            *("--annotation-dir", data / "coco", "--question-file", data / "llava_pope_test.jsonl"),
            *("--result-file", answers),
        ],
    ),
    "eval_science_qa": command_reader(
        "llava.eval.eval_science_qa",
        "scienceqa",
        lambda data, answers, out: [
            *("--base-dir", data, "--result-file", answers),
            *("--output-file", out, "--output-result", out.with_name("result.json")),
        ],
    ),
    "eval_textvqa": textvqa_reader,
    "eval_easy_vqa": easy_vqa_reader,
    "convert_gqa": command_reader("scripts/convert_gqa_for_eval.py", "gqa", upload_flags),
    "convert_mmvet": command_reader("scripts/convert_mmvet_for_eval.py", "mmvet", upload_flags),
    "convert_docvqa": command_reader(
        "scripts/convert_docvqa_for_eval.py", "docvqa_test", upload_flags, docvqa_row
    ),
    "convert_mmbench": command_reader(
        "scripts/convert_mmbench_for_submission.py",
        "mmbench",
        lambda data, answers, out: [
            *("--annotation-file", data / "mmbench_dev_20230712.tsv", "--result-dir", answers.parent),
            *("--upload-dir", out.parent, "--experiment", answers.stem),
        ],
    ),
    "convert_seed": command_reader(
        "scripts/convert_seed_for_submission.py",
        "seed",
        lambda data, answers, out: [
            *("--annotation-file", data / "SEED-Bench.json", "--result-file", answers),
            *("--result-upload-file", out),
        ],
    ),
    "convert_vizwiz": command_reader(
        "scripts/convert_vizwiz_for_submission.py",
        "vizwiz",
        lambda data, answers, out: [
            *("--annotation-file", data / "llava_test.jsonl", "--result-file", answers),
            *("--result-upload-file", out),
        ],
    ),
    "convert_vqav2": vqav2_reader,
    "a run that goes on": resumed_reader,
    "judge": judge_reader,
    "report": report_reader,
}


def damaged_bytes(content: bytes, data) -> bytes:
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, min(len(content), start + 40)))
    new = st.sampled_from(
        [b"", b"\n", b"\0", b"\xff", b"\xed\xa0\x80", b'"', b"{", b"[", b"9" * 5000, b"\xef\xbb\xbf"]
    )
    kind = data.draw(st.sampled_from(["cut", "nul tail", "change"]))
    if kind == "cut":
        return content[:start]
    return (
        content + bytes(end - start)
        if kind == "nul tail"
        else content[:start] + data.draw(new) + content[end:]
    )


def damaged_value(value, data):
    """A JSON value in which one place was removed, doubled or replaced."""
    if not isinstance(value, (list, dict)) or not value or data.draw(st.integers(0, 5)) == 0:
        return data.draw(st.sampled_from(VALUES))
    place = data.draw(st.sampled_from(list(range(len(value)) if isinstance(value, list) else value)))
    kind = data.draw(st.sampled_from(["inside", "inside", "inside", "gone", "doubled"]))
    if kind == "inside":
        inner = damaged_value(value[place], data)
        if isinstance(value, list):
            return [*value[:place], inner, *value[place + 1 :]]
        return {**value, place: inner}
    if isinstance(value, list):
        return [*value[:place], *[value[place]] * (2 * (kind == "doubled")), *value[place + 1 :]]
    return {key: item for key, item in value.items() if key != place}


def damaged(path: Path, content: bytes, data) -> bytes:
    if path.suffix in (".tsv", ".txt") or data.draw(st.booleans()):
        return damaged_bytes(content, data)
    try:
        return json.dumps(damaged_value(json.loads(content), data)).encode()
    except json.JSONDecodeError:  # a file of JSON lines
        rows = damaged_value([json.loads(line) for line in content.splitlines()], data)
        return "".join(
            json.dumps(row) + "\n" for row in (rows if isinstance(rows, list) else [rows])
        ).encode()


@pytest.mark.parametrize("reader", READERS)
def test_a_damaged_file_is_refused_or_read_but_never_a_traceback(reader, tmp_path):
    READERS[reader](tmp_path)[1]()  # whole, it is read

    @settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(st.data())
    def check(data):
        files, run = READERS[reader](tmp_path)
        path = data.draw(st.sampled_from(files))
        path.write_bytes(damaged(path, path.read_bytes(), data))
        with suppress(UserError):
            run()

    check()
