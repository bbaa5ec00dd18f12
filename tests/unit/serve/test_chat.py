"""A conversation with a tiny model: what it reads, what it gives and when, and how it is stopped."""

import threading
from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
from PIL import Image

from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import conv_templates
from llava.decoding import Decoding, Stopping, TextStream
from llava.inference import load_model
from llava.mm_utils import process_images, tokenizer_image_token
from llava.serve.chat import Chat, Turn, open_chat, token_budgets

RED, BLUE = Image.new("RGB", (60, 40), "red"), Image.new("RGB", (40, 90), "blue")
GREEDY = Decoding(max_new_tokens=24)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return load_model(str(tiny.save_llava(tmp_path_factory.mktemp("chat") / "model")))


@pytest.fixture
def chat(loaded):
    return Chat(loaded)


def generated(chat, prompt, images, **options):
    """What `generate` itself answers to a prompt."""
    input_ids = tokenizer_image_token(prompt, chat.tokenizer, return_tensors="pt")[None]
    pixels = process_images(images, chat.loaded.image_processor, chat.model.config)
    sizes = [image.size for image in images]
    kwargs = {**GREEDY.kwargs(), **chat.stopping.kwargs(), **options}
    output = chat.model.generate(input_ids, images=pixels, image_sizes=sizes, **kwargs)
    return chat.stopping.decode(output[0].tolist())


def running() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "generate"]


def test_pieces_join_to_what_generate_answers(chat):
    chat.add_image(RED)
    pieces = list(chat.ask("what is it?", GREEDY))
    system = chat.template.system
    whole = generated(chat, f"{system} USER: <image>\nwhat is it? ASSISTANT:", [RED])
    assert "".join(pieces) == whole == chat.turns[0].answer
    assert len(pieces) > 5
    assert chat.timing.new_tokens == 24
    assert 0 < chat.timing.first_token < chat.timing.seconds
    assert not chat.waiting
    assert not running()


def test_the_next_question_is_read_after_all_that_was_said_and_shown(chat):
    chat.add_image(RED)
    first = "".join(chat.ask("what is it?", GREEDY))
    chat.add_image(BLUE)
    second = "".join(chat.ask("and this <image> one?", GREEDY))
    prompt = (
        f"{chat.template.system} USER: <image>\nwhat is it? ASSISTANT: {first}</s>"
        "USER: and this <image> one? ASSISTANT:"
    )
    assert second == generated(chat, prompt, [RED, BLUE])
    assert chat.timing.visual_tokens == 18
    ids = tokenizer_image_token(prompt, chat.tokenizer)
    assert chat.timing.prompt_tokens == len(ids) - ids.count(IMAGE_TOKEN_INDEX) + 18
    chat.reset()
    assert "".join(chat.ask("why?", GREEDY)) != second
    assert (chat.timing.visual_tokens, len(chat.turns)) == (0, 1)


def test_a_budget_of_visual_tokens_is_kept_to_and_others_are_refused_by_name(chat):
    assert token_budgets(chat.model) == {36: 1, 9: 2, 4: 3, 1: 6}
    with pytest.raises(ValueError, match="64 visual.*36, 9, 4, 1"):
        chat.set_visual_tokens(64)
    chat.set_visual_tokens(4)
    chat.add_image(RED)
    said = "".join(chat.ask("what is it?", GREEDY))
    assert chat.timing.visual_tokens == 4
    prompt = f"{chat.template.system} USER: <image>\nwhat is it? ASSISTANT:"
    assert said == generated(chat, prompt, [RED], scale_factor=3) != generated(chat, prompt, [RED])
    assert chat.fresh().scale_factor is None


def test_a_projector_that_does_not_compress_has_no_budgets(tmp_path):
    model = tiny.build(tmp_path, mm_projector_type="mlp2x_gelu")
    assert token_budgets(model) == {}


def test_64_tokens_are_s_3_of_a_grid_of_24(loaded, monkeypatch):
    tower = loaded.model.get_vision_tower()
    monkeypatch.setattr(type(tower), "grid_side", property(lambda self: 24))
    monkeypatch.setattr(type(tower), "num_patches", property(lambda self: 576))
    assert token_budgets(loaded.model)[64] == 3


def test_closing_the_answer_stops_the_model_and_keeps_what_was_said(chat):
    chat.add_image(RED)
    answer = chat.ask("what is it?", Decoding(max_new_tokens=900))
    said = next(answer) + next(answer)
    answer.close()
    assert not running()
    assert chat.turns[0].answer == said
    assert chat.timing.new_tokens < 900


