"""Everything a run needs to go on, in one file, and back.

A checkpoint is one safetensors file whose header carries a JSON record: no pickle, readable anywhere, and one `os.replace`
away from being complete, so a training that is killed while saving leaves the previous checkpoint.
"""

import hashlib
import json
import os
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor

from nfc_gs.codes.base import TargetCode
from nfc_gs.config import UserError, dump, validate, validate_kind
from nfc_gs.core.gaussians import Gaussians
from nfc_gs.core.scene import Similarity
from nfc_gs.model import SplatModel
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.optimizer import GaussianOptimizer
from nfc_gs.training.trainer import Trainer

FORMAT = 2
# The settings that say what a model's tensors mean; the others may change and the model can still be drawn.
MEANING = ("code", "opacity_code", "deformation")
# What the record holds besides the format.
RECORDED = (
    "digest", "meaning", "step", "seconds", "best_psnr", "degree", "background", "extent", "to_world", "field",
)  # fmt: skip


class CheckpointError(UserError):
    """A checkpoint cannot be written, read, or belongs to other settings."""


def digest(experiment: Experiment) -> str:
    """Identifies the settings that decide a result: not where it is written, how it is shown, nor how many threads."""
    ignored = ("name", "output", "threads", "callbacks", "photographs_gb", "photographs_disk_gb", "evaluation")
    # As it will be read back: a default of 4 where a float is asked for is 4.0 from a file.
    settings = dump(validate(Experiment, dump(experiment), "digest"))
    deciding = {key: value for key, value in settings.items() if key not in ignored}
    deciding["dataset"].pop("folder", None)  # the same photographs may have been moved
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def meaning(experiment: Experiment) -> dict[str, Any]:
    """The settings without which a model's tensors cannot be read."""
    return {name: dump(getattr(experiment, name)) for name in MEANING}


