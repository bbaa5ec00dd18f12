"""Question and answer files: chunks, resuming, and refusing answers with other settings."""

import gc
import json
from itertools import chain

import pytest

from llava.eval.records import (
    AnswerFile,
    check_questions,
    get_chunk,
    load_questions,
    model_fingerprint,
    read_jsonl,
    texts_by_id,
)

QUESTIONS = [{"question_id": i, "text": f"Q{i}?", "image": "a.png"} for i in range(4)]
SETTINGS = {"conv_mode": "vicuna_v1", "temperature": 0.0}


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 6, 11])
def test_chunks_join_to_the_whole_and_are_of_even_size(num_chunks):
    rows = list(range(10))
    chunks = [get_chunk(rows, num_chunks, i) for i in range(num_chunks)]
    assert list(chain(*chunks)) == rows
    assert max(map(len, chunks)) - min(map(len, chunks)) <= 1


@pytest.mark.parametrize("index", [-1, 3])
def test_chunk_index_outside_the_chunks_is_refused(index):
    with pytest.raises(ValueError, match=r"--chunk-idx.*0\.\.2"):
        get_chunk([1, 2, 3], 3, index)


def test_duplicate_question_ids_are_named(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", [*QUESTIONS, QUESTIONS[2]])
    with pytest.raises(ValueError, match=r"q\.jsonl: question_id 2.*more than once"):
        load_questions(path)


def test_a_line_that_is_not_json_is_named(tmp_path):
    path = tmp_path / "q.jsonl"
    path.write_text('{"question_id": 1, "text": "a"}\n{"question_id"\n')
    with pytest.raises(ValueError, match=r"q\.jsonl, line 2.*not JSON"):
        load_questions(path)


def test_a_question_without_text_is_named(tmp_path):
    with pytest.raises(ValueError, match="question 1: needs"):
        load_questions(write_jsonl(tmp_path / "q.jsonl", [{"question_id": 1}]))


def open_file(tmp_path, questions=QUESTIONS, model_id="m", **settings):
    return AnswerFile(tmp_path / "new" / "a.jsonl", questions, model_id, {**SETTINGS, **settings})


def test_answers_are_on_disk_as_they_come_and_survive_reopening(tmp_path):
    answers = open_file(tmp_path)
    answers.append(QUESTIONS[3], "three")
    row = json.loads(answers.path.read_text())
    assert (row["question_id"], row["prompt"], row["text"], row["model_id"]) == (3, "Q3?", "three", "m")
    assert row["metadata"] == SETTINGS
    assert list(open_file(tmp_path).answered) == [(3, "Q3?")]


def test_a_cut_off_last_line_is_dropped_and_asked_again(tmp_path):
    answers = open_file(tmp_path)
    answers.append(QUESTIONS[0], "zero")
    answers.append(QUESTIONS[1], "one")
    content = answers.path.read_bytes()
    answers.path.write_bytes(content[:-7])
    again = open_file(tmp_path)
    assert list(again.answered) == [(0, "Q0?")]
    again.append(QUESTIONS[1], "one")
    assert again.path.read_bytes() == content


def test_the_finished_file_is_in_question_order_with_each_question_once(tmp_path):
    answers = open_file(tmp_path)
    for i in (2, 0, 3, 1):
        answers.append(QUESTIONS[i], str(i))
    answers.finish()
    assert [json.loads(line)["question_id"] for line in answers.path.read_text().splitlines()] == [0, 1, 2, 3]
    assert [path.name for path in answers.path.parent.iterdir()] == ["a.jsonl"]


def test_an_opened_file_keeps_texts_and_places_but_no_rows(tmp_path):
    questions = [{"question_id": i, "text": f"Q{i}?"} for i in range(200)]
    file = open_file(tmp_path, questions)
    for question in questions:
        file.append(question, "said")

    def num_dicts() -> int:
        gc.collect()
        return sum(type(one) is dict for one in gc.get_objects())

    before = num_dicts()
    again = open_file(tmp_path, questions)
    assert num_dicts() - before < 20
    content = again.path.read_bytes().splitlines(keepends=True)
    for kept, line in zip(again.answered.values(), content, strict=True):
        assert (kept.text, kept.size) == ("said", len(line))
    assert all(key[1] is question["text"] for key, question in zip(again.answered, questions, strict=True))


def test_finishing_copies_rows_and_parses_none(tmp_path, monkeypatch):
    answers = open_file(tmp_path)
    for i in (2, 0, 3, 1):
        answers.append(QUESTIONS[i], "größer" * i)
    lines = answers.path.read_bytes().splitlines(keepends=True)
    monkeypatch.setattr("llava.eval.json_files.parse", None)
    monkeypatch.setattr("llava.eval.records.json", None)
    answers.finish()
    assert answers.path.read_bytes() == lines[1] + lines[3] + lines[0] + lines[2]
    answers.finish()  # it finds the rows at their present places
    assert answers.path.read_bytes() == lines[1] + lines[3] + lines[0] + lines[2]


def test_a_file_that_is_no_answers_file_is_left_alone(tmp_path):
    path = tmp_path / "new" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("my notes, without a line end")
    with pytest.raises(ValueError, match="not a line.*answers file"):
        open_file(tmp_path)
    assert path.read_text() == "my notes, without a line end"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_id": "other"}, "model_id.*'m'.*'other'"),
        ({"temperature": 0.2}, r"temperature.*0\.0.*0\.2"),
        ({"conv_mode": "plain"}, "conv_mode.*'vicuna_v1'.*'plain'"),
        ({"questions": QUESTIONS[1:]}, "question 0.*question file"),
        ({"questions": [{**QUESTIONS[0], "text": "else?"}]}, "question 0.*text"),
    ],
)
def test_answers_made_otherwise_are_never_mixed_in(tmp_path, change, message):
    open_file(tmp_path).append(QUESTIONS[0], "zero")
    before = (tmp_path / "new" / "a.jsonl").read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        open_file(tmp_path, **change)
    assert "--answers-file" in str(error.value)
    assert (tmp_path / "new" / "a.jsonl").read_bytes() == before


