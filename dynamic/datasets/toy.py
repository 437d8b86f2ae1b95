"""Moving scenes made as they load, drawn exactly by ray tracing: their geometry is known at any time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float32, Float64

from dynamic.datasets.base import MovingScene
from nfc_gs.config import NonNegativeInt, PositiveInt, spec
from nfc_gs.core.camera import Camera
from nfc_gs.core.scene import Photograph, Points, Scene, View, camera_extent
from nfc_gs.core.solids import Box, Carried, Disc, Pattern, Solid, Sphere, surface_colours, to_bytes, trace
from nfc_gs.datasets.toy import HALF_SIZE, Paint, TracedPicture, dome, palette, square_camera

# Where a resting solid is at a time in [0, 1]: rotation and translation.
Motion = Callable[[float], tuple[Float64[np.ndarray, "3 3"], Float64[np.ndarray, "3"]]]

# What the cameras look at, and half of the picture's width over the focal length: all that moves stays in the picture.
LOOKED_AT, TANGENT = np.array([0.0, 0.0, 0.35]), 0.3
TABLE = 0.8
# When the object of `appearing` is there, all at once.
APPEARS_AT = 0.4
# The ball of `bouncing`: its radius, how high it flies, how far from the axis, and how often it lands in a clip.
BALL_RADIUS, BALL_RISE, BALL_RING, BOUNCES = 0.11, 0.6, 0.66, 4
# The arm of `articulated`: lengths of its links, half their width, and the height of its shoulder.
LINKS, LINK_HALF, SHOULDER = (0.34, 0.28, 0.2), 0.1, 0.22


@spec
class Toy(MovingScene):
    """A table with something moving on it; another seed starts the motion elsewhere and paints it otherwise.

    `articulated`: an arm of three links and a hand, on a turning shoulder. `bouncing`: a ball that is small, and so fast
    that it moves about its own width between two training times. `appearing`: a sphere that is there from time 0.4 on.

    As in D-NeRF there is one picture at each of `num_train` times, evenly from 0 to 1, each from another place of a
    dome. `num_test` cameras elsewhere take two pictures each: `test_at_...` at a training time, `test_between_...` half
    way to the next. With `light: carried` every point of a surface keeps one colour; with `fixed` the lamp stays where
    it is while things turn, and shadows move, which colours that do not change with time cannot follow. `points` places
    on the surfaces at time 0 stand for structure from motion's; 0 for none.
    """

    motion: Literal["articulated", "bouncing", "appearing"] = "articulated"
    size: PositiveInt = 128
    num_train: PositiveInt = 60
    num_test: PositiveInt = 8
    supersample: PositiveInt = 3
    light: Literal["carried", "fixed"] = "carried"
    points: NonNegativeInt = 0

    def read(self, seed: int) -> Scene:
        """The scene; each view is traced when it is first read, and kept."""
        world = self.world(seed)
        times = np.linspace(0, 1, self.num_train)
        places = dome(self.num_train, lowest=0.12, highest=0.95)
        # The dome is spread from its foot to its top: in that order, time would be a matter of height.
        order = np.random.default_rng((seed, 2)).permutation(self.num_train)
        train = [self._view(world, f"train_{i:03d}", places[order[i]], float(t)) for i, t in enumerate(times)]
        judges = dome(self.num_test, lowest=0.2, highest=0.85, start=1.2)
        judged = np.rint(np.linspace(0, max(self.num_train - 2, 0), self.num_test)).astype(int)
        test = [self._view(world, f"test_at_{i:03d}", judges[i], float(times[k])) for i, k in enumerate(judged)]
        if self.num_train > 1:
            for index, step in enumerate(judged):
                between = float(times[step] + times[step + 1]) / 2
                test.append(self._view(world, f"test_between_{index:03d}", judges[index], between))
        return Scene(
            train=tuple(train),
            test=tuple(test),
            points=self._points(world, seed),
            extent=camera_extent(tuple(train)),
            background=(1.0, 1.0, 1.0),
            bounds=torch.tensor([[-HALF_SIZE] * 3, [HALF_SIZE] * 3]),
        )

    def world(self, seed: int) -> "World":
        """What is photographed: the truth about the geometry at any time."""
        generator = np.random.default_rng((seed, 0))
        build = {"articulated": _articulated, "bouncing": _bouncing, "appearing": _appearing}[self.motion]
        return World(parts=tuple(build(generator, palette(generator))))

    def _view(self, world: "World", name: str, place: np.ndarray, time: float) -> View:
        camera = square_camera(place, LOOKED_AT, self.size, TANGENT, time)
        return View(name=name, camera=camera, read=TracedPicture(partial(self._trace, world, camera)).read)

    def _trace(self, world: "World", camera: Camera) -> Photograph:
        """The photograph of a moment, with the solids' coverage as alpha."""
        lit = carried_colours if self.light == "carried" else surface_colours
        colours, coverage = trace(world.solids(camera.time), camera, self.supersample, lit)
        return Photograph(rgb=to_bytes(colours), alpha=to_bytes(coverage))

    def _points(self, world: "World", seed: int) -> Points | None:
        if not self.points:
            return None
        xyz, rgb = world.surface(0.0, self.points, seed)
        return Points(xyz=torch.from_numpy(xyz), rgb=torch.from_numpy(rgb))


