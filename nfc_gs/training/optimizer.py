"""Adam over the Gaussians, its schedules, and the one place where their number changes."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from nfc_gs.core.gaussians import Edit, Gaussians
from nfc_gs.core.leaves import Leaf, written_out
from nfc_gs.deformations.base import DeformationField
from nfc_gs.kernels import adam as kernels
from nfc_gs.kernels import rows
from nfc_gs.kernels.threads import thread_count
from nfc_gs.rasterizers.gsplat import step_seen
from nfc_gs.training.experiment import OptimizerSettings

MOMENTS = ("exp_avg", "exp_avg_sq")
# A parameter's mean over the last steps, and of how many of them.
AVERAGE = ("mean", "averaged")
# Steps between two that are averaged: neighbours hardly differ.
AVERAGE_EVERY = 4
BETAS = (0.9, 0.999)


class GaussianOptimizer:
    """Adam: a parameter group for each field of the Gaussians, and the deformation's own groups, `field.<name>`.

    The Gaussians' steps are a compiled kernel's for float32 on a CPU; all other steps are torch's. The state is torch's
    everywhere.
    """

    def __init__(
        self, gaussians: Gaussians, field: DeformationField, settings: OptimizerSettings, extent: float, steps: int
    ) -> None:
        self.settings, self.field, self.extent, self.steps = settings, field, extent, steps
        self.gaussians = gaussians.map(lambda value: Leaf(value.detach().clone().contiguous()))
        rates = self.rates(0)
        groups = [{"params": [value], "lr": rates[name], "name": name} for name, value in self.gaussians.items()]
        moving = [
            {"params": parameters, "lr": rates[f"field.{name}"], "name": f"field.{name}"}
            for name, parameters in field.groups().items()
        ]
        self.adam = torch.optim.Adam(groups, betas=BETAS, eps=settings.epsilon, fused=True)
        # torch knows no optimizer of nothing.
        self.moving = torch.optim.Adam(moving, betas=BETAS, eps=settings.epsilon, fused=True) if moving else None
        self._adams = [self.adam] if self.moving is None else [self.adam, self.moving]

    def parameters(self) -> list[nn.Parameter]:
        """All that it steps, the Gaussians' fields first; an edit makes new ones."""
        return [parameter for adam in self._adams for group in adam.param_groups for parameter in group["params"]]

    def forget_gradients(self) -> None:
        """As after a step, but without one."""
        for parameter in self.parameters():
            if isinstance(parameter, Leaf):
                parameter.forget()
            parameter.grad = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """For a backward pass after which `step` comes: gradients that can be told in fewer numbers are not written out."""
        leaves = [value for _, value in self.gaussians.items() if isinstance(value, Leaf)]
        for leaf in leaves:
            leaf.listens = self.compiled and not self.settings.sparse
        try:
            yield
        finally:
            for leaf in leaves:
                leaf.listens = False

    @property
    def compiled(self) -> bool:
        """Whether the Gaussians' steps are the kernel's."""
        return all(value.device.type == "cpu" and value.dtype == torch.float32 for _, value in self.gaussians.items())

    def rates(self, step: int) -> dict[str, float]:
        """Learning rates for the step that follows `step` finished ones."""
        progress = step / self.steps
        settings, moving = self.settings, self.field.rates(progress)
        falling = max(progress - settings.hold, 0.0)
        decay = settings.final ** (falling / (1 - settings.hold)) if falling > 0 else 1.0
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

    def step(self, step: int, radii: Int[Tensor, "N 2"] | None = None) -> None:
        """One step of Adam with the rates of `step`; gradients are cleared.

        With `sparse` in the settings, a Gaussian that is not drawn, of no `radii`, keeps its parameters and moments.
        """
        rates = self.rates(step)
        groups = [group for adam in self._adams for group in adam.param_groups]
        for group in groups:
            group["lr"] = rates[group["name"]]
        seen = None
        if self.settings.sparse:
            assert radii is not None, "a sparse step must know which Gaussians were drawn"
            seen = (radii > 0).all(1)
        if seen is not None or self.compiled:
            self._step_rows(seen)
        else:
            self.adam.step()
        if self.moving is not None:
            self.moving.step()
        self.forget_gradients()
        self._average(step + 1)

    @torch.no_grad()
    def _average(self, done: int) -> None:
        """Adds the parameters to their means where that is due; after the last step the means take their place."""
        left = self.steps - done
        if left >= self.settings.average * self.steps or left % AVERAGE_EVERY:
            return
        for adam in self._adams:
            for parameter, state in adam.state.items():
                # What never had a gradient never changed.
                if "step" not in state:
                    continue
                mean = state.setdefault("mean", torch.zeros_like(parameter))
                # On the CPU, where reading it makes nobody wait.
                state["averaged"] = state.get("averaged", torch.zeros(())).cpu() + 1
                mean.lerp_(parameter, 1 / state["averaged"].item())
                if left == 0:
                    parameter.copy_(mean)

    @torch.no_grad()
    def _step_rows(self, seen: Bool[Tensor, " N"] | None) -> None:
        """Adam's step of the Gaussians, of all or of those that were seen."""
        parameters: list[Leaf] = [group["params"][0] for group in self.adam.param_groups]
        for parameter in parameters:
            if parameter.heard is not None and parameter.grad is not None:
                parameter.grad += written_out(parameter.heard, parameter)
                parameter.heard = None
        steps = [
            self._prepared(parameter, group["lr"])
            for parameter, group in zip(parameters, self.adam.param_groups, strict=True)
            if (parameter.grad is not None or parameter.heard is not None) and parameter.numel() > 0
        ]
        if not self.compiled:
            assert seen is not None
            for parameter, numbers in steps:
                step = step_by_gsplat if parameter.device.type == "cuda" else _step_seen
                step(parameter, self.adam.state[parameter], seen, *numbers)
            return
        drawn = np.empty(0, np.bool_) if seen is None else seen.numpy()
        told, written = [], []
        for parameter, numbers in steps:
            arrays = [
                t.detach().view(-1).numpy() for t in (parameter, *(self.adam.state[parameter][m] for m in MOMENTS))
            ]
            settings = [np.float32(number) for number in numbers]
            if parameter.heard is not None:
                told.append((parameter.heard.step, arrays, settings))
            else:
                assert parameter.grad is not None
                gradient = parameter.grad.contiguous().view(-1).numpy()
                written.append((parameter[0].numel(), [arrays[0], gradient, *arrays[1:]], settings))

        def step_all(first: int, last: int) -> None:
            # These first, as they may be made of what the others change.
            for step, arrays, numbers in told:
                step(first, last, *arrays, *numbers)
            for width, arrays, numbers in written:
                kernels.step(first, last, drawn, width, *arrays, *numbers)

        rows.split(step_all, len(self.gaussians), thread_count())

    def _prepared(self, parameter: Leaf, rate: float) -> tuple[Leaf, tuple[float, ...]]:
        """A parameter whose state is that of the step now due, and the step's numbers: betas, rate, root, epsilon."""
        state = self.adam.state[parameter]
        if not state:
            state.update({"step": torch.zeros(()), **{name: torch.zeros_like(parameter) for name in MOMENTS}})
        # On the CPU, where reading it makes nobody wait; a checkpoint's is wherever it was put.
        state["step"] = state["step"].cpu() + 1
        count = state["step"].item()
        fade, fade_squares = BETAS
        return parameter, (
            fade, fade_squares, rate / (1 - fade**count), (1 - fade_squares**count) ** -0.5, self.settings.epsilon,
        )  # fmt: skip

    @torch.no_grad()
    def apply(self, edit: Edit) -> Gaussians:
        """Makes the population what `edit` says, moments included."""
        edited = dict(edit.apply(self.gaussians).items())
        for group in self.adam.param_groups:
            name = group["name"]
            if name not in edited:
                continue
            old = group["params"][0]
            new = Leaf(edited[name].detach().contiguous())
            state = self.adam.state.pop(old, {})
            for key in AVERAGE:
                # It begins anew: who came and who went leaves the others different.
                state.pop(key, None)
            if state:
                moments = {key: state[key] for key in MOMENTS}
                state.update(
                    {key: torch.zeros_like(new) for key in MOMENTS} if name in edit.forget else edit.carry(moments)
                )
            self.adam.state[new] = state
            group["params"] = [new]
            edited[name] = new
        self.gaussians = Gaussians(**edited)
        return self.gaussians

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step counts, by names that `restore` reads."""
        return {
            f"{group['name']}.{number}.{key}": value
            for adam in self._adams
            for group in adam.param_groups
            for number, parameter in enumerate(group["params"])
            for key, value in adam.state[parameter].items()
        }

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `tensors`."""
        for adam in self._adams:
            for group in adam.param_groups:
                for number, parameter in enumerate(group["params"]):
                    prefix = f"{group['name']}.{number}."
                    state = {k.removeprefix(prefix): v.clone() for k, v in tensors.items() if k.startswith(prefix)}
                    if state:
                        adam.state[parameter] = state


