"""PSNR against bytes: words of K bits that were learned, against rounding to K bits when a training is over.

    nfc-gs sweep configs/studies/few_bits.yaml --threads 1
    python tools/few_bits.py runs/few_bits/*_s? --output benchmarks/few_bits.md       # measures, writes JSON, tables and plot
    python tools/few_bits.py benchmarks/few_bits.json [RUN ...] --output benchmarks/few_bits.md # anew from the JSON, and more

A run without rounding is measured as it is and with its decoded colours (without their view-dependent part) and opacities
rounded to K = 2 to 8 bits: bit for bit what a training with `rounding.start=1` ends with. A run with rounding was learned, and
is measured as it is. A run whose codes are binary words of K bits is measured with each bit rounded to 0 or 1 as well. A stronger
control, *codebook*: of each channel and of the opacities the 2^K numbers with the least squared error (Lloyd's algorithm,
from quantiles), found when the training is over.

Counted are the words of colours and opacities alone, four a Gaussian, as everything else is the same numbers in all arms:
*bits* are 4 K a Gaussian, packed; *deflated* is what zlib (level 9) makes of one byte a word, all reds, then all greens, blues
and opacities, in the model's order. A codebook's four tables of 2^K float32 are counted in both. Without rounding they are 128
bits, four float32.

Runs of the same photographs, size and steps are compared; learned less rounded is the difference of the same seed.
"""

import nfc_gs  # noqa: F401  # isort: skip (before torch, whose idle threads it tells to sleep)
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nfc_gs.benchmarks.report import surroundings
from nfc_gs.codes.binary import Binary
from nfc_gs.codes.identity import Identity
from nfc_gs.config import UserError, dump
from nfc_gs.core.rounding import UNROUNDED, Rounding
from nfc_gs.evaluation import Lpips, evaluate
from nfc_gs.model import SplatModel
from nfc_gs.studies.charts import COLOURS, Dot, Line, Panel, draw_panels
from nfc_gs.studies.records import Measurement, Record
from nfc_gs.studies.results import read_metrics
from nfc_gs.studies.statistics import estimate
from nfc_gs.studies.tables import signed, spread
from nfc_gs.training.run import Run, open_run

FORMAT = 1
BITS: tuple[Any, ...] = (2, 3, 4, 5, 6, 7, 8)
# How far a hard bit's logit is from 0: its sigmoid is 0 or 1 in float32.
HARD = 200.0
FLOAT_BITS = 128
UNLEARNED, ROUNDED, LEARNED, THRESHOLDED = "float32", "rounded afterwards", "learned", "bits thresholded"
CODEBOOK = "codebook afterwards"
USUAL = {"l1", "dssim"}
# Decoded words, and nothing that classifies them.
UNCLASSIFIED = "nfc without its loss"
LLOYD_STEPS = 50
# What a record must hold; tables need no more.
KEYS = {
    *("scene", "steps", "seed", "method", "how", "bits", "psnr", "ssim", "lpips_alex", "bits_per_gaussian"),
    *("deflated_bits_per_gaussian", "commit", "device", "measured_at"),
}


def words(model: SplatModel, bits: int) -> np.ndarray:
    """The words of K bits that a rounded model holds, as numbers [4 N]: all reds, greens, blues, then opacities.

    Raises:
        UserError: what it holds are no words of so many bits.
    """
    with torch.no_grad():
        colours, opacities = model.base_colours(model.gaussians), model.opacities()
    values = torch.cat([colours.T.flatten(), opacities]).double().cpu() * (2**bits - 1)
    levels = values.round()
    # Levels are float32 numbers of at most 8 bits.
    if not torch.allclose(values, levels, rtol=0, atol=1e-4):
        raise UserError(f"colours and opacities are no words of {bits} bits")
    return levels.numpy().astype(np.uint8)


