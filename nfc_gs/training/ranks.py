"""Several processes that train one scene together: each looks at its share of a step's views, and all make the same step.

`torchrun` starts the processes; each is known by its rank, from 0. All hold the whole model. In a step of `batch` views rank r of
N looks at views r, r + N, ...; gradients are added up in an order that does not depend on N where N and the batch are
powers of two, so that the result does not either, to the bit. Only rank 0 writes anything.
"""

import dataclasses
import hashlib
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as processes
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor

from nfc_gs import __version__
from nfc_gs.config import UserError, dump
from nfc_gs.core.gaussians import Edit, Gaussians
from nfc_gs.core.rendering import Rendering
from nfc_gs.losses.base import MemoryLoss
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.interruption import held_back, listening

T = TypeVar("T")

# Gradients of one view or more, a tensor for each parameter; None where nothing led back to it.
Gradients = list[Tensor | None]

# Seconds that a process waits for another, unless told otherwise: longer than any look at the held-out views takes.
TIMEOUT = 600.0
# What torchrun tells each process about itself.
TOLD = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
# Settings that the processes may each have of their own: where things are, and what does not change the result.
OWN = ("output", "threads", "photographs_gb", "photographs_disk_gb", "dataset.folder", "evaluation.lpips", "callbacks.")
START = "torchrun --nproc_per_node=N -m nfc_gs.cli train ..."


