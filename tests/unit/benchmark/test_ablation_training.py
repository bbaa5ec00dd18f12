"""A study's runs: questions do not attend to one another, scores are those of greedy decoding."""

import contextlib

import pytest
import tiny
import torch

from llava.benchmark.ablation.features import HiddenStates
from llava.benchmark.ablation.readers import LanguageReader, SmallReader, make_reader
from llava.benchmark.ablation.settings import Reader, Row, Run, Training
from llava.benchmark.ablation.text import SEPARATOR, Asked, Tokens, Words, collate
from llava.benchmark.ablation.training import Split, labels_of, make_projector, run_once, score, train

QUESTIONS = ("what color?", "is the small one there now?", "which?")
ANSWERS = ("red", "dark blue", "ABC")
WIDTH, GRID = 8, 4


@pytest.fixture(scope="module")
def language_model(tmp_path_factory, bpe_tokenizer):
    folder = tmp_path_factory.mktemp("language_model")
    torch.manual_seed(0)
    tiny.save_language_model(folder, vocab_size=len(bpe_tokenizer))
    bpe_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["language model", "small reader"])
def kind(request, language_model):
    """(settings, codec) for both kinds of reader."""
    if request.param == "language model":
        return Reader(path=language_model), Tokens(language_model)
    pairs = [(question, answer) for question in QUESTIONS for answer in ANSWERS]
    return Reader(width=32, num_heads=2, num_hops=2), Words(pairs)


@pytest.fixture(scope="module")
def small():
    pairs = [(question, answer) for question in QUESTIONS for answer in ANSWERS]
    return Reader(width=32, num_heads=2, num_hops=2), Words(pairs)


def asked(codec, *answers: str) -> list[Asked]:
    """A scene with questions that have these answers; a question's family is its first word."""
    pairs = zip(QUESTIONS, answers, strict=False)
    return [codec.encode(text, answer, text.split()[0]) for text, answer in pairs]


def states(num: int, seed: int = 0) -> HiddenStates:
    values = torch.randn(num, GRID * GRID, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))
    return HiddenStates(values.bfloat16(), (1, 2), 3)


def run_of(projector: str, **switches) -> Run:
    row = Row(projector, projector, switches={"mm_vision_levels": [1, 2], **switches})
    return Run(row, () if projector in ("none", "linear") else (2,), seed=0)


def test_words_and_answers_have_their_own_numbers_and_other_words_are_unknown():
    codec = Words([("What color, please?", "dark blue"), ("what size?", "red")])
    assert codec.words == {",": 1, "?": 2, "color": 3, "please": 4, "size": 5, "what": 6}
    assert codec.encode("What size, Sir?", "red", "f") == Asked((6, 5, 1, 0, 2, 2), 5, "f")
    assert codec.encode("what?", "never seen", "f").ids[-1] == 0


def test_a_language_models_answer_ends_with_its_end_mark(language_model, bpe_tokenizer):
    codec = Tokens(language_model)
    question = codec.encode("what color?", "red", "f")
    text = bpe_tokenizer.decode(question.ids[: question.num_prompt])
    assert text == f"what color?{SEPARATOR}"
    assert bpe_tokenizer.decode(question.ids[question.num_prompt : -1]) == "red"
    assert question.ids[-1] == bpe_tokenizer.eos_token_id


@torch.no_grad()
def test_a_question_attends_to_its_own_scene_and_to_no_other_question(kind):
    settings, codec = kind
    model = make_reader(settings, codec, seed=0).eval()
    tokens = torch.randn(2, 4, model.width)
    scenes = [asked(codec, *ANSWERS), asked(codec, "dark blue", "red")]
    given = model(collate(scenes), tokens)
    alone = [
        model(collate([[question]]), image[None])
        for image, questions in zip(tokens, scenes, strict=True)
        for question in questions
    ]
    torch.testing.assert_close(given, torch.cat(alone), atol=1e-5, rtol=1e-4)
    swapped = model(collate(scenes), tokens.flip(0))
    assert not torch.allclose(swapped, given, atol=1e-3)


@torch.no_grad()
def test_a_language_model_reads_image_question_and_answer_in_one_row(language_model):
    codec = Tokens(language_model)
    model = make_reader(Reader(path=language_model), codec, seed=0).eval()
    tokens, (question,) = torch.randn(1, 4, model.width), asked(codec, "dark blue")
    embeds = model.model.get_input_embeddings()(torch.tensor([question.ids]))
    row = model.model(inputs_embeds=torch.cat([tokens, embeds], dim=1)).logits[0]
    text = collate([[question]])
    torch.testing.assert_close(
        model(text, tokens), row[4 + question.num_prompt - 1 : -1], atol=1e-5, rtol=1e-4
    )
    assert labels_of(text).tolist() == list(question.ids[question.num_prompt :])


def test_an_output_norm_starts_at_the_size_of_the_readers_words(kind):
    settings, codec = kind
    reader = make_reader(settings, codec, seed=0)
    projector, _ = make_projector(run_of("linear", mm_projector_norm=True), states(1), reader)
    if settings.path is None:
        assert projector.output_norm.scale == 1
    else:
        words = reader.model.get_input_embeddings().weight
        torch.testing.assert_close(projector.output_norm.scale, words.square().mean().sqrt())