def test_a_fingerprint_tells_two_trainings_of_one_shape_apart(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(50_000))
    first = model_fingerprint(tmp_path)
    assert model_fingerprint(tmp_path) == first
    weights.write_bytes(bytes([1]) * 50_000)
    assert model_fingerprint(tmp_path) != first


def test_answers_of_several_processes_are_read_by_any_number_and_become_one_file(tmp_path):
    for process, i in ((0, 3), (1, 1), (2, 0)):
        answers = AnswerFile(tmp_path / "a.jsonl", QUESTIONS, "m", SETTINGS, process)
        answers.append(QUESTIONS[i], f"by {process}")
    part = tmp_path / "a.jsonl.part2"
    part.write_bytes(part.read_bytes()[:-5])  # killed while it was writing

    again = AnswerFile(tmp_path / "a.jsonl", QUESTIONS, "m", SETTINGS)
    assert set(again.answered) == {(3, "Q3?"), (1, "Q1?")}
    again.append(QUESTIONS[0], "again")
    again.append(QUESTIONS[2], "new")
    again.finish()
    rows = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert [(row["question_id"], row["text"]) for row in rows] == [
        (0, "again"),
        (1, "by 1"),
        (2, "new"),
        (3, "by 0"),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_kill_while_parts_are_joined_repeats_no_answer(tmp_path):
    open_file(tmp_path).append(QUESTIONS[0], "zero")
    path = tmp_path / "new" / "a.jsonl"
    path.with_name("a.jsonl.part1").write_bytes(path.read_bytes())
    answers = open_file(tmp_path)
    answers.finish()
    assert len(path.read_text().splitlines()) == 1


def test_two_different_answers_to_a_question_are_refused(tmp_path):
    answers = open_file(tmp_path)
    answers.append(QUESTIONS[0], "zero")
    answers.append(QUESTIONS[0], "nought")
    with pytest.raises(ValueError, match="second.* question 0"):
        open_file(tmp_path)


def test_one_id_may_have_several_texts_in_a_question_file_but_not_in_a_benchmark(tmp_path):
    rows = [{"question_id": "image 7", "text": text} for text in ("brand?", "year?")]
    assert load_questions(write_jsonl(tmp_path / "q.jsonl", rows)) == rows
    answers = open_file(tmp_path, questions=rows)
    for row in rows:
        answers.append(row, row["text"])
    answers.finish()
    assert len(open_file(tmp_path, questions=rows).answered) == 2
    with pytest.raises(ValueError, match="textvqa: question_id image 7.*more than once"):
        check_questions(rows, "textvqa")


def test_an_empty_question_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"q\.jsonl: .*no questions"):
        load_questions(write_jsonl(tmp_path / "q.jsonl", []))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 1, 2], "question 3.*no answer"),
        ([0, 1, 2, 3, 3], "question 3.*more than once.*answers"),
        ([0, 1, 2, 3, 9], "question 9.*answered"),
    ],
)
def test_answers_that_do_not_pair_with_the_questions_are_refused(ids, message):
    with pytest.raises(ValueError, match=message):
        texts_by_id(QUESTIONS, [{"question_id": i, "text": ""} for i in ids])


def test_answers_pair_with_questions_in_any_order():
    rows = [{"question_id": i, "text": str(i)} for i in (2, 0, 3, 1)]
    assert list(texts_by_id(QUESTIONS, rows).items()) == [(0, "0"), (1, "1"), (2, "2"), (3, "3")]


HALF = "cut \ude00 off"


