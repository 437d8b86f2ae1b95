"""On a CUDA device: what the gsplat backend does beside drawing, and whole trainings by every strategy and deformation."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from nfc_gs import cli
from nfc_gs.captures.feed import Feed, Wanted
from nfc_gs.config import validate_kind
from nfc_gs.core.harmonics import evaluate_plain
from nfc_gs.core.scene import Photograph
from nfc_gs.core.ssim import mean_ssim
from nfc_gs.rasterizers.gsplat import Gsplat
from nfc_gs.training.optimizer import _step_seen, step_by_gsplat
from tests.conftest import REPOSITORY
from tests.rasterizers import scenes

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device and gsplat"),
]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32 by two programs, one with fast divisions and roots
STILL = ["regression", "nfc"]
SETTINGS = {
    "growth": ["strategy.kind=growth", "strategy.cap_max=1500", "strategy.every=40"],
    "classic": ["strategy.kind=classic", "strategy.start=20", "strategy.stop=100", "strategy.every=40", "strategy.reset_every=60"],
    "classic_absgrad": ["strategy.kind=classic", "strategy.start=20", "strategy.every=40", "strategy.absgrad=true"],
    "mcmc": ["strategy.kind=mcmc", "strategy.cap_max=1500", "strategy.start=20", "strategy.every=40"],
    "packed": ["rasterizer.packed=true", "strategy.cap_max=1500"],
    "antialiased": ["rasterizer.antialiased=true"],
    "sparse": ["optimizer.sparse=true"],
    "batch": ["batch=3", "strategy.kind=classic", "strategy.start=20", "strategy.every=40", "strategy.absgrad=true"],
    "batch_packed": ["batch=3", "rasterizer.packed=true"],
    "coarse": ["schedule.coarse=2", "schedule.coarse_until=0.5", "batch=2"],
}  # fmt: skip


@pytest.mark.parametrize("degree", [0, 1, 2, 3])
def test_shading_is_the_plain_harmonics(degree):
    generator = torch.Generator().manual_seed(0)
    sizes = ((500, 3), (500, 15, 3), (500, 3))
    first = [torch.randn(*size, generator=generator, dtype=torch.float64) for size in sizes]
    position = torch.randn(3, generator=generator, dtype=torch.float64)
    weights = torch.randn(500, 3, generator=generator, dtype=torch.float64)
    found = []
    for shade, kind in (
        (Gsplat().shade, {"device": "cuda", "dtype": torch.float32}),
        (evaluate_plain, {"device": "cpu"}),
    ):
        leaves = [tensor.to(**kind).clone().requires_grad_() for tensor in first]
        colours = shade(*leaves, position.to(**kind), degree)
        (colours * weights.to(**kind)).sum().backward()
        grads = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
        found.append([tensor.detach().cpu().double() for tensor in (colours, *grads)])
    for ours, right in zip(*found, strict=True):
        assert (ours - right).norm() <= 1e-4 * right.norm()


def test_the_kernels_sparse_step_is_the_one_in_torch():
    generator = torch.Generator().manual_seed(0)
    first, gradient = torch.randn(2, 300, 15, 3, generator=generator)
    seen = torch.rand(300, generator=generator) < 0.4
    ours, right = (torch.nn.Parameter(first.to(device)) for device in ("cuda", "cpu"))
    states = [{name: torch.zeros_like(p) for name in ("exp_avg", "exp_avg_sq")} for p in (ours, right)]
    for count in range(1, 4):
        numbers = (0.9, 0.999, 0.01 / (1 - 0.9**count), (1 - 0.999**count) ** -0.5, 1e-15)
        ours.grad, right.grad = gradient.cuda() * count, gradient * count
        with torch.no_grad():
            step_by_gsplat(ours, states[0], seen.cuda(), *numbers)
            _step_seen(right, states[1], seen, *numbers)
    torch.testing.assert_close(ours.detach().cpu(), right.detach(), **CLOSE)
    for name in ("exp_avg", "exp_avg_sq"):
        torch.testing.assert_close(states[0][name].cpu(), states[1][name], **CLOSE)


def test_ssim_on_the_device_keeps_its_digits():
    x, y = torch.rand(2, 90, 120, 3, generator=torch.Generator().manual_seed(0))
    Gsplat().device  # noqa: B018 (its first use sets how convolutions are rounded)
    # Pictures of nearly one colour, whose variances are small differences of large numbers.
    for flat in (1.0, 0.02):
        a, b = 0.6 + flat * (x - 0.5), 0.6 + flat * (y - 0.5)
        right = float(mean_ssim(a.double(), b.double()))
        assert float(mean_ssim(a.cuda(), b.cuda())) == pytest.approx(right, abs=2e-4)


def test_photographs_come_as_they_were_read_whether_asked_for_ahead_or_not():
    pixels = [np.random.default_rng(i).integers(0, 256, (40, 60, 3), dtype=np.uint8) for i in range(6)]
    feed = Feed(lambda view: Photograph(rgb=pixels[view], alpha=pixels[view][..., 0]), "cuda")
    feed.prefetch([Wanted(1, 1), Wanted(2, 1), Wanted(1, 2)])
    for view in (1, 2, 5):
        got = feed.get(Wanted(view, 1))
        assert got.rgb.device.type == "cuda"
        assert torch.equal(got.rgb.cpu(), torch.from_numpy(pixels[view]))
        assert got.alpha is not None and torch.equal(got.alpha.cpu(), torch.from_numpy(pixels[view][..., 0]))
    assert feed.get(Wanted(1, 2)).rgb.shape == (20, 30, 3)
    feed.close()


@pytest.mark.parametrize("packed", [False, True])
def test_several_cameras_in_one_pass_see_what_each_sees_alone(packed):
    cameras = [scenes.camera(90, 60).to("cuda") for _ in range(3)]
    for number, camera in enumerate(cameras):
        camera.world_to_camera[:3, 3] += 0.3 * torch.tensor([number, -number, number], device="cuda")
    found = []
    for batched in (True, False):
        cloud = scenes.splats(400, 3, 3, torch.float32, "cuda")
        generator = torch.Generator().manual_seed(5)
        values = [torch.rand(400, 3, generator=generator).cuda().requires_grad_() for _ in cameras]
        renderings = Gsplat(packed=packed, batched=batched).draw(
            [replace(cloud, values=own) for own in values], cameras, [torch.ones(3, device="cuda")] * 3,
            absgrad=True, weights=True,
        )  # fmt: skip
        by = torch.randn(3, 60, 90, 3, generator=generator).cuda()
        sum((each.channels * of).sum() for each, of in zip(renderings, by, strict=True)).backward()
        leaves = [getattr(cloud, name) for name in scenes.INPUTS[:-1]] + values
        found.append([leaf.grad for leaf in leaves])
        for each in renderings:
            found[-1] += [each.channels.detach(), each.alpha.detach(), each.radii.float(), each.means2d.grad]
            found[-1] += [each.absgrad(), each.weights()]
    for one, other in zip(*found, strict=True):
        # The same kernels, whose sums have no fixed order.
        assert (one - other).norm() <= 1e-4 * other.norm()


def trained(tmp_path, files, settings, name="run"):
    common = [
        "steps=130",
        f"output={tmp_path}",
        f"name={name}",
        "rasterizer.kind=gsplat",
        "evaluation.every=65",
        "callbacks.progress=null",
    ]
    configs = [str(REPOSITORY / "configs" / file) for file in files]
    assert cli.main(["train", *configs, *common, *settings]) == 0
    return json.loads((tmp_path / name / "metrics.json").read_text())


TOY = ["dataset.size=64", "dataset.points=800", "strategy.cap_max=1500"]


@pytest.mark.parametrize("method", STILL)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_every_strategy_and_way_of_drawing_learns(tmp_path, method, settings):
    chosen = TOY[:2] if any("strategy.kind" in setting for setting in settings) else TOY
    record = trained(tmp_path, ["toy.yaml", f"methods/{method}.yaml"], [*chosen, *settings])
    # The first Gaussians have some 14 dB.
    assert record["psnr"] > 19
    assert record["device"] != "cpu"


def test_a_run_is_resumed_evaluated_drawn_and_exported(tmp_path):
    trained(tmp_path, ["toy.yaml", "methods/nfc.yaml"], [*TOY, "callbacks.checkpoints.every=60"])
    run = str(tmp_path / "run")
    for arguments in (
        ["train", "--resume", run],
        ["eval", run],
        ["render", run, "--split", "test", "--output", str(tmp_path / "pictures")],
        ["render", run, "--split", "test", "--mode", "confidence", "--output", str(tmp_path / "confidence")],
        ["export", run, "--kind", "ply", "--output", str(tmp_path / "run.ply")],
    ):
        assert cli.main(arguments) == 0, arguments
    assert (tmp_path / "run.ply").stat().st_size > 50_000


@pytest.mark.parametrize("field", ["bases", "hexplane", "mlp"])
def test_every_deformation_learns(tmp_path, field):
    files = ["dynamic/toy.yaml"] + ([] if field == "bases" else [f"dynamic/fields/{field}.yaml"])
    record = trained(tmp_path, files, ["dataset.size=64", "strategy.cap_max=1000"])
    assert record["psnr"] > 12  # after warming up for a third of these few steps


@pytest.mark.parametrize("kind", ["bases", "hexplane", "mlp"])
def test_what_a_step_asks_of_a_field_stays_on_the_cpu(kind):
    deformation = validate_kind("nfc_gs.deformations", {"kind": f"dynamic.deformations.{kind}"}, "test")
    field = deformation.init(torch.tensor([[-1.0] * 3, [1.0] * 3]), 10, torch.Generator()).to("cuda")
    assert field.awake.device.type == "cpu"
    assert all(parameter.is_cuda for parameter in field.parameters())
    field.load_state_dict({name: value.clone() for name, value in field.state_dict().items()})
    assert field.awake.device.type == "cpu"
