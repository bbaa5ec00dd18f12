"""Stored prompt lengths: a resumed run makes the same batches and tokenises only the questions left."""

from types import SimpleNamespace

import pytest

from llava.errors import UserError
from llava.eval.generation import split_batches
from llava.eval.lengths import Length, LengthFile, lengths_of, measure
from llava.eval.records import key_of

ALONE = SimpleNamespace(process_index=0, num_processes=1, is_main_process=True)
QUESTIONS = [{"question_id": i, "text": "x" * (7 * i % 50 + 1), "image": f"{i}.png"} for i in range(50)]
SETTINGS = {"weights": "a"}
KEPT = {key_of(question) for question in QUESTIONS if question["question_id"] % 10}


class Maker:
    """A stand-in for PromptMaker: a letter gives one id, and an image gives nine positions."""

    def __init__(self, cannot_ask=()):
        self.asked, self.cannot_ask = [], cannot_ask

    def __call__(self, questions):
        self.asked += [question["question_id"] for question in questions]
        return [
            UserError("no such image")
            if question["question_id"] in self.cannot_ask
            else SimpleNamespace(input_ids=question["text"], length=len(question["text"]) + 8)
            for question in questions
        ]


@pytest.fixture
def measured(tmp_path):
    def call(kept=frozenset(), questions=QUESTIONS, settings=SETTINGS, cannot_ask=()):
        """Returns the lengths, the questions that were tokenised, and those that were refused."""
        maker, refused = Maker(cannot_ask), []
        file = LengthFile(tmp_path / "a.jsonl", questions, settings)
        lengths = measure(
            questions, file, set(kept), maker, lambda one, _: refused.append(one["question_id"]), ALONE
        )
        return lengths, maker.asked, refused

    return call


def test_a_resumed_run_tokenises_only_what_is_left_and_makes_the_same_batches(measured):
    first, asked, _ = measured()
    assert asked == list(range(50))
    again, asked, _ = measured(KEPT)
    assert asked == [0, 10, 20, 30, 40]
    assert again == first
    assert split_batches(again, None, 200, 10) == split_batches(first, None, 200, 10)


def test_lengths_count_ids_and_positions_the_longest_first(measured):
    lengths, _, _ = measured()
    assert lengths[0] == Length(7, 50, 58)
    assert [one.length for one in lengths] == sorted((one.length for one in lengths), reverse=True)


@pytest.mark.parametrize(
    "change",
    [
        {"settings": {"weights": "b"}},
        {"questions": [*QUESTIONS[:-1], {**QUESTIONS[-1], "text": "another"}]},
        {"questions": [*QUESTIONS[:-1], {**QUESTIONS[-1], "image": "another.png"}]},
        {"questions": QUESTIONS[::-1]},
    ],
)
def test_lengths_of_other_questions_or_settings_are_not_taken(measured, change):
    measured()
    _, asked, _ = measured(KEPT, **change)
    assert len(asked) == 50


@pytest.mark.parametrize("content", [b"", b'{"of": "', b"[]", b'{"of": "another"}', b"\xff"])
def test_a_damaged_file_of_lengths_is_made_anew(measured, tmp_path, content):
    first, _, _ = measured()
    whole = lengths_of(tmp_path / "a.jsonl").read_bytes()
    lengths_of(tmp_path / "a.jsonl").write_bytes(content)
    again, asked, _ = measured(KEPT)
    assert (again, len(asked)) == (first, 50)
    assert lengths_of(tmp_path / "a.jsonl").read_bytes() == whole


def test_a_question_that_cannot_be_asked_is_refused_again_by_each_run(measured):
    for _ in range(2):
        lengths, _, refused = measured(KEPT, cannot_ask=[10, 11])
        assert refused == [10, 11]
        assert {10, 11}.isdisjoint(one.place for one in lengths)
