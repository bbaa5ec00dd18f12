"""The queue before the model: batches, streams, places that are freed. No HTTP."""

import threading
from queue import Queue

import pytest
import tiny
from PIL import Image

from llava.conversation import question_prompt, template_named
from llava.decoding import Decoding, Stopping
from llava.model.builder import load_pretrained_model
from llava.serve.engine import Engine, QueueFull

TEMPLATE = template_named("vicuna_v1")
WORDS = ["what colour is the circle?", "is it blue?", "the answer", "red or blue, what is the triangle?"]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_pretrained_model(str(tiny.save_llava(tmp_path_factory.mktemp("llava"))), device="cpu")


@pytest.fixture
def make_engine(loaded):
    engines = []

    def make(**options) -> Engine:
        engines.append(Engine(*loaded, TEMPLATE, **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def request(engine, text, colour=None, max_new_tokens=12, temperature=0.0, **options):
    images = [] if colour is None else [Image.new("RGB", (60, 48), colour)]
    prompt = question_prompt(text, len(images), TEMPLATE)
    return engine.prepare(prompt, images, Decoding(temperature, max_new_tokens=max_new_tokens), **options)


def start(engine, *args, **kwargs):
    """A ticket whose events come into a queue."""
    ticket, events = engine.admit(), Queue()
    ticket.start(request(engine, *args, **kwargs), events.put)
    return ticket, events


def finished(events: Queue):
    """(text, last event) of an answer."""
    text = ""
    while True:
        event = events.get(timeout=60)
        text += event.text
        if event.finish or event.error:
            return text, event


def alone(loaded, prepared):
    """What the model itself answers to one request, without the engine."""
    import torch

    tokenizer, model = loaded[:2]
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
    """Keeps the model's thread before its first batch, so that what is queued meanwhile waits together."""

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
    assert len(set(answers)) > 1  # the model tells them apart


def test_other_settings_and_what_goes_beyond_the_budget_wait_for_a_later_batch(make_engine):
    held = Held()
    engine = make_engine(on_batch=held, token_budget=400)
    first = start(engine, "hello")
    assert held.entered.wait(60)
    length = request(engine, WORDS[1]).total
    assert 200 > length > 400 / 3  # the budget holds two
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

    def leave(stopping, text):  # as if from another thread
        ticket.close()
        return settled(stopping, text)

    monkeypatch.setattr(Stopping, "settled", leave)
    ticket.start(request(engine, WORDS[0], max_new_tokens=800), events.put)
    answer = ticket._answer
    assert finished(start(engine, WORDS[1], max_new_tokens=1)[1])[1].error is None  # of the next batch
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
    engine = Engine(*loaded, TEMPLATE)
    running = start(engine, WORDS[0], max_new_tokens=800)
    running[1].get(timeout=60)
    waiting = start(engine, WORDS[1])
    engine.close()
    assert all(isinstance(finished(events)[1].error, RuntimeError) for _, events in (running, waiting))
    assert not engine.is_alive
    with pytest.raises(QueueFull):
        engine.admit()


def test_a_prompt_beyond_the_context_is_refused_with_its_numbers(make_engine):
    with pytest.raises(ValueError, match=r"\d+ tokens \(9 of them visual\).*context of 1024"):
        request(make_engine(), "blue " * 1000, "red")


def test_a_budget_that_does_not_divide_the_grid_is_refused_when_the_request_comes(make_engine):
    engine = make_engine()
    assert len(request(engine, WORDS[0], "red", scale_factor=3).pixels) == 1
    assert (
        request(engine, WORDS[0], "red").length - request(engine, WORDS[0], "red", scale_factor=3).length == 5
    )
    with pytest.raises(ValueError, match="scale_factor"):
        request(engine, WORDS[0], "red", scale_factor=5)
