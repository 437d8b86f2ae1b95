"""What knows where renders are wrong, and which Gaussians can be left out: signals of finished runs, on their held-out views.

    python tools/confidence.py RUN [RUN ...] --output benchmarks/confidence.md    # measures, writes the JSON and the tables
    python tools/confidence.py benchmarks/confidence.json [RUN ...] --output benchmarks/confidence.md    # the tables anew, and more

The worst tenth of a view's pixels are those of the largest squared error. A signal's AUC is the chance that it is larger in
one of them than in one of the others, ties counting half: .5 is a guess, 1 finds them all. Signals of Gaussians are composited
with their weights and divided by alpha, as `nfc-gs render --mode confidence` does; the controls look at the render alone, or at
nothing that photographs say.

Runs that differ in nothing but the seed make one column.
"""

import nfc_gs  # noqa: F401  # isort: skip (before torch, whose idle threads it tells to sleep)
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from nfc_gs.benchmarks.report import surroundings
from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.identity import Identity
from nfc_gs.codes.thermometer import Thermometer
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, View
from nfc_gs.evaluation import Lpips, evaluate
from nfc_gs.evaluation.confidence import Evidence, evidence
from nfc_gs.model import Picture, SplatModel, target_of
from nfc_gs.studies.records import Measurement, Record
from nfc_gs.studies.results import read_metrics
from nfc_gs.studies.tables import MINUS, spread
from nfc_gs.training.run import Run, open_run

