"""The schema of a config file: everything that decides what a training does."""

from pathlib import Path
from typing import Annotated, Literal

from nfc_gs.captures.degradation import Degradation
from nfc_gs.captures.thinning import Thinning
from nfc_gs.codes.base import TargetCode
from nfc_gs.codes.identity import Identity
from nfc_gs.config import (
    Folder,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Share,
    kind_in,
    kinds_in,
    spec,
)
from nfc_gs.core.distractors import Distractors
from nfc_gs.core.rounding import Rounding
from nfc_gs.datasets.base import Dataset
from nfc_gs.deformations.base import Deformation
from nfc_gs.deformations.static import Static
from nfc_gs.losses.base import LossTerm
from nfc_gs.rasterizers.base import Rasterizer
from nfc_gs.strategies.base import Strategy
from nfc_gs.training.callbacks.base import Callback


@spec
class InitialSettings:
    """The first Gaussians: from the data set's points, or random where it has none."""

    random: PositiveInt = 10_000  # how many, where the data set has no points
    max_points: PositiveInt = 200_000  # more points than this are thinned out at random
    opacity: Share = 0.1
    scale: PositiveFloat = 1.0  # times the distance to the nearest neighbours


@spec
class OptimizerSettings:
    """Adam's learning rates, one for each of the Gaussians' fields (3DGS's, Kerbl et al. 2023).

    `means` is multiplied by the scene's extent and falls exponentially to `means_final` of it. The others stay as they are
    for a share `hold` of the training, and then fall exponentially to `final` of themselves at its end. A deformation's
    rates are among its own settings. With `sparse`, a Gaussian that is not drawn in a step keeps its parameters and moments
    (gsplat's SelectiveAdam; Taming 3DGS, Mallick et al. 2024): faster where views see little of the scene, but another
    training. When the training is over, the parameters become their mean over the last steps, `average` as a share of all, or
    since the population last changed: steps of one view each leave them scattered about where they belong (Polyak and Juditsky
    1992; Izmailov et al. 2018).
    """

    means: PositiveFloat = 1.6e-4
    means_final: PositiveFloat = 0.01
    log_scales: PositiveFloat = 5e-3
    quats: PositiveFloat = 1e-3
    colour_logits: PositiveFloat = 2.5e-3
    opacity_logits: PositiveFloat = 5e-2
    harmonics: PositiveFloat = 1.25e-4
    final: PositiveFloat = 1.0
    hold: Share = 0.0
    epsilon: PositiveFloat = 1e-15
    sparse: bool = False
    average: Share = 0.0


@spec
class ScheduleSettings:
    """What grows during the training: the harmonics' degree, and the pictures' size."""

    sh_degree: Literal[0, 1, 2, 3] = 3
    sh_every: PositiveInt = 1000  # steps after which the next degree joins
    coarse: PositiveInt = 1  # the pictures begin downscaled by this factor, and double in size ...
    coarse_until: Share = 0.0  # ... at equal steps until this share of the training


@spec
class TimeSettings:
    """How the times of a moving scene join the training.

    With a window, training begins with the pictures at most `window` from the middle of the time, and widens evenly to all
    of them at `window_until`: an object that moves further than its size is then never averaged away. `jitter` adds
    noise to the time of every training picture, `jitter` times the mean spacing of the times (standard deviation), which
    falls evenly to none at `jitter_until` (annealed smooth training, Deformable-3D-GS, Yang et al. 2023).
    """

    window: NonNegativeFloat = 0.0  # 0: all times from the start
    window_until: Share = 0.5
    jitter: NonNegativeFloat = 0.0
    jitter_until: Share = 0.5


@spec
class EvaluationSettings:
    """When the held-out views are looked at, and with what."""

    every: NonNegativeInt = 1000  # steps; 0: only at the end
    pictures: NonNegativeInt = 3  # held-out views shown in TensorBoard
    lpips: Folder | None = None  # folder with the networks' weights; null: the environment variable NFC_GS_LPIPS


@spec
class Experiment:
    """One training, from data to files. `output/name` is its run folder."""

    name: str = "run"
    output: Folder = Path("runs")
    seed: NonNegativeInt = 0
    steps: PositiveInt = 7000
    batch: PositiveInt = (
        1  # views a step, whose gradients are averaged; several processes share them (docs/many_gpus.md)
    )
    threads: NonNegativeInt = 0  # 0: all cores
    photographs_gb: NonNegativeFloat = 4.0  # memory for decoded photographs; what does not fit goes to a temporary file
    photographs_disk_gb: NonNegativeFloat = (
        64.0  # of which this is the largest size; the rest is decoded when it is wanted
    )
    dataset: Annotated[Dataset, kind_in("nfc_gs.datasets")]
    views: Thinning = Thinning()
    degradation: Degradation = Degradation()
    code: Annotated[TargetCode, kind_in("nfc_gs.codes")] = Identity()
    opacity_code: Annotated[TargetCode, kind_in("nfc_gs.codes")] = Identity()
    rounding: Rounding = Rounding()
    rasterizer: Annotated[Rasterizer, kind_in("nfc_gs.rasterizers")]
    deformation: Annotated[Deformation, kind_in("nfc_gs.deformations")] = Static()
    strategy: Annotated[Strategy, kind_in("nfc_gs.strategies")]
    losses: Annotated[dict[str, Annotated[LossTerm, kind_in("nfc_gs.losses")]], kinds_in("nfc_gs.losses")]
    distractors: Distractors | None = None  # null: every pixel shows the scene
    initial: InitialSettings = InitialSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    time: TimeSettings = TimeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    callbacks: Annotated[
        dict[str, Annotated[Callback, kind_in("nfc_gs.training.callbacks")]], kinds_in("nfc_gs.training.callbacks")
    ]

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.output / self.name