@dataclass(frozen=True, kw_only=True)
class Part:
    """A rigid solid as it rests, how it is carried, and since when it is there."""

    rest: Solid
    motion: Motion
    since: float = 0.0

    def at(self, time: float) -> Carried:
        """The solid where it is at a time."""
        rotation, translation = self.motion(time)
        return Carried(rest=self.rest, rotation=rotation.astype(np.float32), translation=translation.astype(np.float32))


@dataclass(frozen=True, kw_only=True)
class World:
    """Rigid parts in motion; times are in [0, 1]."""

    parts: tuple[Part, ...]

    def solids(self, time: float) -> list[Carried]:
        """The solids that are there at a time, where they then are."""
        return [part.at(time) for part in self.parts if time >= part.since]

    def surface(
        self, time: float, num: int, seed: int
    ) -> tuple[Float32[np.ndarray, "num 3"], Float32[np.ndarray, "num 3"]]:
        """Points spread evenly over all surfaces there are at a time, and their colours in carried light."""
        solids = self.solids(time)
        points = self._sample(solids, num, seed)
        colours = [carried_colours(solids, index, some) for index, some in enumerate(points)]
        return np.concatenate(points), np.concatenate(colours)

    def tracks(self, times: Sequence[float], num: int, seed: int) -> Float32[np.ndarray, "T num 3"]:
        """The ways of `num` points that stick to the surfaces: row k of every time is the same place on a solid.

        Of all parts, those included that are not there yet: `Part.since` tells.
        """
        return np.stack([np.concatenate(self._sample([p.at(t) for p in self.parts], num, seed)) for t in times])

    @staticmethod
    def _sample(solids: Sequence[Carried], num: int, seed: int) -> list[np.ndarray]:
        generator = np.random.default_rng((seed, 1))
        areas = np.array([solid.area for solid in solids])
        counts = np.bincount(generator.choice(len(solids), size=num, p=areas / areas.sum()), minlength=len(solids))
        return [solid.sample(int(count), generator) for solid, count in zip(solids, counts, strict=True)]


def carried_colours(
    solids: Sequence[Solid], which: int, points: Float32[np.ndarray, "N 3"]
) -> Float32[np.ndarray, "N 3"]:
    """The colours at points of a carried solid, lit where it rests and alone: the same at all times."""
    solid = solids[which]
    assert isinstance(solid, Carried)
    return surface_colours([solid.rest], 0, solid.to_rest(points))