def save(trainer: Trainer, path: Path) -> None:
    """Writes all that changes: model, moments, statistics, memories, the generator, and how far it has come.

    Raises:
        CheckpointError: when the disk refuses; what was at `path` before is still there.
    """
    model = trainer.model
    groups = {
        "gaussians": dict(model.gaussians.items()),
        "field": model.field.state_dict(),
        "adam": trainer.optimizer.tensors(),
        "statistics": trainer.statistics,
        "generator": {"state": trainer.generator.get_state()},
        **{f"memory.{kind}": memory for kind, memory in trainer.memory.items()},
    }
    tensors = {
        f"{group}/{name}": value.detach().cpu().contiguous()
        for group, values in groups.items()
        for name, value in values.items()
    }
    record = {
        "format": FORMAT,
        "digest": digest(trainer.experiment),
        "meaning": meaning(trainer.experiment),
        # What the settings leave to the photographs.
        "fitted_code": dump(model.code) if trainer.experiment.code.adapts else None,
        "step": trainer.done,
        "seconds": trainer.seconds,
        "best_psnr": trainer.best_psnr,
        "degree": model.degree,
        "background": model.background,
        "extent": model.extent,
        "to_world": asdict(model.to_world),
        "field": {
            "bounds": None if trainer.scene.bounds is None else trainer.scene.bounds.tolist(),
            "num_times": len(trainer.scene.times),
        },
    }
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "wb") as file:
            file.write(safetensors.save(tensors, metadata={"nfc_gs": json.dumps(record)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        kept = "; the previous checkpoint is kept" if path.exists() else ""
        raise CheckpointError(f"{path}: cannot be written: {error.strerror or error}{kept}") from None
    finally:
        partial.unlink(missing_ok=True)


def restore(trainer: Trainer, path: Path) -> None:
    """Puts a trainer, built from the same settings, where the checkpoint was written."""
    record, groups = _read(path)
    if record["digest"] != digest(trainer.experiment):
        raise CheckpointError(
            f"{path}: was written with other settings than {trainer.experiment.folder / 'config.yaml'} now holds, or by "
            "an nfc-gs that has others; restore that file or that version, or train anew under another name"
        )
    device = trainer.model.rasterizer.device
    gaussians = Gaussians(**{name: value.to(device) for name, value in groups["gaussians"].items()})
    trainer.model.code = _code_of(trainer.experiment, record, path)
    trainer.model.field.load_state_dict(groups.get("field", {}))
    trainer.optimizer = GaussianOptimizer(
        gaussians, trainer.model.field, trainer.experiment.optimizer, trainer.scene.extent, trainer.experiment.steps
    )
    trainer.optimizer.restore({name: value.to(device) for name, value in groups.get("adam", {}).items()})
    trainer.model.gaussians = trainer.optimizer.gaussians
    trainer.model.degree = record["degree"]
    trainer.statistics = {name: value.to(device) for name, value in groups.get("statistics", {}).items()}
    trainer.memory = {
        kind: {name: value.to(device) for name, value in groups.get(f"memory.{kind}", {}).items()}
        for kind in trainer.memory
    }
    trainer.generator.set_state(groups["generator"]["state"])
    trainer.done, trainer.seconds, trainer.best_psnr = record["step"], record["seconds"], record["best_psnr"]


def load_model(experiment: Experiment, path: Path) -> tuple[SplatModel, dict[str, Any]]:
    """The model alone, without its data set, and the checkpoint's record."""
    record, groups = _read(path)
    for name, wanted in meaning(experiment).items():
        found = record["meaning"][name]
        if found != wanted:
            # Of a long list of settings, those alone that differ.
            if found["kind"] == wanted["kind"]:
                found, wanted = (
                    {key: value for key, value in these.items() if value != those.get(key)}
                    for these, those in ((found, wanted), (wanted, found))
                )
            raise CheckpointError(
                f"{path}: was trained with {name} {found}, but the run's config.yaml now says {wanted}; restore that file"
            )
    gaussians = Gaussians(**groups["gaussians"])
    scene = record["field"]
    field = experiment.deformation.init(torch.tensor(scene["bounds"]), scene["num_times"], torch.Generator())
    field.load_state_dict(groups.get("field", {}))
    device = experiment.rasterizer.device
    model = SplatModel(
        gaussians=gaussians.map(lambda value: value.to(device)),
        code=_code_of(experiment, record, path),
        opacity_code=experiment.opacity_code,
        rasterizer=experiment.rasterizer,
        field=field.to(device),
        degree=record["degree"],
        background=tuple(record["background"]),
        to_world=Similarity(scale=record["to_world"]["scale"], translation=tuple(record["to_world"]["translation"])),
        extent=record["extent"],
        rounding=experiment.rounding.at(record["step"] / experiment.steps),
    )
    return model, record


def _code_of(experiment: Experiment, record: dict[str, Any], path: Path) -> TargetCode:
    """The settings' code, as it was fitted to the photographs if it asks for them."""
    if not experiment.code.adapts:
        return experiment.code
    code: TargetCode = validate_kind("nfc_gs.codes", record.get("fitted_code") or {}, f"{path}: fitted_code")
    return code


def _read(path: Path) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The JSON record and the tensors, by group."""
    if not path.is_file():
        raise CheckpointError(
            f"{path}: there is no checkpoint; a training writes its first one after the steps named by callbacks.checkpoints.every"
        )
    try:
        tensors = safetensors.load_file(path)
        with open(path, "rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        record = json.loads(header["__metadata__"]["nfc_gs"])
    except (SafetensorError, OSError, KeyError, ValueError, struct.error) as error:
        raise CheckpointError(f"{path}: is not a checkpoint of nfc-gs, or is damaged: {error}") from None
    if record.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: has checkpoint format {record.get('format')}, this version reads {FORMAT}; train anew, or use the "
            "version of nfc-gs that wrote it"
        )
    missing = [name for name in RECORDED if name not in record]
    if missing:
        raise CheckpointError(f"{path}: is damaged: its record lacks {', '.join(missing)}")
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        group, _, rest = name.partition("/")
        groups.setdefault(group, {})[rest] = value
    return record, groups
