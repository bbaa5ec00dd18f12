"""The report's parts: their order, escaped texts, and the row for published results."""

import json

import pytest
from PIL import Image

from llava.errors import UserError
from llava.eval.metrics import Score
from llava.eval.report import (
    NUM_SHOWN,
    check_folder,
    pick_samples,
    published_table,
    read_results,
    scores_as_json,
    spaced,
    write_report,
    wrong_first,
)
from llava.eval.task import Scores

SETTINGS = {"scale_factor": 2, "conv_mode": "v1", "top_p": None}


def result(name, value=0.5, points=(), **more):
    scores = Scores(
        {"overall": {"m": Score(value, value - 0.1, value + 0.1, 8)}}, ("overall", "m"), {}, points
    )
    return {
        "name": name,
        "title": name.upper(),
        "model_id": "m",
        "model_path": "models/m",
        "settings": {**SETTINGS, "max_new_tokens": 16},
        "questions": 8,
        "limit": None,
        "skipped": [],
        "visual_tokens": 144.0,
        "timing": {"answers": 8, "seconds": 2.0},
        "versions": {"torch": "2"},
        "submission": [],
        "submit_to": "",
        "scores": scores_as_json(scores),
        "server_score": None,
        **more,
    }


def save(folder, result, samples=()):
    (folder / result["name"]).mkdir()
    (folder / result["name"] / "result.json").write_text(json.dumps(result))
    (folder / result["name"] / "samples.json").write_text(json.dumps(samples))


def test_wrong_answers_come_first_and_leave_room_for_right_ones():
    credits = [0.0, 1.0] * 50
    assert wrong_first(list(range(100)), credits, 8) == [0, 16, 32, 50, 66, 82, 1, 51]
    assert wrong_first([1, 2, 3], [1.0, 0.5, 1.0], 8) == [2, 1, 3]
    assert wrong_first([1, 2, 3], [None] * 3, 2) == [1, 2]


def test_spaced_rows_cover_the_whole():
    assert spaced(list(range(10)), 4) == [0, 2, 5, 7]
    assert spaced([1, 2], 4) == spaced([1, 2], None) == [1, 2]


def test_samples_hold_small_pictures_and_are_bounded(tmp_path):
    Image.new("RGB", (600, 200), "red").save(tmp_path / "wide.png")
    encoded = (tmp_path / "wide.png").read_bytes()
    rows = [
        {"question_id": i, "text": "q" * 9000, "image": ["wide.png", encoded], "answer": ["b", "a", "a"]}
        for i in range(NUM_SHOWN + 5)
    ]
    answers = [{"question_id": row["question_id"], "text": "no"} for row in rows]
    samples = pick_samples(rows, answers, {0: 1.0}, tmp_path)
    assert len(samples) == NUM_SHOWN
    assert len(json.dumps(samples)) < 60 * 6000
    assert samples[0]["expected"] == "a, b"
    assert [picture[:23] for picture in samples[0]["pictures"]] == ["data:image/jpeg;base64,"] * 2


def test_the_published_row_has_an_average_only_when_all_its_benchmarks_were_run():
    some = [result("gqa", 0.62), result("mmvet", 31.06, points=("m",))]
    assert published_table(some) == {
        "tokens": "144",
        "GQA": "62.0",
        "VizWiz": "–",
        "VQAv2": "–",
        "MM-Vet": "31.1",
        "average": "–",
    }
    rest = [result(name, 0.5) for name in ("vizwiz", "vqav2", "pope", "mmbench")]
    assert published_table(some + rest)["average"] == "48.8"  # (62 + 31.06 + 4 * 50) / 6


def test_a_servers_score_is_shown_as_such_and_goes_ahead_of_our_own(tmp_path):
    save(tmp_path, result("vqav2", scores=None, server_score=76.3))
    save(tmp_path, result("mmbench", 0.6, server_score=64.3))
    save(tmp_path, result("vizwiz", scores=None, server_score=0.0))
    rest = [result(name, 0.5) for name in ("gqa", "mmvet", "pope")]
    assert published_table(read_results(tmp_path) + rest)["average"] == "48.4"  # (76.3 + 64.3 + 3 * 50) / 6
    text = write_report(tmp_path)
    assert "VQAV2: 76.3 server, 8 questions" in text
    assert "| 144 | – | 0.0 | 76.3 | – | – |" in text
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| MMBENCH | 64.3 | – | server | 8 |" in markdown
    assert "60.0 [50.0, 70.0]" in markdown  # our own score is in the benchmark's section
    assert "76.3%" in page
    assert "VQAV2, server</span>" in page
    assert "Samples" not in markdown + page


