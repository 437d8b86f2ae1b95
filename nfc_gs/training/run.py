"""A run folder: made from settings, and opened again for evaluation, rendering and export."""

import logging
import resource
import shutil
import signal
import sys
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import torch

from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.config import UserError, read, validate, write
from nfc_gs.core.scene import Scene, View
from nfc_gs.datasets.base import DatasetError
from nfc_gs.deformations.base import Deformation
from nfc_gs.deformations.static import Static
from nfc_gs.evaluation import Evaluation, Lpips, contact_sheet, evaluate, metrics, render_split, write_metrics
from nfc_gs.evaluation.confidence import Evidence, evidence, trusted, write_confidence
from nfc_gs.evaluation.pictures import write_png
from nfc_gs.evaluation.shots import Film, shoot
from nfc_gs.exporters.base import Exporter
from nfc_gs.kernels.memory import keep_freed_memory
from nfc_gs.kernels.threads import available, set_thread_count
from nfc_gs.model import SplatModel
from nfc_gs.training import checkpoint
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.initial import code_for, first_gaussians
from nfc_gs.training.ranks import ALONE, Ranks, fingerprint
from nfc_gs.training.trainer import Trainer, open_session

logger = logging.getLogger(__name__)

CONFIG = "config.yaml"
LAST = Path("checkpoints/last.safetensors")
BEST = Path("checkpoints/best.safetensors")
METRICS = "metrics.json"
# Where memory ended, this share of the Gaussians is what is advised: growth needs room for old and new ones at once.
FEWER = 0.6


class RunError(UserError):
    """A run folder is missing, or already there."""


class OutOfMemory(UserError):
    """What a training needs is more than its device has."""


@dataclass(frozen=True)
class Run:
    """A trained run, read back: its settings, its model, the record of its checkpoint, and which one that is."""

    folder: Path
    experiment: Experiment
    model: SplatModel
    record: dict[str, Any]
    best: bool


