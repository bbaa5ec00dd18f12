"""One question about a picture, answered with each number of visual tokens that the model offers."""

import base64
import html
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from io import BytesIO

from PIL import Image

from llava.decoding import Decoding
from llava.errors import UserError
from llava.serve.chat import Chat, Timing, token_budgets
from llava.visualization.words import WordAttention, draw_word

NOTE = (
    "The same question with each number of visual tokens that the model offers. Every answer takes the "
    "likeliest tokens. Brighter places got more of the whole answer's attention, in layer {layer}."
)


@dataclass(eq=False)
class Card:
    """What one number of visual tokens gave.

    Attributes:
        num_tokens: visual tokens of a view.
        scale_factor: s; None if the model offers only one number of tokens.
        answer: None before there is one.
        problem: why there is no answer, or no attention to show.
        attention: that of the whole answer, as if it were one word; None if there is none to show.
        drawn: the layer that was drawn last, and its picture as a data URL.
    """

    num_tokens: int
    scale_factor: int | None
    answer: str | None = None
    timing: Timing | None = None
    problem: str = ""
    attention: WordAttention | None = None
    drawn: tuple[int, str] | None = None


class Comparison:
    """Answers a question once with each budget, one card at a time.

    Args:
        chat: a conversation of its own; its waiting pictures go with the question.
        text: the question.
        max_new_tokens: longest answer.
    Attributes:
        cards: most visual tokens first.
    Raises:
        UserError: if there is no picture.
    """

    def __init__(self, chat: Chat, text: str, max_new_tokens: int):
        self.chat, self.text, self.decoding = chat, text, Decoding(max_new_tokens=max_new_tokens)
        self.images = [image for turn in chat.turns for image in turn.images] + chat.waiting
        if not self.images:
            raise UserError("Add a picture first: budgets differ only in the tokens of pictures.")
        cards = [
            Card(num_tokens, scale_factor) for num_tokens, scale_factor in token_budgets(chat.model).items()
        ]
        self.cards = cards or [Card(chat.model.num_visual_tokens, None)]
        self.is_stopped = False
        self._left = list(self.cards)

    def answer_next(self) -> None:
        """Fill the next card. Does nothing if all are filled, or after `stop`."""
        if self._left == self.cards and not self.is_stopped:
            self._warm_up()
        if self.is_stopped or not self._left:
            return
        card = self._left[0]
        try:
            self._fill(card)
        except UserError as error:  # for example, the prompt is too long with this budget
            card.problem = str(error)
        self._left.remove(card)

    def stop(self) -> None:
        """End the current answer, which keeps its text so far, and leave the other cards without one."""
        self.is_stopped = True
        self.chat.stop()

    def html(self, layer: int) -> str:
        """The cards, each with the newest picture, which is bright where the answer looked in a layer."""
        cards = "".join(self._html(card, layer) for card in self.cards)
        return f"<h2>Budgets compared</h2><p>{NOTE.format(layer=layer)}</p><div class='cards'>{cards}</div>"

    def _warm_up(self) -> None:
        """Generate a token that is not measured: a model's first run takes longer than its later ones."""
        with suppress(UserError):  # the cards will show it
            if self._ask(self.cards[-1], Decoding(max_new_tokens=1)):
                self.chat.withdraw()

    def _fill(self, card: Card) -> None:
        has_answered = self._ask(card, self.decoding)
        card.timing = self.chat.timing
        if not has_answered:
            card.problem = "" if self.is_stopped else "The model said nothing."
            return
        number = len(self.chat.turns) - 1
        try:
            answer = self.chat.turns[number].answer
            assert answer is not None  # turns that have no answer are withdrawn
            card.answer = answer  # also if its attention cannot be shown
            attention = self.chat.attention(number)
            card.attention = replace(attention, words=["answer"], weights=attention.mean[:, None])
        finally:
            self.chat.withdraw()  # the pictures go with the next card's question

    def _ask(self, card: Card, decoding: Decoding) -> bool:
        """Ask with a card's budget; whether there was an answer, which is then the conversation's last."""
        num_turns = len(self.chat.turns)
        self.chat.scale_factor, self.chat.timing = card.scale_factor, None
        with closing(self.chat.ask(self.text, decoding)) as pieces:
            for _ in pieces:
                if self.is_stopped:  # also if it was stopped just before the model began
                    break
        return len(self.chat.turns) > num_turns

    def _html(self, card: Card, layer: int) -> str:
        width, height = self.images[-1].size
        # its size until the picture is there, so that nothing moves
        picture = f"<div class='none' style='aspect-ratio: {width} / {height}'></div>"
        if card.attention is not None:
            picture = f"<img src='{self._drawn(card, card.attention, layer)}' alt='Where the answer looked'>"
        answer = f"<p class='answer'>{html.escape(card.answer)}</p>" if card.answer else ""
        state = card.problem or ("" if card.answer else self._state(card))
        plural = "s" * (card.num_tokens > 1)
        return (
            f"<article><h3>{card.num_tokens} token{plural}</h3><p>{'<br>'.join(self._facts(card))}</p>"
            f"<div>{answer}<p class='state'>{html.escape(state)}</p></div>{picture}</article>"
        )

    def _state(self, card: Card) -> str:
        """Why a card has no answer yet."""
        if self.is_stopped:
            return "Stopped."
        return "Answering …" if card is self._left[0] else "Waiting."

    def _facts(self, card: Card) -> list[str]:
        """The lines below a card's heading."""
        config, facts = self.chat.model.config, []
        if card.timing:
            facts += [
                f"First token after {1000 * card.timing.first_token:.0f} ms",
                f"{card.timing.visual_tokens} visual of {card.timing.prompt_tokens} prompt tokens",
            ]
        if card.scale_factor is not None:
            trained = card.scale_factor in (config.elastic_scale_factors or [])
            own = card.scale_factor == config.scale_factor
            facts.append(f"s = {card.scale_factor}" + (", the model's own" if own else ", trained" * trained))
        return facts

    def _drawn(self, card: Card, attention: WordAttention, layer: int) -> str:
        """The newest picture as a data URL."""
        if card.drawn is None or card.drawn[0] != layer:
            data = BytesIO()
            picture = draw_word(attention, self.images, layer, None)[-1]
            Image.fromarray(picture).save(data, "JPEG", quality=90)
            card.drawn = layer, "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
        return card.drawn[1]
