"""Heat on pixels: a token lights only its own pixels; sheets contain all panels."""

import numpy as np
import pytest

from llava.visualization.plots import contact_sheets, overlay, paint_tokens, save_figure
from llava.visualization.token_map import ImageMapping, TokenMap

# of 60x40 pixels, the middle 40 columns are the input: a 40-pixel square of 4x4 tokens
MAPPING = TokenMap((ImageMapping(60, 40, 40, (1.0, 1.0), (-10.0, 0.0)),), 4, np.arange(16))
IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


@pytest.mark.parametrize("token", [0, 3, 6, 15])
def test_attention_to_one_token_lights_its_pixels_and_no_other(token):
    heat = paint_tokens(np.eye(16)[token], MAPPING)
    row, column = divmod(token, 4)
    expected = np.zeros((40, 60))
    expected[:, :10] = expected[:, 50:] = np.nan
    expected[10 * row : 10 * row + 10, 10 + 10 * column : 20 + 10 * column] = 1
    np.testing.assert_array_equal(heat, expected)


def test_smooth_heat_peaks_in_the_middle_of_the_token_and_stays_unknown_outside():
    heat = paint_tokens(np.eye(16)[5], MAPPING, smooth=True)
    assert np.isnan(heat[:, :10]).all()
    assert np.isnan(heat[:, 50:]).all()
    peaks = np.argwhere(heat == np.nanmax(heat))
    assert peaks.mean(axis=0) == pytest.approx([14.5, 24.5], abs=1)


def test_weights_that_are_not_one_for_each_token_are_refused():
    with pytest.raises(ValueError, match="16 visual tokens.*15"):
        paint_tokens(np.ones(15), MAPPING)


def test_overlay_tells_hot_cold_and_unseen_apart():
    heat = np.zeros((40, 60), np.float32)
    heat[:, :20], heat[:, 20:40] = np.nan, 1
    picture = overlay(np.full_like(IMAGE, 128), heat, limit=1)
    unseen, hot, cold = picture[0, 0], picture[0, 30], picture[0, 50]
    assert unseen[0] == unseen[1] == unseen[2] < 64
    assert hot[0] > hot[2]  # red
    assert cold[2] > cold[0]  # blue


def test_overlay_of_no_heat_at_all_is_cold():
    cold = overlay(IMAGE, np.zeros((40, 60), np.float32), limit=0.0)
    assert np.array_equal(cold, overlay(IMAGE, np.zeros((40, 60), np.float32), limit=1.0))


def titles(figure):
    return [axis.get_title() for axis in figure.axes if axis.get_title()]


@pytest.mark.slow
def test_a_sheet_shows_the_image_and_every_panel_and_is_saved_twice(tmp_path):
    panels = [(f"word$ {i}", paint_tokens(np.full(16, i / 16), MAPPING)) for i in range(7)]
    (figure,) = contact_sheets(IMAGE, panels, "costs $5 or $6?", "attention (%)")
    assert titles(figure) == ["image", *(rf"word\$ {i}" for i in range(7))]
    assert figure.axes[-1].get_ylabel() == "attention (%)"
    paths = save_figure(figure, tmp_path / "heatmap_layer3")
    assert [path.name for path in paths] == ["heatmap_layer3.png", "heatmap_layer3.svg"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_long_answer_fills_pages_of_bounded_size_on_one_colour_scale():
    panels = [(f"word{i} ({i}%)", paint_tokens(np.full(16, i / 60), MAPPING)) for i in range(62)]
    figures = contact_sheets(IMAGE, panels, "why?", "attention (%)")
    assert [title for figure in figures for title in titles(figure)] == [
        "image",
        *(caption for caption, _ in panels),
    ]
    assert [figure.get_suptitle() for figure in figures] == [f"why?, page {n} of 3" for n in (1, 2, 3)]
    assert len({figure.axes[-1].get_ylim() for figure in figures}) == 1
    assert max(side for figure in figures for side in figure.get_size_inches()) < 15


def test_a_narrow_picture_leaves_room_for_captions_and_a_long_word_is_cut_but_not_its_figure():
    narrow = TokenMap((ImageMapping(20, 80, 80, (4.0, 1.0), (0.0, 0.0)),), 4, np.arange(16))
    panels = [("donaudampfschifffahrtsgesellschaft (12%)", paint_tokens(np.ones(16), narrow))] * 9
    (figure,) = contact_sheets(np.zeros((80, 20, 3), np.uint8), panels, "why?", "attention (%)")
    caption = titles(figure)[1]
    assert caption.startswith("donau")
    assert caption.endswith("… (12%)")
    assert figure.get_size_inches()[0] > 6 * 1.3


def test_letters_that_cannot_be_printed_are_dots():
    (figure,) = contact_sheets(
        IMAGE, [("a\x1bb", paint_tokens(np.ones(16), MAPPING))], "why?", "attention (%)"
    )
    assert titles(figure)[1] == "a·b"
