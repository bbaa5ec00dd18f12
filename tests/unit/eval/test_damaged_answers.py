"""Answers files damaged by a power cut, a bad disk or an editor: the error, and how to keep the rest."""

import json
import re
import subprocess

import pytest

from llava.eval.judge import Judge
from llava.eval.records import AnswerFile, load_questions, read_jsonl

QUESTIONS = [{"question_id": i, "text": f"Größe {i}?"} for i in range(200)]
SETTINGS = {"conv_mode": "vicuna_v1"}
NUM_GOOD = 150  # lines before the damage


def open_file(path):
    return AnswerFile(path, QUESTIONS, "m", SETTINGS)


def changed(row: dict, **changes) -> bytes:
    row = {key: value for key, value in {**row, **changes}.items() if value is not ...}
    return json.dumps(row).encode() + b"\n"


# Functions from an answer row to its damaged form, with the expected problem
DAMAGES = {
    "binary": (lambda row: b"\x89PNG\r\x1a\xff\xfe\n", "not UTF-8"),
    "latin-1": (lambda row: json.dumps(row, ensure_ascii=False).encode("latin-1") + b"\n", "not UTF-8"),
    "NULs instead of a line": (lambda row: bytes(4096) + b"\n", "NUL bytes"),
    "NULs in a line": (lambda row: changed(row).replace(b'"text"', bytes(6)), "NUL bytes"),
    "a cut line": (lambda row: changed(row)[:40] + b"\n", "not JSON"),
    "two rows in a line": (lambda row: changed(row)[:-1] + changed(row), "not JSON"),
    "text": (lambda row: b"Traceback (most recent call last):\n", "not JSON"),
    "a number without end": (lambda row: b"9" * 5000 + b"\n", "JSON that cannot"),
    "brackets without end": (lambda row: b"[" * 100_000 + b"\n", "JSON that cannot"),
    "a list": (lambda row: b"[1, 2]\n", "expected a JSON object, got list"),
    "null": (lambda row: b"null\n", "expected a JSON object, got NoneType"),
    "no id": (lambda row: changed(row, question_id=...), 'needs "question_id"'),
    "no text": (lambda row: changed(row, text=...), 'needs "text"'),
    "no prompt": (lambda row: changed(row, prompt=...), 'needs "prompt"'),
    "a list for an id": (lambda row: changed(row, question_id=[1]), '"question_id" is a list'),
    "an object for an id": (lambda row: changed(row, question_id={}), '"question_id" is an object'),
    "true for an id": (lambda row: changed(row, question_id=True), '"question_id" is true or false'),
    "null for an id": (lambda row: changed(row, question_id=None), '"question_id" is null'),
    "NaN for an id": (lambda row: changed(row, question_id=float("nan")), '"question_id" is'),
    "a string for a number": (lambda row: changed(row, question_id="160"), "answers question '160', which"),
    "an unknown id": (lambda row: changed(row, question_id=999), "answers question 999, which is not in"),
    "a number for a text": (lambda row: changed(row, text=5), '"text" is a whole number, expected a string'),
    "null for a text": (lambda row: changed(row, text=None), '"text" is null, expected a string'),
    "a list for a prompt": (lambda row: changed(row, prompt=["?"]), '"prompt" is a list'),
    "a string for the settings": (lambda row: changed(row, metadata="v1"), '"metadata" is a string'),
    "no settings": (lambda row: changed(row, metadata=...), "conv_mode was None, now 'vicuna_v1'"),
    "another prompt": (lambda row: changed(row, prompt="else?"), "question 160, whose text was different"),
    "another answer": (
        lambda row: changed(row, question_id=3, prompt="Größe 3?", text="else"),
        "a second and different answer to question 3",
    ),
}


@pytest.fixture
def answers(tmp_path):
    """An answers file with NUM_GOOD rows, in a folder with a space in its name, and one more row."""
    path = tmp_path / "my run" / "a.jsonl"
    file = open_file(path)
    for question in QUESTIONS[:NUM_GOOD]:
        file.append(question, "ja, groß")
    last = json.loads(path.read_text().splitlines()[-1])
    return path, last | {"question_id": 160, "prompt": "Größe 160?"}


@pytest.mark.parametrize("goes_on", [False, True], ids=["at the end", "in the middle"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_line_is_named_with_its_byte_and_what_keeps_the_lines_before_it(answers, damage, goes_on):
    path, row = answers
    damaged, problem = DAMAGES[damage]
    content = path.read_bytes()
    after = changed(row, question_id=170, prompt="Größe 170?") if goes_on else b""
    path.write_bytes(content + damaged(row) + after)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}, line {NUM_GOOD + 1}: ") as error:
        open_file(path)
    message = str(error.value)
    assert problem in message
    byte = int(re.search(r"byte (\d+) of the file", message)[1])
    assert len(content) <= byte < len(content) + len(damaged(row))
    assert f"sed -i {NUM_GOOD + 1}d" in message or not goes_on

    subprocess.run(re.search(r"head -n [^;]*", message)[0], shell=True, check=True)
    assert path.read_bytes() == content
    assert len(open_file(path).answered) == NUM_GOOD


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage != "another answer"])
def test_damage_in_the_first_line_asks_for_another_file_for_no_line_is_worth_keeping(
    tmp_path, answers, damage
):
    _, row = answers
    (tmp_path / "b.jsonl").write_bytes(DAMAGES[damage][0](row) + changed(row))
    with pytest.raises(ValueError, match=r"b\.jsonl, line 1: .*--answers-file") as error:
        open_file(tmp_path / "b.jsonl")
    assert "head -n" not in str(error.value)


