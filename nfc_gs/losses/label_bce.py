"""Cross-entropy between each Gaussian's bits and its own labels: the encoded pixels that it covers."""

import torch
from jaxtyping import Float
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.config import ConfigError, spec
from nfc_gs.losses.base import Comparison, MemoryLoss


@spec
class LabelBCE(MemoryLoss):
    """sum_i W_i BCE(p_i, t_i) / (pixels x 3 K), with labels t_i remembered over views.

    For fixed compositing weights w_ip of Gaussian i in pixel p, sum_p w_ip BCE(p_i, b(C_p)) is W_i BCE(p_i, t_i) plus a
    constant, where W_i = sum_p w_ip and t_i = sum_p w_ip b(C_p) / W_i: a Gaussian's label is the mean word of its
    pixels. Its gradient by the logits is W_i (p_i - t_i), and nothing flows into the geometry. t_i is the ratio of two
    sums over past views that fade by `decay` a view.

    It acts at every `every`-th step, `every` times as strongly.
    """

    weight: float = 0.3
    start: float = 0.1
    stop: float = 1.0
    decay: float = 0.98
    every: int = 2

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, found {self.decay}")
        if self.every < 1:
            raise ValueError(f"every must be at least 1, found {self.every}")

    def init(self, num_gaussians: int, code: TargetCode) -> dict[str, Tensor]:
        """Faded sums of labels [N 3 K] and of compositing weights [N], zero.

        Raises:
            ConfigError: the model's code has no bits.
        """
        if isinstance(code, Identity):
            raise ConfigError("losses.label_bce: code identity has no bits; use code binary, gray or thermometer")
        return {"sums": torch.zeros(num_gaussians, 3, code.width), "weights": torch.zeros(num_gaussians)}

    def __call__(self, comparison: Comparison) -> Float[Tensor, ""]:
        """The loss, unweighted; it also updates the memory."""
        logits = comparison.appearance.colour_logits
        if comparison.step % self.every:
            return logits.new_zeros(())
        seen, weights = self._gather(comparison)
        memory = comparison.memory["label_bce"]
        # Of those who are not seen nothing changes, and they weigh nothing: to pick out the others a device would be waited for.
        visible = weights > 0
        for name, now in {"sums": seen.view_as(memory["sums"]), "weights": weights}.items():
            old, here = memory[name], visible.view(-1, *[1] * (now.ndim - 1))
            old.copy_(torch.where(here, self.decay * old + now, old))
        # Who was never seen has no label, and any will do.
        labels = memory["sums"] / torch.where(memory["weights"] > 0, memory["weights"], 1)[:, None, None]
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(
            logits, labels.clamp(0, 1), weight=weights[:, None, None], reduction="sum"
        )
        pixels = comparison.rgb.shape[0] * comparison.rgb.shape[1]
        return self.every * entropy / (pixels * logits.shape[1] * logits.shape[2])

    def _gather(self, comparison: Comparison) -> tuple[Float[Tensor, "N P"], Float[Tensor, " N"]]:
        """What each Gaussian sees of the encoded photograph, and its weight there; pixels outside the mask are none."""
        picture = comparison.appearance.code.encode(comparison.target_rgb).flatten(2)
        if comparison.mask is None:
            return comparison.gather(picture)
        counted = comparison.mask[..., None].to(picture)
        sums, _ = comparison.gather(torch.cat([picture * counted, counted], -1))
        return sums[:, :-1], sums[:, -1]


Spec = LabelBCE