def test_another_thread_stops_the_answer(chat):
    answer = chat.ask("what is it?", Decoding(max_new_tokens=900))
    said = next(answer)
    chat.stop()
    said += "".join(answer)
    assert chat.turns[0].answer == said
    assert chat.timing.new_tokens < 900
    assert "".join(chat.ask("and now?", GREEDY))  # only that answer was stopped


def test_an_interrupt_before_the_first_word_leaves_the_question_unasked(chat, monkeypatch):
    chat.add_image(RED)
    monkeypatch.setattr(TextStream, "add", lambda self, token: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        list(chat.ask("what is it?", GREEDY))
    assert (chat.turns, chat.waiting, running()) == ([], [RED], [])


def test_a_failure_of_the_model_reaches_the_caller(chat, monkeypatch):
    def fail(**inputs):
        raise RuntimeError("no luck")

    monkeypatch.setattr(chat.model, "generate", fail)
    with pytest.raises(RuntimeError, match="no luck"):
        list(chat.ask("what is it?", GREEDY))
    assert not chat.turns


def test_a_conversation_that_is_too_long_is_refused_and_its_pictures_wait(chat):
    chat.loaded = replace(chat.loaded, context_length=100)
    chat.add_image(RED)
    with pytest.raises(ValueError, match=r"9 of them visual.*100"):
        list(chat.ask("why? " * 50, GREEDY))
    assert chat.waiting == [RED]


def test_an_answer_ends_where_the_model_reads_no_further(chat):
    text = "what is it?"
    positions = len(tokenizer_image_token(chat.template.system + f" USER: {text} ASSISTANT:", chat.tokenizer))
    chat.loaded = replace(chat.loaded, context_length=positions + 3)
    list(chat.ask(text, GREEDY))
    assert chat.timing.prompt_tokens + chat.timing.new_tokens == positions + 3


def test_a_withdrawn_question_can_be_asked_again(chat):
    chat.add_image(RED)
    first = "".join(chat.ask("what is it?", GREEDY))
    assert chat.withdraw() == "what is it?"
    assert (chat.turns, chat.waiting) == ([], [RED])
    assert "".join(chat.ask("what is it?", GREEDY)) == first
    chat.withdraw()
    with pytest.raises(ValueError, match="no question"):
        chat.withdraw()


def test_a_copy_goes_its_own_way(chat):
    chat.add_image(RED)
    list(chat.ask("what is it?", GREEDY))
    chat.add_image(BLUE)
    copy = chat.copy()
    list(copy.ask("and this?", GREEDY))
    assert (len(copy.turns), copy.waiting) == (2, [])
    assert (len(chat.turns), chat.waiting) == (1, [BLUE])


def test_a_stored_conversation_goes_on_as_if_it_had_never_ended(chat):
    chat.add_image(RED)
    chat.set_visual_tokens(4)
    list(chat.ask("what is it?", GREEDY))
    resumed = chat.fresh()
    resumed.resume(chat.turns)
    assert resumed.turns == chat.turns
    resumed.set_visual_tokens(4)
    assert list(resumed.ask("why?", GREEDY)) == list(chat.ask("why?", GREEDY))


def test_a_conversation_of_another_model_gets_ids_and_a_budget_of_this_one(chat):
    chat.resume([Turn("what is it?", (RED,), "a blue circle", ids=(5, 100_000), scale_factor=12)])
    (turn,) = chat.turns
    assert chat.stopping.decode(list(turn.ids)) == "a blue circle"
    assert turn.scale_factor is None
    assert chat.attention(0).words == ["a", "blue", "circle"]


def test_marks_in_a_question_must_be_as_many_as_its_pictures(chat):
    chat.add_image(RED)
    with pytest.raises(ValueError, match="2 <image> for 1 image"):
        list(chat.ask("what are <image> and <image>?", GREEDY))


@pytest.mark.slow
@pytest.mark.parametrize("question", ["what is <image>?", "<image>", "<image><image>", "a\ud800b", "\udce9"])
def test_what_a_question_without_pictures_says_is_letters(chat, question):
    chat.add_image(RED)
    list(chat.ask("what is it?", GREEDY))
    list(chat.ask(question, GREEDY))
    assert chat.timing.visual_tokens == 9
    list(chat.ask("and now?", GREEDY))
    ids = chat.inputs(chat.turns)[0]["input_ids"]
    assert (ids == IMAGE_TOKEN_INDEX).sum() == 1


ANSWERS = ["<image>", "an <image> of <image>", "<im<image>age>", "###", "USER:", "</s>", "a"]


@pytest.mark.slow
@pytest.mark.parametrize("template", ["vicuna_v1", "v0", "llava_llama_2", "mpt", "qwen_2"])
@pytest.mark.parametrize("said", ANSWERS)
def test_whatever_was_answered_is_read_with_the_next_question(loaded, monkeypatch, template, said):
    chat = Chat(replace(loaded, template=conv_templates[template]))
    ids = loaded.tokenizer(said, add_special_tokens=False)["input_ids"]
    with monkeypatch.context() as patch:
        patch.setattr("llava.serve.chat.stream_tokens", lambda *args, **kwargs: (token for token in ids))
        answer = "".join(chat.ask("what is it?", GREEDY))
    assert [turn.answer for turn in chat.turns] == [answer] * bool(answer)
    chat.add_image(RED)
    list(chat.ask("and now?", GREEDY))
    prompt = chat.prompt(chat.turns)
    assert len(prompt.marks) == 1
    assert answer in prompt


def test_a_text_only_model_talks_and_takes_no_picture(loaded, tmp_path):
    tiny.save_language_model(tmp_path, vocab_size=len(loaded.tokenizer))
    loaded.tokenizer.save_pretrained(tmp_path)
    chat = open_chat(str(tmp_path), conv_mode="qwen_2")
    with pytest.raises(ValueError, match="text-only"):
        chat.add_image(RED)
    with pytest.raises(ValueError, match="text-only"):
        chat.resume([Turn("what is it?", (RED,), "red")])
    list(chat.ask("why?", GREEDY))
    assert chat.timing.new_tokens > 0


@pytest.mark.parametrize("bits", ["load_4bit", "load_8bit"])
def test_a_quantised_model_talks_and_keeps_its_eyes_as_they_are(tmp_path, bits):
    bnb = pytest.importorskip("bitsandbytes")
    # bitsandbytes multiplies blocks of 64 on a CPU
    folder = tiny.save_llava(tmp_path, hidden_size=64, intermediate_size=128)
    chat = open_chat(str(folder), device="cpu", **{bits: True})
    kinds = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
    quantised = {name for name, module in chat.model.named_modules() if isinstance(module, kinds)}
    assert len(quantised) == 3 * 7  # all linear maps of the three decoder layers
    assert all(name.startswith("model.layers.") for name in quantised)
    chat.add_image(RED)
    list(chat.ask("what is it?", GREEDY))
    assert chat.timing.new_tokens > 0


@pytest.mark.parametrize("compiled", [True, False])
def test_a_compiled_chat_and_those_from_it_decode_compiled(loaded, monkeypatch, compiled):
    seen = []

    def tokens(model, stopped, **inputs):
        seen.append(inputs.get("cache_implementation"))
        yield from ()

    monkeypatch.setattr("llava.serve.chat.stream_tokens", tokens)
    chat = Chat(replace(loaded, compiled=compiled))
    for one in (chat, chat.fresh()):
        list(one.ask("what is it?", GREEDY))
    assert seen == 2 * ["static" if compiled else None]


def grown(text: str, stopping: Stopping) -> list[str]:
    return [stopping.settled(text[:end]) for end in range(len(text) + 1)]


def test_no_part_of_the_closing_text_is_ever_shown(loaded):
    stopping = Stopping(loaded.model, loaded.tokenizer, conv_templates["v0"])
    shown = grown(" It is #1, ## or so. ###Human: more", stopping)
    assert all(later.startswith(earlier) for earlier, later in pairwise(shown))
    assert "It is #1, ## or" in shown
    assert shown[-1] == "It is #1, ## or so."


@pytest.mark.parametrize("text", ["Zwei  Häuser,\n 漢字 and 🐘🐘.", "plain words"])
@pytest.mark.parametrize("kind", ["bpe_tokenizer", "legacy_tokenizer"])
def test_text_comes_in_whole_characters_and_is_that_of_the_tokens_together(text, kind, request):
    tokenizer = request.getfixturevalue(kind)
    ids, stream = tokenizer(text, add_special_tokens=False)["input_ids"], TextStream(tokenizer)
    seen = []
    for token in ids:
        stream.add(token)
        seen.append(stream.text)
    assert stream.text == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in part for part in seen)
    assert len(set(seen)) > 1


def test_the_attention_of_an_earlier_answer_is_that_of_its_own_prompt_pictures_and_budget(chat):
    chat.add_image(RED)
    chat.set_visual_tokens(4)
    list(chat.ask("what is it?", GREEDY))
    chat.add_image(BLUE)
    chat.set_visual_tokens(9)
    before = chat.attention(0)
    list(chat.ask("and now?", GREEDY))
    first, second = chat.attention(0), chat.attention(1)
    assert [first.weights.shape[2], second.weights.shape[2]] == [4, 18]
    assert (first.weights == before.weights).all()
    assert [len(first.mappings), len(second.mappings)] == [1, 2]
    assert first.words == chat.turns[0].answer.split()
