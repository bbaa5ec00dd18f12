"""llava.eval.run with a tiny random model: one and two processes, kill and resume, scores and report."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import benchmarks
import pytest
import ranks
import tiny
from messages import assert_names
from PIL import Image

import llava.model.builder
from llava.eval.run import main, parse_args

ROOT = Path(__file__).parents[2]
COLORS = ("red", "blue", "teal")
NUM_QUESTIONS = 60
PATIENCE = 240  # seconds, after which a process counts as hanging


def write_jsonl(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_jsonl(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A model folder, and easy-VQA and POPE in their real file formats."""
    folder = tmp_path_factory.mktemp("run")
    tiny.save_llava(folder / "model")
    easy, pope = folder / "data" / "easy_vqa", folder / "data" / "pope"
    questions = [
        {
            "question_id": i,
            "image": f"test/images/{i % 6}.png",
            "text": f"what color is {'the big ' * (i % 5)}shape?",
            "answer": COLORS[i % 3],
            "category": "color",
        }
        for i in range(NUM_QUESTIONS)
    ]
    write_jsonl(easy / "test_questions.jsonl", questions)
    write_jsonl(easy / "train_questions.jsonl", questions[:4])
    (easy / "test" / "images").mkdir(parents=True)
    (pope / "val2014").mkdir(parents=True)
    for i in range(6):
        Image.new("RGB", (40 + 7 * i, 50), COLORS[i % 3]).save(easy / f"test/images/{i}.png")
    asked = []
    for category in ("random", "popular", "adversarial"):
        labels = [
            {"question_id": i + 1, "image": f"{i}.jpg", "text": f"Is there a {category}?", "label": label}
            for i, label in enumerate(("yes", "no"))
        ]
        write_jsonl(pope / f"coco/coco_pope_{category}.json", labels)
        for label in labels:
            asked.append({**label, "question_id": len(asked), "category": category})
            Image.new("RGB", (60, 40), "white").save(pope / "val2014" / label["image"])
    write_jsonl(
        pope / "llava_pope_test.jsonl", [{k: v for k, v in row.items() if k != "label"} for row in asked]
    )
    return folder


def flags(world, output, *more, tasks="easy_vqa"):
    return [
        *("--model-path", str(world / "model"), "--data-root", str(world / "data")),
        *("--tasks", tasks, "--output-dir", str(output), *more),
    ]


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    """The folder of a plain run of both tasks."""
    output = tmp_path_factory.mktemp("reference")
    assert main(flags(world, output, "--batch_size", "4", tasks="easy_vqa,pope")) == 0
    return output


def torchrun(world, output, *more) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*command, "-m", "llava.eval.run", *flags(world, output, *more)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def no_model(*args, **kwargs):
    raise AssertionError("the model was loaded")


def test_every_task_is_answered_scored_and_reported(world, reference):
    results = json.loads((reference / "results.json").read_text())["tasks"]
    assert [task["name"] for task in results] == ["easy_vqa", "pope"]
    easy = results[0]
    assert easy["questions"] == easy["timing"]["answers"] == NUM_QUESTIONS
    assert easy["visual_tokens"] == 9
    assert easy["settings"]["max_new_tokens"] == 8
    # in training, red is the answer twice, blue and teal once; in the test, each text has all colours equally
    assert easy["scores"]["table"]["baseline: most frequent answer"]["accuracy"]["value"] == pytest.approx(
        1 / 3
    )
    credits = [row["credit"] for row in read_jsonl(reference / "easy_vqa" / "credits.jsonl")]
    assert easy["scores"]["table"]["overall"]["accuracy"]["value"] == sum(credits) / NUM_QUESTIONS
    assert (reference / "report.html").is_file()
    assert "easy-VQA" in (reference / "report.md").read_text()


def test_two_processes_killed_and_one_resumed_lose_and_repeat_nothing(world, reference, tmp_path):
    own = tmp_path / "easy_vqa"
    parts = [own / "answers.jsonl", own / "answers.jsonl.part1"]
    process = torchrun(world, tmp_path, "--batch_size", "4")
    deadline = time.monotonic() + PATIENCE
    while (
        time.monotonic() < deadline
        and process.poll() is None
        and not all(p.exists() and p.stat().st_size > 1000 for p in parts)
    ):
        time.sleep(0.01)
    ranks.kill_tree(process.pid)
    process.communicate(timeout=PATIENCE)
    kept = [row["question_id"] for part in parts for row in read_jsonl(part)]
    assert 0 < len(kept) == len(set(kept)) < NUM_QUESTIONS

    assert main(flags(world, tmp_path, "--batch_size", "4")) == 0
    assert parts[0].read_bytes() == (reference / "easy_vqa" / "answers.jsonl").read_bytes()
    assert not parts[1].exists()
    timing = json.loads((own / "result.json").read_text())["timing"]
    assert timing["answers"] == NUM_QUESTIONS - len(kept)


