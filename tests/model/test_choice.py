"""Which id a step writes, from what the model thinks of all of them."""

from __future__ import annotations

import pytest
import torch

from model.lanelm import likeliest
from model.presets import SettingError, build


def logits(*shares: float) -> torch.Tensor:
    return torch.tensor(shares).log()


@pytest.mark.parametrize(
    ("shares", "token", "point", "median"),
    [
        ((0.3, 0.1, 0.15, 0.25, 0.2), 0, 3, 3),  # there is a lane, and it is not clear where
        ((0.6, 0.1, 0.1, 0.1, 0.1), 0, 0, 0),  # there is none
        ((0.1, 0.3, 0.2, 0.2, 0.2), 1, 1, 2),  # its likeliest column is at one end of them
        ((0.1, 0.0, 0.0, 0.9, 0.0), 3, 3, 3),
        ((0.1, 0.0, 0.0, 0.0, 0.9), 4, 4, 4),
    ],
)
def test_choices(shares: tuple[float, ...], token: int, point: int, median: int):
    steps = logits(*shares).expand(2, 3, 5)
    assert likeliest(steps, "token").tolist() == [[token] * 3] * 2
    assert likeliest(steps, "point").tolist() == [[point] * 3] * 2
    assert likeliest(steps, "median").tolist() == [[median] * 3] * 2


def test_the_median_has_the_least_error_to_expect():
    generator = torch.Generator().manual_seed(0)
    shares = torch.rand(50, 12, generator=generator).pow(3)
    shares[:, 0] = 0
    ids = torch.arange(12.0)
    errors = (ids[:, None] - ids).abs() @ shares.T  # of writing each id: (12, 50)
    written = likeliest(shares.log(), "median")
    torch.testing.assert_close(errors.gather(0, written[None])[0], errors.min(0).values)


def test_ids_of_two_kinds_have_no_median():
    with pytest.raises(SettingError, match=r"decode\.choice=median.*relative_disjoint"):
        build({"decode.choice": "median", "tokenizer.mode": "relative_disjoint"})
