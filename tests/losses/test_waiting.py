"""No loss makes the program wait for a device: see `tests.waiting`."""

import importlib
import pkgutil
from dataclasses import fields, replace

import pytest
import torch

import nfc_gs.losses
from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.gray import Gray
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.losses.base import Comparison, LossTerm, MemoryLoss, PlaneLoss
from nfc_gs.losses.bit_bce import BitBCE
from nfc_gs.losses.code_bce import CodeBCE
from nfc_gs.losses.label_bce import LabelBCE
from nfc_gs.losses.other_views import OtherViews
from nfc_gs.losses.ray_code import RayCode
from nfc_gs.losses.ray_variance import RayVariance
from nfc_gs.losses.tobit import Tobit
from tests.losses.comparisons import HEIGHT, NUM_GAUSSIANS, WIDTH, comparison, random
from tests.waiting import META, Asked, nobody_waits

KINDS = sorted(module.name for module in pkgutil.iter_modules(nfc_gs.losses.__path__) if module.name != "base")
LOSSES = [importlib.import_module(f"nfc_gs.losses.{kind}").Spec() for kind in KINDS] + [
    BitBCE(weights="place"), CodeBCE(turns=False), CodeBCE(censored=True), CodeBCE(censored=True, turns=False),
    CodeBCE(censored=True, noise=0.1), CodeBCE(code=Thermometer(bits=3)), LabelBCE(every=1), OtherViews(measure="squared"),
    RayCode(turns=False), RayCode(measure="error"), RayVariance(around="mean"), Tobit(noise=0.1),
]  # fmt: skip
CODES = [Identity(), Thermometer(), Binary(bits=4), Binary(bits=4, soft=1), Gray(bits=4)]
NEED_BITS = (BitBCE, LabelBCE)


def case(code: TargetCode, masked: bool, alpha: bool, loss: LossTerm) -> Comparison:
    """A comparison whose tensors have no numbers, with what the loss asked to be composited."""
    mask = random(3, HEIGHT, WIDTH) > 0.3 if masked else None
    made = comparison(random(1, HEIGHT, WIDTH, 3), random(2, HEIGHT, WIDTH, 3), mask, code)

    def there(value):
        return value.detach().to(META) if isinstance(value, torch.Tensor) else value

    moved = {f.name: there(getattr(made, f.name)) for f in fields(made)}
    looks = replace(
        made.appearance, **{f.name: there(getattr(made.appearance, f.name)) for f in fields(made.appearance)}
    )
    looks.colour_logits.requires_grad_()
    memory = {}
    if isinstance(loss, MemoryLoss):
        kind = type(loss).__module__.rpartition(".")[2]
        memory[kind] = {name: there(value).double() for name, value in loss.init(NUM_GAUSSIANS, code).items()}

    def gather(picture):
        return picture.new_empty(NUM_GAUSSIANS, picture.shape[-1]), picture.new_empty(NUM_GAUSSIANS)

    moved |= {"appearance": replace(looks, memory=memory), "memory": memory, "gather": gather}
    moved["rgb"] = moved["rgb"].requires_grad_()
    moved["alpha"] = moved["alpha"].requires_grad_()
    moved["target_alpha"] = moved["alpha"].detach() if alpha else None
    return Comparison(**moved)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("code", CODES, ids=repr)
@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_a_loss_and_its_gradient_ask_the_device_for_nothing(loss: LossTerm, code: TargetCode, masked: bool) -> None:
    if isinstance(code, Identity) and isinstance(loss, NEED_BITS):
        code = Thermometer(soft=False)
    if isinstance(loss, CodeBCE) and loss.censored and not isinstance(code, Identity):
        code = Thermometer()
    # Once unwatched, for what is sent once and kept.
    work_out(loss, case(code, masked, alpha=True, loss=loss))
    made = case(code, masked, alpha=True, loss=loss)
    with nobody_waits():
        value = work_out(loss, made)
    assert value.shape == () and value.device == META


def work_out(loss: LossTerm, made: Comparison) -> torch.Tensor:
    """The loss's planes, their compositing, the loss, and its gradient."""
    if isinstance(loss, PlaneLoss):
        kind = type(loss).__module__.rpartition(".")[2]
        per_gaussian = loss.planes(made.appearance)
        behind = loss.background(torch.empty(3, dtype=torch.float64, device=META), made.appearance)
        weights = torch.empty(HEIGHT, WIDTH, NUM_GAUSSIANS, dtype=torch.float64, device=META)
        made = replace(made, planes={kind: weights @ per_gaussian + behind})
    value = loss(made)
    if value.requires_grad:
        value.backward()
    return value


@pytest.mark.parametrize(
    "ask",
    [
        lambda x: float(x[0]), lambda x: bool((x > 0).any()), lambda x: x[x > 0], lambda x: x.nonzero(),
        lambda x: x.masked_select(x > 0), lambda x: x.new_tensor([1.0, 2.0]), lambda x: torch.eye(3).to(x),
        lambda x: torch.tensor([1.0], device=x.device), lambda x: x.cpu(), lambda x: x.index_put_([x > 0], x[:2]),
        lambda x: x.unique(),
    ],
)  # fmt: skip
def test_whoever_asks_is_caught(ask) -> None:
    with pytest.raises((Asked, RuntimeError, NotImplementedError)), nobody_waits():
        ask(torch.empty(5, device=META))
