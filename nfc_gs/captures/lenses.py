"""Lenses: how a photograph is bent, and where its pixels belong in the straight picture of a pinhole camera."""

import functools
import threading
from dataclasses import dataclass

import cv2
import numpy as np
import pycolmap
from jaxtyping import Bool, Float32

# Pixels a side of the coarse map by which `Lens.straight_share` judges: enough to tell a half from a third.
COARSE = 64
_MAPS = threading.Lock()


@dataclass(frozen=True, kw_only=True)
class Undistortion:
    """Where in the distorted picture each pixel of the straight one is found.

    `columns` and `rows` are array indices (0 is the middle of the first pixel, as in OpenCV's remap); `valid` is false
    where the photograph holds nothing for a pixel.
    """

    columns: Float32[np.ndarray, "H W"]
    rows: Float32[np.ndarray, "H W"]
    valid: Bool[np.ndarray, "H W"]

    def straighten(self, pixels: np.ndarray) -> np.ndarray:
        """The undistorted picture, bilinear; pixels with no source repeat the nearest edge and are not `valid`."""
        return cv2.remap(pixels, self.columns, self.rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


@dataclass(frozen=True, kw_only=True)
class Lens:
    """A camera model of COLMAP's by its name, with its parameters in COLMAP's order, for pictures of this size.

    Raises:
        ValueError: COLMAP knows no such model, or it takes another number of parameters.
    """

    model: str
    params: tuple[float, ...]
    width: int
    height: int

    def __post_init__(self) -> None:
        if self.model not in pycolmap.CameraModelId.__members__ or self.model == "INVALID":
            raise ValueError(f"unknown camera model {self.model!r}")
        expected = pycolmap.Camera.create_from_model_name(1, self.model, 1.0, 1, 1).params_info
        if len(self.params) != len(expected.split(",")):
            raise ValueError(f"camera model {self.model} takes {expected}, found {len(self.params)} numbers")
        if not np.isfinite(self.params).all():
            raise ValueError(f"camera model {self.model} has parameters that are not finite")

    @property
    def camera(self) -> pycolmap.Camera:
        """COLMAP's own camera."""
        return pycolmap.Camera(
            camera_id=1, model=self.model, width=self.width, height=self.height, params=list(self.params)
        )

    @property
    def is_straight(self) -> bool:
        """Whether this is a pinhole, or another model whose distortion is zero."""
        return self.camera.is_undistorted()

    @property
    def is_spherical(self) -> bool:
        """Whether it looks all around, so that no pinhole camera can stand for it."""
        return self.camera.is_spherical()

    @property
    def focal(self) -> tuple[float, float]:
        """Focal lengths in pixels."""
        camera = self.camera
        return camera.focal_length_x, camera.focal_length_y

    @property
    def centre(self) -> tuple[float, float]:
        """Where the optical axis meets the picture, in pixels."""
        camera = self.camera
        return camera.principal_point_x, camera.principal_point_y

    def resized(self, width: int, height: int) -> "Lens":
        """The same lens before a picture of another size; each axis keeps its own ratio."""
        camera = self.camera
        camera.rescale(width, height)
        return Lens(model=self.model, params=tuple(map(float, camera.params)), width=width, height=height)

    @property
    def straight_share(self) -> float:
        """The part of the straight picture that the photograph holds, in [0, 1]: 1 for a straight lens."""
        undistortion = self.resized(COARSE, COARSE).undistortion()
        return 1.0 if undistortion is None else float(undistortion.valid.mean())

    @property
    def distortion(self) -> str:
        """What bends the picture, as "k1=-0.1, p2=0.003"; empty for a straight lens."""
        camera = self.camera
        straight = {*camera.focal_length_idxs(), *camera.principal_point_idxs()}
        named = zip(camera.params_info.split(","), self.params, strict=True)
        return ", ".join(f"{n.strip()}={v:g}" for i, (n, v) in enumerate(named) if v and i not in straight)

    def undistortion(self) -> Undistortion | None:
        """The way to the straight picture of the same size, focal lengths and centre; None for a straight lens.

        The middle of the picture so keeps its place and its resolution. What a barrel-shaped distortion saw beyond the
        straight picture's frame is lost; where a cushion-shaped or a fisheye lens saw nothing, pixels are not valid.
        """
        if self.is_straight:
            return None
        # Workers that begin together mostly want the same one, which takes seconds in full size.
        with _MAPS:
            return _undistortion(self)


# Maps take 9 bytes a pixel: pictures mostly share one lens, but where each has its own, maps must not pile up.
@functools.lru_cache(maxsize=4)
def _undistortion(lens: Lens) -> Undistortion:
    (focal_x, focal_y), (centre_x, centre_y) = lens.focal, lens.centre
    x = (np.arange(lens.width) + 0.5 - centre_x) / focal_x
    y = (np.arange(lens.height) + 0.5 - centre_y) / focal_y
    rays = np.ones((lens.height, lens.width, 3))
    rays[..., 0], rays[..., 1] = x, y[:, None]
    projected = np.asarray(lens.camera.img_from_cam(rays.reshape(-1, 3)))
    sources = projected.reshape(lens.height, lens.width, 2)
    columns, rows = sources[..., 0], sources[..., 1]
    with np.errstate(invalid="ignore", over="ignore"):
        valid = (columns >= 0) & (columns <= lens.width) & (rows >= 0) & (rows <= lens.height)
        # A distortion's polynomial is only meant up to where it turns back; beyond, it would show the middle once more.
        down, right = np.gradient(sources, axis=0), np.gradient(sources, axis=1)
        folds = ~(right[..., 0] * down[..., 1] - right[..., 1] * down[..., 0] > 0)
    if folds.any():
        radius = np.hypot(x, y[:, None])
        valid &= radius < radius[folds].min()
    # Where there is no source, any will do; remap wants numbers.
    columns = np.where(valid, columns - 0.5, 0).astype(np.float32)
    rows = np.where(valid, rows - 0.5, 0).astype(np.float32)
    return Undistortion(columns=columns, rows=rows, valid=valid)
