"""The merge puts each visual token at the place of its placeholder, with any padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.model.multimodal_merge import ImageSpan, image_span, merge, plan_merge
from llava.tiling import COLUMN_END, ROW_END

WIDTH = 3


def embed(ids):
    return torch.stack([ids, ids + 0.25, ids + 0.5], dim=-1).float()


def visual(number):
    return torch.full((WIDTH,), -float(number + 1))


def spans(counts: list[int]) -> list[ImageSpan]:
    firsts = [sum(counts[:i]) for i in range(len(counts))]
    return [image_span(torch.arange(n), first, None) for n, first in zip(counts, firsts, strict=True)]


@st.composite
def prompts(draw):
    """Prompts as rows of (is image, id), and the tokens of each image."""
    item = st.one_of(st.just(IMAGE_TOKEN_INDEX), st.integers(1, 90))
    rows = draw(st.lists(st.lists(item, min_size=1, max_size=6), min_size=1, max_size=4))
    num_images = sum(row.count(IMAGE_TOKEN_INDEX) for row in rows)
    counts = draw(st.lists(st.integers(1, 4), min_size=num_images, max_size=num_images))
    return rows, counts, draw(st.sampled_from(["left", "right"])), draw(st.sampled_from(["left", "right"]))


@settings(max_examples=100, deadline=None)
@given(prompts())
def test_every_row_reads_as_its_prompt_with_the_images_spelled_out(case):
    rows, counts, padding_in, padding_out = case
    pad = {"batch_first": True, "padding_side": padding_in}
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], padding_value=0, **pad)
    mask = torch.nn.utils.rnn.pad_sequence(
        [torch.ones(len(row)) for row in rows], padding_value=0, **pad
    ).bool()
    labels = torch.where(ids > 0, ids, IGNORE_INDEX)
    plan = plan_merge(ids, mask, labels, spans(counts), padding_out)
    features = torch.stack([visual(i) for i in range(sum(counts))]) if counts else torch.zeros(0, WIDTH)
    merged = merge(plan, embed(plan.token_ids), features)
    next_image, next_token = iter(counts), 0
    for row, row_ids in enumerate(rows):
        expected, expected_labels = [], []
        for token in row_ids:
            if token == IMAGE_TOKEN_INDEX:
                for _ in range(next(next_image)):
                    expected.append(visual(next_token))
                    expected_labels.append(IGNORE_INDEX)
                    next_token += 1
            else:
                expected.append(embed(torch.tensor(token)))
                expected_labels.append(token)
        keep = merged.attention_mask[row]
        assert torch.equal(merged.inputs_embeds[row][keep], torch.stack(expected))
        assert merged.labels[row][keep].tolist() == expected_labels
        assert merged.position_ids[row][keep].tolist() == list(range(len(expected)))
        edge = keep if padding_out == "right" else keep.flip(0)
        assert edge.int().diff().le(0).all()
    assert (merged.labels[~merged.attention_mask] == IGNORE_INDEX).all()


@pytest.mark.parametrize("counts", [[], [4, 4]])
def test_placeholders_and_images_that_differ_in_number_are_refused_with_both_counts(counts):
    ids = torch.tensor([[1, IMAGE_TOKEN_INDEX, 2]])
    with pytest.raises(ValueError, match=f"1 <image>.*{len(counts)} images"):
        plan_merge(ids, None, None, spans(counts), "left")


def test_gradients_reach_text_and_features_and_nothing_else():
    plan = plan_merge(torch.tensor([[5, IMAGE_TOKEN_INDEX, 6]]), None, None, spans([2]), "right")
    text = torch.randn(1, 4, WIDTH, requires_grad=True)
    features = torch.randn(2, WIDTH, requires_grad=True)
    merge(plan, text, features).inputs_embeds.sum().backward()
    assert features.grad.eq(1).all()
    assert text.grad[0, :, 0].tolist() == [1, 0, 0, 1]


def test_separators_are_words_or_the_learnt_newline_and_carry_no_label():
    layout = torch.tensor([1, COLUMN_END, 0, ROW_END])
    ids = torch.tensor([[5, IMAGE_TOKEN_INDEX, 6]])
    features, newline = torch.stack([visual(0), visual(1)]), torch.full((WIDTH,), 99.0)
    words = plan_merge(ids, None, ids, [image_span(layout, 0, (7, 8))], "left")
    merged = merge(words, embed(words.token_ids), features).inputs_embeds[0]
    expected = [embed(torch.tensor(id_)) if id_ > 0 else visual(-id_) for id_ in (5, -1, 7, 0, 8, 6)]
    assert torch.equal(merged, torch.stack(expected))
    assert words.labels[0].tolist() == [5, *[IGNORE_INDEX] * 4, 6]
    learnt = plan_merge(ids, None, None, [image_span(layout[[0, 2, 3]], 0, None)], "left")
    merged = merge(learnt, embed(learnt.token_ids), features, newline).inputs_embeds[0]
    assert torch.equal(merged[1:4], torch.stack([visual(1), visual(0), newline]))


def test_the_newline_is_in_the_graph_even_where_no_row_ends():
    plan = plan_merge(torch.tensor([[5, 6]]), None, None, [], "right")
    newline = torch.randn(WIDTH, requires_grad=True)
    merge(plan, torch.randn(1, 2, WIDTH), torch.zeros(0, WIDTH), newline).inputs_embeds.sum().backward()
    assert newline.grad.eq(0).all()
