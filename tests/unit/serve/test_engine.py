"""The queue before the model, without HTTP: batches, streams, and freed places."""

import threading
from dataclasses import replace
from queue import Queue

import pytest
import tiny
import torch
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import question_prompt, template_named
from llava.decoding import Decoding, Stopping, TextStream
from llava.errors import UserError
from llava.inference import load_model
from llava.serve.engine import Engine, QueueFull, ShuttingDown

TEMPLATE = template_named("vicuna_v1")
WORDS = ["what colour is the circle?", "is it blue?", "the answer", "red or blue, what is the triangle?"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(tiny.save_llava(tmp_path_factory.mktemp("llava"))), device="cpu")


@pytest.fixture
def make_engine(loaded):
    engines = []

    def make(compiled=False, **options) -> Engine:
        engines.append(Engine(replace(loaded, compiled=compiled), **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def request(engine, text, colour=None, max_new_tokens=12, temperature=0.0, sampling=None, **options):
    images = [] if colour is None else [Image.new("RGB", (60, 48), colour)]
    prompt = question_prompt(text, len(images), TEMPLATE)
    decoding = Decoding(temperature, max_new_tokens=max_new_tokens, **(sampling or {}))
    return engine.prepare(prompt, images, decoding, **options)


def start(engine, *args, **kwargs):
    """A ticket whose events are put into a queue."""
    ticket, events = engine.admit(), Queue()
    ticket.start(request(engine, *args, **kwargs), events.put)
    return ticket, events


def finished(events: Queue):
    """Returns (text, last event) of an answer."""
    text = ""
    while True:
        event = events.get(timeout=60)
        text += event.text
        if event.finish or event.error:
            return text, event


def alone(loaded, prepared):
    """The model's answer to one request, without the engine."""
    tokenizer, model = loaded.tokenizer, loaded.model
    ids = model.generate(
        torch.tensor([prepared.input_ids]),
        images=prepared.pixels or None,
        image_sizes=prepared.image_sizes,
        max_new_tokens=prepared.decoding.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )[0]
    return tokenizer.decode(ids, skip_special_tokens=True).strip()


class Held:
    """Stops the model's thread before its first batch, so that requests wait in the queue together."""

    def __init__(self):
        self.sizes, self.entered, self.go = [], threading.Event(), threading.Event()

    def __call__(self, size: int) -> None:
        self.sizes.append(size)
        self.entered.set()
        assert self.go.wait(20)


def test_requests_that_wait_are_answered_together_as_each_would_be_alone(loaded, make_engine):
    held = Held()
    engine = make_engine(on_batch=held)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    cases = [(WORDS[0], "red"), (WORDS[1], None), (WORDS[2], "blue"), (WORDS[3], "green")]
    running = [start(engine, *case, max_new_tokens=6 + 4 * i) for i, case in enumerate(cases)]
    held.go.set()
    finished(first[1])
    answers = [finished(events)[0] for _, events in running]
    assert held.sizes == [1, 4]
    assert answers == [
        alone(loaded, request(engine, *case, max_new_tokens=6 + 4 * i)) for i, case in enumerate(cases)
    ]
    assert len(set(answers)) > 1  # the model's answers differ


def test_other_settings_and_what_goes_beyond_the_budget_wait_for_a_later_batch(make_engine):
    held = Held()
    engine = make_engine(on_batch=held, token_budget=400)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    length = request(engine, WORDS[1]).total
    assert 200 > length > 400 / 3  # two requests fit the budget
    running = [start(engine, WORDS[1]) for _ in range(3)]
    running.append(start(engine, WORDS[1], temperature=0.5))
    running.append(start(engine, WORDS[1], temperature=0.5, seed=1))
    held.go.set()
    for _, events in [first, *running]:
        assert finished(events)[1].error is None
    assert held.sizes == [1, 2, 1, 1, 1]


def test_an_answer_arrives_in_pieces_that_make_the_whole(loaded, make_engine):
    engine = make_engine()
    _, events = start(engine, WORDS[0], "red", max_new_tokens=24)
    pieces = []
    while True:
        event = events.get(timeout=60)
        pieces.append(event.text)
        if event.finish:
            break
    assert len(pieces) > 3
    assert "".join(pieces) == alone(loaded, request(engine, WORDS[0], "red", max_new_tokens=24))


def test_a_text_of_the_request_ends_its_answer_alone(make_engine):
    engine = make_engine()
    whole, _ = finished(start(engine, WORDS[0], "red", max_new_tokens=24)[1])
    stop = whole[len(whole) // 2 :][:3]
    text, event = finished(start(engine, WORDS[0], "red", max_new_tokens=24, stop=(stop,))[1])
    assert text == whole[: whole.index(stop)].strip()
    assert event.finish == "stop"


def test_a_seed_repeats_a_sampled_answer(make_engine):
    engine = make_engine()
    options = {"max_new_tokens": 24, "temperature": 2.0}
    answers = [finished(start(engine, WORDS[0], **options, seed=seed)[1])[0] for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_a_closed_ticket_ends_its_answer_and_frees_its_place(make_engine):
    engine = make_engine(max_requests=1)
    endless = {"max_new_tokens": 800}
    ticket, events = start(engine, WORDS[0], **endless)
    events.get(timeout=60)
    with pytest.raises(QueueFull):
        engine.admit()
    ticket.close()
    ticket.close()
    assert engine.num_open == 0
    assert finished(start(engine, WORDS[1])[1])[1].num_tokens <= 12
    assert events.empty() or not any(event.finish for event in list(events.queue))


def test_a_client_that_leaves_while_a_token_is_being_read_stays_gone(make_engine, monkeypatch):
    engine = make_engine()
    ticket, events = engine.admit(), Queue()
    settled = Stopping.settled

    def leave(stopping, text):  # as another thread would do
        ticket.close()
        return settled(stopping, text)

    monkeypatch.setattr(Stopping, "settled", leave)
    ticket.start(request(engine, WORDS[0], max_new_tokens=800), events.put)
    answer = ticket._answer
    assert (
        finished(start(engine, WORDS[1], max_new_tokens=1)[1])[1].error is None
    )  # this request is in the next batch
    assert answer.is_done
    assert len(answer.stream.ids) == 1


def test_a_request_that_leaves_while_it_waits_is_never_run(make_engine):
    held = Held()
    engine = make_engine(on_batch=held)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    leaving, left = start(engine, WORDS[0])
    staying = start(engine, WORDS[1])
    leaving.close()
    held.go.set()
    finished(first[1])
    finished(staying[1])
    assert held.sizes == [1, 1]
    assert left.empty()


def test_an_answer_is_cut_at_its_deadline(make_engine):
    engine = make_engine()
    events = Queue()
    engine.admit().start(request(engine, WORDS[0], max_new_tokens=800), events.put, deadline=0.0)
    _, event = finished(events)
    assert (event.finish, event.num_tokens) == ("length", 1)


@pytest.mark.parametrize(
    "sampling",
    [{"top_k": 3}, {"min_p": 0.5}, {"repetition_penalty": 1.5}, {"top_p": 0.5}],
    ids=lambda sampling: next(iter(sampling)),
)
def test_requests_of_other_sampling_go_in_another_batch(make_engine, sampling):
    held = Held()
    engine = make_engine(on_batch=held)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    running = [start(engine, WORDS[1], temperature=0.5, sampling=each) for each in (None, sampling, sampling)]
    held.go.set()
    for _, events in [first, *running]:
        assert finished(events)[1].error is None
    assert held.sizes == [1, 1, 2]


def test_a_repetition_penalty_reaches_the_model(loaded, make_engine):
    engine = make_engine()
    prepared = request(engine, WORDS[0], "red", max_new_tokens=24, sampling={"repetition_penalty": 1e9})
    events = Queue()
    ticket = engine.admit()
    ticket.start(prepared, events.put)
    finished(events)
    ids = ticket._answer.stream.ids
    assert len(set(ids)) == len(ids) == 24
    assert not set(ids) & set(prepared.input_ids)


ERRORS = [ValueError, torch.OutOfMemoryError, AssertionError, UserError]


class Failing:
    """A model's generate that fails for some prompts after some tokens; `sizes` has its batch sizes."""

    def __init__(self, generate, error, guilty, num_tokens: int):
        self.generate, self.error, self.guilty, self.num_tokens = generate, error, guilty, num_tokens
        self.sizes = []

    def __call__(self, input_ids, *, stopping_criteria, **options):
        self.sizes.append(len(input_ids))

        def fail(ids, scores, **kwargs):
            if self.guilty(input_ids) and ids.shape[1] >= self.num_tokens:
                raise self.error("no luck")
            return torch.zeros(len(ids), dtype=torch.bool)

        if self.guilty(input_ids) and self.num_tokens == 0:
            raise self.error("no luck")
        return self.generate(input_ids, stopping_criteria=[*stopping_criteria, fail], **options)


def failing_batch(make_engine, monkeypatch, cases, error, guilty, num_tokens, **options):
    """Returns (text, last event) of each case of a batch, after a batch of one; and all batch sizes."""
    held = Held()
    engine = make_engine(on_batch=held)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    running = [start(engine, *case, max_new_tokens=12, **options) for case in cases]
    failing = Failing(engine.model.generate, error, guilty, num_tokens)
    monkeypatch.setattr(engine.model, "generate", failing)
    held.go.set()
    finished(first[1])
    outcomes = [finished(events) for _, events in running]
    assert all(events.empty() for _, events in running)
    monkeypatch.undo()
    return outcomes, failing.sizes, [ticket._answer for ticket, _ in running]


CASES = [(WORDS[0], "red"), (WORDS[1], None), (WORDS[2], None), (WORDS[3], None)]


@pytest.mark.slow
@pytest.mark.parametrize("num_tokens", [0, 1, 5])
@pytest.mark.parametrize("error", ERRORS)
def test_only_the_request_that_caused_a_failure_of_its_batch_fails(
    loaded, make_engine, monkeypatch, error, num_tokens
):
    """The others get the answer that they would get alone, even if a part of it was already sent."""

    def guilty(input_ids):
        return (input_ids == IMAGE_TOKEN_INDEX).any()

    outcomes, sizes, _ = failing_batch(make_engine, monkeypatch, CASES, error, guilty, num_tokens)
    assert sizes == [1, 4, 1, 1, 1, 1]
    assert isinstance(outcomes[0][1].error, error)
    engine = make_engine()
    for case, (text, last) in list(zip(CASES, outcomes, strict=True))[1:]:
        assert (last.error, text) == (None, alone(loaded, request(engine, *case, max_new_tokens=12)))


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_a_batch_beyond_the_memory_is_answered_one_by_one(make_engine, monkeypatch, temperature):
    """Sampled answers also continue after the part that was already sent."""

    def guilty(input_ids):
        return len(input_ids) > 1

    outcomes, sizes, answers = failing_batch(
        make_engine, monkeypatch, CASES, torch.OutOfMemoryError, guilty, 4, temperature=temperature
    )
    assert sizes == [1, 4, 1, 1, 1, 1]
    for (text, last), answer in zip(outcomes, answers, strict=True):
        assert last.error is None
        assert text == answer.stopping.decode(answer.stream.ids)
        assert last.num_tokens <= 12


def test_an_answer_that_cannot_be_read_takes_no_other_along(make_engine, monkeypatch):
    held = Held()
    engine = make_engine(on_batch=held)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    (guilty, _), (_, others) = running = [start(engine, WORDS[0]), start(engine, WORDS[1])]
    add = TextStream.add

    def fail(stream, token):
        if stream is guilty._answer.stream and len(stream.ids) > 2:
            raise ValueError("a bug")
        add(stream, token)

    monkeypatch.setattr(TextStream, "add", fail)
    held.go.set()
    finished(first[1])
    assert finished(others)[1].error is None
    assert isinstance(finished(running[0][1])[1].error, ValueError)


def test_a_batch_that_fails_does_not_end_the_engine(make_engine, monkeypatch):
    engine = make_engine()
    generate = engine.model.generate
    with monkeypatch.context() as patch:
        patch.setattr(engine.model, "generate", lambda *args, **kwargs: 1 / 0)
        _, event = finished(start(engine, WORDS[0])[1])
    assert isinstance(event.error, ZeroDivisionError)
    assert engine.model.generate == generate
    assert finished(start(engine, WORDS[0])[1])[1].error is None


def test_closing_ends_what_runs_and_waits_with_an_error(loaded):
    engine = Engine(loaded)
    running = start(engine, WORDS[0], max_new_tokens=800)
    running[1].get(timeout=60)
    waiting = start(engine, WORDS[1])
    engine.close()
    assert all(isinstance(finished(events)[1].error, ShuttingDown) for _, events in (running, waiting))
    assert not engine.is_alive
    with pytest.raises(ShuttingDown):
        engine.admit()


def test_a_prompt_beyond_the_context_is_refused_with_its_numbers(make_engine):
    with pytest.raises(ValueError, match=r"\d+ tokens.*9 of.*context of 1024"):
        request(make_engine(), "blue " * 1000, "red")


def test_a_budget_that_does_not_divide_the_grid_is_refused_when_the_request_comes(make_engine):
    engine = make_engine()
    assert len(request(engine, WORDS[0], "red", scale_factor=3).pixels) == 1
    assert (
        request(engine, WORDS[0], "red").length - request(engine, WORDS[0], "red", scale_factor=3).length == 5
    )
    with pytest.raises(ValueError, match="scale_factor"):
        request(engine, WORDS[0], "red", scale_factor=5)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_compiled_engine_decodes_compiled(make_engine, loaded, monkeypatch, compiled):
    calls = Queue()
    monkeypatch.setattr(loaded.model, "generate", lambda *args, **kwargs: calls.put(kwargs))
    ticket, _ = start(make_engine(compiled=compiled), WORDS[0])
    assert (calls.get(timeout=60).get("cache_implementation") == "static") == compiled
    ticket.close()
