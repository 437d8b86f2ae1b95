"""Adam over the Gaussians, its schedules, and the one place where their number changes."""

import torch
from torch import Tensor, nn

from nfc_gs.core.gaussians import Edit, Gaussians
from nfc_gs.deformations.base import DeformationField
from nfc_gs.training.experiment import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


class GaussianOptimizer:
    """One Adam: a parameter group for each field of the Gaussians, and the deformation's own groups, `field.<name>`."""

    def __init__(
        self, gaussians: Gaussians, field: DeformationField, settings: OptimizerSettings, extent: float, steps: int
    ) -> None:
        self.settings, self.field, self.extent, self.steps = settings, field, extent, steps
        self.gaussians = gaussians.map(lambda value: nn.Parameter(value.detach().clone().contiguous()))
        rates = self.rates(0)
        groups = [{"params": [value], "lr": rates[name], "name": name} for name, value in self.gaussians.items()]
        groups += [
            {"params": parameters, "lr": rates[f"field.{name}"], "name": f"field.{name}"}
            for name, parameters in field.groups().items()
        ]
        self.adam = torch.optim.Adam(groups, eps=settings.epsilon, fused=True)

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates for the step that follows `step` finished ones."""
        progress = step / self.steps
        settings, moving = self.settings, self.field.rates(progress)
        decay = settings.final**progress
        return {
            "means": settings.means * self.extent * settings.means_final**progress,
            "log_scales": settings.log_scales * decay,
            "quats": settings.quats * decay,
            "colour_logits": settings.colour_logits * decay,
            "opacity_logits": settings.opacity_logits * decay,
            "harmonics": settings.harmonics * decay,
            "motion": moving.get("motion", 0.0),
            **{f"field.{name}": moving[name] for name in self.field.groups()},
        }

    def step(self, step: int) -> None:
        """One step of Adam with the rates of `step`; gradients are cleared."""
        rates = self.rates(step)
        for group in self.adam.param_groups:
            group["lr"] = rates[group["name"]]
        self.adam.step()
        self.adam.zero_grad(set_to_none=True)

    @torch.no_grad()
    def apply(self, edit: Edit) -> Gaussians:
        """Makes the population what `edit` says, moments included."""
        edited = dict(edit.apply(self.gaussians).items())
        for group in self.adam.param_groups:
            name = group["name"]
            if name not in edited:
                continue
            old = group["params"][0]
            new = nn.Parameter(edited[name].detach().contiguous())
            state = self.adam.state.pop(old, {})
            for key in MOMENTS:
                if key in state:
                    moments = state[key][edit.parent]
                    moments[edit.fresh] = 0
                    state[key] = torch.zeros_like(moments) if name in edit.forget else moments
            self.adam.state[new] = state
            group["params"] = [new]
            edited[name] = new
        self.gaussians = Gaussians(**edited)
        return self.gaussians

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, by names that `restore` reads."""
        return {
            f"{group['name']}.{number}.{key}": value
            for group in self.adam.param_groups
            for number, parameter in enumerate(group["params"])
            for key, value in self.adam.state[parameter].items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for group in self.adam.param_groups:
            for number, parameter in enumerate(group["params"]):
                prefix = f"{group['name']}.{number}."
                state = {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}
                if state:
                    self.adam.state[parameter] = state
