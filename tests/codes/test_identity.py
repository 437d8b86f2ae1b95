"""Plain regression: 3DGS's own activations."""

import torch

from nfc_gs.codes.identity import Identity


def test_colours_are_the_constant_spherical_harmonic_of_3dgs() -> None:
    # Y_00 = 1 / (2 sqrt(pi)).
    logits = torch.tensor([[-2.0], [0.0], [3.0]], dtype=torch.float64)
    expected = 0.5 + logits[:, 0] / (2 * torch.pi**0.5)
    torch.testing.assert_close(Identity().values(logits, unit=False), expected, rtol=0, atol=1e-15)


def test_opacities_are_sigmoids() -> None:
    logits = torch.tensor([[-2.0], [0.0], [3.0]])
    found = Identity().values(logits, unit=True)
    torch.testing.assert_close(found, torch.sigmoid(logits[:, 0].double()).float(), rtol=3e-7, atol=0)  # float32


def test_colours_beyond_white_come_back() -> None:
    values = torch.tensor([-0.5, 0.0, 0.3, 1.7], dtype=torch.float64)
    back = Identity().values(Identity().logits(values, unit=False), unit=False)
    torch.testing.assert_close(back, values, rtol=0, atol=1e-15)


def test_opacities_come_back_and_their_logits_are_finite() -> None:
    values = torch.tensor([0.0, 0.005, 0.1, 0.9, 1.0])
    logits = Identity().logits(values, unit=True)
    assert logits.isfinite().all()
    torch.testing.assert_close(Identity().values(logits, unit=True), values, rtol=0, atol=2e-6)  # OPACITY_MARGIN


def test_what_is_composited_is_the_colour_itself() -> None:
    logits = torch.randn(5, 3, 1, generator=torch.Generator().manual_seed(0))
    code = Identity()
    assert torch.equal(code.probabilities(logits)[..., 0], code.values(logits, unit=False))
    assert torch.equal(code.decode(code.encode(logits[..., 0])), logits[..., 0])
