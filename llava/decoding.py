"""How the tokens of an answer are chosen, and where it ends; evaluation and chat share this."""

from collections.abc import Sequence
from dataclasses import dataclass

from llava.conversation import Conversation
from llava.errors import UserError


@dataclass(frozen=True)
class Decoding:
    """How answers are chosen.

    Args:
        temperature: 0 takes the likeliest token; above 0 samples, and answers differ from run to run.
        top_p: sample from the likeliest tokens of this total probability, 0..1; None: from all.
        num_beams: beams of a beam search; 1: none.
        max_new_tokens: longest answer, tokens.
        compiled: each token after the first is computed by a compiled graph over a cache of fixed size (CUDA
            graphs on a GPU). The compiler runs at the first answer, at an answer longer than any before, and
            at another batch size. So this suits many answers to similar prompts.
        top_k: sample from that many likeliest tokens; 0 or -1: from all.
        min_p: sample from the tokens of at least this share of the likeliest one's probability, 0..1.
        repetition_penalty: divides the positive logits of tokens that the prompt or the answer already has,
            and multiplies their negative logits; above 0; 1: none.
    """

    temperature: float = 0.0
    top_p: float | None = None
    num_beams: int = 1
    max_new_tokens: int = 128
    compiled: bool = False
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self):
        if self.temperature < 0:
            raise UserError(f"--temperature must be 0 (greedy) or more, got {self.temperature}.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"--top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.top_k < -1:
            raise UserError(f"--top_k must be at least 1, or 0 or -1 for all tokens, got {self.top_k}.")
        if not 0 <= self.min_p <= 1:
            raise UserError(f"--min_p must be from 0 to 1, got {self.min_p}.")
        if not 0 < self.repetition_penalty < float("inf"):
            raise UserError(f"--repetition_penalty must be above 0, got {self.repetition_penalty}.")
        if self.num_beams < 1 or self.max_new_tokens < 1:
            raise UserError(
                "--num_beams and --max_new_tokens must be at least 1, got "
                f"{self.num_beams} and {self.max_new_tokens}."
            )
        if self.compiled and self.num_beams > 1:
            raise UserError(
                f"--compile works only with --num_beams 1, got {self.num_beams}; leave one of them out."
            )

    def kwargs(self) -> dict:
        """Arguments for `generate`; the sampling defaults of the model folder are switched off."""
        kwargs: dict = {
            "num_beams": self.num_beams,
            "max_new_tokens": self.max_new_tokens,
            "repetition_penalty": self.repetition_penalty,
        }
        if self.compiled:
            kwargs |= {"cache_implementation": "static", "compile_config": _compile_config()}
        if self.temperature == 0:
            return kwargs | {"do_sample": False} | dict.fromkeys(("temperature", "top_p", "top_k", "min_p"))
        return {
            **kwargs,
            "do_sample": True,
            "temperature": self.temperature,
            "top_p": self.top_p or 1.0,
            "top_k": max(self.top_k, 0),
            "min_p": self.min_p or None,
        }


def _compile_config():
    """The default of transformers, which it would apply only on GPUs."""
    from transformers import CompileConfig

    config = CompileConfig()
    config._compile_all_devices = True  # private by its name, but documented for this use
    return config


class Stopping:
    """Where an answer ends: at an end-of-sequence id of the model, or at the template's own closing text.

    Args:
        more: further texts that end an answer.
    """

    def __init__(self, model, tokenizer, template: Conversation, more: Sequence[str] = ()):
        self.tokenizer = tokenizer
        self.text = template.stop_str
        self._texts = [text for text in (self.text, *more) if text]
        own = model.generation_config.eos_token_id
        ids = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id}
        # an added token is always one id; ordinary text may be split into tokens in several ways
        closing = tokenizer.get_added_vocab().get(self.text)
        self.eos_token_ids = sorted({*ids, closing} - {None})
        self._by_text = bool(self.text) and closing is None and self.text != tokenizer.eos_token

    def kwargs(self) -> dict:
        """Arguments for `generate`."""
        pad = self.tokenizer.pad_token_id
        kwargs = {
            "eos_token_id": self.eos_token_ids,
            "pad_token_id": self.eos_token_ids[0] if pad is None else pad,
        }
        if self._by_text:
            kwargs |= {"stop_strings": [self.text], "tokenizer": self.tokenizer}
        return kwargs

    def trim(self, new_ids: list[int]) -> list[int]:
        """The answer's own ids: those before the first end-of-sequence id."""
        end = next((i for i, token in enumerate(new_ids) if token in self.eos_token_ids), len(new_ids))
        return new_ids[:end]

    def decode(self, new_ids: list[int]) -> str:
        """The answer's text without its end mark and outer white space."""
        return self._cut(self.tokenizer.decode(self.trim(new_ids), skip_special_tokens=True)).strip()

    def is_over(self, text: str) -> bool:
        """Whether an answer's text contains a text that ends it."""
        return any(closing in text for closing in self._texts)

    def settled(self, text: str) -> str:
        """The part of a growing answer's text that no later token can change.

        It is cut before an end that may become a closing text, and has no outer white space.
        """
        if self.is_over(text):
            return self._cut(text).strip()
        starts = (closing[:n] for closing in self._texts for n in range(1, len(closing)))
        held = max((len(start) for start in starts if text.endswith(start)), default=0)
        return text[: len(text) - held].strip()

    def _cut(self, text: str) -> str:
        return text[: min((text.index(closing) for closing in self._texts if closing in text), default=None)]


def end_with_turns(model, tokenizer, template: Conversation) -> None:
    """Let the model's answers end where the template's turns end; the setting is saved with the model.

    Plain `generate` then stops at the end of a turn, if that end is one token, such as <|im_end|> or </s>.
    """
    settings = Stopping(model, tokenizer, template).kwargs()
    model.generation_config.eos_token_id = settings["eos_token_id"]
    model.generation_config.pad_token_id = settings["pad_token_id"]


class TextStream:
    """Decodes tokens as they come, in whole characters.

    A token's text may depend on the token before it (SentencePiece's spaces) or be a part of a character. So
    each token is decoded together with those since the last break.
    """

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.text = ""
        self._start = self._read = 0  # ids from _start are decoded again; from _read they are not in text

    def add(self, token: int) -> None:
        self.ids.append(token)
        known = self._decode(self.ids[self._start : self._read])
        whole = self._decode(self.ids[self._start :])
        if not whole.endswith("\ufffd"):  # the mark of an unfinished character
            self.text += whole[len(known) :]
            self._start, self._read = self._read, len(self.ids)

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True)
