"""Fewer training views than there are: what a method is worth shows when photographs are few, judged on all held out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch

from nfc_gs.captures.pictures import DatasetError
from nfc_gs.config import NonNegativeInt, spec
from nfc_gs.core.scene import Points, Scene, View, camera_extent

log = logging.getLogger(__name__)

# Of the stream of random numbers that a run's seed starts: which views are kept.
_CHOICE = 61
# Structure from motion needs a place in two photographs to find it.
LEAST_SIGHTINGS = 2


@spec
class Thinning:
    """`count` of the training views (0: all of them); the held-out ones stay as they are.

    `choice`: by `order`, evenly from the first to the last by name, of moving scenes by time (the protocol of RegNeRF,
    Niemeyer et al. 2022); `far`, each as far as it can be from those chosen before, from the one nearest to the cameras'
    mean on; or at `random`, by the run's seed. The first two take the same views for every seed.

    `points`: of structure from motion's points those `seen` in at least two of the kept views are left, where the data
    say so (COLMAP's tracks); `all` stay; or `none` do, and the training begins with random ones. With `seen` and data that
    do not say who saw what, all stay, with a warning.
    """

    count: NonNegativeInt = 0
    choice: Literal["order", "far", "random"] = "order"
    points: Literal["seen", "all", "none"] = "seen"

    def __call__(self, scene: Scene, seed: int) -> Scene:
        """The scene with the kept views, its extent being theirs; its coordinates stay.

        Raises:
            DatasetError: there are not as many views.
        """
        if self.count == 0:
            return scene
        if self.count > len(scene.train):
            raise DatasetError(
                f"views.count is {self.count}, but there are {len(scene.train)} training views; set it to that or less"
            )
        kept = self._chosen(scene.train, seed)
        train = tuple(scene.train[number] for number in kept)
        return replace(scene, train=train, points=self._left(scene.points, kept), extent=camera_extent(train))

    def _chosen(self, views: Sequence[View], seed: int) -> list[int]:
        """The numbers of the kept views, ascending."""
        if self.choice == "random":
            return sorted(np.random.default_rng((seed, _CHOICE)).permutation(len(views))[: self.count].tolist())
        if self.choice == "far":
            return sorted(_spread(torch.stack([view.camera.position for view in views]).double().numpy(), self.count))
        # Alone in a picture sequence, the one in the middle stands for it best.
        places = [(len(views) - 1) / 2] if self.count == 1 else np.linspace(0, len(views) - 1, self.count)
        in_time = sorted(range(len(views)), key=lambda number: views[number].camera.time)
        return sorted(in_time[round(place)] for place in places)

    def _left(self, points: Points | None, kept: list[int]) -> Points | None:
        """The points that the training may begin with."""
        if points is None or self.points == "none":
            return None
        if self.points == "all" or points.sightings is None:
            if self.points == "seen":
                log.warning(
                    "views: the data do not say in which photographs their %d points were found, so all are kept; "
                    "views.points=none begins with random ones",
                    len(points.xyz),
                )
            return replace(points, sightings=None)
        sightings = points.sightings()
        # Some points are found twice in one photograph, which places them no better than once.
        different = np.unique(sightings[np.isin(sightings[:, 1], kept)], axis=0)
        seen = np.bincount(different[:, 0], minlength=len(points.xyz)) >= LEAST_SIGHTINGS
        log.info("views: %d of %d points are seen by two of the %d kept views", seen.sum(), len(seen), len(kept))
        if not seen.any():
            log.warning("views: no point is seen by two of the kept views: the training begins with random ones")
            return None
        mask = torch.from_numpy(seen)
        return Points(xyz=points.xyz[mask], rgb=points.rgb[mask])


def _spread(positions: np.ndarray, count: int) -> list[int]:
    """Farthest-point sampling (Gonzalez 1985) of places [V 3]."""
    chosen = [int(np.linalg.norm(positions - positions.mean(axis=0), axis=1).argmin())]
    distance = np.linalg.norm(positions - positions[chosen[0]], axis=1)
    while len(chosen) < count:
        # Of views in one place, each is taken once.
        distance[chosen] = -1.0
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(positions - positions[chosen[-1]], axis=1))
    return chosen
