"""A colour that rises from 127 to 128 flips eight binary digits: what lies between, by each way of changing a colour."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dynamic.deformations.mlp import Mlp
from dynamic.fields.residuals import Heads, Residuals
from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.gray import Gray
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.core.gaussians import Gaussians
from tests.dynamic.deformations.scenes import BOUNDS, NUM_TIMES

LEVELS = 255
BELOW, ABOVE = 127 / LEVELS, 128 / LEVELS
# Float32 values in [0, 1] after a handful of roundings, in levels.
ROUNDING = 1e-3


def painted(code: TargetCode, logits: Tensor) -> Gaussians:
    """One Gaussian whose three channels have these logits [K]."""
    assert len(logits) == code.width
    return Gaussians(
        means=torch.full((1, 3), 0.2),
        log_scales=torch.zeros(1, 3),
        quats=torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        colour_logits=logits.expand(1, 3, -1).contiguous(),
        opacity_logits=torch.zeros(1, 1),
        harmonics=torch.zeros(1, 0, 3),
        motion=torch.zeros(1, 0),
    )


def departure(values: Tensor, low: Tensor | float, high: Tensor | float) -> float:
    """How many levels the values leave the interval by, at most."""
    return LEVELS * float(torch.maximum(low - values, values - high).clamp(min=0).max())


def ramp_of_logits(first: Tensor, last: Tensor) -> Callable[[float], Tensor]:
    """The heads of a field whose offsets lead evenly in time from one word's logits to another's, as a function of time."""
    heads = Heads(Residuals(colour_logits=len(first)), 1, 0, 1.0, torch.Generator())
    with torch.no_grad():
        heads.heads["colour_logits"][1].weight.copy_((last - first).repeat(3)[:, None])
    code, gaussians = Binary(bits=len(first)), painted(Binary(bits=len(first)), first)
    return lambda time: code.values(
        heads(torch.tensor([[time]]), gaussians).gaussians.colour_logits.detach(), unit=False
    )


@pytest.mark.parametrize(
    ("code", "flash"),
    [(Binary(bits=8), 127.0), (Gray(bits=8), 0.0), (Thermometer(bits=4), 0.0)],
    ids=lambda x: str(x)[:4],
)
def test_bits_that_are_each_of_either_word_mean_anything_in_binary_and_nothing_else_in_gray_or_thermometer(code, flash):
    """Every digit of one word or the other, all ways: 127 = 01111111 and 128 = 10000000 share no digit, so any level is
    among them; Gray's words differ in one digit, and thermometer's are ordered digit by digit.
    """
    ends = code.encode(torch.tensor([BELOW, ABOVE]))
    mixed = torch.stack([torch.stack(bits) for bits in itertools.product(*zip(*ends, strict=True))])
    assert departure(code.decode(mixed), BELOW, ABOVE) == pytest.approx(flash, abs=ROUNDING)


def test_binary_digits_that_cross_at_different_moments_flash_white_or_black():
    """The first digit crosses at 0.5 - early, the others at 0.5 + early; in the middle all are sure by the same margin m,
    so that the value is sigmoid(m) or sigmoid(-m), by the sum of the place values being one.
    """
    sharpness = 120.0
    word = torch.tensor([0.0] + [1.0] * 7)
    for early in (0.05, -0.05):
        crossings = torch.tensor([0.5 - early] + [0.5 + early] * 7)
        direction = sharpness * (1 - 2 * word)
        at = ramp_of_logits(-direction * crossings, direction * (1 - crossings))
        for time, level in ((0.0, 127), (1.0, 128)):
            assert LEVELS * float(at(time)[0, 0]) == pytest.approx(level, abs=ROUNDING)
        wanted = 1 / (1 + math.exp(-sharpness * early))
        assert float(at(0.5)[0, 0]) == pytest.approx(wanted, abs=ROUNDING / LEVELS)
        assert departure(at(0.5), BELOW, ABOVE) > 126


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_a_residual_in_decoded_space_never_leaves_its_bound(size):
    bound = 2 / LEVELS
    heads = Heads(Residuals(colour=bound), 4, 0, 1.0, torch.Generator())
    torch.nn.init.normal_(heads.heads["colour"][1].weight, std=size, generator=torch.Generator().manual_seed(0))
    code = Thermometer(bits=4)
    gaussians = painted(code, code.logits(torch.tensor(BELOW), unit=False))
    for time in torch.linspace(0, 1, 50):
        moved = heads(torch.stack([time**power for power in range(4)])[None], gaussians)
        assert torch.equal(moved.gaussians.colour_logits, gaussians.colour_logits)
        assert LEVELS * float(moved.colour_residual.abs().max()) <= LEVELS * bound + ROUNDING


def trained(
    code: TargetCode, residuals: Residuals, squares: float, bits: float, steps: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A colour that a small network has learned to raise from level 123 to 131.

    It is trained at nine times with `squares` times the squared error and `bits` times the cross-entropy to the encoded
    colours. What comes back is what it says half way between the times, and what it should say at the times.
    """
    times = torch.linspace(0, 1, 9)
    values = (123 + 8 * times) / LEVELS
    gaussians = painted(code, code.logits(torch.tensor(BELOW), unit=False))
    network = Mlp(width_of_network=32, depth=2, residuals=residuals).init(
        BOUNDS, NUM_TIMES, torch.Generator().manual_seed(seed)
    )
    network.awake.fill_(True)
    labels = code.encode(values)
    adam = torch.optim.Adam(network.parameters(), lr=2e-3)

    def say(time: float) -> tuple[Tensor, Tensor]:
        moved = network(gaussians, time)
        logits = moved.gaussians.colour_logits[0, 0]
        value = code.values(logits, unit=False)
        return logits, value if moved.colour_residual is None else value + moved.colour_residual[0, 0]

    for _ in range(steps):
        logits, said = (torch.stack(parts) for parts in zip(*map(say, times.tolist()), strict=True))
        loss = squares * (said - values).square().mean()
        if bits > 0:
            loss = loss + bits * torch.nn.functional.binary_cross_entropy_with_logits(logits, labels)
        adam.zero_grad()
        loss.backward()
        adam.step()
    with torch.no_grad():
        middles = torch.stack([say(time)[1] for time in ((times[1:] + times[:-1]) / 2).tolist()])
    return middles, values


def test_a_trained_residual_stays_within_its_bound_between_the_times_it_was_trained_at():
    bound = 8 / LEVELS
    middles, _ = trained(Thermometer(bits=4), Residuals(colour=bound), squares=1e3, bits=0.0, steps=40)
    # 1e-4: what `TargetCode.logits` promises of the value that the static code decodes to.
    assert float((middles - BELOW).abs().max()) <= bound + 1e-4
