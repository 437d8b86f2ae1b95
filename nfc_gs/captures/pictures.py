"""Picture files, decoded into photographs: EXIF, alpha, lens distortion and size, in that order."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from nfc_gs.captures.lenses import Lens, Undistortion
from nfc_gs.config import UserError
from nfc_gs.core.scene import Photograph

# The file endings that a picture named without one, or named with another one, is looked for under.
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG", ".webp", ".tif", ".tiff", ".bmp")
# An EXIF orientation above this swaps width and height (EXIF 2.32, tag 0x0112).
LAST_UNTURNED_ORIENTATION = 4
ORIENTATION_TAG = 0x0112
# The marker that closes a JPEG (ITU T.81, table B.1).
END_OF_JPEG = b"\xff\xd9"


class DatasetError(UserError):
    """The files are not what they should be: one line that names the file, what was found and what would be right."""


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a picture file says of itself before its pixels are decoded.

    `width` and `height` are those of the stored pixels; `turned` says that EXIF would have them shown on their side.
    """

    path: Path
    width: int
    height: int
    turned: bool
    has_alpha: bool


def read_header(path: Path) -> Header:
    """Size, orientation and kind of a picture, without decoding it.

    Raises:
        DatasetError: there is no such file, or it is not a picture.
    """
    try:
        with Image.open(path) as picture:
            width, height = picture.size
            orientation = _orientation(picture)
            has_alpha = picture.has_transparency_data
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such picture") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{path}: is not a picture that can be read ({_first_line(error)}); restore it") from None
    turned = orientation > LAST_UNTURNED_ORIENTATION
    return Header(path=path, width=width, height=height, turned=turned, has_alpha=has_alpha)


