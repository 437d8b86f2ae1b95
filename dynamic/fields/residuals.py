"""What a network says about each Gaussian at a time, added to its raw parameters."""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Generator, Tensor, nn

from nfc_gs.config import ConfigError, NonNegativeFloat, NonNegativeInt, spec
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.deformations.base import Moved


@spec
class Residuals:
    """Which parameters a network changes besides means and quaternions.

    Attributes:
        log_scales: whether the sizes change.
        opacity_logits: how many logits of the opacity change: none, or all that its code has (1 for `identity`).
        colour: the bound of a residual added to decoded colours, b tanh(.); 0: none.
        colour_logits: how many logits of each colour channel change: none, or all that their code has.
    """

    log_scales: bool = True
    opacity_logits: NonNegativeInt = 0
    colour: NonNegativeFloat = 0.0
    colour_logits: NonNegativeInt = 0

    @property
    def widths(self) -> dict[str, int]:
        """How many numbers each head has."""
        widths = {
            "means": 3,
            "quats": 4,
            "log_scales": 3 if self.log_scales else 0,
            "opacity_logits": self.opacity_logits,
            "colour": 3 if self.colour > 0 else 0,
            "colour_logits": 3 * self.colour_logits,
        }
        return {name: width for name, width in widths.items() if width > 0}


class Heads(nn.Module):
    """From features [N F] to residuals: for each kind a hidden layer of its own, where `hidden` > 0, and a linear one.

    The last layers are zero at birth, so that nothing moves. Means move in units of `unit`.
    """

    def __init__(self, residuals: Residuals, features: int, hidden: int, unit: float, generator: Generator) -> None:
        super().__init__()
        self.residuals, self.unit = residuals, unit
        self.heads = nn.ModuleDict()
        for name, width in residuals.widths.items():
            last = linear(hidden or features, width, generator)
            nn.init.zeros_(last.weight)
            self.heads[name] = (
                nn.Sequential(nn.ReLU(), linear(features, hidden, generator), nn.ReLU(), last)
                if hidden
                else nn.Sequential(nn.ReLU(), last)
            )

    def check(self, gaussians: Gaussians) -> None:
        """Whether the codes have as many logits as the settings name.

        Raises:
            ConfigError: they have another number.
        """
        _check("opacity_logits", self.residuals.opacity_logits, gaussians.opacity_logits.shape[1], "opacity_code")
        _check("colour_logits", self.residuals.colour_logits, gaussians.colour_logits.shape[2], "code")

    def forward(self, features: Float[Tensor, "N F"], gaussians: Gaussians) -> Moved:
        """The Gaussians with the residuals added; they have passed `check`."""
        says = self.says(features)
        changed = {"means": gaussians.means + self.unit * says["means"], "quats": gaussians.quats + says["quats"]}
        if "log_scales" in says:
            changed["log_scales"] = gaussians.log_scales + says["log_scales"]
        if "opacity_logits" in says:
            changed["opacity_logits"] = gaussians.opacity_logits + says["opacity_logits"]
        if "colour_logits" in says:
            changed["colour_logits"] = gaussians.colour_logits + says["colour_logits"].unflatten(1, (3, -1))
        colour = self.residuals.colour * torch.tanh(says["colour"]) if "colour" in says else None
        return Moved(gaussians=replace(gaussians, **changed), colour_residual=colour)

    def says(self, features: Float[Tensor, "N F"]) -> dict[str, Tensor]:
        """What each head says: all their layers of one depth are one product, for a few narrow ones take far longer."""
        names, heads = zip(*self.heads.items(), strict=True)
        hidden = features.relu()
        if len(heads[0]) == 2:
            widths = [head[1].out_features for head in heads]
            return dict(zip(names, _side_by_side([head[1] for head in heads], hidden).split(widths, 1), strict=True))
        hidden = _side_by_side([head[1] for head in heads], hidden).relu()
        parts = hidden.split([head[1].out_features for head in heads], 1)
        return {name: head[3](part) for name, head, part in zip(names, heads, parts, strict=True)}


def _side_by_side(layers: list[nn.Linear], inputs: Float[Tensor, "N F"]) -> Float[Tensor, "N G"]:
    weights, biases = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    return nn.functional.linear(inputs, weights, biases)


def linear(inputs: int, outputs: int, generator: Generator) -> nn.Linear:
    """A linear layer with Xavier's uniform weights and no bias at birth."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer


def _check(name: str, says: int, has: int, code: str) -> None:
    if says not in (0, has):
        raise ConfigError(f"deformation.residuals.{name} is {says}, but {code} has {has} logits: set it to {has} or 0")
