"""The measured receptive field against the Jacobian and against what the layers can reach by construction."""

import pytest
import torch

from scalablevit.models.attention import LocalInteraction, WindowAttention
from scalablevit.models.receptive_field import ReceptiveField, receptive_field

SIDE, DIM = 9, 4
"""Tokens of the map, three windows of 3 x 3 a side; channels."""


def layer(kind: LocalInteraction) -> WindowAttention:
    torch.manual_seed(0)
    return WindowAttention(DIM, 1, (3, 3), kind)


def tokens(batch: int = 2) -> torch.Tensor:
    return torch.randn(1, SIDE, SIDE, DIM, generator=torch.Generator().manual_seed(1)).expand(batch, -1, -1, -1)


@pytest.mark.parametrize("kind", ["lim", "lem"])
def test_the_energy_is_the_squared_jacobian(kind: LocalInteraction) -> None:
    measured = receptive_field(layer(kind), tokens(512))
    assert (measured.top, measured.left) == (3, 3)
    jacobian = torch.autograd.functional.jacobian(layer(kind), tokens(1))[0, 3:6, 3:6, :, 0]
    exact = jacobian.double().square().sum(dim=(2, 5))
    assert torch.equal(exact > 0, measured.energy > 0)
    assert measured.energy.sum() == pytest.approx(float(exact.sum()), rel=0.05)
    assert float((measured.energy - exact).abs().max()) < 0.1 * float(exact.max())


@pytest.mark.parametrize("kind", ["none", "lem"])
def test_neither_wsa_nor_lem_looks_beyond_the_window(kind: LocalInteraction) -> None:
    field = receptive_field(layer(kind), tokens())
    assert field.share_outside() == 0 and field.reached() == (9, 9)


def test_lim_reaches_one_token_beyond_the_window_from_its_border_and_no_further() -> None:
    """So one IWSA layer's receptive field is not global, whatever its weights."""
    field = receptive_field(layer("lim"), tokens())
    for row in range(3):
        for column in range(3):
            expected = torch.zeros(SIDE, SIDE, dtype=torch.bool)
            expected[3:6, 3:6] = True
            expected[2 + row : 5 + row, 2 + column : 5 + column] = True
            assert torch.equal(field.energy[row, column] > 0, expected)
    assert field.reached() == (9, 14) and 0 < field.share_outside() < 1


def test_the_radius_holds_the_share_of_energy_by_distance() -> None:
    energy = torch.zeros(1, 1, 5, 5)
    energy[0, 0, 2, 2], energy[0, 0, 2, 3], energy[0, 0, 0, 1] = 90, 6, 4  # distances 0, 1 and sqrt(5)
    field = ReceptiveField(energy, 2, 2)
    assert [field.radius(share) for share in (0.5, 0.95, 0.97)] == pytest.approx([0, 1, 5**0.5])
    assert field.share_outside() == pytest.approx(0.1)


def test_a_map_without_windows_around_the_middle_one_is_refused() -> None:
    with pytest.raises(ValueError, match="a map of 6 x 9 tokens has less than 3 windows of 3 x 3 a side"):
        receptive_field(layer("lim"), tokens()[:, :6])