def read_pixels(path: Path, upright: bool = False) -> UInt8[np.ndarray, "H W C"]:
    """The stored pixels, 3 channels or, where the file has transparency, 4 (not premultiplied).

    Args:
        upright: turn the picture as its EXIF orientation says; otherwise EXIF is ignored.

    Raises:
        DatasetError: the file is missing, truncated or corrupt.
    """
    try:
        with Image.open(path) as picture:
            if upright:
                orientation = _orientation(picture)
                turn = {
                    2: Image.Transpose.FLIP_LEFT_RIGHT,
                    3: Image.Transpose.ROTATE_180,
                    4: Image.Transpose.FLIP_TOP_BOTTOM,
                    5: Image.Transpose.TRANSPOSE,
                    6: Image.Transpose.ROTATE_270,
                    7: Image.Transpose.TRANSVERSE,
                    8: Image.Transpose.ROTATE_90,
                }.get(orientation)
            else:
                turn = None
            if picture.format == "JPEG" and picture.mode == "RGB" and turn is None:
                pixels = _read_jpeg(path)
                if pixels is not None:
                    return pixels
            shown = picture.transpose(turn) if turn is not None else picture
            if shown.mode.startswith("I;16") or shown.mode == "I":
                # Pillow would clip 16-bit greys at 255 instead of scaling them.
                grey = np.round(np.asarray(shown, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(shown.convert("RGBA" if shown.has_transparency_data else "RGB"))
    except FileNotFoundError:
        raise DatasetError(f"{path}: no such picture") from None
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        raise DatasetError(f"{path}: the picture is corrupt ({_first_line(error)}); restore it") from None


def read_mask(path: Path, width: int, height: int, upright: bool = False) -> UInt8[np.ndarray, "H W"]:
    """A mask file as one channel in 0..255, in the size of the picture it belongs to.

    Grey or colour masks speak through their brightness, masks with transparency through their alpha.
    """
    pixels = read_pixels(path, upright)
    opaque = pixels.shape[2] == 3
    channel = pixels[..., :3].max(axis=2) if opaque else pixels[..., 3]
    if channel.shape != (height, width):
        channel = cv2.resize(channel, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.ascontiguousarray(channel)


def develop(
    pixels: UInt8[np.ndarray, "H W C"],
    *,
    size: tuple[int, int],
    alpha: UInt8[np.ndarray, "H W"] | None = None,
    counts: UInt8[np.ndarray, "H W"] | None = None,
    undistortion: Undistortion | None = None,
) -> Photograph:
    """Decoded pixels as a photograph: premultiplied, undistorted, then area-averaged to `size` (width, height).

    Averaging after premultiplying is what keeps the colour of invisible pixels from bleeding into the outline.

    Args:
        alpha: takes the place of the picture's own alpha.
        counts: 0 where a pixel is to be ignored. A pixel of the result counts where everything it averages counts.
    """
    if alpha is None and pixels.shape[2] == 4:
        alpha = pixels[..., 3]
    colours: np.ndarray = np.ascontiguousarray(pixels[..., :3])
    opacity: np.ndarray | None = None
    if alpha is not None:
        opacity = alpha.astype(np.float32)
        colours = colours.astype(np.float32) * (opacity[..., None] / 255)
    valid: np.ndarray | None = None if counts is None else (counts > 0).astype(np.float32)
    if undistortion is not None:
        colours = undistortion.straighten(colours)
        opacity = undistortion.straighten(opacity) if opacity is not None else None
        valid = undistortion.straighten(valid) if valid is not None else None
        if not undistortion.valid.all():
            inside = undistortion.valid.astype(np.float32)
            valid = inside if valid is None else valid * inside
    if (colours.shape[1], colours.shape[0]) != size:
        colours = cv2.resize(colours, size, interpolation=cv2.INTER_AREA)
        opacity = cv2.resize(opacity, size, interpolation=cv2.INTER_AREA) if opacity is not None else None
        valid = cv2.resize(valid, size, interpolation=cv2.INTER_AREA) if valid is not None else None
    return Photograph(
        rgb=_bytes(colours),
        alpha=_bytes(opacity) if opacity is not None else None,
        # Sums of float32 weights of an all-valid pixel may fall a little short of 1.
        mask=valid > 0.999 if valid is not None else None,
    )


@dataclass(frozen=True, kw_only=True)
class PictureFile:
    """A picture on disk and all that is done to it, once, before it is a photograph of `size` (width, height).

    `upright` turns it as EXIF says; `lens` is what bends it (None: nothing). `mask` names a file of which 0 says "this
    pixel does not count" or, with `mask_is_alpha`, of which the brightness is the subject's opacity.
    """

    path: Path
    size: tuple[int, int]
    upright: bool = False
    lens: Lens | None = None
    mask: Path | None = None
    mask_is_alpha: bool = False

    def read(self) -> Photograph:
        """The photograph.

        Raises:
            DatasetError: a file is missing, corrupt or of another size than it was.
        """
        pixels = read_pixels(self.path, self.upright)
        height, width = pixels.shape[:2]
        mask = read_mask(self.mask, width, height, self.upright) if self.mask is not None else None
        undistortion = None
        if self.lens is not None:
            if (width, height) != (self.lens.width, self.lens.height):
                raise DatasetError(
                    f"{self.path}: is now {width}x{height}, but was {self.lens.width}x{self.lens.height} at the start"
                )
            undistortion = self.lens.undistortion()
        return develop(
            pixels,
            size=self.size,
            alpha=mask if self.mask_is_alpha else None,
            counts=None if self.mask_is_alpha else mask,
            undistortion=undistortion,
        )


def downscaled(width: int, height: int, factor: int) -> tuple[int, int]:
    """The size of a picture divided by `factor`, rounded half up and at least one pixel.

    Raises:
        DatasetError: one pixel would be left.
    """
    if factor > 1 and factor >= max(width, height):
        raise DatasetError(
            f"dataset.downscale={factor} leaves one pixel of a picture of {width}x{height}; make it smaller"
        )
    return max(1, (2 * width + factor) // (2 * factor)), max(1, (2 * height + factor) // (2 * factor))


def is_scaled(size: tuple[int, int], original: tuple[int, int]) -> bool:
    """Whether `size` is `original` divided by one factor, each side rounded up or down to a whole pixel."""
    low = max(original[i] / (size[i] + 1) for i in (0, 1))
    high = min(original[i] / max(size[i] - 1, 1e-9) for i in (0, 1))
    return low < high


def find_picture(path: Path) -> Path | None:
    """The file `path`, or the one of the same name with another picture's ending, or None."""
    if path.is_file():
        return path
    stems = [path]
    if path.suffix.lower() in {ending.lower() for ending in PICTURE_ENDINGS}:
        stems.append(path.with_suffix(""))
    candidates = (stem.with_name(stem.name + ending) for stem in stems for ending in PICTURE_ENDINGS)
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _read_jpeg(path: Path) -> UInt8[np.ndarray, "H W 3"] | None:
    """A whole JPEG of three channels, or None: Pillow is then to say what is wrong with it.

    The same pixels as Pillow's, as both ask the same library, in half the time (nothing is copied from its own form of
    memory) and without holding Python's lock, for which a training step would wait.
    """
    data = np.fromfile(path, np.uint8)
    # Of a file that ends early, OpenCV 4 shows the beginning.
    if data[-2:].tobytes() != END_OF_JPEG:
        return None
    pixels = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    return None if pixels is None else cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 to 8. Only cameras' formats are asked: of a PNG, Pillow would decode all pixels to tell."""
    return picture.getexif().get(ORIENTATION_TAG, 1) if picture.format in ("JPEG", "MPO", "TIFF", "WEBP") else 1


def _bytes(values: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Values in 0..255, rounded to 8 bits."""
    if values.dtype == np.uint8:
        return values
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
