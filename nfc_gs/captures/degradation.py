"""Makes photographs and poses worse on purpose: what a method is worth shows on bad data, judged on good.

Everything is drawn from the seed and the view's number, so a photograph is spoilt in the same way whenever it is read.
"""

import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from nfc_gs.captures.pictures import DatasetError
from nfc_gs.config import NonNegativeFloat, NonNegativeInt, spec
from nfc_gs.core.scene import Photograph, Scene, View

# Of the stream of random numbers that a run's seed starts: one for each kind of damage, so that one does not move another.
_EXPOSURE, _TINT, _BLOCKS, _SHOT, _NOISE, _POSE, _PATCHES = 51, 52, 53, 54, 55, 56, 57


@spec
class Degradation:
    """What happens to the training views, in the order a camera would do it; the held-out ones stay clean.

    `blur`: standard deviation of a Gaussian, in pixels. `exposure`: of each picture's gain, in stops (factors of two).
    `tint`: of each channel's gain, in stops. `blocks`: opaque rectangles before each picture, each a random colour and
    4 to 25 % of each side. `patches`: as many rectangles of such sizes, each another part of the same picture turned
    upside down: what stands there has the scene's own colours and texture. `photons`: how many make white; a value becomes
    a Poisson number of them (0: no shot noise).
    `noise`: standard deviation added to every value, which runs from 0 to 1. `jpeg`: quality from 1 to 100 (0: none).
    `rotation` and `translation`: standard deviations of what is wrong with each photograph's pose, about each axis in
    degrees, and along each axis in shares of the scene's extent; the points stay where they are.

    Values are those of the file (sRGB); what leaves [0, 1] is clipped, as a camera clips. A subject before a
    transparent background is first composited over the scene's.
    """

    blur: NonNegativeFloat = 0.0
    exposure: NonNegativeFloat = 0.0
    tint: NonNegativeFloat = 0.0
    blocks: NonNegativeInt = 0
    patches: NonNegativeInt = 0
    photons: NonNegativeFloat = 0.0
    noise: NonNegativeFloat = 0.0
    jpeg: NonNegativeInt = 0
    rotation: NonNegativeFloat = 0.0
    translation: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        if self.jpeg > 100:
            raise ValueError(f"jpeg is a quality from 1 to 100, or 0 for none; found {self.jpeg}")

    def __call__(self, scene: Scene, seed: int) -> Scene:
        """The scene with its training photographs and their poses spoilt.

        Raises:
            DatasetError: the background is another one at every step, so there is no photograph to spoil.
        """
        if self.rotation or self.translation:
            scene = replace(scene, train=tuple(self._misplaced(view, scene.extent, seed) for view in scene.train))
        if replace(self, rotation=0.0, translation=0.0) == Degradation():
            return scene
        if scene.random_background:
            raise DatasetError(
                "degradation: needs a background that is the same at every step, and this scene's is random; set "
                "dataset.background=white or black"
            )
        return replace(scene, train=tuple(self._spoilt(view, scene.background, seed) for view in scene.train))

    def _spoilt(self, view: View, background: tuple[float, float, float], seed: int) -> View:
        def read() -> Photograph:
            photograph = view.read()
            rgb = photograph.rgb.astype(np.float32) / 255
            if photograph.alpha is not None:
                rgb += (1 - photograph.alpha[..., None].astype(np.float32) / 255) * np.array(background, np.float32)
            return Photograph(rgb=self.spoil(rgb, _numbers(seed, view)), mask=photograph.mask)

        return replace(view, read=read)

    def _misplaced(self, view: View, extent: float, seed: int) -> View:
        """The view with its camera turned about its own centre, and moved."""
        drawn = np.random.default_rng((*_numbers(seed, view), _POSE)).standard_normal(6)
        turn, _ = cv2.Rodrigues(np.radians(self.rotation) * drawn[:3])
        pose = view.camera.world_to_camera.double()
        # In the camera's own axes: x' = turn (x - shift).
        error = torch.eye(4, dtype=torch.float64)
        error[:3, :3] = torch.from_numpy(turn)
        error[:3, 3] = torch.from_numpy(-turn @ (self.translation * extent * drawn[3:]))
        return replace(view, camera=replace(view.camera, world_to_camera=(error @ pose).float()))

    def spoil(self, rgb: Float[np.ndarray, "H W 3"], seed: tuple[int, ...]) -> UInt8[np.ndarray, "H W 3"]:
        """One picture, values in [0, 1], spoilt and rounded to 8 bits."""

        def stream(number: int) -> np.random.Generator:
            return np.random.default_rng((*seed, number))

        rgb = rgb.astype(np.float32)
        if self.blocks:
            rgb = _with_rectangles(rgb, self.blocks, stream(_BLOCKS), _plain)
        if self.patches:
            rgb = _with_rectangles(rgb, self.patches, stream(_PATCHES), partial(_elsewhere, rgb))
        if self.blur:
            rgb = cv2.GaussianBlur(rgb, (0, 0), self.blur, borderType=cv2.BORDER_REPLICATE)
        if self.exposure:
            rgb = rgb * np.float32(2 ** (self.exposure * stream(_EXPOSURE).standard_normal()))
        if self.tint:
            rgb = rgb * np.exp2(self.tint * stream(_TINT).standard_normal(3)).astype(np.float32)
        if self.photons:
            rgb = stream(_SHOT).poisson(rgb.clip(0) * self.photons) / self.photons
        if self.noise:
            rgb = rgb + self.noise * stream(_NOISE).standard_normal(rgb.shape)
        words = np.floor(np.clip(rgb, 0, 1) * 255 + 0.5).astype(np.uint8)
        if self.jpeg:
            _, data = cv2.imencode(".jpg", words[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, self.jpeg])
            decoded = cv2.imdecode(data, cv2.IMREAD_COLOR)
            assert decoded is not None, "what was encoded a line ago can be decoded"
            words = np.ascontiguousarray(decoded[..., ::-1])
        return words


def _numbers(seed: int, view: View) -> tuple[int, int]:
    """What the random numbers of a view start from."""
    return seed, zlib.crc32(view.name.encode())


def _with_rectangles(
    rgb: np.ndarray,
    count: int,
    generator: np.random.Generator,
    paint: Callable[[np.random.Generator, int, int], np.ndarray],
) -> np.ndarray:
    """The picture with so many rectangles of 4 to 25 % of each side, painted by `paint(generator, tall, wide)`."""
    rgb = rgb.copy()
    height, width = rgb.shape[:2]
    for _ in range(count):
        tall, wide = (max(1, math.ceil(side * generator.uniform(0.04, 0.25))) for side in (height, width))
        top, left = generator.integers(0, height - tall + 1), generator.integers(0, width - wide + 1)
        rgb[top : top + tall, left : left + wide] = paint(generator, tall, wide)
    return rgb


def _plain(generator: np.random.Generator, tall: int, wide: int) -> np.ndarray:
    """One random colour."""
    return generator.random(3)


def _elsewhere(rgb: np.ndarray, generator: np.random.Generator, tall: int, wide: int) -> np.ndarray:
    """A part of the picture, turned upside down."""
    top, left = generator.integers(0, rgb.shape[0] - tall + 1), generator.integers(0, rgb.shape[1] - wide + 1)
    return rgb[top : top + tall, left : left + wide][::-1, ::-1]