@torch.no_grad()
def test_the_small_reader_reads_no_word_of_the_answer_and_never_says_unknown(small):
    settings, codec = small
    model = make_reader(settings, codec, seed=0)
    assert isinstance(model, SmallReader)
    tokens = torch.randn(1, 4, model.width)
    first, second = (model(collate([asked(codec, answer)]), tokens) for answer in ("red", "dark blue"))
    assert torch.equal(first, second)
    assert (first.argmin(dim=-1) == 0).all()


@pytest.mark.slow
def test_a_score_is_that_of_greedy_decoding(language_model, monkeypatch):
    """Compares each answer with transformers' generate, for a reader that is sometimes right."""
    # In float32, because bfloat16 has ties, which batches and single questions break differently
    monkeypatch.setattr(torch, "autocast", lambda *_: contextlib.nullcontext())
    codec = Tokens(language_model)
    scenes = [asked(codec, *[ANSWERS[(k + n) % 3] for k in range(3)]) for n in range(4)]
    split, hidden = Split(scenes, range(4)), HiddenStates(states(4).values.float(), (1, 2), 3)
    settings = Training(epochs=40, batch_size=4, learning_rate=1e-2)
    reader = make_reader(Reader(path=language_model), codec, seed=0)
    assert isinstance(reader, LanguageReader)
    model = train(run_of("linear"), settings, reader, split, hidden, "cpu")
    given = score(model, split, hidden, None, 4, "cpu")
    right = dict.fromkeys(given, 0)
    with torch.inference_mode():
        for n, scene in enumerate(scenes):
            tokens = model.visual_tokens(hidden, torch.tensor([n]), None)
            for question in scene:
                prompt = torch.tensor([question.ids[: question.num_prompt]])
                embeds = torch.cat([tokens, reader.model.get_input_embeddings()(prompt)], dim=1)
                end = {"pad_token_id": 0, "eos_token_id": question.ids[-1]}
                said = reader.model.generate(inputs_embeds=embeds, max_new_tokens=12, do_sample=False, **end)
                right[question.family] += said[0].tolist() == list(question.ids[question.num_prompt :])
    assert given == {family: [right[family], 4] for family in given}
    assert 0 < sum(right.values()) < 12


@pytest.mark.slow
@pytest.mark.parametrize("projector", ["linear", "avgpool", "visualprism_v2"])
def test_a_run_learns_what_only_the_image_tells(small, projector):
    """The first channel contains the answer. A reader that gets it is right, and others must guess."""
    settings, codec = small
    hidden = states(32)
    answers = [ANSWERS[n % 2] for n in range(32)]
    hidden.values[:, :, ::WIDTH] = torch.tensor([8.0 * (n % 2) - 4 for n in range(32)])[:, None, None]
    split = Split([asked(codec, answer) for answer in answers], range(32))
    recipe = Training(epochs=20, batch_size=8, learning_rate=3e-3)
    for name, right, tokens in ((projector, 32, None), ("none", 16, 0)):
        reader = make_reader(settings, codec, seed=0)
        result = run_once(run_of(name), recipe, reader, (split, split), hidden, "cpu")
        assert result["scores"][0]["families"] == {"what": [right, 32]}
        assert tokens is None or result["scores"][0]["tokens"] == tokens


def test_all_rows_of_a_seed_start_alike_and_see_the_same_scenes(kind, monkeypatch):
    settings, codec = kind
    first, second = (make_reader(settings, codec, seed=0) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    orders, batch = [], Split.batch

    def watched(self, chosen, device):
        orders[-1].append(chosen)
        return batch(self, chosen, device)

    monkeypatch.setattr(Split, "batch", watched)
    split, hidden = Split([asked(codec, "red")] * 8, range(8)), states(8)
    for projector in ("none", "linear", "tokenpacker"):
        orders.append([])
        reader = make_reader(settings, codec, seed=0)
        train(run_of(projector), Training(2, batch_size=4), reader, split, hidden, "cpu")
    assert orders[0] == orders[1] == orders[2]
    assert sorted([*orders[0][0], *orders[0][1]]) == list(range(8))


def test_seeds_start_differently(small):
    first, second = (make_reader(*small, seed=seed).words.weight for seed in (0, 1))
    assert not torch.equal(first, second)


def test_an_elastic_run_is_scored_at_each_scale_factor(small):
    settings, codec = small
    split, hidden = Split([asked(codec, "red")] * 4, range(4)), states(4)
    run = Run(Row("any", "visualprism_v2", elastic=True, switches={"mm_vision_levels": [1, 2]}), (1, 2, 4), 0)
    reader = make_reader(settings, codec, seed=0)
    result = run_once(run, Training(1, batch_size=4), reader, (split, split), hidden, "cpu")
    assert [(s["scale_factor"], s["tokens"]) for s in result["scores"]] == [(1, 16), (2, 4), (4, 1)]
    gflop = [s["gflop"] for s in result["scores"]]
    assert gflop == sorted(gflop, reverse=True)


def test_a_loss_that_is_not_finite_is_an_error(small):
    settings, codec = small
    hidden = states(4)
    hidden.values[0] = float("nan")
    split = Split([asked(codec, "red")] * 4, range(4))
    reader = make_reader(settings, codec, seed=0)
    with pytest.raises(ValueError, match="linear-seed0.*not finite"):
        train(run_of("linear"), Training(1, batch_size=4), reader, split, hidden, "cpu")
