"""One optimization step, read top to bottom: photograph in, better Gaussians out."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nfc_gs.captures.feed import Feed, Wanted
from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.config import UserError, dump, text
from nfc_gs.core.camera import Camera
from nfc_gs.core.ordering import morton_order
from nfc_gs.core.scene import Scene
from nfc_gs.core.transfer import sent
from nfc_gs.evaluation import Evaluation, Lpips, evaluate
from nfc_gs.losses.base import LossTerm, MemoryLoss, PlaneLoss, completed, weighted
from nfc_gs.model import Picture, SplatModel, Target, compare, compose
from nfc_gs.training.callbacks.base import End, Listener, Report, Session
from nfc_gs.training.experiment import Experiment
from nfc_gs.training.optimizer import GaussianOptimizer
from nfc_gs.training.ranks import ALONE, Gradients, Observation, Ranks, fingerprint, paired

# Steps between looks at whether the loss is still a number, on a GPU, which a look makes wait.
CHECK_EVERY = 20
# How many photographs are decoded ahead of the step that needs them.
PREFETCH = 8
# How many of them are copied to a CUDA device ahead.
UPLOADS = 3
# The held-out photographs' share of the memory and the disk for photographs.
HELD_OUT_SHARE = 0.2


class TrainingError(UserError):
    """The settings make the training diverge."""


@dataclass(frozen=True, kw_only=True)
class Look:
    """One view, drawn and compared with its photograph; its gradients are in the parameters."""

    camera: Camera
    picture: Picture
    target: Target
    terms: dict[str, Tensor]
    chances: Tensor | None


@contextmanager
def _torch_on_one_thread() -> Iterator[None]:
    """Our kernels share what is large; torch's own small operations lose more by waking threads than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Trainer:
    """Trains `model` on `scene`; everything that changes is here, and `checkpoint` saves and restores all of it.

    `ranks` are the processes that do so together, each with a trainer of its own.
    """

    def __init__(self, experiment: Experiment, scene: Scene, model: SplatModel, ranks: Ranks = ALONE) -> None:
        self.experiment, self.scene, self.model, self.ranks = experiment, scene, model, ranks
        _check_losses(experiment)
        self.generator = torch.Generator().manual_seed(experiment.seed + 1)
        self.optimizer = GaussianOptimizer(
            model.gaussians, model.field, experiment.optimizer, scene.extent, experiment.steps
        )
        model.gaussians = self.optimizer.gaussians
        self.statistics = experiment.strategy.init(len(model.gaussians), model.rasterizer.device)
        self.memory = {
            kind: {
                name: value.to(model.rasterizer.device)
                for name, value in loss.init(len(model.gaussians), model.code).items()
            }
            for kind, loss in experiment.losses.items()
            if isinstance(loss, MemoryLoss)
        }
        moments = np.array([view.camera.time for view in scene.train])
        # How far each view's time is from the middle of the time.
        self._apart = np.abs(moments - 0.5 * (moments.min() + moments.max())).tolist()
        self.done = 0
        self.seconds = 0.0
        self.best_psnr = -float("inf")
        # Whether a step has begun to change things and not ended: what is then in memory is of no step, and not saved.
        self.changing = False
        # Whether it has come so far as to change what the next step begins with; losses with a memory do so earlier.
        self.updating = False
        memory, disk = experiment.photographs_gb * 1e9, experiment.photographs_disk_gb * 1e9
        self.photographs, self.held_out = (
            PhotographStore(views, int(share * memory), int(share * disk))
            for views, share in ((scene.train, 1 - HELD_OUT_SHARE), (scene.test, HELD_OUT_SHARE))
        )
        self.feed = Feed(self.photographs.get, model.rasterizer.device)
        # Copied once: a copy to a CUDA device makes the program wait for all that it was told before.
        self._poses = torch.stack([view.camera.world_to_camera for view in scene.train]).to(model.rasterizer.device)
        self._background = torch.tensor(model.background, device=model.rasterizer.device)
        self._milliseconds: dict[str, float] = {}
        self._order: list[int] = []
        self._epochs = 0

    @_torch_on_one_thread()
    def step(self) -> Report:
        """A view, or a batch of them, one gradient, one step of Adam, and the change of population that is due."""
        experiment, model, views = self.experiment, self.model, len(self.scene.train)
        began = time.perf_counter()
        self._milliseconds = {}
        # There are some only after a step that an error broke off between its backward pass and Adam's.
        self.optimizer.forget_gradients()
        step = self.done + 1
        progress = self.done / experiment.steps
        model.field.advance(model.population(), progress)
        model.degree = min(experiment.schedule.sh_degree, self.done // experiment.schedule.sh_every)
        model.rounding = experiment.rounding.at(progress)
        losses = {kind: loss for kind, loss in experiment.losses.items() if loss.acts(progress, step)}
        rates = self.optimizer.rates(self.done)

        if experiment.batch == 1:
            (look,) = self._look([self.done], losses)
            terms, radii = look.terms, look.picture.rendering.radii
            self.updating = True
            with self._phase("strategy"):
                experiment.strategy.observe(
                    self.statistics, look.picture.rendering, look.camera, step, experiment.steps, views
                )
        else:
            look, terms, radii = self._look_at_batch(losses)
            self.updating = True
        with self._phase("optimizer"):
            self.optimizer.step(self.done, radii)
        with self._phase("strategy"):
            self._change_population(step, rates["means"])

        self.done, self.changing, self.updating = step, False, False
        model.rounding = experiment.rounding.at(step / experiment.steps)
        self.seconds += time.perf_counter() - began
        return Report(
            step=step,
            terms={name: term.detach() for name, term in terms.items()},
            picture=look.picture,
            target=look.target,
            rates=rates,
            milliseconds=self._milliseconds,
            num_gaussians=len(model.gaussians),
            seconds=self.seconds,
            chances=look.chances,
        )

    def _look(self, numbers: Sequence[int], losses: Mapping[str, LossTerm]) -> list[Look]:
        """Looks (numbered from 0 among all) at one time and of one size: their forward passes, and one backward pass.

        The sum of their gradients is then in the parameters.
        """
        experiment, model, ranks = self.experiment, self.model, self.ranks
        step, progress = self.done + 1, self.done / experiment.steps
        distractors = experiment.distractors
        if distractors and step < distractors.first_step(len(self.scene.train), experiment.steps, experiment.batch):
            distractors = None
        with self._phase("data"):
            backgrounds = [self.background(number) for number in numbers]
            pixels = [self.feed.get(self._wanted(number)) for number in numbers]
            reach = max(PREFETCH, len(numbers) + 1)
            ahead = range(numbers[-1] + ranks.count, numbers[-1] + ranks.count * reach, ranks.count)
            self.photographs.prefetch([self.view_number(later) for later in ahead])
            self.feed.prefetch(self._wanted(later) for later in ahead[: max(UPLOADS, len(numbers))])
            targets = [compose(each, background) for each, background in zip(pixels, backgrounds, strict=True)]
            cameras = [
                self.camera(number, each.rgb.shape[1], each.rgb.shape[0])
                for number, each in zip(numbers, pixels, strict=True)
            ]
        with self._phase("render"):
            pictures = model.render_views(
                cameras,
                backgrounds=backgrounds,
                planes={kind: loss for kind, loss in losses.items() if isinstance(loss, PlaneLoss)},
                absgrad=experiment.strategy.absgrad,
                weights=experiment.strategy.weights,
                step=step,
                views=[self.view_number(number) for number in numbers],
                memory=self.memory,
            )
        self.changing = True
        looks = []
        with self._phase("losses"):
            totals = []
            for camera, picture, target in zip(cameras, pictures, targets, strict=True):
                comparison = compare(picture, target, memory=self.memory, progress=progress, step=step)
                chances = None
                if distractors is not None:
                    comparison, chances = completed(comparison, distractors)
                terms, total = weighted(losses, comparison)
                penalties = model.field.penalties(model.gaussians, camera.time)
                if penalties:
                    terms, total = terms | penalties, total + torch.stack(list(penalties.values())).sum()
                looks.append(Look(camera=camera, picture=picture, target=target, terms=terms, chances=chances))
                totals.append(total)
        total = totals[0] if len(totals) == 1 else torch.stack(totals).sum()
        asks = total.device.type == "cpu" or step % CHECK_EVERY == 1
        if asks and not math.isfinite(total.item()):
            sums = {kind: sum(float(look.terms[kind].detach()) for look in looks) for kind in looks[0].terms}
            values = ", ".join(f"{kind} {value:.3g}" for kind, value in sums.items())
            raise TrainingError(
                f"the loss is no longer a number at step {step} ({values}); lower the learning rates; the last checkpoint "
                "is kept"
            )
        with self._phase("backward"):
            if total.requires_grad:
                # The gradients of several views are added up, and some sent away: they must be written out.
                with self.optimizer.listening() if experiment.batch == 1 else nullcontext():
                    total.backward()
        if any(picture.rendering.means2d.grad is None for picture in pictures):
            raise TrainingError(
                f"losses: of those that act at step {step} ({', '.join(losses)}) none compares the picture with the "
                "photograph; add one that does, as losses.l1.weight=0.8"
            )
        return looks

    def _together(self, places: Sequence[int], losses: Mapping[str, LossTerm]) -> list[list[int]]:
        """Which of a step's views are drawn in one pass: where the rasterizer can, those of one time and size.

        A loss that remembers views learns from one after the other.
        """
        first = self.done * self.experiment.batch
        views = {place: self.view_number(first + place) for place in places}
        # All are asked for at once: a photograph that cannot be read is then told before anything has changed.
        shapes = {place: self.photographs.get(view).rgb.shape for place, view in views.items()}
        remembers = any(isinstance(loss, MemoryLoss) for loss in losses.values())
        if not self.model.rasterizer.several or remembers:
            return [[place] for place in places]
        groups: dict[tuple[float, ...], list[int]] = {}
        for place, view in views.items():
            camera = self.scene.train[view].camera
            alike = (self.jittered(camera.time, first + place), camera.near, *shapes[place])
            groups.setdefault(alike, []).append(place)
        return list(groups.values())

    def _look_at_batch(self, losses: Mapping[str, LossTerm]) -> tuple[Look, dict[str, Tensor], Tensor]:
        """All looks of this step, those of other processes included: their mean gradient is then in the parameters.

        Returns this process's first look, the mean of all looks' losses, and radii of those whom any look shows.
        """
        experiment, ranks = self.experiment, self.ranks
        first, parameters = self.done * experiment.batch, self.optimizer.parameters()
        kept: list[Look] = []
        seen: dict[int, Observation] = {}

        def gradients(group: list[int]) -> Gradients:
            looks = self._look([first + place for place in group], losses)
            found: Gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                parameter.grad = None
            for place, look in zip(group, looks, strict=True):
                seen[place] = Observation.of(look.picture.rendering, list(look.terms.values()), found)
            # Only one is kept whole: a picture holds on to all that was needed to draw it.
            if not kept:
                kept.append(looks[0])
            return found

        places = ranks.places(experiment.batch)
        with self._phase("data"):
            groups = self._together(places, losses)
        mean = paired(groups, gradients)
        with self._phase("exchange"):
            observations = ranks.share([seen[place] for place in places])
            present = [any(of_one) for of_one in zip(*(each.present for each in observations), strict=True)]
            mean = ranks.add_up(mean, parameters, present)
        for parameter, gradient in zip(parameters, mean, strict=True):
            parameter.grad = None if gradient is None else gradient.div_(experiment.batch)
        drawn = torch.zeros_like(observations[0].radii)
        with self._phase("strategy"):
            for place, observation in enumerate(observations):
                camera = self.camera(first + place, *observation.size)
                experiment.strategy.observe(
                    self.statistics,
                    observation.rendering(),
                    camera,
                    self.done + 1,
                    experiment.steps,
                    len(self.scene.train),
                )
                drawn[observation.drawn] = 1
        (look,) = kept
        terms = torch.stack([observation.terms for observation in observations]).mean(0)
        return look, dict(zip(look.terms, terms, strict=True)), drawn

    def train(self, session: Session) -> Evaluation | None:
        """Every step that is left; whatever ends it, the listeners are closed. Returns the last evaluation.

        Only the first of several processes has listeners and evaluates.
        """
        with self.ranks.unbroken():
            return self._train(session)

    def _train(self, session: Session) -> Evaluation | None:
        evaluation = None
        listeners: list[Listener] = []
        end: End = "stopped"
        try:
            for callback in self.experiment.callbacks.values() if self.ranks.first else ():
                listeners.append(callback.start(session))
            while self.done < self.experiment.steps:
                with self.ranks.one_step():
                    report = self.step()
                    if self._evaluation_due() and not self.ranks.alone:
                        self.ranks.agree({f"the Gaussians after step {self.done}": fingerprint(self.model.gaussians)})
                    if self._evaluation_due() and self.ranks.first:
                        # Broken off in here, the run goes back to its last checkpoint, or it would lack this look for
                        # good; only the last one of all is made up for when the run is resumed.
                        self.changing = self.done < self.experiment.steps
                        evaluation = self.evaluate()
                        self.changing = False
                        self.best_psnr = max(self.best_psnr, evaluation.psnr)
                        report = replace(report, evaluation=evaluation)
                    for listener in listeners:
                        listener.hear(report)
                    # Its picture would be held while the next one is drawn.
                    del report
            end = "finished"
        except torch.OutOfMemoryError:
            if not self.updating and not self.memory:
                # The pictures did not fit: the step never happened, and there is all that the one before left.
                self.optimizer.forget_gradients()
                self.changing = False
            raise
        finally:
            end = "failed" if self.changing else end
            # Each has its turn, in this order, whatever the one before raises.
            with ExitStack() as closing:
                if end == "finished" or self.ranks.stopping:
                    closing.callback(self.ranks.leave)
                closing.callback(self.held_out.close)
                closing.callback(self.photographs.close)
                closing.callback(self.feed.close)
                for listener in reversed(listeners):
                    closing.callback(listener.close, end)
        return evaluation

    def evaluate(self) -> Evaluation:
        """The held-out views as the model is now."""
        settings = self.experiment.evaluation
        return evaluate(
            self.model, self.scene.test, self.held_out.get, lpips=Lpips.find(settings.lpips), keep=settings.pictures
        )

    def _evaluation_due(self) -> bool:
        every = self.experiment.evaluation.every
        return self.done == self.experiment.steps or (every > 0 and self.done % every == 0)

    def view_number(self, look: int) -> int:
        """Which training view look `look` (from 0, `batch` of them a step) is at: all once an epoch, in an order drawn by seed.

        An epoch holds the views whose times are in the window at its first step. It all depends on nothing but the seed
        and the look, so a resumed run sees the same views, whoever looks at them.
        """
        while len(self._order) <= look:
            order = np.random.default_rng([self.experiment.seed, 0, self._epochs]).permutation(len(self.scene.train))
            half = self.window(len(self._order) // self.experiment.batch)
            self._order += [i for i in order.tolist() if self._apart[i] <= half]
            self._epochs += 1
        return self._order[look]

    def camera(self, look: int, width: int, height: int) -> Camera:
        """The camera of a look, for pictures of this size, with this look's noise on its time."""
        number = self.view_number(look)
        camera = self.scene.train[number].camera.resized(width, height)
        return replace(camera, world_to_camera=self._poses[number], time=self.jittered(camera.time, look))

    def _wanted(self, look: int) -> Wanted:
        """Which photograph a look needs, at which size."""
        return Wanted(self.view_number(look), self.coarseness(look // self.experiment.batch))

    def window(self, step: int) -> float:
        """How far from the middle of the time a view may be to be looked at at this step."""
        settings = self.experiment.time
        widest = max(self._apart)
        # The nearest view is always within.
        narrowest = max(min(settings.window, widest), min(self._apart))
        share = step / self.experiment.steps
        if settings.window == 0 or share >= settings.window_until:
            return widest
        return narrowest + (widest - narrowest) * share / settings.window_until

    def jittered(self, time: float, look: int) -> float:
        """The time of a training picture with this look's noise, within [0, 1]."""
        settings, times = self.experiment.time, self.scene.times
        share = look // self.experiment.batch / self.experiment.steps
        if settings.jitter == 0 or len(times) == 1 or share >= settings.jitter_until:
            return time
        spread = settings.jitter * (times[-1] - times[0]) / (len(times) - 1) * (1 - share / settings.jitter_until)
        drawn = np.random.default_rng([self.experiment.seed, 2, look]).standard_normal()
        return float(np.clip(time + spread * drawn, 0, 1))

    def background(self, look: int) -> Tensor:
        """The colour behind everything in this look, [3]."""
        if not self.scene.random_background:
            return self._background
        drawn = torch.from_numpy(np.random.default_rng([self.experiment.seed, 1, look]).random(3, dtype=np.float32))
        return sent(drawn, self._background.device)

    def coarseness(self, step: int) -> int:
        """By how much the pictures are downscaled at this step: it halves at equal steps until `coarse_until`."""
        schedule = self.experiment.schedule
        stages = max(schedule.coarse.bit_length() - 1, 0)
        until = schedule.coarse_until * self.experiment.steps
        if stages == 0 or step >= until:
            return 1
        return schedule.coarse >> int(stages * step / until)

    @torch.no_grad()
    def _change_population(self, step: int, means_rate: float) -> None:
        """The strategy's noise, and its edit: here, and only here, the number of Gaussians changes."""
        strategy, steps = self.experiment.strategy, self.experiment.steps
        population = self.model.population()
        noise = strategy.perturb(population, means_rate, step, steps, self.generator)
        if noise is not None:
            self.model.gaussians.means.add_(noise)
        edit = strategy.edit(self.statistics, population, step, steps, self.generator, len(self.scene.train))
        if edit is not None:
            # All rows are moved anyway, so they are laid along a curve: neighbours in a picture are then mostly neighbours
            # in memory, and rasterization takes a twentieth less of its time.
            edit = edit.reordered(morton_order(edit.means(population.gaussians)))
            edit = self.ranks.same_edit(edit, self.generator)
            self.model.gaussians = self.optimizer.apply(edit)
            self.statistics = strategy.settle(self.statistics, edit)
            self.memory = {kind: edit.carry(memory) for kind, memory in self.memory.items()}

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        passed = (time.perf_counter() - began) * 1e3
        self._milliseconds[name] = self._milliseconds.get(name, 0.0) + passed


def _check_losses(experiment: Experiment) -> None:
    """Refuses schedules that leave a part of the training without any loss."""
    losses = experiment.losses.values()
    changes = {0.0, *(share for loss in losses for share in (loss.start, loss.stop) if 0 < share < 1)}
    for share in sorted(changes):
        if not any(loss.active(share) and loss.every == 1 for loss in losses):
            raise TrainingError(
                f"losses: none acts at every step from {share:.0%} of the training on; give one a weight, and a start and a "
                "stop about it, as losses.l1.weight=0.8"
            )


def hyperparameters(experiment: Experiment) -> Mapping[str, float | int | str]:
    """The settings as one flat mapping, for TensorBoard's table."""
    flat: dict[str, float | int | str] = {}

    def visit(prefix: str, value: object) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                visit(f"{prefix}.{key}" if prefix else str(key), inner)
        elif isinstance(value, (bool, int, float, str)):
            flat[prefix] = value
        elif value is not None:
            flat[prefix] = str(value)

    visit("", dump(experiment))
    return flat


def open_session(trainer: Trainer, folder: Path, save: Callable[[Path], None]) -> Session:
    """The session that a trainer's listeners see."""
    return Session(
        folder=folder,
        settings=text(trainer.experiment),
        hyperparameters=hyperparameters(trainer.experiment),
        steps=trainer.experiment.steps,
        first_step=trainer.done,
        best_psnr=trainer.best_psnr,
        scene=trainer.scene,
        model=lambda: trainer.model,
        save=save,
    )