def codebook(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray]:
    """At most 2^bits numbers with little squared error to the given ones (Lloyd 1982), ascending, and which is whose."""
    table = np.unique(np.quantile(values, (np.arange(2**bits) + 0.5) / 2**bits))
    for _ in range(LLOYD_STEPS):
        nearest = np.searchsorted((table[:-1] + table[1:]) / 2, values)
        sums, counts = (np.bincount(nearest, weights, minlength=len(table)) for weights in (values, None))
        moved = np.where(counts > 0, sums / np.maximum(counts, 1), table)
        if np.array_equal(moved, table):
            break
        table = moved
    return table, np.searchsorted((table[:-1] + table[1:]) / 2, values)


def with_codebook(model: SplatModel, bits: int) -> tuple[SplatModel, np.ndarray]:
    """The model with the numbers of four codebooks, and its words [4 N]."""
    with torch.no_grad():
        colours, opacities = model.base_colours(model.gaussians), model.opacities()
    columns = torch.cat([colours, opacities[:, None]], 1).cpu().double().numpy().T
    found = [codebook(column, bits) for column in columns]
    held = torch.from_numpy(np.stack([table[words] for table, words in found], 1)).to(colours)
    code = Identity()
    gaussians = replace(
        model.gaussians,
        colour_logits=code.logits(held[:, :3], unit=False),
        opacity_logits=code.logits(held[:, 3], unit=True),
    )
    words = np.concatenate([words for _, words in found]).astype(np.uint8)
    return replace(model, code=code, opacity_code=code, gaussians=gaussians, rounding=UNROUNDED), words


def deflated(numbers: np.ndarray) -> int:
    """The bytes that zlib makes of one byte a word."""
    return len(zlib.compress(numbers.tobytes(), 9))


def thresholded(model: SplatModel) -> SplatModel:
    """The model with each bit of its words rounded to 0 or 1."""

    def harden(logits: Tensor) -> Tensor:
        return torch.where(logits.detach() >= 0, HARD, -HARD)

    gaussians = model.gaussians
    hard = replace(
        gaussians, colour_logits=harden(gaussians.colour_logits), opacity_logits=harden(gaussians.opacity_logits)
    )
    return replace(model, gaussians=hard, rounding=UNROUNDED)


def variants(run: Run) -> Iterator[tuple[str, int, SplatModel, np.ndarray | None]]:
    """How, to how many bits (0: to none), the model that is measured, and its words [4 N]."""
    model, rounding = run.model, run.experiment.rounding
    if rounding.colour_bits != rounding.opacity_bits:
        raise UserError(f"{run.folder}: rounds colours and opacities to different words; only equal ones are compared")
    if rounding.colour_bits:
        kind = LEARNED if rounding.start < 1 else ROUNDED
        yield kind, rounding.colour_bits, model, words(model, rounding.colour_bits)
        return
    yield UNLEARNED, 0, model, None
    if isinstance(model.code, Binary) and isinstance(model.opacity_code, Binary):
        bits = model.code.bits
        if model.opacity_code.bits == bits:
            hard = thresholded(model)
            yield THRESHOLDED, bits, hard, words(hard, bits)
            if bits in BITS:
                yield ROUNDED, *rounded_to(model, bits)
            return
    for bits in BITS:
        yield ROUNDED, *rounded_to(model, bits)
        yield CODEBOOK, bits, *with_codebook(model, bits)


def rounded_to(model: SplatModel, bits: int) -> tuple[int, SplatModel, np.ndarray]:
    """The bits, the model rounded to them, and its words."""
    model = replace(model, rounding=Rounding(colour_bits=bits, opacity_bits=bits))
    return bits, model, words(model, bits)


def method_of(run: Run) -> str:
    """What a run is, by its codes and by what it has for losses beside those of all."""
    model, more = run.model, set(run.experiment.losses) - USUAL
    if isinstance(model.code, Identity):
        return " and ".join(["regression", *sorted(more)])
    if isinstance(model.code, Binary) and isinstance(model.opacity_code, Binary):
        return f"binary words of {model.code.bits}"
    return " and ".join(["nfc", *sorted(more - {"code_bce"})]) if "code_bce" in more else UNCLASSIFIED