class RankError(UserError):
    """The processes do not fit together, or one of them has gone."""


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the whole step must know of one view, however few saw it.

    `pull` is the gradient by the Gaussians' places in pixels; `radii`, `absgrad` and `weights` as in `Rendering`; `size` the
    picture's width and height; `terms` the weighted losses; `present` which parameters it has a gradient of.
    """

    pull: Float[Tensor, "N 2"]
    radii: Int[Tensor, "N 2"]
    absgrad: Float[Tensor, "N 2"] | None
    weights: Float[Tensor, " N"] | None
    size: tuple[int, int]
    terms: Float[Tensor, " T"]
    present: tuple[bool, ...]

    @classmethod
    def of(cls, rendering: Rendering, terms: Sequence[Tensor], gradients: Gradients) -> "Observation":
        """The observation of a view after its backward pass."""
        assert rendering.means2d.grad is not None
        height, width = rendering.alpha.shape
        return cls(
            pull=rendering.means2d.grad,
            radii=rendering.radii,
            absgrad=None if rendering.absgrad is None else rendering.absgrad(),
            weights=None if rendering.weights is None else rendering.weights(),
            size=(width, height),
            terms=torch.stack([term.detach() for term in terms]),
            present=tuple(gradient is not None for gradient in gradients),
        )

    @property
    def drawn(self) -> Bool[Tensor, " N"]:
        """Which Gaussians the view shows."""
        return (self.radii > 0).all(1)

    def rendering(self) -> Rendering:
        """It as strategies observe it: without the pictures, which only the process that drew them has."""
        means2d = torch.empty_like(self.pull)
        means2d.grad = self.pull
        absgrad, weights = self.absgrad, self.weights
        return Rendering(
            channels=self.pull.new_empty(0, 0, 3),
            alpha=self.pull.new_empty(0, 0),
            depth=None,
            means2d=means2d,
            radii=self.radii,
            gather=_no_picture,
            absgrad=None if absgrad is None else lambda: absgrad,
            weights=None if weights is None else lambda: weights,
        )

    def packed(self, stop: bool) -> Float[Tensor, " L"]:
        """It in one row of numbers, with a flag; whole numbers up to 2^24 are exact."""
        numbers = [float(stop), *map(float, self.size), *map(float, self.present)]
        parts = [self.pull.new_tensor(numbers), self.terms, self.pull, self.radii, self.absgrad, self.weights]
        return torch.cat([part.reshape(-1).to(self.pull) for part in parts if part is not None])

    def unpacked(self, row: Float[Tensor, " L"]) -> tuple["Observation", bool]:
        """The observation in a row that `packed` made of one like this, and its flag."""
        count = len(self.present)
        stop, width, height, *present = row[: 3 + count].tolist()
        rest = row[3 + count :]
        found: dict[str, Tensor] = {}
        for name in ("terms", "pull", "radii", "absgrad", "weights"):
            like = getattr(self, name)
            if like is not None:
                found[name] = rest[: like.numel()].reshape(like.shape).to(like.dtype)
                rest = rest[like.numel() :]
        other = replace(self, size=(int(width), int(height)), present=tuple(map(bool, present)), **found)
        return other, bool(stop)


def paired(items: Sequence[T], value: Callable[[T], Gradients]) -> Gradients:
    """The sum of the items' values: that of every other item and that of the rest, each added up in the same way.

    As every Nth item is a process's, the sums of processes added up in the same way have the same rounding errors, if
    N and the number of items are powers of two.
    """
    if len(items) == 1:
        return value(items[0])
    one, other = paired(items[0::2], value), paired(items[1::2], value)
    return [_sum(a, b) for a, b in zip(one, other, strict=True)]


class Ranks:
    """The processes, seen from one of them. Alone, which is the default, everything here costs and does nothing.

    Attributes:
        rank: this process's number, from 0.
        count: how many there are.
        local_rank: its number on its machine, which is also its GPU's.
        local_count: how many are on its machine.
        timeout: seconds that it waits for another.
        stopping: whether one of them was told to stop, and all know.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, local_rank: int = 0, local_count: int = 1, timeout: float = TIMEOUT
    ) -> None:
        self.rank, self.count, self.timeout = rank, count, timeout
        self.local_rank, self.local_count = local_rank, local_count
        self.stopping = False
        self._asked: list[int] = []

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and evaluates."""
        return self.rank == 0

    def places(self, batch: int) -> range:
        """Which of a step's views are this one's."""
        return range(self.rank, batch, self.count)

    def divide(self, experiment: Experiment) -> None:
        """Refuses settings by which a step cannot be divided among the processes, or that are not the same on all."""
        if self.alone:
            return
        batch = experiment.batch
        if batch < self.count:
            raise RankError(
                f"batch={batch}: {self.count - batch} of {self.count} processes would have no view to look at; set "
                f"batch={self.count}, or start {batch}"
            )
        if batch % self.count:
            raise RankError(
                f"batch={batch}: {self.count} processes cannot look at equally many views; set "
                f"batch={batch // self.count * self.count} or batch={(batch // self.count + 1) * self.count}"
            )
        for kind, loss in experiment.losses.items():
            if isinstance(loss, MemoryLoss) and loss.weight != 0:
                raise RankError(
                    f"losses.{kind}: learns from one view after the other, so its views cannot be divided among "
                    f"processes; train with one process, or set losses.{kind}=null"
                )
        self.agree(_facts(experiment))

    def use(self, device: str) -> None:
        """Takes this process's GPU, if the model is to be on one."""
        if self.alone or device != "cuda":
            return
        if self.local_rank >= torch.cuda.device_count():
            raise RankError(
                f"process {self.rank} of {self.count}: this machine has {torch.cuda.device_count()} GPUs for "
                f"{self.local_count} processes; start as many as there are GPUs"
            )
        torch.cuda.set_device(self.local_rank)

    def together(self, act: Callable[[], T]) -> T:
        """What `act` returns; if it is refused on any process, all refuse, and say what that one says."""
        if self.alone:
            return act()
        result: list[T] = []
        refusal: UserError | None = None
        try:
            result.append(act())
        except UserError as mistake:
            refusal = mistake
        said = self.gather(None if refusal is None else str(refusal))
        if refusal is not None:
            raise refusal
        for rank, line in enumerate(said):
            if line is not None:
                raise RankError(f"process {rank} of {self.count} stopped: {line}")
        return result[0]

    def agree(self, facts: Mapping[str, str]) -> None:
        """Refuses to go on, on all processes, unless these are the same on all.

        Raises:
            RankError: the first fact that differs.
        """
        if self.alone:
            return
        everyone = self.gather(dict(facts))
        for rank, other in enumerate(everyone):
            for name in [*everyone[0], *other]:
                here, there = everyone[0].get(name, "not there"), other.get(name, "not there")
                if here != there:
                    raise RankError(
                        f"{name}: process 0 has {here}, process {rank} of {self.count} has {there}; all processes need the same"
                    )

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        values: list[Any] = [None] * self.count
        with self._listening():
            processes.all_gather_object(values, value)
        return values

    def share(self, own: Sequence[Observation]) -> list[Observation]:
        """All views' observations, in the views' order, from every process's own; and who was told to stop."""
        if self.alone:
            return list(own)
        rows = torch.stack([observation.packed(bool(self._asked)) for observation in own])
        received = [torch.empty_like(rows) for _ in range(self.count)]
        with self._listening():
            processes.all_gather(received, rows)
        # Every Nth view is a process's.
        pairs = [own[0].unpacked(row) for row in torch.stack(received, 1).flatten(0, 1)]
        self.stopping = any(stop for _, stop in pairs)
        return [observation for observation, _ in pairs]

    def add_up(self, gradients: Gradients, likes: Sequence[Tensor], present: Sequence[bool]) -> Gradients:
        """The sum of all processes' gradients, the same bits on all; `present` tells which ones anybody has.

        Each process adds up one slice of all numbers, as `paired` does, and hands it to the others: the order is fixed,
        and no process sends or receives more than twice the numbers.
        """
        if self.alone:
            return gradients
        sizes = [like.numel() if there else 0 for like, there in zip(likes, present, strict=True)]
        length = -(-sum(sizes) // self.count)  # of a slice
        flat = likes[0].new_zeros(length * self.count)
        parts = flat[: sum(sizes)].split(sizes)
        for part, gradient in zip(parts, gradients, strict=True):
            if gradient is not None:
                part.copy_(gradient.reshape(-1))
        received = torch.empty_like(flat)
        with self._listening():
            processes.all_to_all_single(received, flat)
        slices = received.view(self.count, length)
        added = paired(range(self.count), lambda rank: [slices[rank]])[0]
        assert added is not None
        with self._listening():
            processes.all_gather(list(flat.view(self.count, length)), added)
        return [
            part.view_as(like).clone() if there else None
            for part, like, there in zip(parts, likes, present, strict=True)
        ]

    def same_edit(self, edit: Edit, generator: Generator) -> Edit:
        """Rank 0's change of the population, on all; and its generator's state, so that the next one begins alike.

        All have worked it out from the same numbers, but a GPU may add them up in another order.
        """
        if self.alone:
            return edit
        tensors = {"parent": edit.parent, "fresh": edit.fresh.to(torch.uint8), **edit.values}
        forms = {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}
        told: list[Any] = [forms, edit.forget, generator.get_state()] if self.first else [None] * 3
        with self._listening():
            processes.broadcast_object_list(told, 0)
            for name, (shape, kind) in told[0].items():
                mine = tensors[name].contiguous() if self.first else edit.parent.new_empty(shape, dtype=kind)
                processes.broadcast(mine, 0)
                tensors[name] = mine
        generator.set_state(told[2])
        return Edit(
            parent=tensors.pop("parent"),
            fresh=tensors.pop("fresh").bool(),
            values={name: tensors[name] for name in told[0] if name in tensors},
            forget=told[1],
        )

    @contextmanager
    def unbroken(self) -> Iterator[None]:
        """A training that Ctrl-C or SIGTERM to any process ends on all, after the same step. A second one ends it at once."""
        if self.alone:
            yield
            return
        with listening() as self._asked:
            yield

    @contextmanager
    def one_step(self) -> Iterator[None]:
        """A step that Ctrl-C does not break off: KeyboardInterrupt comes at its end, on all processes."""
        if self.alone:
            with held_back():
                yield
            return
        yield
        if self.stopping:
            raise KeyboardInterrupt

    def leave(self) -> None:
        """Waits until all have come here, and parts: torchrun ends the rest when the first one goes."""
        if self.alone:
            return
        self.gather(None)
        processes.destroy_process_group()

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[0]
            late = "timed out" in reason.lower() or "timeout" in reason.lower()
            what = f"was silent for {self.timeout:g} s (--timeout)" if late else "has ended"
            raise RankError(
                f"process {self.rank} of {self.count}: another process {what}, and the last checkpoint is kept; its own "
                f"message says why ({reason[:160]})"
            ) from None


ALONE = Ranks()


def join(timeout: float = TIMEOUT) -> Ranks:
    """The processes that torchrun started, when all have arrived; this one alone where it was not started by torchrun.

    Raises:
        RankError: when others do not come in time.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return ALONE
    try:
        rank, count, local_rank, local_count = (int(os.environ[name]) for name in TOLD)
    except (KeyError, ValueError):
        raise RankError(f"WORLD_SIZE is set, but {', '.join(TOLD)} are not all numbers; start with `{START}`") from None
    # A dead process must become an error that can be told, not an abortion by NCCL's own watchdog.
    os.environ.setdefault("TORCH_NCCL_BLOCKING_WAIT", "1")
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and processes.is_nccl_available() else "gloo"
    try:
        processes.init_process_group(backend, timeout=timedelta(seconds=timeout))
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:160]
        raise RankError(
            f"process {rank} of {count}: the others did not come within {timeout:g} s; start all with `{START}` ({reason})"
        ) from None
    return Ranks(rank, count, local_rank, local_count, timeout)


def fingerprint(gaussians: Gaussians) -> str:
    """The same for the same numbers, and for others another."""
    digest = hashlib.sha256()
    for name, value in gaussians.items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def _facts(experiment: Experiment) -> dict[str, str]:
    """What decides the result: the settings, one by one, the device, and the programs' versions."""
    facts = {
        "nfc-gs": f"{__version__} (sources {_sources(experiment)})",
        "torch": torch.__version__,
        "device": experiment.rasterizer.device,
    }

    def visit(path: str, value: object) -> None:
        if isinstance(value, Mapping):
            for name, inner in value.items():
                visit(f"{path}.{name}" if path else str(name), inner)
        elif not path.startswith(OWN):
            facts[path] = str(value)

    visit("", dump(experiment))
    return facts


def _sources(experiment: Experiment) -> str:
    """A digest of the code that trains: ours, and the packages' that the settings name."""
    specs = [value for value in vars(experiment).values() if dataclasses.is_dataclass(value)]
    digest = hashlib.sha256()
    for package in sorted({"nfc_gs", *(type(value).__module__.partition(".")[0] for value in specs)}):
        found = importlib.util.find_spec(package)
        for folder in (found and found.submodule_search_locations) or ():
            for path in sorted(Path(folder).rglob("*.py")):
                digest.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def _no_picture(picture: Tensor) -> tuple[Tensor, Tensor]:
    raise RuntimeError("a view of a batch is observed without its picture, so nothing can be gathered from it")