def use_threads(threads: int, sharing: int = 1) -> None:
    """One setting governs torch, our kernels and OpenCV; 0 means all the cores this process may use.

    With 0, `sharing` processes on one machine divide its cores among them.
    Freed memory is kept from here on, too (see `keep_freed_memory`).
    """
    count = threads or max(available() // sharing, 1)
    keep_freed_memory()
    set_thread_count(count)
    torch.set_num_threads(count)
    cv2.setNumThreads(count)


def begin(experiment: Experiment, overwrite: bool, ranks: Ranks = ALONE) -> Trainer:
    """A trainer at step 0, and its run folder with the resolved settings in it.

    Nothing is written before the data have been read and found good, by all processes if there are several.

    Raises:
        RunError: when the folder already holds a run and `overwrite` is false.
        RankError: when the processes do not fit together.
    """

    def read() -> Trainer:
        if ranks.first:
            _check_free(experiment.folder, overwrite)
        return build(experiment, ranks)

    ranks.divide(experiment)
    trainer = ranks.together(read)
    ranks.agree(_state(trainer))
    ranks.together(lambda: _make_folder(experiment) if ranks.first else None)
    return trainer


def _check_free(folder: Path, overwrite: bool) -> None:
    """Refuses a folder in which a run cannot begin."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is a file, so it cannot be the run folder; choose another name with name=...")
    if folder.exists() and any(folder.iterdir()) and not overwrite:
        raise RunError(
            f"{folder}: already there; go on with `nfc-gs train --resume {folder}`, begin anew with --overwrite, "
            "or choose another name with name=..."
        )


def _make_folder(experiment: Experiment) -> None:
    """An empty run folder with the settings in it."""
    folder = experiment.folder
    if folder.exists() and not (folder / CONFIG).exists() and any(folder.iterdir()):
        raise RunError(f"{folder}: is not a run folder (no {CONFIG}), so --overwrite does not delete it")
    try:
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write(experiment, folder / CONFIG)
    except OSError as error:
        raise RunError(
            f"{folder}: cannot be written: {error.strerror or error}; choose another folder with output=..."
        ) from None


def resume(folder: Path, ranks: Ranks = ALONE) -> Trainer:
    """A trainer where its last checkpoint was written, by however many processes."""
    experiment = ranks.together(lambda: read_settings(folder))

    def read() -> Trainer:
        trainer = build(experiment, ranks)
        checkpoint.restore(trainer, folder / LAST)
        return trainer

    ranks.divide(experiment)
    trainer = ranks.together(read)
    ranks.agree(_state(trainer))
    return trainer


def _state(trainer: Trainer) -> dict[str, str]:
    """By what several processes know that they begin alike."""
    if trainer.ranks.alone:
        return {}
    return {
        "training views": f"{len(trainer.scene.train)} ({', '.join(view.name for view in trainer.scene.train[:3])}, ...)",
        "steps done": str(trainer.done),
        "the Gaussians to begin with": f"{len(trainer.model.gaussians):,} ({fingerprint(trainer.model.gaussians)})",
    }


def train(trainer: Trainer, folder: Path) -> Evaluation | None:
    """Runs the trainer to its end and writes metrics.json; returns the last evaluation (None if nothing was left to do).

    Being told to terminate is taken as Ctrl-C is: the run is saved first. Of several processes only the first writes.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        evaluation = _train_in_memory(trainer, folder)
    except UserError:
        if trainer.done == 0 and trainer.ranks.first:
            # The very first step was refused: no folder that would stand in the next attempt's way.
            shutil.rmtree(folder)
        raise
    if not trainer.ranks.first:
        return None
    if evaluation is not None:
        judged_by = trainer.experiment.dataset.judged_by
        _record(folder, judged_by, trainer.model, evaluation, trainer.done, trainer.seconds, best=False)
    elif not (folder / METRICS).exists():
        # All steps were done before, but the last look at the held-out views was interrupted.
        measure(open_run(folder), lpips=None)
    return evaluation


def _train_in_memory(trainer: Trainer, folder: Path) -> Evaluation | None:
    """`Trainer.train`; what does not fit into the device's memory is told with what would."""
    try:
        return trainer.train(open_session(trainer, folder, lambda path: checkpoint.save(trainer, path)))
    except torch.OutOfMemoryError as error:
        asked = str(error).partition(". ")[0].partition("\n")[0]
        number, done = len(trainer.model.gaussians), trainer.done
        widest = max((view.camera for view in trainer.scene.train), key=lambda camera: camera.width * camera.height)
        fewer = f"{number * FEWER:.2g}"
        smaller = "a smaller batch, or with " if trainer.experiment.batch > 1 else ""
        last = f"{folder / LAST} is of the last step that could be kept, and `nfc-gs export {folder}` writes it; "
        raise OutOfMemory(
            f"{trainer.model.rasterizer.device}: out of memory in step {done + 1} with {number:,} Gaussians and pictures of "
            f"up to {widest.width}x{widest.height} ({asked}); {last if done else ''}begin anew with "
            f"strategy.cap_max={int(float(fewer))}, or with {smaller}a larger dataset.downscale, or free what other programs hold"
        ) from None


def build(experiment: Experiment, ranks: Ranks = ALONE) -> Trainer:
    """Data, first Gaussians, model and trainer, all from the settings and the seed."""
    use_threads(experiment.threads, ranks.local_count)
    ranks.use(experiment.rasterizer.device)
    scene = experiment.degradation(_load(experiment), experiment.seed)
    generator = torch.Generator().manual_seed(experiment.seed)
    code = code_for(experiment.code, scene)
    gaussians = first_gaussians(
        scene,
        experiment.initial,
        code,
        experiment.opacity_code,
        experiment.schedule.sh_degree,
        experiment.deformation.width,
        generator,
    )
    device = experiment.rasterizer.device
    bounds = scene.bounds
    if bounds is None:
        bounds = torch.stack([gaussians.means.min(0).values, gaussians.means.max(0).values])
        scene = replace(scene, bounds=bounds)
    _say_how_it_moves(scene, experiment.deformation)
    field = experiment.deformation.init(bounds, len(scene.times), generator)
    field.check(gaussians)
    model = SplatModel(
        gaussians=gaussians.map(lambda value: value.to(device)),
        code=code,
        opacity_code=experiment.opacity_code,
        rasterizer=experiment.rasterizer,
        field=field.to(device),
        degree=0,
        background=scene.background,
        to_world=scene.to_world,
        extent=scene.extent,
    )
    return Trainer(experiment, scene, model, ranks)


def _say_how_it_moves(scene: Scene, deformation: Deformation) -> None:
    """A warning where the data and the deformation are made for different kinds of scene."""
    moving = not isinstance(deformation, Static)
    if moving and len(scene.times) == 1:
        logger.warning(
            "this scene was photographed at one time only: it is still, and deformation.kind=static would do as well"
        )
    if not moving and len(scene.times) > 1:
        logger.warning(
            "this scene was photographed at %d different times, but deformation.kind is static: what moves will be "
            "blurred; configs/dynamic/ has settings for moving scenes",
            len(scene.times),
        )


def read_settings(folder: Path) -> Experiment:
    """The settings a run was made with; the folder may have been moved since."""
    if not folder.is_dir():
        raise RunError(f"{folder}: no such run folder")
    if not (folder / CONFIG).is_file():
        raise RunError(f"{folder}: is not a run folder: it has no {CONFIG}")
    folder = folder.absolute()
    here = {"output": folder.parent, "name": folder.name}
    return validate(Experiment, {**read([folder / CONFIG]), **here}, str(folder / CONFIG))


def open_run(folder: Path, best: bool = False) -> Run:
    """A trained run: its last checkpoint, or the best on the held-out views."""
    experiment = read_settings(folder)
    use_threads(experiment.threads)
    model, record = checkpoint.load_model(experiment, folder / (BEST if best else LAST))
    return Run(folder.absolute(), experiment, model, record, best)


def measure(run: Run, lpips: Path | None) -> tuple[dict[str, Any], Path]:
    """Measures a run on its held-out views; returns the record and where it was written."""
    networks = Lpips.find(lpips or run.experiment.evaluation.lpips)
    scene = _scene(run)
    with _photographs(run, scene.test) as photographs:
        evaluation = evaluate(
            run.model, scene.test, photographs.get, lpips=networks, keep=run.experiment.evaluation.pictures
        )
    judged_by = run.experiment.dataset.judged_by
    return _record(run.folder, judged_by, run.model, evaluation, run.record["step"], run.record["seconds"], run.best)


def draw(run: Run, split: str, mode: str, folder: Path) -> list[Path]:
    """Writes one PNG for each view of the split "train" or "test"."""
    scene = _scene(run)
    views = scene.train if split == "train" else scene.test
    if mode == "confidence":
        return write_confidence(run.model, _evidence(run).confidence, views, folder)
    with _photographs(run, views) as photographs:
        return render_split(run.model, views, photographs.get, mode, folder)


def export(run: Run, exporter: Exporter, path: Path, min_weight: float = 0.0, min_confidence: float = 0.0) -> str:
    """Writes a run as another program's file, without Gaussians of less weight (in pixels) or confidence than is asked for;
    returns a line or two for the user.
    """
    model, lines = run.model, []
    if min_weight or min_confidence:
        model, line = trusted(model, _evidence(run), min_weight, min_confidence)
        lines.append(line)
    return "\n".join([*lines, exporter.write(model, path, lambda: [view.camera for view in _scene(run).train])])


def film(run: Run, wish: Film, mode: str, output: Path) -> str:
    """Writes a film, or its frames; returns one line for the user. See `nfc_gs.evaluation.shots`."""
    return shoot(wish, _scene(run), run.model, mode, output)


def _load(experiment: Experiment) -> Scene:
    """The data set with the views that are trained on, clean."""
    return experiment.views(experiment.dataset.load(experiment.seed), experiment.seed)


def _scene(run: Run) -> Scene:
    """The data set a run was trained on, read again.

    Raises:
        DatasetError: as its kind says, and where the run names it.
    """
    try:
        return _load(run.experiment)
    except DatasetError as error:
        raise DatasetError(f"{error} (the run's photographs are those named in {run.folder / CONFIG})") from None


def _evidence(run: Run) -> Evidence:
    """What the photographs say that the run was trained on, spoilt as they were."""
    views = run.experiment.degradation(_scene(run), run.experiment.seed).train
    with _photographs(run, views) as photographs:
        return evidence(run.model, [view.camera for view in views], photographs.get)


def _photographs(run: Run, views: tuple[View, ...]) -> AbstractContextManager[PhotographStore]:
    # Each is looked at once, so none is worth writing to disk.
    return closing(PhotographStore(views, int(run.experiment.photographs_gb * 1e9), 0))


def _record(
    folder: Path, split: str, model: SplatModel, evaluation: Evaluation, steps: int, seconds: float, best: bool
) -> tuple[dict[str, Any], Path]:
    """Writes metrics.json, and a sheet of some views to look at."""
    record = metrics(
        evaluation,
        model,
        split=split,
        steps=steps,
        train_seconds=seconds,
        num_bytes=sum(value.nbytes for _, value in model.gaussians.items()),
    )
    # Numbers of a checkpoint that was chosen on these very views must not pass for those of the last one.
    record["checkpoint"] = "best on these views" if best else "last"
    # What the process took at its largest, on Linux in kilobytes, on macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    record["peak_megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6
    write_metrics(record, folder / METRICS)
    if evaluation.kept:
        rows = [(name, photograph, render) for name, _, render, photograph in evaluation.kept]
        write_png(contact_sheet(rows), folder / "contact_sheet.png")
    return record, folder / METRICS
