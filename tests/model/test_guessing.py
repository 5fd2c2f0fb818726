"""A guess that one pass proves is what decoding step by step writes."""

from __future__ import annotations

import itertools

import pytest
import torch

from model.guessing import can_guess, prove, written
from model.lanelm import LaneLM
from model.passes import Known, decode
from model.probe import looking_readings
from tests.model.network import features_of, network, small, targets_for
from tests.model.small import MemoryBank, split_of


@pytest.mark.parametrize(
    ("mode", "ends", "choice"),
    [
        *itertools.product(("absolute", "relative_disjoint"), ("x", "x_or_y"), ("token",)),
        *itertools.product(("absolute", "relative_disjoint"), ("x",), ("point",)),
        ("absolute", "x", "median"),
    ],
)
@torch.no_grad()
def test_any_guess_ends_at_what_decoding_writes(mode: str, ends: str, choice: str) -> None:
    config = small(
        tokenizer__mode=mode, decode__ends=ends, decode__choice=choice, visual__levels="p5"
    )
    model = network(config, sharpen=8.0)
    memory = model.encode(features_of(model))
    greedy = model.generate(memory)
    assert bool((greedy > 0).any())
    for guess in (targets_for(config).ids, torch.zeros_like(greedy), greedy):
        ids, proved = prove(model, memory, guess, passes=config.tokenizer.n_rows + 1)
        assert proved.all()
        assert torch.equal(ids, greedy)


@torch.no_grad()
def test_what_no_pass_proved_is_not_called_the_models_own() -> None:
    config = small(visual__levels="p5")
    model = network(config, sharpen=8.0)
    memory = model.encode(features_of(model))
    greedy = model.generate(memory)
    wrong = greedy.clone()
    wrong[0, 0, 0] = (greedy[0, 0, 0] + 1) % model.tokenizer.vocab
    _, proved = prove(model, memory, wrong, passes=1)
    assert proved.tolist() == [False, True]


def test_legacy_decoding_that_reads_other_steps_than_training_is_not_guessed() -> None:
    assert can_guess(network(small()))
    for legacy in ({"model__start": "leak"}, {"model__decode_shift": True}):
        assert not can_guess(network(small(**legacy)))
    assert not can_guess(network(small(model__decode_y_offset=1)))


def test_lanes_learned_from_the_labels_are_known_without_decoding(
    seeing: LaneLM, memory_bank: MemoryBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = split_of(seeing.config, [0, 1, 2, 3])
    known = Known()
    looking_readings(seeing, memory_bank, split, known)
    assert known.lanes
    step_by_step = decode(seeing, memory_bank, split).lanes
    monkeypatch.setattr(seeing, "generate", None)  # nothing is left to decode
    proved = split.select([i for i, row in enumerate(split.indices) if row in known.lanes])
    lanes = decode(seeing, memory_bank, proved, known=known).lanes
    places = [split.indices.index(row) for row in proved.indices]
    assert (lanes == step_by_step[places])[step_by_step[places] > 0].all()


def test_a_lane_ends_at_its_first_blank_after_a_point() -> None:
    model = network(small(visual__levels="p5"))
    T, V = model.config.tokenizer.n_rows, model.tokenizer.vocab
    wanted = torch.zeros(1, 3, T, dtype=torch.long)
    wanted[0, 0] = torch.tensor([0, 5, 6, 0, 7, 8, 0, 0])
    logits = torch.nn.functional.one_hot(wanted, V).float()
    ids = written(model, logits, torch.zeros(1, 3, T, T + 1))
    assert ids[0, 0].tolist() == [0, 5, 6, 0, 0, 0, 0, 0]
