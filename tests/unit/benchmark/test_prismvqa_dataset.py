"""PrismVQA's files: equal for any number of processes, never half written, good for training and tests."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from llava.benchmark.prismvqa import dataset
from llava.benchmark.prismvqa.__main__ import parse_args, run
from llava.benchmark.prismvqa.dataset import Example, ask_split, load_split, write_dataset
from llava.benchmark.prismvqa.draw import draw_scene
from llava.benchmark.prismvqa.questions import FAMILIES, FORMS, Question
from llava.benchmark.prismvqa.scene import sample_scene
from llava.data.validate import validate
from llava.eval.tasks import TASKS

SETTINGS = {"num_train": 40, "num_test": 6, "size": 112, "seed": 5}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("prismvqa") / "data"
    assert write_dataset(folder, **SETTINGS, workers=1)
    return folder


@pytest.mark.slow
def test_files_do_not_depend_on_the_number_of_processes(made, tmp_path):
    assert write_dataset(tmp_path / "data", **SETTINGS, workers=2)
    assert contents(tmp_path / "data") == contents(made)
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_first_scenes_do_not_depend_on_how_many_there_are(made):
    questions = [question for example in load_split(made, "test") for question in example.questions]
    assert ask_split("test", 3, seed=5, workers=1) == questions[: len(ask_split("test", 3, 5, 1))]


def test_the_same_again_does_nothing(made, monkeypatch):
    before = contents(made)
    monkeypatch.setattr(dataset, "make_rows", None)  # any call that makes rows fails
    assert write_dataset(made, **SETTINGS) is False
    assert contents(made) == before


def test_more_rounds_ask_training_scenes_more_and_test_scenes_the_same(made, tmp_path):
    write_dataset(tmp_path / "more", **SETTINGS, rounds=3, workers=1)
    for once, thrice in zip(
        *(load_split(folder, "train") for folder in (made, tmp_path / "more")), strict=True
    ):
        assert thrice.questions[: len(once.questions)] == once.questions
        texts = [question.text for question in thrice.questions]
        assert len(set(texts)) == len(texts) > len(once.questions)
    once, thrice = (load_split(folder, "test") for folder in (made, tmp_path / "more"))
    assert [example.questions for example in once] == [example.questions for example in thrice]


@pytest.mark.parametrize(
    "change", [{"rounds": 2}, {"seed": 6}, {"size": 113}, {"num_train": 41}, {"num_test": 7}]
)
def test_a_folder_of_another_data_set_is_refused_and_left(made, change):
    (name,) = change
    before = contents(made)
    with pytest.raises(ValueError, match=rf"other data.*{name}.*--output_dir"):
        write_dataset(made, **SETTINGS | change)
    assert contents(made) == before


def test_a_folder_of_another_version_is_refused(made, monkeypatch):
    monkeypatch.setattr(dataset, "VERSION", 0)
    with pytest.raises(ValueError, match="version"):
        write_dataset(made, **SETTINGS)


def test_a_folder_of_something_else_is_refused_and_an_empty_one_is_filled(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other data"):
        write_dataset(tmp_path, **SETTINGS, workers=1)
    assert contents(tmp_path) == {"notes.txt": b"mine"}
    (tmp_path / "empty").mkdir()
    assert write_dataset(tmp_path / "empty", **SETTINGS | {"num_train": 1, "num_test": 1}, workers=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_train": 0}, "--num_train .* 1,.* 0"),
        ({"num_test": -1}, "--num_test .* 1,.*-1"),
        ({"size": 64}, "--size .*112.*64"),
        ({"seed": -1}, "--seed .* 0,.*-1"),
        ({"workers": 0}, "--workers .* 1,.* 0"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        write_dataset(tmp_path / "data", **SETTINGS | change)
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_leaves_no_data_set_and_its_pictures_are_kept(made, tmp_path, monkeypatch):
    drawn = []

    def draw(scene, size):
        drawn.append(scene)
        if len(drawn) == 10:
            raise KeyboardInterrupt
        return draw_scene(scene, size)

    monkeypatch.setattr(dataset, "draw_scene", draw)
    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "data", **SETTINGS, workers=1)
    assert not (tmp_path / "data").exists()
    with pytest.raises(ValueError, match="no PrismVQA"):
        load_split(tmp_path / "data", "train")
    assert write_dataset(tmp_path / "data", **SETTINGS, workers=1)
    assert len(drawn) == 10 + SETTINGS["num_train"] + SETTINGS["num_test"] - 9
    assert contents(tmp_path / "data") == contents(made)


def test_what_an_interrupted_run_of_other_settings_left_is_not_used(made, tmp_path):
    unfinished = tmp_path / "data.partial"
    (unfinished / "train" / "images").mkdir(parents=True)
    (unfinished / "recipe.json").write_text('{"name": "PrismVQA", "version": 0}')
    (unfinished / "train" / "images" / "000000.webp").write_bytes(b"old")
    assert write_dataset(tmp_path / "data", **SETTINGS, workers=1)
    assert contents(tmp_path / "data") == contents(made)


def test_pictures_are_stored_without_loss(made):
    for split in ("train", "test"):
        for index, example in enumerate(load_split(made, split)[:5]):
            with Image.open(example.image) as stored:
                assert stored.mode == "RGB"
                assert stored.tobytes() == draw_scene(sample_scene(5, split, index), 112).tobytes()


def test_training_takes_the_records(made):
    problems = []
    counts = validate([str(made / "train.json")], str(made), check_images=True, report=problems.append)
    assert problems == []
    assert (counts["records"], counts["images"], counts["problems"]) == (40, 40, 0)


def test_records_and_examples_have_the_same_questions(made):
    records = json.loads((made / "train.json").read_text())
    examples = load_split(made, "train")
    for record, example in zip(records, examples, strict=True):
        assert made / record["image"] == example.image
        asked = [turn["value"] for turn in record["conversations"][::2]]
        assert asked[0].startswith("<image>\n")
        assert asked[0].endswith("\nAnswer the question using a single word or phrase.")
        asked[0] = asked[0].split("\n")[1]
        assert asked == [question.text for question in example.questions]
        said = [turn["value"] for turn in record["conversations"][1::2]]
        assert said == [question.answer for question in example.questions]


def test_evaluation_takes_the_test_questions(made, tmp_path):
    (tmp_path / "prismvqa").symlink_to(made)
    task = TASKS["prismvqa"]
    assert task.missing(tmp_path) == []
    rows = task.load(tmp_path / "prismvqa")
    examples = load_split(made, "test")
    assert len(rows) == sum(len(example.questions) for example in examples)
    assert all((made / row["image"]).is_file() for row in rows)
    assert len({row["question_id"] for row in rows}) == len(rows)
    scores = task.score(rows, {row["question_id"]: row["answer"] for row in rows})
    assert scores.table["mean"]["accuracy"].value == 1


def test_scenes_are_described_in_full(made):
    rows = [json.loads(line) for line in (made / "test" / "scenes.jsonl").read_text().splitlines()]
    scenes = [asdict(sample_scene(5, "test", i)) for i in range(6)]
    assert [row["scene"] for row in rows] == json.loads(json.dumps(scenes))


def test_examples_are_of_the_public_kind(made):
    example = load_split(made, "test")[0]
    assert isinstance(example, Example)
    assert isinstance(example.image, Path)
    assert all(isinstance(question, Question) for question in example.questions)
    assert {question.family for question in example.questions} <= set(FAMILIES)
    with pytest.raises(ValueError, match="train, test.*'val'"):
        load_split(made, "val")


def test_meta_says_what_is_there_and_what_chance_is(made):
    meta = json.loads((made / "meta.json").read_text())
    assert {key: meta[key] for key in SETTINGS} == SETTINGS
    assert meta["version"] == dataset.VERSION
    assert tuple(meta["families"]) == FAMILIES
    for family, known in meta["families"].items():
        for split in ("train", "test"):
            asked = [q for example in load_split(made, split) for q in example.questions]
            assert known[split] == sum(question.family == family for question in asked)
        forms = known["forms"].values()
        total = sum(form["train"] + form["test"] for form in forms)
        mean = sum(form["chance"] * (form["train"] + form["test"]) for form in forms) / total
        assert known["chance"] == pytest.approx(mean)
    assert meta["families"]["exist"]["chance"] == 0.5
    assert meta["families"]["read"]["chance"] == 1 / 256


def test_chance_is_one_of_the_answers_there_are():
    assert FORMS["color"].chance == 1 / 8
    assert FORMS["larger"].chance == 1 / 2
    assert FORMS["count_some"].chance == FORMS["count_all"].chance == 1 / 6


@pytest.mark.slow
def test_the_command_writes_a_preview_or_the_question_only_table_or_the_set(tmp_path, capsys):
    few = ["--num_train", "60", "--num_test", "8", "--workers", "1", "--size", "112"]
    run(parse_args(["--preview", str(tmp_path / "sheet.png"), *few]))
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    run(parse_args(["--question_only", *few]))
    assert "| exist | 8 | 50.0 |" in capsys.readouterr().out
    for said in ("written", "already complete"):
        run(parse_args(["--output_dir", str(tmp_path / "data"), *few]))
        assert f"data: {said}" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_says_what_to_mend():
    done = subprocess.run(
        [sys.executable, "-m", "llava.benchmark.prismvqa", "--num_train", "0"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: --num_train ")
    assert len(done.stderr.splitlines()) == 1