FORMAT = 1
# Of a view's pixels, those to be found.
WORST = 0.1
SHARES = (0.1, 0.2, 0.3, 0.5, 0.7)
# A pixel of less alpha shows nothing, and nothing is to be doubted there.
NOTHING = 1 / 255
# Labels: the code of `configs/methods/nfc.yaml`, and the published one, of whose eight bits the first three say most.
LABELS: dict[str, tuple[TargetCode, int]] = {
    "labels, thermometer 4": (Thermometer(bits=4), 4),
    "labels, binary 8": (Binary(bits=8), 8),
    "labels, binary 8, first 3 bits": (Binary(bits=8), 3),
}
# A weight below a thousandth of a pixel is as good as none; its logarithm must be finite.
LEAST_WEIGHT = 1e-3
WINDOW = 7
# What a record must hold; tables need no more.
KEYS = {
    *("name", "seed", "views", "held_out", "num_gaussians", "unseen", "psnr", "ssim", "auc", "pruned"),
    *("commit", "device", "measured_at"),
}


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is known of every Gaussian: the photographs' evidence, the entropies of its labels in bits, by `LABELS`' names, and
    the largest sum of its weights in any one training view, in pixels.
    """

    found: Evidence
    entropies: dict[str, Tensor]
    greatest: Tensor


def auc(signal: np.ndarray, wanted: np.ndarray) -> float:
    """The chance that a wanted item has the larger signal than another one, ties counting half; NaN without one of a kind.

    By ranks (Mann and Whitney 1947): equal signals share the mean of their ranks.
    """
    wanted = wanted.ravel().astype(bool)
    _, place, counts = np.unique(signal.ravel(), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place.ravel()]
    there, others = int(wanted.sum()), int((~wanted).sum())
    if there == 0 or others == 0:
        return float("nan")
    return float((ranks[wanted].sum() - there * (there + 1) / 2) / (there * others))


def worst(errors: np.ndarray, share: float = WORST) -> np.ndarray:
    """Which of the errors are among the largest share of them, with all that are as large as the least of these; never a 0."""
    count = max(round(share * errors.size), 1)
    least = np.partition(errors.ravel(), errors.size - count)[errors.size - count]
    return (errors >= least) & (errors > 0)


def entropy(chances: Tensor) -> Tensor:
    """Of coins with these chances, in bits."""
    sure = chances.double().clamp(0, 1)
    return -(torch.xlogy(sure, sure) + torch.xlogy(1 - sure, 1 - sure)) / np.log(2)


@torch.no_grad()
def known(model: SplatModel, cameras: Sequence[Camera], read: Callable[[int], Photograph]) -> Known:
    """What photographs say of every Gaussian; pixels outside their masks say nothing."""
    count = len(model.gaussians)
    codes = {name: code for name, (code, _) in LABELS.items()}
    sums = {name: torch.zeros(count, 3 * code.width, dtype=torch.float64) for name, code in codes.items()}
    weights, greatest = torch.zeros(count, dtype=torch.float64), torch.zeros(count)
    for number, camera in enumerate(cameras):
        picture = model.render(camera)
        target = target_of(read(number), picture.background)
        ones = torch.ones_like(target.rgb[..., :1]) if target.mask is None else target.mask[..., None].to(target.rgb)
        for name, code in codes.items():
            gathered, _ = picture.rendering.gather(code.encode(target.rgb).flatten(2) * ones)
            sums[name] += gathered.double().cpu()
        gathered, _ = picture.rendering.gather(ones)
        weights += gathered[:, 0].double().cpu()
        greatest = torch.maximum(greatest, gathered[:, 0].cpu())
    entropies = {}
    for name, (code, leading) in LABELS.items():
        labels = (sums[name] / weights.clamp(min=1e-12)[:, None]).view(count, 3, code.width)[..., :leading]
        entropies[name] = torch.where(weights > 0, entropy(labels).mean((1, 2)), 0.0)
    return Known(found=evidence(model, cameras, read), entropies=entropies, greatest=greatest)


def own_entropies(model: SplatModel) -> dict[str, Tensor]:
    """Of the words that the Gaussians themselves hold, in bits, the mean over a word; none where a code has no words."""
    words = {
        "own colour bits": (model.code, model.gaussians.colour_logits),
        "own opacity bits": (model.opacity_code, model.gaussians.opacity_logits[:, None]),
    }
    return {
        name: entropy(code.probabilities(logits.detach())).mean((1, 2)).cpu()
        for name, (code, logits) in words.items()
        if not isinstance(code, Identity)
    }


def doubts(model: SplatModel, facts: Known) -> dict[str, Tensor]:
    """By name, a number of every Gaussian that is 0 or more, and larger where it is less to be trusted."""
    weights = facts.found.weights.clamp(min=LEAST_WEIGHT).log()
    return {
        "spread of colours": facts.found.spread,
        **facts.entropies,
        **own_entropies(model),
        "weight W (log), small": weights.max() - weights,
        "opacity, small": 1 - model.opacities().detach().cpu(),
    }


@torch.no_grad()
def signals_of(model: SplatModel, picture: Picture, camera: Camera, doubt: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """Every signal of a view [H W], larger where an error is to be expected."""
    device = picture.rgb.device
    rgb = picture.rgb.clamp(0, 1)
    # The render's own squares, for the spread of what is composited in a pixel.
    colours = picture.appearance.colours.clamp(min=0)
    values = torch.cat([torch.stack([value.to(colours) for value in doubt.values()], 1), colours, colours.square()], 1)
    rendering = model.rasterizer(
        replace(picture.splats, values=values), camera.to(device), values.new_zeros(values.shape[1])
    )
    alpha = rendering.alpha
    shown = torch.where((alpha >= NOTHING)[..., None], rendering.channels / alpha.clamp(min=NOTHING)[..., None], 0.0)
    painted = {name: shown[..., i] for i, name in enumerate(doubt)}
    means, squares = shown[..., -6:].split(3, -1)
    painted["control: spread of colours along the ray"] = (squares - means.square()).clamp(min=0).mean(-1)
    painted["control: transparency (1 - alpha)"] = 1 - alpha
    found = {name: value.cpu().double().numpy() for name, value in painted.items()}
    flat = rgb.cpu().double().numpy()
    found["control: edges of the render"] = edges(flat)
    found[f"control: contrast of the render, {WINDOW}x{WINDOW}"] = contrast(flat)
    found["spread of colours and edges, ranks added"] = ranks(found["spread of colours"]) + ranks(
        found["control: edges of the render"]
    )
    return found


def edges(rgb: np.ndarray) -> np.ndarray:
    """The length of the gradient of a picture [H W 3] by central differences, over all channels."""
    down, right = np.gradient(rgb, axis=(0, 1))
    return np.sqrt((down**2 + right**2).sum(-1))


def contrast(rgb: np.ndarray) -> np.ndarray:
    """The standard deviation of a picture [H W 3] in a window about each pixel, the root mean square over the channels."""
    means, squares = (cv2.blur(p, (WINDOW, WINDOW), borderType=cv2.BORDER_REFLECT) for p in (rgb, rgb**2))
    return np.sqrt(np.clip(squares - means**2, 0, None).mean(-1))


def ranks(signal: np.ndarray) -> np.ndarray:
    """The ranks of a picture's numbers, equal ones sharing their mean, as shares of all."""
    _, place, counts = np.unique(signal.ravel(), return_inverse=True, return_counts=True)
    return ((np.cumsum(counts) - (counts - 1) / 2)[place.ravel()] / signal.size).reshape(signal.shape)