def test_one_line_alone_can_be_removed_from_the_middle(answers):
    path, row = answers
    content = path.read_bytes()
    path.write_bytes(content + b"\xff\n" + changed(row))
    with pytest.raises(ValueError, match=f"line {NUM_GOOD + 1}: not UTF-8") as error:
        open_file(path)
    subprocess.run(re.search(r"sed -i [^;]*", str(error.value))[0], shell=True, check=True)
    assert path.read_bytes() == content + changed(row)


@pytest.mark.parametrize("begun", [0, 1, 30])
@pytest.mark.parametrize("num_nuls", [1, 5000])
def test_nul_bytes_behind_the_last_line_are_cut_off_and_said(answers, begun, num_nuls):
    path, row = answers
    content = path.read_bytes()
    path.write_bytes(content + changed(row)[:begun] + bytes(num_nuls))
    file = open_file(path)
    assert len(file.answered) == NUM_GOOD
    (note,) = file.notes
    assert note.startswith(f"{path}: {begun + num_nuls} bytes after the last complete line are removed")
    file.append(QUESTIONS[160], "neu")
    assert path.read_bytes().startswith(content + b'{"question_id": 160,')
    assert b"\0" not in path.read_bytes()
    assert open_file(path).notes == []


def test_nul_bytes_in_the_file_of_another_process_are_left_out_of_the_finished_file(answers):
    path, row = answers
    path.with_name("a.jsonl.part1").write_bytes(changed(row) + bytes(100))
    file = open_file(path)
    assert len(file.notes) == 1
    file.finish()
    assert len(read_jsonl(path)) == NUM_GOOD + 1


def test_a_line_that_a_kill_cut_is_left_out_without_a_word(answers):
    path, row = answers
    path.write_bytes(path.read_bytes() + changed(row)[:-9])
    file = open_file(path)
    assert (len(file.answered), file.notes) == (NUM_GOOD, [])


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", bytes(4096)])
def test_a_file_without_rows_is_begun_anew(tmp_path, content):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    file = open_file(path)
    assert file.answered == {}
    file.append(QUESTIONS[0], "zero")
    file.finish()
    assert len(read_jsonl(path)) == 1


def test_a_byte_order_mark_is_no_damage(answers):
    path, _ = answers
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    file = open_file(path)
    file.append(QUESTIONS[160], "new")
    assert len(open_file(path).answered) == NUM_GOOD + 1


def test_opening_says_the_same_of_a_question_file(tmp_path):
    path = tmp_path / "q.jsonl"
    good = "".join(json.dumps(question) + "\n" for question in QUESTIONS[:7]).encode()
    for bad, problem in (
        (b"\xff\n", "not UTF-8"),
        (bytes(9), "contains NUL bytes"),
        (b'{"question_id": [7], "text": "?"}\n', 'question 8: "question_id" is a list'),
        (b'{"question_id": 7, "text": "?", "image": 5}\n', 'question 8: "image" is a whole'),
        (b'{"question_id": 7, "text": "?", "image": ["a.png", null]}\n', 'question 8: "image" is a list'),
    ):
        path.write_bytes(good + bad)
        with pytest.raises(ValueError, match=rf"q\.jsonl, line 8: {problem}.*byte {len(good)}"):
            load_questions(path)
    path.write_bytes(b"\xef\xbb\xbf" + good)
    assert load_questions(path) == QUESTIONS[:7]


def test_a_judges_replies_that_are_damaged_are_named_and_a_cut_end_is_removed(tmp_path, capsys):
    memory = tmp_path / "judge.jsonl"
    rows = b"".join(
        json.dumps({"key": str(i), "prompt": "?", "reply": "5 5"}).encode() + b"\n" for i in range(3)
    )

    def judge():
        return Judge("http://localhost:1", "j", "NO_KEY", memory)

    for end in (b"", b'{"key": "3", "pro', bytes(50)):
        memory.write_bytes(rows + end)
        assert len(judge().replies) == 3
        assert memory.read_bytes() == rows
        assert ("50 bytes" in capsys.readouterr().out) == (end == bytes(50))
    for bad in (b"\xff\n", b"[]\n", b'{"key": "3"}\n', b'{"key": "3", "reply": null}\n', b"notes"):
        memory.write_bytes(rows + bad)
        with pytest.raises(ValueError, match=r"judge\.jsonl, line 4: .*head -n 3 "):
            judge()
