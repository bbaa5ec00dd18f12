"""A study's runs: questions do not see one another, scores are greedy decoding's, the image is used."""

import pytest
import torch

from llava.benchmark.ablation.features import HiddenStates
from llava.benchmark.ablation.settings import Reader, Row, Run, Training
from llava.benchmark.ablation.text import SEPARATOR, Asked, collate, encode, learn_tokenizer
from llava.benchmark.ablation.training import Split, VisualReader, make_reader, run_once, score, train

QUESTIONS = ("what color?", "is the small one there now?", "which?")
ANSWERS = ("red", "dark blue", "ABC")
READER = Reader(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, vocabulary=300)
WIDTH, GRID = 8, 4


@pytest.fixture(scope="module")
def tokenizer():
    return learn_tokenizer([*QUESTIONS, *ANSWERS, SEPARATOR] * 4, READER.vocabulary)


@pytest.fixture(scope="module")
def asked(tokenizer):
    """A scene's questions with these answers; a question's family is its first word."""

    def ask(*answers: str) -> list[Asked]:
        pairs = zip(QUESTIONS, answers, strict=False)
        return [encode(text, answer, text.split()[0], tokenizer) for text, answer in pairs]

    return ask


def reader(tokenizer, seed: int = 0):
    return make_reader(READER, len(tokenizer), tokenizer.eos_token_id, seed)


def states(num: int, seed: int = 0) -> HiddenStates:
    values = torch.randn(num, GRID * GRID, 2 * WIDTH, generator=torch.Generator().manual_seed(seed))
    return HiddenStates(values.bfloat16(), (1, 2), 3)


def run_of(projector: str, **switches) -> Run:
    row = Row(projector, projector, switches={"mm_vision_levels": [1, 2], **switches})
    return Run(row, () if projector in ("none", "linear") else (2,), seed=0)


def test_letters_and_digits_are_spelt_and_words_are_whole(tokenizer):
    assert tokenizer.tokenize("ABC") == ["A", "B", "C"]
    assert tokenizer.tokenize("Zeb9")[-1] == "9"
    assert len(tokenizer.tokenize("red")) == 1


def test_a_question_goes_on_from_its_own_scene_and_sees_no_other_question(tokenizer, asked):
    """Beside each question alone, image and text in one row."""
    torch.manual_seed(0)
    model = VisualReader(reader(tokenizer), None, None).eval()
    tokens = torch.randn(2, 5, READER.hidden_size)
    scenes = [asked(*ANSWERS), asked("dark blue", "red")]
    given, labels = model(collate(scenes), tokens)
    expected = []
    for image, questions in zip(tokens, scenes, strict=True):
        for question in questions:
            ids = torch.tensor([question.ids])
            embeds = torch.cat([image[None], model.reader.get_input_embeddings()(ids)], dim=1)
            expected.append(model.reader(inputs_embeds=embeds).logits[0, 5 + question.num_prompt - 1 : -1])
    torch.testing.assert_close(given, torch.cat(expected), atol=1e-5, rtol=1e-4)
    answers = [
        token for scene in scenes for question in scene for token in question.ids[question.num_prompt :]
    ]
    assert labels.tolist() == answers


def test_a_score_is_that_of_greedy_decoding(tokenizer, asked):
    """On a reader trained to be right sometimes, answer by answer, against transformers' generate."""
    scenes = [asked(*[ANSWERS[(k + n) % 3] for k in range(3)]) for n in range(4)]
    split, hidden = Split(scenes, range(4)), states(4)
    settings = Training(epochs=30, batch_size=4, learning_rate=1e-2)
    model = train(run_of("linear"), settings, reader(tokenizer), split, hidden, "cpu")
    given = score(model, split, hidden, None, 4, "cpu")
    right = dict.fromkeys(given, 0)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for n, scene in enumerate(scenes):
            tokens = model.visual_tokens(hidden, torch.tensor([n]), None)
            for question in scene:
                prompt = torch.tensor(question.ids[: question.num_prompt])
                embeds = torch.cat([tokens, model.reader.get_input_embeddings()(prompt)[None]], dim=1)
                said = model.reader.generate(
                    inputs_embeds=embeds, max_new_tokens=8, do_sample=False, pad_token_id=0
                )
                right[question.family] += said[0].tolist() == list(question.ids[question.num_prompt :])
    assert given == {family: [right[family], 4] for family in given}
    assert 0 < sum(right.values()) < 12


@pytest.mark.parametrize("projector", ["linear", "avgpool", "visualprism_v2"])
def test_a_run_learns_what_only_the_image_tells(tokenizer, asked, projector):
    """The first channel says the answer: who sees it is right, who does not guesses."""
    hidden = states(32)
    answers = [ANSWERS[n % 2] for n in range(32)]
    hidden.values[:, :, ::WIDTH] = torch.tensor([8.0 * (n % 2) - 4 for n in range(32)])[:, None, None]
    split = Split([asked(answer) for answer in answers], range(32))
    settings = Training(epochs=20, batch_size=8, learning_rate=3e-3)
    seen = run_once(run_of(projector), settings, reader(tokenizer), (split, split), hidden, "cpu")
    assert seen["scores"][0]["families"] == {"what": [32, 32]}
    blind = run_once(run_of("none"), settings, reader(tokenizer), (split, split), hidden, "cpu")
    assert blind["scores"][0]["families"] == {"what": [16, 32]}
    assert blind["scores"][0]["tokens"] == 0


def test_all_rows_of_a_seed_start_alike_and_see_the_same_scenes(tokenizer, asked, monkeypatch):
    first, second = reader(tokenizer), reader(tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    other = reader(tokenizer, seed=1)
    assert not torch.equal(first.get_input_embeddings().weight, other.get_input_embeddings().weight)
    orders = []
    batch = Split.batch
    monkeypatch.setattr(
        Split,
        "batch",
        lambda self, chosen, device: (orders[-1].append(chosen), batch(self, chosen, device))[1],
    )
    split, hidden = Split([asked("red")] * 8, range(8)), states(8)
    for projector in ("none", "linear", "tokenpacker"):
        orders.append([])
        train(run_of(projector), Training(2, batch_size=4), reader(tokenizer), split, hidden, "cpu")
    assert orders[0] == orders[1] == orders[2]
    assert sorted([*orders[0][0], *orders[0][1]]) == list(range(8))


def test_an_elastic_run_is_scored_at_each_scale_factor(tokenizer, asked):
    split, hidden = Split([asked("red")] * 4, range(4)), states(4)
    run = Run(Row("any", "visualprism_v2", elastic=True, switches={"mm_vision_levels": [1, 2]}), (1, 2, 4), 0)
    result = run_once(run, Training(1, batch_size=4), reader(tokenizer), (split, split), hidden, "cpu")
    assert [(s["scale_factor"], s["tokens"]) for s in result["scores"]] == [(1, 16), (2, 4), (4, 1)]
    gflop = [s["gflop"] for s in result["scores"]]
    assert gflop == sorted(gflop, reverse=True)


def test_a_loss_that_is_not_finite_is_an_error(tokenizer, asked):
    hidden = states(4)
    hidden.values[0] = float("nan")
    split = Split([asked("red")] * 4, range(4))
    with pytest.raises(ValueError, match="linear-seed0: the loss is not finite"):
        train(run_of("linear"), Training(1, batch_size=4), reader(tokenizer), split, hidden, "cpu")