@torch.no_grad()
def find_errors(
    model: SplatModel, views: Sequence[View], read: Callable[[int], Photograph], doubt: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Each signal's AUC, the mean over views: of all pixels that count, and of those that show something (alpha above 1/2)."""
    found: dict[str, dict[str, list[float]]] = {"all": defaultdict(list), "shown": defaultdict(list)}
    for number, view in enumerate(views):
        picture = model.render(view.camera)
        target = target_of(read(number), picture.background)
        errors = (picture.rgb.clamp(0, 1) - target.rgb).square().mean(-1).cpu().double().numpy()
        counted = np.ones(errors.shape, bool) if target.mask is None else target.mask.cpu().numpy()
        opaque = picture.rendering.alpha.cpu().numpy() > 0.5
        signals = signals_of(model, picture, view.camera, doubt)
        for where, pixels in (("all", counted), ("shown", counted & opaque)):
            if not pixels.any():
                continue
            wanted = worst(errors[pixels])
            for name, signal in signals.items():
                area = auc(signal[pixels], wanted)
                if np.isfinite(area):
                    found[where][name].append(area)
    return {where: {n: float(np.mean(areas)) for n, areas in by.items()} for where, by in found.items()}


def orders(model: SplatModel, facts: Known, seed: int) -> dict[str, Tensor]:
    """By name, a number of every Gaussian: those of the smallest are left out first."""
    opacities = model.opacities().detach().cpu()
    lengths = model.gaussians.log_scales.detach().cpu().exp()
    areas = lengths.sort(1, descending=True).values[:, :2].prod(1)
    return {
        "weight W, all views": facts.found.weights,
        "weight, largest of a view": facts.greatest,
        "opacity x area": opacities * areas,
        "opacity": opacities,
        "confidence": facts.found.confidence,
        "entropy of labels, thermometer 4": -facts.entropies["labels, thermometer 4"],
        "random": torch.rand(len(opacities), generator=torch.Generator().manual_seed(seed)),
    }


def quality(model: SplatModel, views: Sequence[View], read: Callable[[int], Photograph]) -> tuple[float, float]:
    """PSNR and SSIM, means over views, as `nfc-gs eval` has them."""
    found = evaluate(model, views, read, lpips=Lpips(networks={}))
    return found.psnr, found.ssim


def without(model: SplatModel, order: Tensor, share: float) -> SplatModel:
    """The model without this share of its Gaussians, those of the smallest numbers; of equal ones the first go first."""
    kept = order.argsort(stable=True)[round(share * len(order)) :].sort().values.to(model.gaussians.means.device)
    return replace(model, gaussians=model.gaussians.map(lambda value: value.detach()[kept]))


def measure(run: Run) -> Record:
    """All numbers of one run."""
    experiment, model = run.experiment, run.model
    scene = experiment.degradation(
        experiment.views(experiment.dataset.load(experiment.seed), experiment.seed), experiment.seed
    )
    taken, held_out = ([view.read() for view in views] for views in (scene.train, scene.test))
    facts = known(model, [view.camera for view in scene.train], taken.__getitem__)
    whole = quality(model, scene.test, held_out.__getitem__)
    pruned = {
        name: {
            f"{share:g}": quality(without(model, order, share), scene.test, held_out.__getitem__) for share in SHARES
        }
        for name, order in orders(model, facts, experiment.seed).items()
    }
    metrics = read_metrics(run.folder / "metrics.json")
    return {
        "name": experiment.name,
        "seed": experiment.seed,
        "steps": run.record["step"],
        "views": len(scene.train),
        "held_out": len(scene.test),
        "num_gaussians": len(model.gaussians),
        "unseen": int((facts.found.weights == 0).sum()),
        "psnr": whole[0],
        "ssim": whole[1],
        "auc": find_errors(model, scene.test, held_out.__getitem__, doubts(model, facts)),
        "pruned": pruned,
        "commit": metrics.get("commit"),
        "device": metrics.get("device"),
        "measured_at": surroundings()["commit"],
    }


def markdown(records: Sequence[Record], command: str) -> str:
    """The page."""
    groups: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        groups[record["name"].removesuffix(f"_s{record['seed']}")].append(record)
    names = list(groups)
    heads = [name.replace("_", " ") for name in names]
    parts = [
        "# Confidence",
        f"Written by `{command}` from the JSON beside it; what the words mean stands in that program. Held-out views, means over "
        "views; mean ± sample standard deviation over seeds.",
        _table(
            ["run", "seeds", "training views", "held out", "Gaussians", "unseen in training", "PSNR dB", "SSIM"],
            [
                [
                    head,
                    " ".join(str(record["seed"]) for record in groups[name]),
                    str(groups[name][0]["views"]),
                    str(groups[name][0]["held_out"]),
                    *(
                        spread([record[key] for record in groups[name]], digits)
                        for key, digits in (("num_gaussians", 0), ("unseen", 0), ("psnr", 2), ("ssim", 4))
                    ),
                ]
                for name, head in zip(names, heads, strict=True)
            ],
        ),
    ]
    for where, what in (("all", "all pixels"), ("shown", "pixels of alpha above one half")):
        signals = list(dict.fromkeys(name for record in records for name in record["auc"][where]))
        rows = []
        for signal in signals:
            by_group = [[record["auc"][where].get(signal) for record in groups[name]] for name in names]
            rows.append([signal, *(_area(values) for values in by_group)])
        parts += [f"## AUC for the worst tenth of {what}", _table(["signal", *heads], rows)]
    parts += [
        "## What can be left out",
        "PSNR (dB) and SSIM less the whole model's, when a share of the Gaussians is left out, those of the smallest numbers "
        "first (of entropy the largest).",
    ]
    for name, head in zip(names, heads, strict=True):
        shares = list(groups[name][0]["pruned"]["random"])
        rows = [
            [order, *(_loss(groups[name], order, share) for share in shares)] for order in groups[name][0]["pruned"]
        ]
        parts += [f"### {head}", _table(["least", *(f"{float(share):.0%}" for share in shares)], rows)]
    said = sorted(
        {
            f"- runs of commit {record['commit']}, {record['device']}; measured at commit {record['measured_at']}"
            for record in records
        }
    )
    return "\n\n".join([*parts, "\n".join(said)]) + "\n"


def _area(values: Sequence[float | None]) -> str:
    if all(value is None for value in values):
        return "–"
    return spread(values, 3)


def _loss(records: Sequence[Record], order: str, share: str) -> str:
    """`PSNR / SSIM` less the whole model's."""
    lost = []
    for i, (key, digits) in enumerate((("psnr", 2), ("ssim", 4))):
        shown = spread([record["pruned"][order][share][i] - record[key] for record in records], digits)
        lost.append(shown.replace("-", MINUS) if shown.startswith("-") else f"+{shown}")
    return " / ".join(lost)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _measured(path: Path) -> tuple[list[Record], str]:
    record = measure(open_run(path))
    return [record], f"{record['psnr']:.2f} dB"


def _write(records: Sequence[Record], output: Path, command: str) -> str:
    return markdown(records, command)


MEASUREMENT = Measurement(
    name="confidence",
    description=str(__doc__),
    beside="the JSON goes",
    format=FORMAT,
    holder="runs",
    keys=frozenset(KEYS),
    measure=_measured,
    write=_write,
)

if __name__ == "__main__":
    MEASUREMENT.main()