def test_tokens_that_differ_between_benchmarks_are_given_as_a_range():
    several = [result("gqa", visual_tokens=432.4), result("pope", visual_tokens=144.0)]
    assert published_table(several)["tokens"] == "144 to 432"


def test_what_a_model_says_is_shown_as_text_and_not_run(tmp_path):
    said = "<script>alert(1)</script>"
    sample = {"question": "<b>?", "said": said, "expected": "a|b", "credit": 0.0, "pictures": []}
    skipped = [["<i>7", "no|image"]]
    save(tmp_path, result("gqa", skipped=skipped, submit_to="<u>server"), [sample])
    write_report(tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not any(tag in page for tag in ("<script", "<b>?", "<i>7", "<u>server"))
    assert "no\\|image" in (tmp_path / "report.md").read_text()


def test_the_pages_say_scores_intervals_tokens_times_versions_and_settings(tmp_path):
    save(tmp_path, result("gqa"))
    save(tmp_path, result("vqav2", scores=None, submission=["a.json"], submit_to="EvalAI", limit=8))
    lines = write_report(tmp_path)
    assert lines.splitlines() == [
        "GQA: 50.0 [40.0, 60.0] m, overall, 8 questions",
        "VQAV2: submit a.json to EvalAI",
        "| tokens | GQA | VizWiz | VQAv2 | MM-Vet | average |",
        "| --- | --- | --- | --- | --- | --- |",
        "| 144 | 50.0 | – | – | – | – |",
    ]
    markdown, page = (tmp_path / "report.md").read_text(), (tmp_path / "report.html").read_text()
    assert "| GQA | 50.0 | 40.0 to 60.0 | m, overall | 8 | 144 | 2.0 s | 4.0 |" in markdown
    assert "| VQAV2 | – | – | submission | 8, a sample | 144 |" in markdown
    assert "| 144 | 50.0 | – | – | – | – |" in markdown
    assert "- submission: a.json, for EvalAI" in markdown
    assert all("only on a sample of their questions" in text for text in (markdown, page))
    for text in (markdown, page):
        assert all(word in text for word in ("scale_factor", "torch", "4.0"))
        assert "top_p" not in text  # it was not set
    assert [task["name"] for task in json.loads((tmp_path / "results.json").read_text())["tasks"]] == [
        "gqa",
        "vqav2",
    ]


def test_results_of_another_model_are_not_joined_with_these(tmp_path):
    save(tmp_path, result("gqa"))
    assert len(read_results(tmp_path)) == 1
    check_folder(tmp_path, "m", SETTINGS)
    with pytest.raises(ValueError, match=r"scale_factor.*2.*3.*--output-dir"):
        check_folder(tmp_path, "m", {**SETTINGS, "scale_factor": 3})


def test_results_of_a_version_that_recorded_no_dtype_are_joined_and_of_another_dtype_not(tmp_path):
    now = {**SETTINGS, "bits": None, "attn_implementation": None, "dtype": "bf16"}
    save(tmp_path, result("gqa"))
    check_folder(tmp_path, "m", now)
    with pytest.raises(ValueError, match="attn_implementation.*None.*'eager'"):
        check_folder(tmp_path, "m", {**now, "attn_implementation": "eager"})
    save(tmp_path, result("pope", settings=now))
    check_folder(tmp_path, "m", now)
    with pytest.raises(ValueError, match=r"pope .*dtype.*'bf16'.*'fp16'"):
        check_folder(tmp_path, "m", {**now, "dtype": "fp16"})


@pytest.mark.parametrize("pair", [[3], [3, None], [3, 4], [3, ["no image"]], [3, "no image", 5]])
def test_a_question_that_was_left_out_has_its_reason_in_words(tmp_path, pair):
    save(tmp_path, result("gqa", skipped=[[1, "no image"], pair]))
    with pytest.raises(UserError, match=r"gqa.result\.json"):
        read_results(tmp_path)
