"""A prompt template as Jinja, for a tokenizer's apply_chat_template."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, SeparatorStyle

_WORDS = "[words]"  # placeholder for a message's text while a template is taken apart
_JINJA = r"""
{#- From this loop over a content, servers infer that a content may be a list of parts. -#}
{%- for message in messages -%}
  {%- if message.content and message.content is not string -%}
  {%- for part in message.content -%}
    {%- if part.type not in ("text", "image", "image_url") -%}
      {{- raise_exception("A part must be a text, an image or an image_url, got " ~ part.type ~ ".") -}}
    {%- endif -%}
  {%- endfor -%}
  {%- endif -%}
{%- endfor -%}
{%- macro words(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- elif content -%}
    {%- set text = content | selectattr("type", "equalto", "text") | map(attribute="text") | join("\n") -%}
    {%- set images = content | rejectattr("type", "equalto", "text") | list | length -%}
    {%- set marks = text.split(template.image) | length - 1 -%}
    {%- if images and marks not in (0, images) -%}
      {{- raise_exception("A text must contain one " ~ template.image ~ " for each image, or none.") -}}
    {%- endif -%}
    {%- set placed = ("" if marks else (template.image ~ "\n") * images) ~ text -%}
    {{- placed | replace(template.image, template.image_text) if images else text -}}
  {%- endif -%}
{%- endmacro -%}
{#- Writes a part of the prompt with what the tokenizer needs at the start and behind each image. -#}
{%- set state = namespace(is_first=true, needs_lead=false) -%}
{%- macro say(part) -%}
  {%- if part and state.is_first -%}
    {%- set state.is_first = false -%}
    {%- if not part.startswith(marks.bos) -%}
      {{- marks.bos -}}
      {%- set state.needs_lead = true -%}
    {%- endif -%}
  {%- endif -%}
  {%- for piece in part.split(template.image) -%}
    {%- if not loop.first -%}
      {{- template.image -}}
      {%- set state.needs_lead = true -%}
    {%- endif -%}
    {%- if piece -%}
      {%- for token in marks.tokens if piece.startswith(token) -%}
        {%- set state.needs_lead = false -%}
      {%- endfor -%}
      {{- marks.lead if state.needs_lead else "" -}}
      {{- piece -}}
      {%- set state.needs_lead = false -%}
    {%- endif -%}
  {%- endfor -%}
{%- endmacro -%}
{%- set has_system = messages and messages[0].role == "system" -%}
{%- set system = words(messages[0].content) if has_system else "" -%}
{%- set turns = messages[1:] if has_system else messages -%}
{%- set which = 0 if not has_system else 1 if system else 2 -%}
{%- if template.is_plain and (has_system or turns | length > 2) -%}
  {{- raise_exception("A plain template takes one image and its caption; choose a chat template.") -}}
{%- elif add_generation_prompt and turns | length % 2 == 0 -%}
  {{- raise_exception("The last message must come from the user if an answer is to be generated.") -}}
{%- endif -%}
{{- say(template.opening[which] | replace(template.words, system)) -}}
{%- for message in turns -%}
  {%- set text = words(message.content) -%}
  {%- if message.role != ("assistant" if loop.index0 % 2 else "user") -%}
    {{- raise_exception("Messages must alternate between user and assistant, and begin with the user.") -}}
  {%- elif message.role == "assistant" -%}
    {{- say(template.answer[0]) -}}
    {%- if text or not loop.last -%}
      {%- generation -%}{{- say(template.answer[1] ~ text ~ template.answer[2]) -}}{%- endgeneration -%}
      {{- say(template.answer[3]) -}}
    {%- endif -%}
  {%- else -%}
    {%- set first = template.first[which] | replace(template.words, system) -%}
    {{- say(first if loop.first else template.question[0]) -}}
    {%- set is_answered = loop.nextitem is defined and words(loop.nextitem.content) -%}
    {%- set end = template.question[2 if is_answered else 3] -%}
    {{- say(template.question[1] ~ text ~ end) if text else "" -}}
    {%- if loop.first and not text and template.needs_words -%}
      {{- raise_exception("The first message must have words: this template puts the system text there.") -}}
    {%- endif -%}
  {%- endif -%}
{%- endfor -%}
{{- say(template.answer[0]) if add_generation_prompt else "" -}}
"""


class Marks(NamedTuple):
    """What a prompt needs so that a tokenizer that takes it in one piece gives the ids of encode_prompt.

    Attributes:
        bos: the text of the token that the tokenizer puts before any text; empty if there is none.
        lead: what it puts before a text, but not after a token such as <image>: a space or nothing.
        tokens: tokens that it never splits; a text that begins with one gets no `lead`.
    """

    bos: str
    lead: str
    tokens: list[str]

    @classmethod
    def of(cls, tokenizer) -> Marks:
        """Find the marks of a tokenizer that has <image> as a token."""
        alone, mark = tokenizer.encode("x", add_special_tokens=False), DEFAULT_IMAGE_TOKEN
        behind = {
            lead: tokenizer.encode(f"{mark}{lead}x", add_special_tokens=False)[1:] for lead in ("", " ")
        }
        lead = next((lead for lead, ids in behind.items() if ids == alone), None)
        assert lead is not None, (alone, behind)
        adds_bos = tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [
            tokenizer.bos_token_id
        ]
        return cls(tokenizer.bos_token if adds_bos else "", lead, sorted(tokenizer.get_added_vocab()))


def chat_template(
    conversation: Conversation, use_im_start_end: bool = False, marks: Marks | None = None
) -> str:
    """Return the template as Jinja, for a tokenizer's apply_chat_template; it renders what get_prompt gives.

    A system message replaces the template's own system text, as in with_system. In a message of parts each
    text is on a line of its own, and the images are where place_images puts them. transformers'
    return_assistant_tokens_mask marks the tokens that carry loss in training.

    Args:
        marks: those of a tokenizer that has <image> as a token. The prompt then also has what this tokenizer
            needs, with its BOS first.
    """
    user, assistant = conversation.roles
    talk = replace(conversation, messages=[[role, _WORDS] for role in (user, assistant, user)])
    is_plain = conversation.sep_style is SeparatorStyle.PLAIN
    systems = [talk] if is_plain else [talk, talk.with_system(_WORDS), talk.with_system("")]

    def turn(index: int, spoken_by: Conversation = talk) -> list[str]:
        before, spoken, after = spoken_by._turn(index, spoken_by.messages[index][0])
        return [before, *spoken.split(_WORDS), after]

    unanswered = turn(0, replace(talk, messages=talk.messages[:1]))
    pieces = {
        "words": _WORDS,
        "image": DEFAULT_IMAGE_TOKEN,
        "image_text": conversation.image_text(use_im_start_end),
        "opening": [of._opening() for of in systems],
        "first": [turn(0, of)[0] for of in systems],
        "question": [turn(2)[0], turn(0)[1], "".join(turn(0)[2:]), "".join(unanswered[2:])],
        "answer": turn(1),
        "is_plain": is_plain,
        "needs_words": conversation.sep_style is SeparatorStyle.LLAMA_2,
    }
    known = {"template": pieces, "marks": (marks or Marks("", "", []))._asdict()}
    settings = (
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}" for name, value in known.items()
    )
    return "".join(settings) + _JINJA
