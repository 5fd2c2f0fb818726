"""What a model writes freely agrees with what it says on true prefixes, and where it must not."""

from __future__ import annotations

import pytest
import torch

from model.lanelm import LaneLM
from model.passes import after_prefix, force
from model.probe import readings
from model.tokenizer import make_tokenizer
from tests.model.small import CHANNELS, MemoryBank, config_with, fit, split_of


@pytest.mark.parametrize("mode", ["absolute", "relative_disjoint"])
def test_a_token_is_read_after_the_true_prefix_not_after_chosen_ones(mode: str) -> None:
    config = config_with(tokenizer__mode=mode)
    tokenizer = make_tokenizer(config.tokenizer, 256)
    targets = split_of(config, [0]).targets
    exact = after_prefix(tokenizer, targets.ids, targets.ids)
    assert torch.allclose(exact, tokenizer.decode(targets.ids), equal_nan=True)
    chosen = targets.ids.clone()
    chosen[targets.point] += 1  # a bin to the right, or a step one bin longer
    off = after_prefix(tokenizer, targets.ids, chosen)[targets.point] - exact[targets.point]
    assert torch.allclose(off, torch.tensor(tokenizer.bin_width).float())  # nowhere adding up


def test_decoding_agrees_with_teacher_forcing(seeing: LaneLM, memory_bank: MemoryBank) -> None:
    split = split_of(seeing.config, [0, 1, 2, 3])
    read = readings(seeing, memory_bank, split, "final", donors=None, full=True)
    assert read["final/step_logit_gap"] < 1e-3
    assert read["final/step_logit_gap_first"] <= read["final/step_logit_gap"]


def test_another_input_in_decoding_shows_as_a_gap(memory_bank: MemoryBank) -> None:
    config = config_with(model__start="leak")
    model, split = LaneLM(config, CHANNELS), split_of(config, [0, 1])
    fit(model, memory_bank, split, 60)
    read = readings(model, memory_bank, split, "final", donors=None, full=True)
    assert read["final/loss_first_token"] < 0.1
    assert read["final/step_logit_gap"] > 0.1
    assert read["final/step_logit_gap_first"] > 0.1


def test_readings_do_not_depend_on_how_many_images_go_together(
    seeing: LaneLM, memory_bank: MemoryBank
) -> None:
    together = split_of(seeing.config, [0, 1, 2, 3])
    alone = [force(seeing, memory_bank, split_of(seeing.config, [i])).nll for i in range(4)]
    assert torch.allclose(force(seeing, memory_bank, together).nll, torch.cat(alone), atol=1e-4)