def measure(run: Run) -> list[Record]:
    """One record for each way in which a run can be stored."""
    experiment = run.experiment
    scene = experiment.views(experiment.dataset.load(experiment.seed), experiment.seed)
    taken = [view.read() for view in scene.test]
    networks = Lpips.find(experiment.evaluation.lpips)
    metrics = read_metrics(run.folder / "metrics.json")
    data = dump(experiment)["dataset"]
    where = Path(data.get("folder", data["kind"])).name
    records = []
    for how, bits, model, held in variants(run):
        found = evaluate(model, scene.test, taken.__getitem__, lpips=networks)
        count = len(model.gaussians)
        tables = 4 * 2**bits * 32 / count if how == CODEBOOK else 0
        records.append(
            {
                "run": experiment.name,
                "scene": f"{where} {metrics['resolution']}, {len(scene.train)} views",
                "steps": run.record["step"],
                "seed": experiment.seed,
                "method": method_of(run),
                "how": how,
                "bits": bits,
                "psnr": found.psnr,
                "ssim": found.ssim,
                "lpips_alex": found.lpips_alex,
                "num_gaussians": count,
                "bits_per_gaussian": 4 * bits + tables if bits else FLOAT_BITS,
                "deflated_bits_per_gaussian": None if held is None else 8 * deflated(held) / count + tables,
                "commit": metrics.get("commit"),
                "device": metrics.get("device"),
                "measured_at": surroundings()["commit"],
            }
        )
    return records


Group = dict[tuple[str, str, int], list[Record]]


def groups(records: Sequence[Record]) -> dict[str, Group]:
    """By scene and steps: by method, how and bits, the records of all seeds."""
    found: dict[str, Group] = defaultdict(lambda: defaultdict(list))
    for record in records:
        panel = f"{record['scene']}, {record['steps']:,} steps"
        found[panel][record["method"], record["how"], record["bits"]].append(record)
    return found


