"""The quick start's report, made from an invented run folder."""

import json
import re

import pytest
from PIL import Image

from llava.eval.page import clock
from llava.eval.quickstart_report import main, read_steps, token_counts, write_report

QUESTIONS = [
    {
        "question_id": i,
        "image": f"test/images/{i}.png",
        "text": "what color?",
        "answer": "red",
        "category": "color",
    }
    for i in range(20)
]


def cell(correct: int, total: int) -> dict:
    share = correct / total
    return {"correct": correct, "total": total, "accuracy": share, "low": share - 0.05, "high": share + 0.05}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def run(tmp_path):
    """Writes a complete run folder and its image folder."""
    run_dir, images = tmp_path / "run", tmp_path / "images"
    for stage in ("stage1", "stage2"):
        (run_dir / stage).mkdir(parents=True)
        history = [{"step": step, "loss": 4 / step, "learning_rate": 1e-3} for step in (1, 2, 3)]
        state = {"log_history": [*history, {"step": 3, "train_runtime": 1.0}]}
        (run_dir / stage / "trainer_state.json").write_text(json.dumps(state))
    config = {
        "mm_vision_image_size": 168,
        "mm_vision_config": {"patch_size": 14, "image_size": 518},
        "scale_factor": 2,
        "mm_projector_type": "visualprism",
    }
    (run_dir / "stage2" / "config.json").write_text(json.dumps(config))
    shares = {"model": 12, "question_only": 5, "majority": 4}
    scores = {key: {c: cell(n, 20) for c in ("overall", "color", "shape")} for key, n in shares.items()}
    (run_dir / "scores.json").write_text(json.dumps(scores))
    write_jsonl(run_dir / "questions.jsonl", QUESTIONS)
    write_jsonl(
        run_dir / "answers.jsonl",
        [
            {"question_id": q["question_id"], "text": "<b>blue|\n" if q["question_id"] else "red"}
            for q in QUESTIONS
        ],
    )
    (run_dir / "times.tsv").write_text("fetch\t20\t\t0\nstage1\t40.0\t1024\t130\nstage1\t65.0\t3072\t0\n")
    (run_dir / "settings.txt").write_text("IMAGE_SIZE=168\nPRECISION=fp32\n")
    (run_dir / "heatmap" / "photograph").mkdir(parents=True)
    Image.new("RGB", (8, 4)).save(run_dir / "heatmap" / "photograph" / "heatmap_layer29.png")
    (images / "test" / "images").mkdir(parents=True)
    for question in QUESTIONS:
        Image.new("RGB", (4, 4), "red").save(images / question["image"])
    return run_dir, images


def test_report_says_accuracy_with_interval_counts_and_baselines(run):
    markdown, _ = write_report(*run)
    text = markdown.read_text()
    assert text.startswith("# Quick start: 60.0% of open questions right")
    assert "interval 55.0 to 65.0), +35.0 points more" in text
    assert "| VisualPrism | 60.0% [55.0, 65.0] 12/20 |" in text
    assert "| question only | 25.0% [20.0, 30.0] 5/20 |" in text
    assert "| most frequent answer | 20.0% [15.0, 25.0] 4/20 |" in text
    assert "| 168 px | 12x12 | 144 | 2 | 36 | visualprism |" in text
    assert "(heatmap/photograph/heatmap_layer29.png)" in text


def test_report_page_is_one_file_and_shows_answers_as_text(run):
    run_dir, _ = run
    _, page = write_report(*run)
    html = page.read_text(encoding="utf-8")
    sources = re.findall(r'src="([^"]*)"', html)
    assert len(sources) == 1 + 1 + 8  # the losses, the heatmap, the samples
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert "http" not in html
    assert "<b>blue" not in html
    assert "&lt;b&gt;blue" in html
    assert (run_dir / "loss.png").stat().st_size > 5000


def test_report_table_survives_what_a_model_says(run):
    text = write_report(*run)[0].read_text()
    assert r"| what color? | <b>blue\| | red |" in text


def test_times_of_a_resumed_step_add_up(run):
    steps = {step.name: step for step in read_steps(run[0] / "times.tsv")}
    assert steps["stage1"].seconds == 105.0
    assert steps["stage1"].peak_mib == 3072
    assert steps["fetch"].peak_mib is None
    assert "| stage1 | 1 min 45 s | 3.00 GiB |" in write_report(*run)[0].read_text()


def test_token_counts_fall_back_on_the_towers_own_image_size():
    config = {
        "mm_vision_image_size": None,
        "mm_vision_config": {"patch_size": 14, "image_size": 336},
        "scale_factor": 4,
        "mm_projector_type": "visualprism",
    }
    counts = token_counts(config)
    assert (counts["grid"], counts["patches"], counts["tokens"]) == (24, 576, 36)


@pytest.mark.parametrize("name", ["scores.json", "answers.jsonl", "times.tsv", "stage1/trainer_state.json"])
def test_report_names_the_file_that_is_missing(run, name):
    run_dir, images = run
    (run_dir / name).unlink()
    with pytest.raises(SystemExit, match=rf"{re.escape(name)} does not exist.*scripts/quickstart\.sh"):
        main(["--run_dir", str(run_dir), "--image_folder", str(images)])


def test_report_names_the_file_that_is_damaged(run):
    (run[0] / "scores.json").write_text('{"model"')
    with pytest.raises(SystemExit, match=r"scores\.json.*not JSON"):
        main(["--run_dir", str(run[0])])


def test_clock_reads_seconds_and_minutes():
    assert [clock(seconds) for seconds in (3.14, 60, 185.9, 3600)] == [
        "3.1 s",
        "1 min 00 s",
        "3 min 05 s",
        "60 min 00 s",
    ]
