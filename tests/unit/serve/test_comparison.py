"""One question at every budget of a tiny model: the cards, what they say, and how they are stopped."""

import base64
import html
import re
from dataclasses import replace
from io import BytesIO

import pytest
import tiny
from PIL import Image

from llava.decoding import Decoding
from llava.inference import load_model
from llava.serve.chat import Chat, Turn
from llava.serve.comparison import Comparison

pytest.importorskip("cv2", reason="opencv is not installed (extra viz)")

RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (40, 90), "blue")
QUESTION = "what is it?"


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(tiny.save_llava(tmp_path_factory.mktemp("comparison") / "model")))


@pytest.fixture
def chat(loaded):
    return shown_red(loaded)


def shown_red(loaded) -> Chat:
    chat = Chat(loaded)
    chat.add_image(RED)
    return chat


def compared(chat) -> Comparison:
    comparison = Comparison(chat.copy(), QUESTION, max_new_tokens=8)
    for _ in comparison.cards:
        comparison.answer_next()
    return comparison


@pytest.fixture(scope="module")
def comparison(loaded):
    """A finished one, which tests only read."""
    return compared(shown_red(loaded))


def articles(comparison, layer: int = 2) -> list[str]:
    """The text of each card."""
    cards = comparison.html(layer).split("<article>")[1:]
    return [re.sub(r"<[^>]*>", " ", card) for card in cards]


def pictures(comparison, layer: int = 2) -> list[Image.Image]:
    urls = re.findall("base64,([^']*)", comparison.html(layer))
    return [Image.open(BytesIO(base64.b64decode(url))) for url in urls]


def test_each_budget_answers_as_it_would_if_it_were_asked_alone(chat, comparison):
    cards = comparison.cards
    assert [card.num_tokens for card in cards] == [36, 9, 4, 1]
    for card in cards:
        alone = chat.copy()
        alone.set_visual_tokens(card.num_tokens)
        assert card.answer == "".join(alone.ask(QUESTION, Decoding(max_new_tokens=8)))
        assert card.timing.visual_tokens == card.num_tokens
        assert (card.attention.mean == alone.attention(0).mean).all()
    assert len({card.answer for card in cards}) > 1


def test_a_card_has_its_tokens_its_time_its_answer_and_its_picture(comparison):
    for card, text, picture in zip(comparison.cards, articles(comparison), pictures(comparison), strict=True):
        assert f"{card.num_tokens} token" in text
        assert f"First token after {1000 * card.timing.first_token:.0f} ms" in text
        assert card.answer in html.unescape(text)
        assert f"s = {card.scale_factor}" in text
        assert picture.size == (672, 448)
    assert "the model's own" in articles(comparison)[1]


def test_the_pictures_follow_the_layer(comparison):
    first, last = (pictures(comparison, layer)[0].tobytes() for layer in (0, 2))
    assert first != last
    assert pictures(comparison, 0)[0].tobytes() == first


def test_the_question_is_asked_in_its_conversation_and_the_newest_picture_is_shown(chat):
    list(chat.ask("what is it?", Decoding(max_new_tokens=4)))
    turns = list(chat.turns)
    chat.add_image(BLUE)
    comparison = compared(chat)
    assert [card.timing.visual_tokens for card in comparison.cards] == [72, 18, 8, 2]
    assert all(picture.height > picture.width for picture in pictures(comparison))
    assert (chat.turns, chat.waiting, chat.scale_factor) == (turns, [BLUE], None)


def test_the_cards_are_filled_one_at_a_time(chat):
    comparison = Comparison(chat, QUESTION, 8)
    states = [["Answering …" in text, "Waiting." in text] for text in articles(comparison)]
    assert states == [[True, False]] + 3 * [[False, True]]
    comparison.answer_next()
    assert [card.answer is not None for card in comparison.cards] == [True, False, False, False]
    assert "Answering …" in articles(comparison)[1]


def test_the_first_run_of_the_model_is_not_measured(chat, monkeypatch):
    asked = []
    ask = Chat.ask
    monkeypatch.setattr(
        Chat,
        "ask",
        lambda self, text, decoding: asked.append((self.scale_factor, decoding)) or ask(self, text, decoding),
    )
    compared(chat)
    greedy = Decoding(max_new_tokens=8)
    assert asked == [(6, Decoding(max_new_tokens=1)), *((s, greedy) for s in (1, 2, 3, 6))]


def test_stop_keeps_the_answers_so_far_and_runs_no_further(chat):
    comparison = Comparison(chat, QUESTION, 900)
    ask = chat.ask

    def stopped_at_the_second_budget(text, decoding):
        for number, piece in enumerate(ask(text, decoding)):
            if number == 2:
                (comparison if chat.scale_factor == 2 else chat).stop()
            yield piece

    chat.ask = stopped_at_the_second_budget
    for _ in comparison.cards:
        comparison.answer_next()
    first, second, *others = comparison.cards
    assert 0 < second.timing.new_tokens < 900
    assert first.attention is not None
    assert second.attention is not None
    assert [card.answer for card in others] == [None, None]
    assert ["Stopped." in text for text in articles(comparison)] == [False, False, True, True]


def test_a_budget_that_does_not_fit_says_so_and_the_others_answer(chat, loaded):
    _, positions, _ = chat.inputs([Turn(QUESTION, (RED,))])
    chat.loaded = replace(loaded, context_length=positions + 10)  # 9 visual tokens fit, 36 do not
    first, *others = compared(chat).cards
    assert first.answer is None
    assert str(positions + 27) in first.problem
    assert all(card.answer for card in others)


@pytest.mark.parametrize(
    ("config", "num_tokens", "num_pictures"),
    [
        ({"mm_projector_type": "mlp2x_gelu"}, 36, 1),
        ({"mm_projector_type": "visionzip", "num_visual_tokens": 4}, 4, 0),  # its tokens are no grid
    ],
)
def test_a_model_with_one_budget_has_one_card(tmp_path, config, num_tokens, num_pictures):
    chat = Chat(load_model(str(tiny.save_llava(tmp_path, **config))))
    chat.add_image(RED)
    comparison = compared(chat)
    (card,) = comparison.cards
    assert (card.num_tokens, card.timing.visual_tokens) == (num_tokens, num_tokens)
    assert card.answer
    assert len(pictures(comparison)) == num_pictures
    assert ("VisionZip" in card.problem) == (num_pictures == 0)


def test_markup_in_an_answer_is_shown_as_text(chat):
    comparison = Comparison(chat, QUESTION, max_new_tokens=8)
    comparison.cards[0].answer = "<script>alert(1)</script>"
    comparison.cards[1].answer, comparison.cards[1].problem = None, "<b>no</b>"
    shown = comparison.html(2)
    assert "<script" not in shown
    assert "<b>" not in shown


def test_without_a_picture_there_is_nothing_to_compare(loaded):
    with pytest.raises(ValueError, match="picture"):
        Comparison(Chat(loaded), QUESTION, 8)
