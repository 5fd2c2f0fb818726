"""Pictures: what is drawn where, and that it can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.draw import DECODED, TRUTH, draw_attention, draw_overlay, merge_levels, tile
from model.eval_split import EvalSplit
from model.lanelm import LaneLM
from model.pictures import attention_sheet, overlays
from model.targets import make_targets
from tests.model.small import CHANNELS, MemoryBank, config_with, split_of

GREY = np.full((320, 800, 3), 90, np.uint8)
LEFT = np.array([[200.0, 60.0], [100.0, 300.0]])
RIGHT = np.array([[500.0, 60.0], [700.0, 300.0]])


def near(picture: np.ndarray, colour: tuple[int, int, int], tolerance: int) -> np.ndarray:
    return np.asarray((np.abs(picture.astype(int) - colour) <= tolerance).all(-1))


def test_truth_and_decoded_lanes_lie_where_they_are_and_look_different() -> None:
    drawn = draw_overlay(GREY, [LEFT], [RIGHT])
    truth, decoded = near(drawn, TRUTH, 60), near(drawn, DECODED, 60)
    assert truth[178:183, 148:152].all()  # the middle of the left lane
    assert decoded[180, 598:602].any()
    assert not (truth & decoded).any()
    away = drawn[100:, 300:450]
    assert (away == 90).all()
    assert truth[:22, :300].any()  # the legend
    assert decoded[:22, :300].any()


def test_the_truth_stays_visible_under_an_exact_prediction() -> None:
    drawn = draw_overlay(GREY, [LEFT], [LEFT])
    across = drawn[180, 140:161]
    assert near(across, DECODED, 60).any()
    assert near(across, TRUTH, 80).any()


def test_a_picture_is_drawn_on_a_copy_and_takes_any_lanes() -> None:
    before = GREY.copy()
    single = np.array([[50.0, 50.0]])
    outside = np.array([[-50.0, 100.0], [900.0, 200.0]])
    drawn = draw_overlay(GREY, [], [single, outside, np.zeros((0, 2))], "a caption")
    assert (before == GREY).all()
    assert drawn.shape == GREY.shape
    assert near(drawn[47:54, 47:54], DECODED, 60).any()


def test_attention_tints_where_it_is() -> None:
    weights = np.zeros((10, 25))
    weights[5, 20] = 1.0
    drawn = draw_attention(GREY, weights)
    cell = drawn[160:192, 640:672]
    assert cell.mean() > 120
    drawn[160:192, 640:672] = 90
    assert (drawn == 90).all()


def test_the_tint_is_on_one_scale_for_all_pictures() -> None:
    """Even attention is dark everywhere, however many tokens share it."""
    few = draw_attention(GREY, np.full((10, 25), 1 / 250))
    many = draw_attention(GREY, np.full((40, 100), 1 / 4000))
    assert (few == many).all()
    assert few.mean() < 90
    sharp = np.full((10, 25), 1e-3)
    sharp[0, 0] = 1
    assert draw_attention(GREY, sharp)[:20, :20].mean() > few.mean()


def test_the_query_is_marked() -> None:
    drawn = draw_attention(GREY, np.full((10, 25), 0.004), (400.0, 160.0), "block 1")
    assert near(drawn[158:163, 398:403], TRUTH, 5).all()


def test_levels_merge_by_mass() -> None:
    fine, coarse = np.zeros((40, 100)), np.zeros((10, 25))
    fine[39, 99], coarse[0, 0] = 0.25, 0.75
    merged = merge_levels([fine, coarse], 320, 800)
    assert merged.sum() == pytest.approx(1)
    assert merged[312:, 792:].sum() == pytest.approx(0.25)
    assert merged[:32, :32].sum() == pytest.approx(0.75)
    uneven = merge_levels([np.full((3, 7), 1 / 21)], 100, 200)  # cells of unequal size
    assert uneven.sum() == pytest.approx(1)


def test_tiles() -> None:
    sheet = tile([[GREY, GREY], [GREY]], gap=4)
    assert sheet.shape == (644, 1604, 3)
    assert (sheet[:320, :800] == 90).all()
    assert (sheet[324:, 804:] == 0).all()


@pytest.mark.parametrize("levels", ["p5", "full"])
def test_pictures_of_a_model(levels: str) -> None:
    torch.set_num_threads(1)
    config = config_with(visual__levels=levels)
    model, bank = LaneLM(config, CHANNELS), MemoryBank(4)
    split = split_of(config, [0, 1])
    pictures = [np.full((96, 256, 3), 90, np.uint8)] * 2
    drawn = overlays(model, bank, split, pictures)
    assert [picture.shape for picture in drawn] == [(96, 256, 3)] * 2
    assert all(near(picture, TRUTH, 60).any() for picture in drawn)
    sheet = attention_sheet(model, bank, split, 1, pictures[1])
    assert sheet is not None
    assert sheet.shape == (2 * 96 + 4, 2 * 256 + 4, 3)  # blocks by heads
    empty = EvalSplit([0], make_targets([[]], config), ())
    assert attention_sheet(model, bank, empty, 0, pictures[0]) is None
