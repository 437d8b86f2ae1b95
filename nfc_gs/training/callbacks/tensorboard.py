"""Writes what happens to TensorBoard, from the first step."""

import math
from dataclasses import replace

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.codes.base import TargetCode
from nfc_gs.config import NonNegativeInt, PositiveInt, spec
from nfc_gs.deformations.static import Rest
from nfc_gs.evaluation.confidence import evidence
from nfc_gs.evaluation.motion import draw_speeds, mean_displacement, speeds, top_speed
from nfc_gs.evaluation.pictures import to_bytes
from nfc_gs.training.callbacks.base import Callback, End, Listener, Report, Session

# A bit is called confident in the histograms by how far its probability is from one half: 2 |p - 1/2|, in [0, 1].
HISTOGRAM_SAMPLE = 20_000
# Confidence in the histograms is by so many training views.
EVIDENCE_VIEWS = 8
# These are kept decoded in so much memory at most; what does not fit is decoded anew at every evaluation.
EVIDENCE_BYTES = 256_000_000
# A moving scene is shown at these times, always from the first held-out view, beside the heat map of its speeds.
SLICES = (0.0, 0.25, 0.5, 0.75, 1.0)


class Writer(Listener):
    """Scalars every few steps; pictures, held-out metrics and histograms at evaluations; the settings as text."""

    def __init__(self, session: Session, every: int, histograms: int) -> None:
        self.session, self.every, self.histograms = session, every, histograms
        # A resumed run takes back what an interrupted one had logged beyond its last checkpoint.
        purge = session.first_step + 1 if session.first_step else None
        self.writer = SummaryWriter(str(session.folder / "tensorboard"), purge_step=purge, flush_secs=10)
        self.writer.add_text("config", "```yaml\n" + session.settings + "```", session.first_step)
        self.process = psutil.Process()
        views = session.scene.train
        chosen = np.linspace(0, len(views) - 1, min(EVIDENCE_VIEWS, len(views))).round().astype(int)
        self.witnesses = [views[i] for i in chosen]
        # Each is decoded once, when it is first wanted, unless they are very large.
        self.photographs = PhotographStore(self.witnesses, memory_bytes=EVIDENCE_BYTES, disk_bytes=0, workers=2)
        self.seconds, self.at = math.nan, session.first_step
        self.last: dict[str, float] = {}

    def hear(self, report: Report) -> None:
        """Logs what is due."""
        if report.step % self.every == 0 or report.step == self.session.first_step + 1:
            self._scalars(report)
        if self.histograms and report.step % self.histograms == 0:
            self._histograms(report.step)
        if report.evaluation is not None:
            self._held_out(report)

    def close(self, end: End) -> None:
        """Adds the row of the hyper-parameter table, if the training came to its end."""
        if end == "finished" and self.last:
            self.writer.add_hparams(dict(self.session.hyperparameters), self.last, run_name=".")
        self.photographs.close()
        self.writer.close()

    def _scalars(self, report: Report) -> None:
        add, step = self.writer.add_scalar, report.step
        for kind in report.terms:
            add(f"loss/{kind}", report.numbers[kind], step)
        add("loss/total", report.loss, step)
        add("train/psnr", report.psnr, step)
        for name, rate in report.rates.items():
            add(f"learning_rate/{name}", rate, step)
        for name, value in self.session.model().field.scalars().items():
            add(f"field/{name}", value, step)
        for phase, milliseconds in report.milliseconds.items():
            add(f"milliseconds/{phase}", milliseconds, step)
        # Not before the second time: a resumed run's seconds begin with those of earlier processes.
        if report.step > self.at and report.seconds > self.seconds:
            add("speed/steps_per_second", (report.step - self.at) / (report.seconds - self.seconds), step)
        self.seconds, self.at = report.seconds, report.step
        if report.chances is not None:
            add("distractors/share", 1 - float(report.chances.mean()), step)
        add("model/gaussians", report.num_gaussians, step)
        add("model/sh_degree", self.session.model().degree, step)
        add("memory/process_megabytes", self.process.memory_info().rss / 1e6, step)
        if torch.cuda.is_available():
            add("memory/device_megabytes", torch.cuda.max_memory_allocated() / 1e6, step)

    @torch.no_grad()
    def _histograms(self, step: int) -> None:
        model = self.session.model()
        add = self.writer.add_histogram
        stride = max(len(model.gaussians) // HISTOGRAM_SAMPLE, 1)
        add("gaussians/opacities", model.opacities()[::stride], step)
        add("gaussians/log10_scales", model.gaussians.log_scales[::stride] / math.log(10), step)
        for name, code, logits in (
            ("colour", model.code, model.gaussians.colour_logits),
            ("opacity", model.opacity_code, model.gaussians.opacity_logits),
        ):
            if code.width > 1:
                add(f"bits/{name}_confidence", 2 * (code.probabilities(logits[::stride]) - 0.5).abs(), step)

    def _held_out(self, report: Report) -> None:
        evaluation, step = report.evaluation, report.step
        assert evaluation is not None
        self.last = {"held_out/psnr": evaluation.psnr, "held_out/ssim": evaluation.ssim}
        for net, value in (("alex", evaluation.lpips_alex), ("squeeze", evaluation.lpips_squeeze)):
            if value is not None:
                self.last[f"held_out/lpips_{net}"] = value
        self.writer.add_scalar("time/train_seconds", report.seconds, step)
        for name, value in self.last.items():
            self.writer.add_scalar(name, value, step)
        accuracies: list[Tensor] = []
        for name, sheet, render, target in evaluation.kept:
            self.writer.add_image(f"held_out/{name}", sheet, step, dataformats="HWC")
            accuracies.append(bit_accuracy(self.session.model().code, render, target))
        if accuracies:
            for bit, accuracy in enumerate(torch.stack(accuracies).mean(0)):
                self.writer.add_scalar(f"bit_accuracy/{bit}", float(accuracy), step)
        if report.chances is not None:
            classes = report.chances[..., None].expand(-1, -1, 3)
            sheet = np.concatenate(
                [to_bytes(each) for each in (report.target.rgb, report.picture.rgb, classes)], axis=1
            )
            self.writer.add_image("distractors/photograph_render_scene", sheet, step, dataformats="HWC")
        if self.histograms:
            self._confidence(step)
        if not isinstance(self.session.model().field, Rest):
            self._motion(step)
        self.writer.flush()

    @torch.no_grad()
    def _confidence(self, step: int) -> None:
        """What some training views, evenly chosen, say about the Gaussians."""
        found = evidence(self.session.model(), [view.camera for view in self.witnesses], self.photographs.get)
        seen = found.weights > 0
        self.writer.add_scalar("confidence/seen", float(seen.float().mean()), step)
        if seen.any():
            self.writer.add_histogram("confidence/confidence", found.confidence[seen], step)
            self.writer.add_histogram("confidence/log10_weights", found.weights[seen].log10(), step)

    @torch.no_grad()
    def _motion(self, step: int) -> None:
        """What moves: the same times from the same place at every evaluation, and how far and how fast everything goes."""
        model, scene = self.session.model(), self.session.scene
        camera = (scene.test or scene.train)[0].camera
        top = top_speed(model)
        self.writer.add_scalar("motion/top_speed", top, step)
        rows = []
        for time in SLICES:
            self.writer.add_scalar(f"motion/displacement_at_{time:g}", mean_displacement(model, time), step)
            self.writer.add_scalar(f"motion/speed_at_{time:g}", float(speeds(model, time).mean()), step)
            seen = replace(camera, time=time)
            rows.append(np.concatenate([to_bytes(model.render(seen).rgb), draw_speeds(model, seen, top)]))
        self.writer.add_image("motion/slices_and_speeds", np.concatenate(rows, axis=1), step, dataformats="HWC")


def bit_accuracy(code: TargetCode, render: Tensor, target: Tensor) -> Tensor:
    """For every bit of the colour's code, the share of pixels and channels where render and photograph agree, [K].

    Both are [H W 3] in [0, 1]; a soft label counts as the nearer of 0 and 1.
    """
    agree = (code.encode(render.clamp(0, 1)) >= 0.5) == (code.encode(target) >= 0.5)
    return agree.float().flatten(0, 2).mean(0)


@spec
class TensorBoard(Callback):
    """Events in the run folder's `tensorboard/`."""

    every: PositiveInt = 10  # steps between scalars
    histograms: NonNegativeInt = 500  # steps between histograms; 0: none

    def start(self, session: Session) -> Writer:
        """A writer for this run."""
        return Writer(session, self.every, self.histograms)


Spec = TensorBoard
