"""The repetition penalty for prompts that are given as embeddings."""

import pytest
import tiny
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from llava.constants import IMAGE_TOKEN_INDEX
from llava.decoding import Decoding
from llava.model.repetition import RepetitionPenalty

PROMPTS = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6, 7], [0, 0, 9, 9]])
MASK = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])


@pytest.mark.parametrize("penalty", [0.5, 1.3, 100.0])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_it_is_that_of_transformers_over_prompt_and_answer(penalty, num_beams):
    torch.manual_seed(0)
    scores, answers = torch.randn(2 * num_beams, 20), torch.randint(20, (2 * num_beams, 3))
    ours = RepetitionPenalty(penalty, PROMPTS, MASK)(answers, scores)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)
    for row, words in enumerate(([5, 6, 7], [9]) if num_beams == 1 else ([5, 6, 7], [5, 6, 7], [9], [9])):
        whole = torch.cat([torch.tensor(words), answers[row]])[None]
        assert torch.equal(ours[row], theirs(whole, scores[row : row + 1].clone())[0])


@pytest.mark.parametrize("penalty", [5e-324, 1e-30, 1e30, 1.7e308])
def test_an_extreme_one_leaves_probabilities_that_can_be_drawn_from(penalty):
    scores = torch.tensor([[0.0, -3.0, 3.0, 1.0]])
    penalised = RepetitionPenalty(penalty, torch.tensor([[0, 1, 2]]), None)(torch.tensor([[3]]), scores)
    torch.multinomial((penalised / 1e-4).softmax(-1), 1)


@torch.inference_mode()
def test_generate_penalises_the_words_of_the_prompt_too(tmp_path):
    model = tiny.build(tmp_path)
    call = {"images": torch.randn(1, 3, 56, 56), "pad_token_id": 0, "eos_token_id": None}
    first = model.generate(PROMPTS[:1], **call, **Decoding(max_new_tokens=1).kwargs())[0, 0]
    prompt = torch.cat([PROMPTS[:1], first[None, None]], dim=1)
    follows = model.generate(prompt, **call, **Decoding(max_new_tokens=8).kwargs())[0].tolist()
    prompt = torch.cat([PROMPTS[:1], torch.tensor([follows])], dim=1)
    said = model.generate(prompt, **call, **Decoding(max_new_tokens=8, repetition_penalty=1e9).kwargs())
    assert not set(said[0].tolist()) & {5, 6, 7, *follows}
    assert len(set(said[0].tolist())) == 8
