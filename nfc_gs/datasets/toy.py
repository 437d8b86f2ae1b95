"""A still life of spheres and boxes on a round table, made as it loads: no file is needed to see the program work."""

import colorsys
import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from nfc_gs.config import NonNegativeInt, PositiveInt, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, Points, Scene, View, camera_extent
from nfc_gs.core.solids import Box, Disc, Pattern, Solid, Sphere, look_at, sample_surfaces, to_bytes, trace, trace_sky
from nfc_gs.datasets.base import Dataset

Paint = Callable[[str, float], Pattern]

CAMERA_DISTANCE = 3.4
# Half of the picture's width over the focal length: the table nearly fills the picture.
TANGENT = 0.42
LOOKED_AT = np.array([0.0, 0.0, 0.2])
HALF_SIZE = 1.2


@spec
class Toy(Dataset):
    """A scene drawn exactly, by ray tracing; another seed arranges and colours other solids.

    Pictures are `size` x `size`, `supersample`^2 rays a pixel. With `alpha` the background is transparent, and white in
    evaluation; without, there is a sky. `points` surface points take the place of structure from motion's; 0 for none.
    """

    size: PositiveInt = 128
    num_train: PositiveInt = 40
    num_test: PositiveInt = 8
    supersample: PositiveInt = 4
    alpha: bool = True
    points: NonNegativeInt = 2000

    def load(self, seed: int) -> Scene:
        """The scene; each view is traced when it is first read, and kept."""
        solids = still_life(seed)
        train = self._views(solids, "train", dome(self.num_train, lowest=0.12, highest=0.95))
        # Half a turn of the golden angle away from the training views, and never outside their range of heights.
        test = self._views(solids, "test", dome(self.num_test, lowest=0.2, highest=0.85, start=1.2))
        points = None
        if self.points:
            xyz, rgb = sample_surfaces(solids, self.points, np.random.default_rng((seed, 1)))
            points = Points(xyz=torch.from_numpy(xyz), rgb=torch.from_numpy(rgb))
        return Scene(
            train=train,
            test=test,
            points=points,
            extent=camera_extent(train),
            background=(1.0, 1.0, 1.0) if self.alpha else (0.0, 0.0, 0.0),
            bounds=torch.tensor([[-HALF_SIZE] * 3, [HALF_SIZE] * 3]) if self.alpha else None,
        )

    def _views(self, solids: list[Solid], split: str, positions: np.ndarray) -> tuple[View, ...]:
        views = []
        for index, position in enumerate(positions):
            camera = square_camera(position, LOOKED_AT, self.size, TANGENT)
            picture = TracedPicture(partial(self._trace, solids, camera))
            views.append(View(name=f"{split}_{index:03d}", camera=camera, read=picture.read))
        return tuple(views)

    def _trace(self, solids: list[Solid], camera: Camera) -> Photograph:
        """The photograph, with the solids' coverage as alpha or before the sky."""
        colours, coverage = trace(solids, camera, self.supersample)
        if self.alpha:
            return Photograph(rgb=to_bytes(colours), alpha=to_bytes(coverage))
        return Photograph(rgb=to_bytes(colours + (1 - coverage[..., None]) * trace_sky(camera)))


class TracedPicture:
    """A photograph that is traced when it is first asked for, and kept."""

    def __init__(self, trace: Callable[[], Photograph]) -> None:
        self._trace = trace
        self._photograph: Photograph | None = None
        self._lock = threading.Lock()

    def read(self) -> Photograph:
        """The photograph; whoever else asks for it meanwhile waits."""
        with self._lock:
            if self._photograph is None:
                self._photograph = self._trace()
            return self._photograph


def square_camera(place: np.ndarray, looked_at: np.ndarray, size: int, tangent: float, time: float = 0.0) -> Camera:
    """A camera that looks from one place to another; `tangent` is half of the picture's width over the focal length."""
    focal = 0.5 * size / tangent
    return Camera(
        world_to_camera=look_at(place, looked_at),
        focal=(focal, focal),
        centre=(0.5 * size, 0.5 * size),
        width=size,
        height=size,
        time=time,
    )


def palette(generator: np.random.Generator) -> Paint:
    """Paints, by kind of pattern and number of waves, whose hues keep apart: they go on by steps of the golden ratio."""
    hue = generator.random()

    def paint(kind: str, waves: float) -> Pattern:
        nonlocal hue
        hue = (hue + 0.618034) % 1
        strong = colorsys.hsv_to_rgb(hue, 0.75, 0.92)
        pale = colorsys.hsv_to_rgb((hue + 0.08) % 1, 0.18, 0.98)
        return Pattern(kind=kind, first=strong, second=pale, waves=waves)

    return paint


def still_life(seed: int) -> list[Solid]:
    """A table, on it three spheres and two boxes in a ring about a larger sphere: all apart, all within `HALF_SIZE`."""
    generator = np.random.default_rng((seed, 0))
    paint = palette(generator)
    solids: list[Solid] = [
        Disc(
            height=0.0,
            radius=1.15,
            pattern=Pattern(kind="checks", first=(0.82, 0.78, 0.70), second=(0.50, 0.42, 0.36), waves=4.0),
        )
    ]
    turn = generator.uniform(0, 2 * np.pi)
    for index, kind in enumerate(("stripes", "box", "dots", "tower", "checks")):
        angle = turn + 2 * np.pi * (index + generator.uniform(-0.08, 0.08)) / 5
        ring = generator.uniform(0.66, 0.72)
        x, y = ring * np.cos(angle), ring * np.sin(angle)
        if kind in ("box", "tower"):
            half = generator.uniform(0.17, 0.2)
            height = half if kind == "box" else generator.uniform(0.28, 0.34)
            turned = generator.uniform(0, np.pi / 2)
            solids.append(
                Box(centre=(x, y, height), half=(half, half, height), turn=turned, pattern=paint("checks", 2.0))
            )
        else:
            radius = generator.uniform(0.22, 0.28)
            solids.append(Sphere(centre=(x, y, radius), radius=radius, pattern=paint(kind, 2.5)))
    radius = generator.uniform(0.3, 0.34)
    solids.append(Sphere(centre=(0.0, 0.0, radius), radius=radius, pattern=paint("stripes", 3.5)))
    return solids


def dome(num: int, lowest: float, highest: float, start: float = 0.0) -> np.ndarray:
    """`num` places [num 3] on a dome, evenly spread by a golden spiral; heights are sines of the elevation."""
    heights = lowest + (highest - lowest) * (np.arange(num) + 0.5) / num
    angles = start + np.arange(num) * np.pi * (3 - np.sqrt(5))
    level = np.sqrt(1 - heights**2)
    return CAMERA_DISTANCE * np.stack([level * np.cos(angles), level * np.sin(angles), heights], axis=1)


Spec = Toy