def _articulated(generator: np.random.Generator, paint: Paint) -> list[Part]:
    """Each joint turns about its own axis, carrying all links beyond it: forward kinematics."""
    turn_start, *bend_starts = generator.uniform(0, 2 * np.pi, 4)
    means, swings = (0.5, 0.6, 0.5), (0.3, 0.45, 0.55)

    def link(index: int) -> Motion:
        def motion(time: float) -> tuple[np.ndarray, np.ndarray]:
            cycle = 2 * np.pi * time
            rotation = _about_z(1.3 * np.sin(0.5 * cycle + turn_start))
            place = np.array([0.0, 0.0, SHOULDER])
            for joint in range(index + 1):
                if joint:
                    place = place + rotation @ np.array([0.0, 0.0, LINKS[joint - 1]])
                rotation = rotation @ _about_y(means[joint] + swings[joint] * np.sin(cycle + bend_starts[joint]))
            return rotation, place

        return motion

    parts = [
        Part(rest=_table(paint), motion=_still),
        Part(rest=_standing(0.0, 0.0, (0.2, 0.2, SHOULDER / 2), paint("stripes", 4.0)), motion=_still),
    ]
    for index, length in enumerate(LINKS):
        half = (LINK_HALF, LINK_HALF, length / 2)
        parts.append(Part(rest=_standing(0.0, 0.0, half, paint("checks", 4.0)), motion=link(index)))
    hand = Sphere(centre=(0.0, 0.0, LINKS[-1]), radius=0.14, pattern=paint("dots", 2.5))
    return [*parts, Part(rest=hand, motion=link(len(LINKS) - 1))]


def _bouncing(generator: np.random.Generator, paint: Paint) -> list[Part]:
    """Parabolas, one after another about the axis; the landing is sudden, as for any ball."""
    start, landed = generator.random(2)

    def motion(time: float) -> tuple[np.ndarray, np.ndarray]:
        angle = 2 * np.pi * (time + start)
        flight = (BOUNCES * time + landed) % 1
        height = BALL_RADIUS + 4 * BALL_RISE * flight * (1 - flight)
        return _about_z(2 * angle), np.array([BALL_RING * np.cos(angle), BALL_RING * np.sin(angle), height])

    ball = Sphere(centre=(0.0, 0.0, 0.0), radius=BALL_RADIUS, pattern=paint("stripes", 1.5))
    return [
        Part(rest=_table(paint), motion=_still),
        Part(rest=_standing(0.0, 0.0, (0.24, 0.24, 0.2), paint("checks", 2.0)), motion=_still),
        Part(rest=Sphere(centre=(0.0, 0.0, 0.62), radius=0.22, pattern=paint("dots", 2.5)), motion=_still),
        Part(rest=ball, motion=motion),
    ]


def _appearing(generator: np.random.Generator, paint: Paint) -> list[Part]:
    """Three things stand on the table, and a fourth is suddenly there."""
    parts = [Part(rest=_table(paint), motion=_still)]
    start = generator.uniform(0, 2 * np.pi)
    for index, kind in enumerate(("box", "sphere", "tower")):
        angle = start + (index + 1) * np.pi / 2
        x, y = 0.48 * np.cos(angle), 0.48 * np.sin(angle)
        if kind == "sphere":
            solid: Solid = Sphere(centre=(x, y, 0.24), radius=0.24, pattern=paint("stripes", 2.5))
        else:
            height = 0.18 if kind == "box" else 0.32
            solid = _standing(x, y, (0.18, 0.18, height), paint("checks", 2.0))
        parts.append(Part(rest=solid, motion=_still))
    x, y = 0.48 * np.cos(start), 0.48 * np.sin(start)
    late = Sphere(centre=(x, y, 0.27), radius=0.27, pattern=paint("dots", 2.5))
    return [*parts, Part(rest=late, motion=_still, since=APPEARS_AT)]


def _table(paint: Paint) -> Disc:
    return Disc(height=0.0, radius=TABLE, pattern=paint("checks", 3.0))


def _standing(x: float, y: float, half: tuple[float, float, float], pattern: Pattern) -> Box:
    """A box upon the height 0."""
    return Box(centre=(float(x), float(y), half[2]), half=half, turn=0.0, pattern=pattern)


def _still(time: float) -> tuple[np.ndarray, np.ndarray]:
    return np.eye(3), np.zeros(3)


def _about_y(angle: float) -> Float64[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _about_z(angle: float) -> Float64[np.ndarray, "3 3"]:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


Spec = Toy