def markdown(records: Sequence[Record], picture: str, command: str) -> str:
    """The page."""
    parts = [
        "# Few bits",
        f"Written by `{command}` from the JSON beside it; what is counted stands in that program. Held-out views; mean ± sample "
        "standard deviation over seeds.",
        f"![PSNR in dB against bits a Gaussian, deflated, of the seeds that all points of a panel have]({picture})",
    ]
    for panel, group in groups(records).items():
        lines = [
            "| method | how | K | seeds | bits a Gaussian | deflated | PSNR dB | SSIM | LPIPS-Alex |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for (method, how, bits), same in sorted(group.items(), key=lambda item: _place(*item[0])):
            packed = "–" if bits == 0 else spread([r["deflated_bits_per_gaussian"] for r in same], 1)
            scores = [spread([r[k] for r in same], d) for k, d in (("psnr", 2), ("ssim", 4), ("lpips_alex", 4))]
            seeds = " ".join(str(record["seed"]) for record in same)
            lines.append(
                f"| {method} | {how} | {bits or '–'} | {seeds} | {same[0]['bits_per_gaussian']:.3g} | {packed} | "
                + " | ".join(scores)
                + " |"
            )
        parts += [f"## {panel}", "\n".join(lines)]
        gains = _gains(group)
        if gains:
            parts += [
                "Differences by seed, with 95 % intervals of Student's t; deflated in bits a Gaussian:",
                gains,
            ]
    said = sorted(
        {f"- runs of commit {r['commit']}, {r['device']}; measured at commit {r['measured_at']}" for r in records}
    )
    return "\n\n".join([*parts, "\n".join(said)]) + "\n"


def _place(method: str, how: str, bits: int) -> tuple[Any, ...]:
    return method not in ("regression", "nfc"), method == "nfc", method, bits, how


def _controls(method: str, how: str) -> list[tuple[str, str]]:
    """Methods and ways of the same K that something is compared with."""
    if how == LEARNED:
        others = ("regression", UNCLASSIFIED, "regression and code_bce", "regression and ray_variance")
        learned = [(other, LEARNED) for other in others] if method == "nfc" else [("regression", LEARNED)]
        return [(method, ROUNDED), (method, CODEBOOK), *learned]
    # What has learned its bits is compared with regression, rounded to as many.
    return {CODEBOOK: [(method, ROUNDED)], THRESHOLDED: [("regression", ROUNDED)]}.get(how, [])


def _gains(group: Group) -> str:
    """What everything gained over its controls; empty where nothing can be compared."""
    lines = []
    for (method, how, bits), same in sorted(group.items(), key=lambda item: _place(*item[0])):
        for other, way in _controls(method, how):
            control = {record["seed"]: record for record in group.get((other, way, bits), [])}
            pairs = [(record, control[record["seed"]]) for record in same if record["seed"] in control]
            if not pairs or (other, way) == (method, how):
                continue
            gains = [
                signed(estimate([a[key] - b[key] for a, b in pairs]), digits)
                for key, digits in (("psnr", 2), ("ssim", 4), ("deflated_bits_per_gaussian", 2))
            ]
            lines.append(f"| {method}, {how} | {other}, {way} | {bits} | {len(pairs)} | " + " | ".join(gains) + " |")
    if not lines:
        return ""
    return "\n".join(
        ["| what | less | K | pairs | PSNR dB | SSIM | deflated |", "|---|---|---|---|---|---|---|", *lines]
    )


def _kind(method: str, how: str) -> tuple[str, str]:
    """What is drawn as one line."""
    return "binary words" if how == THRESHOLDED else method, how


def draw(records: Sequence[Record], path: Path) -> None:
    """For each scene and number of steps PSNR against bits a Gaussian, deflated; grey: float32.

    Of the seeds alone that all points of a panel have, as seeds differ by more than what is compared.
    """
    kinds = [
        ("regression", ROUNDED),
        ("regression", CODEBOOK),
        ("regression", LEARNED),
        ("nfc", ROUNDED),
        ("nfc", LEARNED),
        ("binary words", THRESHOLDED),
    ]
    colours = {kind: COLOURS[i] for i, kind in enumerate(kinds)}
    panels = []
    for title, group in groups(records).items():
        marks: list[Line | Dot] = []
        points: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
        drawn = {key: same for key, same in group.items() if _kind(*key[:2]) in colours}
        whole = group.get(("regression", UNLEARNED, 0), [])
        shared = [{record["seed"] for record in same} for same in (*drawn.values(), *([whole] if whole else []))]
        seeds = set.intersection(*shared) if shared else set()
        for (method, how, _), same in drawn.items():
            mine = [record for record in same if record["seed"] in seeds]
            if mine:
                x, y = (
                    float(np.mean([record[key] for record in mine])) for key in ("deflated_bits_per_gaussian", "psnr")
                )
                points[_kind(method, how)].append((x, y))
        level = [record["psnr"] for record in whole if record["seed"] in seeds]
        if level and points:
            ends = [x for line in points.values() for x, _ in line]
            marks.append(Line([(min(ends), float(np.mean(level))), (max(ends), float(np.mean(level)))], "#AAAAAA"))
        for kind, line in points.items():
            marks.append(Line(sorted(line), colours[kind]))
            marks += [Dot(x, y, colours[kind], 3.0) for x, y in line]
        keys = (
            [(" ".join(kind).replace(" afterwards", ""), colour) for kind, colour in colours.items()]
            if not panels
            else []
        )
        panels.append(
            Panel(
                title=f"{title}: PSNR, dB", x_label="bits a Gaussian, deflated", marks=marks, keys=keys, size=(420, 320)
            )
        )
    draw_panels(panels, columns=min(2, len(panels)), path=path)


def _measured(path: Path) -> tuple[list[Record], str]:
    if not (path / "metrics.json").is_file():
        raise UserError(f"{path}: is no finished run: it has no metrics.json")
    records = measure(open_run(path))
    return records, f"{records[-1]['psnr']:.2f} dB at {records[-1]['bits']} bits"


def _write(records: Sequence[Record], output: Path, command: str) -> str:
    picture = output.with_suffix(".png")
    draw(records, picture)
    return markdown(records, picture.name, command)


MEASUREMENT = Measurement(
    name="few_bits",
    description=str(__doc__),
    beside="JSON and PNG go",
    format=FORMAT,
    holder="records",
    keys=frozenset(KEYS),
    measure=_measured,
    write=_write,
)

if __name__ == "__main__":
    MEASUREMENT.main()