def test_half_a_character_in_a_question_is_asked_and_written_as_the_replacement_character(tmp_path):
    asked = [{"question_id": HALF, "text": HALF, "answer_fields": {"options": [HALF]}}, *QUESTIONS]
    questions = load_questions(write_jsonl(tmp_path / "q.jsonl", asked))
    assert (questions[0]["question_id"], questions[0]["text"]) == ("cut \ufffd off", "cut \ufffd off")
    file = open_file(tmp_path, questions)
    file.append(questions[0], HALF)
    resumed = open_file(tmp_path, questions)
    resumed.finish()
    (row,) = read_jsonl(resumed.path)
    assert [row["question_id"], row["prompt"], row["text"], *row["options"]] == ["cut \ufffd off"] * 4
    whole = {"question_id": 1, "text": "\U0001f600", "image": "a"}
    assert load_questions(write_jsonl(tmp_path / "q.jsonl", [whole])) == [whole]


def test_rows_that_are_made_without_a_question_file_are_kept_under_the_text_that_is_written(tmp_path):
    questions = [{"question_id": 1, "text": HALF}]
    open_file(tmp_path, questions).append(questions[0], "A.")
    assert len(open_file(tmp_path, questions).answered) == 1


def test_question_and_answer_files_may_start_with_a_byte_order_mark(tmp_path):
    path = write_jsonl(tmp_path / "q.jsonl", QUESTIONS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_questions(path) == QUESTIONS
    file = open_file(tmp_path)
    file.append(QUESTIONS[0], "A.")
    file.path.write_bytes(b"\xef\xbb\xbf" + file.path.read_bytes())
    assert len(open_file(tmp_path).answered) == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (
            '{"question_id": 1}'.encode("utf-16"),
            "UTF-16.*UTF-8",
        ),
        ('{"question_id": 1}'.encode("utf-16-be"), "UTF-16"),
        ('{"question_id": "é"}'.encode("latin-1"), ".*: not UTF-8"),
        (b"\x1f\x8b\x08\x00", "gzip.*UTF-8.*gunzip"),
        (b"PK\x03\x04", "zip archive"),
    ],
)
def test_a_question_file_that_is_no_utf_8_is_named_with_the_remedy(tmp_path, content, says):
    (tmp_path / "q.jsonl").write_bytes(content)
    with pytest.raises(ValueError, match=rf"q\.jsonl.* ?{says}"):
        load_questions(tmp_path / "q.jsonl")


def test_a_folder_or_no_file_in_place_of_questions_is_named(tmp_path):
    for path, says in (
        (tmp_path, "is a folder"),
        (tmp_path / "no", "no such file"),
        ("a\0b", "cannot be opened"),
    ):
        with pytest.raises(ValueError, match=says):
            load_questions(path)


NOW = {
    **SETTINGS,
    "bits": None,
    "attn_implementation": None,
    "dtype": "bf16",
}  # as Session records them now; SETTINGS: as it did in an earlier version


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "fp16"}, "dtype.*'bf16'.*'fp16'"),
        ({"attn_implementation": "eager"}, "attn_implementation.*None.*'eager'"),
        ({"bits": 4}, "bits.*None.*4"),
    ],
)
def test_answers_in_another_dtype_or_by_another_attention_are_not_mixed_in(tmp_path, change, message):
    open_file(tmp_path, **NOW).append(QUESTIONS[0], "zero")
    assert len(open_file(tmp_path, **NOW).answered) == 1
    with pytest.raises(ValueError, match=message):
        open_file(tmp_path, **{**NOW, **change})


def test_answers_of_a_version_that_recorded_no_dtype_are_kept_and_claim_none(tmp_path):
    open_file(tmp_path).append(QUESTIONS[0], "zero")
    answers = open_file(tmp_path, **NOW)
    (note,) = answers.notes
    assert "1 answers of an earlier version do not record their dtype" in note
    assert "bf16 (--dtype)" in note
    answers.append(QUESTIONS[1], "one")
    answers.finish()
    assert "dtype" not in answers.recorded
    again = open_file(tmp_path, **NOW)
    dtypes = [row["metadata"].get("dtype", "not recorded") for row in read_jsonl(again.path)]
    assert dtypes == ["not recorded", "bf16"]
    assert "dtype" not in again.recorded
    with pytest.raises(ValueError, match="attn_implementation.*None.*'eager'"):
        open_file(
            tmp_path, **{**NOW, "attn_implementation": "eager"}
        )  # the earlier version had no flag for it
    with pytest.raises(ValueError, match="bits.*None.*8"):
        open_file(tmp_path, **{**NOW, "bits": 8})
    with pytest.raises(ValueError, match=r"line 2: .*dtype was 'bf16', now 'fp32'"):
        open_file(tmp_path, **{**NOW, "dtype": "fp32"})


def test_a_complete_file_of_such_a_version_is_scored_without_a_word(tmp_path):
    answers = open_file(tmp_path)
    for question in QUESTIONS:
        answers.append(question, "said")
    again = open_file(tmp_path, **NOW)
    assert (len(again.answered), again.notes) == (len(QUESTIONS), [])
    assert open_file(tmp_path, questions=QUESTIONS, **NOW).recorded == {
        **SETTINGS,
        "bits": None,
        "attn_implementation": None,
    }