def test_two_processes_give_the_answers_and_the_report_of_one(world, reference, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(world / "data", data)
    cut = data / "easy_vqa" / "test" / "images" / "5.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (data / "easy_vqa" / "test" / "images" / "4.png").unlink()
    more = ("--data-root", str(data), "--on_bad_record", "skip", "--batch_size", "4")
    process = torchrun(world, tmp_path / "out", *more)
    output, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, output
    assert output.count("0 answers kept, 60 questions left") == output.count("report: ") == 1
    rows = read_jsonl(reference / "easy_vqa" / "answers.jsonl")
    assert read_jsonl(tmp_path / "out" / "easy_vqa" / "answers.jsonl") == [
        row for row in rows if row["question_id"] % 6 < 4
    ]
    result = json.loads((tmp_path / "out" / "easy_vqa" / "result.json").read_text())
    assert sorted(question_id for question_id, _ in result["skipped"]) == [
        i for i in range(NUM_QUESTIONS) if i % 6 >= 4
    ]
    assert result["scores"]["table"]["overall"]["accuracy"]["total"] == 40
    assert result["versions"]["processes"] == "2"


def test_a_finished_run_loads_no_model_and_scores_anew(world, reference, tmp_path, monkeypatch, capsys):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "results.json").read_text()
    (tmp_path / "report.html").unlink()
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", no_model)
    assert main(flags(world, tmp_path, tasks="pope,easy_vqa")) == 0
    assert (tmp_path / "results.json").read_text() == before
    assert (tmp_path / "report.html").is_file()
    assert "60 answers kept, 0 questions left" in capsys.readouterr().out


def test_a_limit_asks_evenly_spaced_questions_and_says_so(world, tmp_path):
    assert main(flags(world, tmp_path, "--limit", "6")) == 0
    ids = [row["question_id"] for row in read_jsonl(tmp_path / "easy_vqa" / "answers.jsonl")]
    assert ids == [0, 10, 20, 30, 40, 50]
    assert "a sample: 6 questions" in (tmp_path / "report.md").read_text()


def test_a_servers_score_completes_the_published_row_until_answers_are_new(world, tmp_path, capsys):
    for build in (benchmarks.gqa, benchmarks.vqav2, benchmarks.vizwiz):
        build(tmp_path / "data")
    submitted = ("--server-score", "vqav2=76.3", "--server-score", "vizwiz=50")

    def table(*more) -> str:
        given = flags(world, tmp_path / "out", *more, tasks="gqa,vqav2,vizwiz")
        assert main([*given, "--data-root", str(tmp_path / "data")]) == 0
        return capsys.readouterr().out

    assert "| 9 | 0.0 | – | – | – | – |" in table()
    assert "| 9 | 0.0 | 50.0 | 76.3 | – | – |" in table(*submitted)
    assert "| 9 | 0.0 | 50.0 | 76.3 | – | – |" in table()
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {task["name"]: task["server_score"] for task in results["tasks"]} == {
        "gqa": None,
        "vizwiz": 50.0,
        "vqav2": 76.3,
    }
    (tmp_path / "out" / "vqav2" / "answers.jsonl").unlink()
    assert "| 9 | 0.0 | 50.0 | – | – | – |" in table()


@pytest.mark.parametrize("given", ["vqav2", "vqav2=", "vqav2=nan", "vqav2=101", "pope=87", "vqa=70"])
def test_a_servers_score_that_cannot_be_is_refused(given, capsys):
    with pytest.raises(SystemExit):
        parse_args(["--model-path", "m", "--tasks", "all", "--server-score", given])
    assert_names(
        capsys.readouterr().err.rpartition("error:")[2], "--server-score", "TASK=PERCENT", "vqav2, gqa"
    )


def test_a_servers_score_of_a_sample_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_args(["--model-path", "m", "--tasks", "all", "--limit", "3", "--server-score", "vqav2=70"])
    assert_names(capsys.readouterr().err.rpartition("error:")[2], "--limit", "--server-score")


def test_two_scale_factors_do_not_share_a_folder(world, reference, tmp_path, capsys):
    shutil.copytree(reference, tmp_path, dirs_exist_ok=True)
    assert main(flags(world, tmp_path, "--scale_factor", "3")) == 1
    assert re.search(r"scale_factor\D*2\D*3\D.*--output-dir", capsys.readouterr().err)


def test_missing_data_names_every_file_before_anything_starts(world, tmp_path, monkeypatch, capsys):
    shutil.copytree(world / "data", tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "pope" / "val2014")
    (tmp_path / "data" / "pope" / "coco" / "coco_pope_random.json").unlink()
    monkeypatch.setattr(llava.model.builder, "load_pretrained_model", no_model)
    more = ("--data-root", str(tmp_path / "data"))
    assert main(flags(world, tmp_path / "out", *more, tasks="easy_vqa,pope")) == 1
    error = capsys.readouterr().err
    assert_names(error, "2 file(s) are missing", "all their files: easy_vqa")
    assert re.search(rf"pope: {tmp_path}/data/pope/coco/coco_pope_random\.json .* https://", error)
    assert re.search(rf"pope: {tmp_path}/data/pope/val2014 .* unpack http://", error)


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (("--tasks", "gqqa"), ("--tasks: ", "gqqa", "easy_vqa")),
        (("--model-path", "nowhere"), ("--model-path nowhere ", "config.json")),
        (("--conv-mode", "qwen9"), ("--conv-mode", "qwen9", "vicuna_v1")),
        (("--server-score", "vqav2=70"), ("--server-score vqav2 ", "--tasks")),
        (("--temperature", "-1"), ("--temperature", "-1.0")),
    ],
)
def test_bad_flags_are_named(world, tmp_path, capsys, more, parts):
    assert main([*flags(world, tmp_path), *more]) == 1
    assert_names(capsys.readouterr().err, *parts)


def test_an_empty_question_file_is_named(world, tmp_path, capsys):
    shutil.copytree(world / "data" / "easy_vqa", tmp_path / "easy_vqa")
    (tmp_path / "easy_vqa" / "test_questions.jsonl").write_text("")
    assert main([*flags(world, tmp_path / "out"), "--data-root", str(tmp_path)]) == 1
    assert_names(capsys.readouterr().err, "test_questions.jsonl: ", "no questions")
