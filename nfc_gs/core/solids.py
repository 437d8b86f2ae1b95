"""A world of a few solids, drawn exactly by tracing rays: the oracle that no splat had a hand in.

Spheres, boxes and a table top, with procedural patterns. Nothing shines, so a colour is a function of the place on the
surface alone, the same from everywhere; all arrays are float32, colours are sRGB in [0, 1].
"""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from nfc_gs.core.camera import Camera

Colour = tuple[float, float, float]
# Where the light comes from (it has no distance), and how much of it arrives from everywhere.
LIGHT = np.array([0.45, -0.35, 0.82], dtype=np.float32) / np.float32(np.linalg.norm([0.45, -0.35, 0.82]))
AMBIENT = 0.45
# A ray meets nothing nearer than this.
NEAREST = 1e-3


@dataclass(frozen=True, kw_only=True)
class Pattern:
    """Two colours in stripes (`waves` along the surface's up axis), checks, or dots."""

    kind: str
    first: Colour
    second: Colour
    waves: float

    def colours(self, places: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """The unlit colours at places in the solid's own coordinates, about -1 to 1."""
        scaled = places * np.float32(self.waves)
        if self.kind == "stripes":
            odd = np.floor(scaled[:, 2] + np.float32(0.5) * scaled[:, 0]).astype(np.int32) & 1
        elif self.kind == "checks":
            # Shifted by an odd fraction, so that no face of a box lies on a seam.
            cells = np.floor(scaled + np.float32(0.37)).astype(np.int32)
            odd = (cells[:, 0] + cells[:, 1] + cells[:, 2]) & 1
        else:
            x, y, z = (scaled - np.floor(scaled) - np.float32(0.5)).T
            odd = x * x + y * y + z * z < np.float32(0.16)
        first, second = _vector(self.first), _vector(self.second)
        return np.stack([first, second])[odd.astype(np.int8)]


class Solid(abc.ABC):
    """Something a ray can meet."""

    pattern: Pattern

    @abc.abstractmethod
    def distances(
        self, origin: Float32[np.ndarray, "3"], directions: Float32[np.ndarray, "N 3"]
    ) -> Float32[np.ndarray, " N"]:
        """How far along each unit direction the ray first meets the surface; infinite where it never does."""

    @abc.abstractmethod
    def normals(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Unit normals, outwards, at points of the surface."""

    @abc.abstractmethod
    def own(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Points of the world in the solid's own coordinates, in which its pattern is painted."""

    @abc.abstractmethod
    def sample(self, num: int, generator: np.random.Generator) -> Float32[np.ndarray, "num 3"]:
        """Points spread evenly over the surface."""

    @property
    @abc.abstractmethod
    def area(self) -> float:
        """The surface's area."""

    @property
    @abc.abstractmethod
    def ball(self) -> tuple[Float32[np.ndarray, "3"], float]:
        """Centre and radius of a ball of about the same size, which throws the soft shadow; radius 0 throws none."""


@dataclass(frozen=True, kw_only=True)
class Sphere(Solid):
    """A sphere."""

    centre: tuple[float, float, float]
    radius: float
    pattern: Pattern

    def distances(
        self, origin: Float32[np.ndarray, "3"], directions: Float32[np.ndarray, "N 3"]
    ) -> Float32[np.ndarray, " N"]:
        """The nearer root of the quadratic."""
        offset = origin - _vector(self.centre)
        half = directions @ offset
        under = half * half - np.float32(offset @ offset - self.radius**2)
        distance = -half - np.sqrt(np.maximum(under, 0))
        return np.where((under > 0) & (distance > NEAREST), distance, np.float32(np.inf))

    def normals(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """From the centre outwards."""
        return (points - _vector(self.centre)) / np.float32(self.radius)

    def own(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """The unit sphere about the origin."""
        return self.normals(points)

    def sample(self, num: int, generator: np.random.Generator) -> Float32[np.ndarray, "num 3"]:
        """Directions of a normal distribution."""
        directions = generator.normal(size=(num, 3))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return (np.array(self.centre) + self.radius * directions).astype(np.float32)

    @property
    def area(self) -> float:
        """4 pi r^2."""
        return 4 * np.pi * self.radius**2

    @property
    def ball(self) -> tuple[Float32[np.ndarray, "3"], float]:
        """The sphere itself."""
        return _vector(self.centre), self.radius


@dataclass(frozen=True, kw_only=True)
class Box(Solid):
    """A box standing upright, turned by `turn` radians about the vertical; `half` holds its half sides."""

    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    turn: float
    pattern: Pattern

    @property
    def _rotation(self) -> Float32[np.ndarray, "3 3"]:
        """From the world's axes to the box's."""
        c, s = np.cos(self.turn), np.sin(self.turn)
        return np.array([[c, s, 0], [-s, c, 0], [0, 0, 1]], dtype=np.float32)

    def distances(
        self, origin: Float32[np.ndarray, "3"], directions: Float32[np.ndarray, "N 3"]
    ) -> Float32[np.ndarray, " N"]:
        """Where the ray has entered all three pairs of planes before leaving any (Kay and Kajiya 1986)."""
        start = self._rotation @ (origin - _vector(self.centre))
        along = directions @ self._rotation.T
        enter = np.full(len(directions), NEAREST, dtype=np.float32)
        leave = np.full(len(directions), np.inf, dtype=np.float32)
        # A ray along a pair of planes is tilted by nothing that can be seen, so that it divides by no zero.
        inverse = 1 / np.where(along == 0, np.float32(1e-12), along)
        for axis in range(3):
            middle = -start[axis] * inverse[:, axis]
            reach = np.abs(inverse[:, axis]) * np.float32(self.half[axis])
            np.maximum(enter, middle - reach, out=enter)
            np.minimum(leave, middle + reach, out=leave)
        return np.where((enter < leave) & (enter > NEAREST), enter, np.float32(np.inf))

    def normals(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Of the face whose plane is nearest."""
        places = (points - _vector(self.centre)) @ self._rotation.T
        axis = np.argmin(np.abs(np.abs(places) - _vector(self.half)), axis=1)
        faces = np.zeros_like(places)
        rows = np.arange(len(places))
        faces[rows, axis] = np.sign(places[rows, axis])
        return faces @ self._rotation

    def own(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """The box along the axes, its longest half side being 1."""
        return (points - _vector(self.centre)) @ self._rotation.T / np.float32(max(self.half))

    def sample(self, num: int, generator: np.random.Generator) -> Float32[np.ndarray, "num 3"]:
        """Faces by their areas, then evenly on the face."""
        x, y, z = self.half
        areas = np.array([y * z, x * z, x * y])
        axis = generator.choice(3, size=num, p=areas / areas.sum())
        places = generator.uniform(-1, 1, size=(num, 3)) * self.half
        rows = np.arange(num)
        places[rows, axis] = np.where(generator.random(num) < 0.5, -1, 1) * np.array(self.half)[axis]
        return (places @ self._rotation + np.array(self.centre)).astype(np.float32)

    @property
    def area(self) -> float:
        """Of the six faces."""
        x, y, z = self.half
        return 8 * (x * y + y * z + z * x)

    @property
    def ball(self) -> tuple[Float32[np.ndarray, "3"], float]:
        """Of the mean half side."""
        return _vector(self.centre), float(np.mean(self.half))


@dataclass(frozen=True, kw_only=True)
class Disc(Solid):
    """A round table top at height `height` about the vertical axis, seen from above and from below."""

    height: float
    radius: float
    pattern: Pattern

    def distances(
        self, origin: Float32[np.ndarray, "3"], directions: Float32[np.ndarray, "N 3"]
    ) -> Float32[np.ndarray, " N"]:
        """Where the ray crosses the plane, if within the rim."""
        with np.errstate(divide="ignore", invalid="ignore"):
            distance = (np.float32(self.height) - origin[2]) / directions[:, 2]
            x = origin[0] + distance * directions[:, 0]
            y = origin[1] + distance * directions[:, 1]
            met = (distance > NEAREST) & (x * x + y * y < np.float32(self.radius**2))
        return np.where(met, distance, np.float32(np.inf))

    def normals(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Upwards."""
        return np.broadcast_to(_vector((0.0, 0.0, 1.0)), points.shape)

    def own(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """In units of the radius, and of height 0."""
        return (points - _vector((0.0, 0.0, self.height))) * _vector((1.0, 1.0, 0.0)) / np.float32(self.radius)

    def sample(self, num: int, generator: np.random.Generator) -> Float32[np.ndarray, "num 3"]:
        """Evenly by area."""
        radius = self.radius * np.sqrt(generator.random(num))
        angle = generator.uniform(0, 2 * np.pi, num)
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.full(num, self.height)], axis=1)
        return points.astype(np.float32)

    @property
    def area(self) -> float:
        """Of the upper side."""
        return np.pi * self.radius**2

    @property
    def ball(self) -> tuple[Float32[np.ndarray, "3"], float]:
        """None: the table's shadow is never seen."""
        return np.zeros(3, dtype=np.float32), 0.0


@dataclass(frozen=True, kw_only=True)
class Carried(Solid):
    """A solid carried from where it rests: x goes to `rotation` x + `translation`; its pattern goes with it."""

    rest: Solid
    rotation: Float32[np.ndarray, "3 3"]
    translation: Float32[np.ndarray, "3"]
    pattern: Pattern = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pattern", self.rest.pattern)

    def to_rest(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Where points of the world were when the solid rested."""
        return (points - self.translation) @ self.rotation

    def from_rest(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """The inverse of `to_rest`."""
        return points @ self.rotation.T + self.translation

    def distances(
        self, origin: Float32[np.ndarray, "3"], directions: Float32[np.ndarray, "N 3"]
    ) -> Float32[np.ndarray, " N"]:
        """Those of the ray carried back; rigid motions keep distances."""
        return self.rest.distances(self.to_rest(origin[None])[0], directions @ self.rotation)

    def normals(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """Those at rest, turned."""
        return self.rest.normals(self.to_rest(points)) @ self.rotation.T

    def own(self, points: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
        """The resting solid's own."""
        return self.rest.own(self.to_rest(points))

    def sample(self, num: int, generator: np.random.Generator) -> Float32[np.ndarray, "num 3"]:
        """Those of the resting solid, carried: the same generator gives the same places on the surface."""
        return self.from_rest(self.rest.sample(num, generator))

    @property
    def area(self) -> float:
        """The resting solid's."""
        return self.rest.area

    @property
    def ball(self) -> tuple[Float32[np.ndarray, "3"], float]:
        """The resting solid's, carried."""
        centre, radius = self.rest.ball
        return self.from_rest(centre[None])[0], radius


def surface_colours(
    solids: Sequence[Solid], which: int, points: Float32[np.ndarray, "N 3"]
) -> Float32[np.ndarray, "N 3"]:
    """The lit colours at points of the surface of `solids[which]`, the same from every side.

    Lambert's cosine law; the other solids, as balls, dim the light from everywhere by the part of the sky they cover,
    and the light from afar softly about its line to the point.
    """
    normals = solids[which].normals(points)
    facing = np.maximum(normals @ LIGHT, 0)
    openness = np.ones(len(points), dtype=np.float32)
    # Products with the points themselves, shared by all solids, spare every pass over three columns but two.
    own_square = np.einsum("ni,ni->n", points, points)
    own_height = np.einsum("ni,ni->n", normals, points)
    own_ahead = points @ LIGHT
    for index, other in enumerate(solids):
        centre, radius = other.ball
        if index == which or radius == 0:
            continue
        square = np.maximum(own_square - 2 * (points @ centre) + centre @ centre, np.float32(1e-6))
        distance = np.sqrt(square)
        height = np.maximum((normals @ centre - own_height) / distance, 0)
        openness *= 1 - height * np.minimum(np.float32(radius**2) / square, 1)
        # How far the line to the light passes from the ball, in units of its distance along that line: a penumbra.
        ahead = centre @ LIGHT - own_ahead
        aside = np.sqrt(np.maximum(square - ahead * ahead, 0)) - np.float32(radius)
        softness = np.clip(np.float32(0.5) + aside / (np.float32(0.3) * np.maximum(ahead, np.float32(0.05))), 0, 1)
        facing *= np.where(ahead > 0, softness, np.float32(1))
    light = AMBIENT * openness * (np.float32(0.75) + np.float32(0.25) * normals[:, 2]) + (1 - AMBIENT) * facing
    painted = solids[which].pattern.colours(solids[which].own(points))
    # The square root is close to sRGB's curve: light adds up linearly, colours are named as they are seen.
    return np.sqrt(painted * painted * light[:, None])


# The colours of one of the solids at points of its surface.
Colours = Callable[[Sequence[Solid], int, np.ndarray], np.ndarray]


def sky(directions: Float32[np.ndarray, "N 3"]) -> Float32[np.ndarray, "N 3"]:
    """A bright horizon and a blue zenith; dusk below."""
    height = directions[:, 2:3]
    up = np.clip(height, 0, 1)
    down = np.clip(-height, 0, 1)
    horizon, zenith, below = _vector((0.88, 0.90, 0.94)), _vector((0.36, 0.56, 0.86)), _vector((0.42, 0.40, 0.42))
    return horizon + (zenith - horizon) * up + (below - horizon) * np.sqrt(down)


def trace(
    solids: Sequence[Solid], camera: Camera, supersample: int, colours: Colours = surface_colours
) -> tuple[Float32[np.ndarray, "H W 3"], Float32[np.ndarray, "H W"]]:
    """The picture a camera takes: colours premultiplied by coverage, and the coverage; `supersample`^2 rays a pixel.

    Args:
        colours: what colour `solids[which]` has at points of its surface, as `surface_colours` says it.
    """
    width, height = camera.width * supersample, camera.height * supersample
    columns = (np.arange(width, dtype=np.float32) + 0.5) / supersample
    rows = (np.arange(height, dtype=np.float32) + 0.5) / supersample
    directions = _directions(camera, columns, rows)
    origin = camera.position.numpy().astype(np.float32)
    seen, met = _look(solids, origin, directions, colours)
    blocks = (camera.height, supersample, camera.width, supersample)
    return seen.reshape(*blocks, 3).mean(axis=(1, 3)), met.reshape(blocks).mean(axis=(1, 3), dtype=np.float32)


def trace_sky(camera: Camera) -> Float32[np.ndarray, "H W 3"]:
    """The sky alone, one ray a pixel: it is smooth."""
    columns, rows = np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5
    directions = _directions(camera, columns.astype(np.float32), rows.astype(np.float32))
    return sky(directions).reshape(camera.height, camera.width, 3)


def sample_surfaces(
    solids: Sequence[Solid], num: int, generator: np.random.Generator
) -> tuple[Float32[np.ndarray, "num 3"], Float32[np.ndarray, "num 3"]]:
    """Points spread evenly over all surfaces, and their colours."""
    areas = np.array([solid.area for solid in solids])
    counts = np.bincount(generator.choice(len(solids), size=num, p=areas / areas.sum()), minlength=len(solids))
    points = [solid.sample(int(count), generator) for solid, count in zip(solids, counts, strict=True)]
    colours = [surface_colours(solids, index, some) for index, some in enumerate(points)]
    return np.concatenate(points), np.concatenate(colours)


def to_bytes(values: Float32[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Values in [0, 1], rounded to 8 bits."""
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def look_at(position: np.ndarray, target: np.ndarray) -> torch.Tensor:
    """The world-to-camera matrix of a camera that stands at `position` and sees `target` in its middle, +z being up."""
    forward = (target - position) / np.linalg.norm(target - position)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    matrix = np.eye(4)
    matrix[:3, :3] = rotation
    matrix[:3, 3] = -rotation @ position
    return torch.from_numpy(matrix).float()


def _directions(camera: Camera, columns: np.ndarray, rows: np.ndarray) -> Float32[np.ndarray, "N 3"]:
    """Unit directions, in the world, through every pair of a row and a column."""
    x = (columns - np.float32(camera.centre[0])) / np.float32(camera.focal[0])
    y = (rows - np.float32(camera.centre[1])) / np.float32(camera.focal[1])
    seen = np.ones((len(rows), len(columns), 3), dtype=np.float32)
    seen[..., 0], seen[..., 1] = x, y[:, None]
    seen /= np.sqrt(x * x + (y * y)[:, None] + 1)[..., None]
    return seen.reshape(-1, 3) @ camera.world_to_camera[:3, :3].numpy().astype(np.float32)


def _look(
    solids: Sequence[Solid],
    origin: Float32[np.ndarray, "3"],
    directions: Float32[np.ndarray, "N 3"],
    colours: Colours,
) -> tuple[Float32[np.ndarray, "N 3"], np.ndarray]:
    """The colour each ray meets, black where it meets nothing, and whether it meets anything."""
    nearest = np.full(len(directions), np.inf, dtype=np.float32)
    which = np.full(len(directions), -1, dtype=np.int8)
    for index, solid in enumerate(solids):
        distance = solid.distances(origin, directions)
        nearer = distance < nearest
        nearest[nearer] = distance[nearer]
        which[nearer] = index
    seen = np.zeros((len(directions), 3), dtype=np.float32)
    for index in range(len(solids)):
        rays = np.flatnonzero(which == index)
        points = origin + nearest[rays, None] * directions[rays]
        seen[rays] = colours(solids, index, points)
    return seen, which >= 0


def _vector(values: Sequence[float]) -> Float32[np.ndarray, "3"]:
    return np.array(values, dtype=np.float32)