def _step_seen(
    parameter: Tensor,
    state: dict[str, Tensor],
    seen: Bool[Tensor, " N"],
    fade: float,
    fade_squares: float,
    rate: float,
    root: float,
    epsilon: float,
) -> None:
    """The kernel's step of the rows that were seen, in torch."""
    assert parameter.grad is not None
    chosen = seen.nonzero()[:, 0]
    gradient = parameter.grad[chosen]
    moments = state["exp_avg"][chosen].lerp_(gradient, 1 - fade)
    squares = state["exp_avg_sq"][chosen].mul_(fade_squares).addcmul_(gradient, gradient, value=1 - fade_squares)
    state["exp_avg"][chosen], state["exp_avg_sq"][chosen] = moments, squares
    parameter.index_add_(0, chosen, moments / (squares.sqrt() * root + epsilon), alpha=-rate)


def step_by_gsplat(
    parameter: Tensor,
    state: dict[str, Tensor],
    seen: Bool[Tensor, " N"],
    fade: float,
    fade_squares: float,
    rate: float,
    root: float,
    epsilon: float,
) -> None:
    """The same by gsplat's kernel, which corrects no bias: r m / (sqrt(v) root + e) is (r / root) m / (sqrt(v) + e / root)."""
    step_seen(parameter, state["exp_avg"], state["exp_avg_sq"], seen, rate / root, (fade, fade_squares), epsilon / root)
