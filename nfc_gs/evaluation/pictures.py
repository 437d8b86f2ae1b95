"""Pictures for people: PNG files of views, coloured depth, error maps, and sheets of renders beside photographs."""

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from nfc_gs.captures.pictures import PICTURE_ENDINGS
from nfc_gs.config import UserError
from nfc_gs.core.scene import Photograph, View
from nfc_gs.model import SplatModel, target_of

MODES = ("rgb", "depth", "alpha", "error")
# Depth is shown where at least this much of a pixel is covered: where nothing is, there is no depth.
COVERED = 0.01
# Depths are coloured from this share of the pixels to that one, so that a few stray splats do not flatten the rest.
DEPTH_RANGE = (0.02, 0.98)
# The absolute error, of pictures in [0, 1], that the error map shows brightest.
ERROR_SHOWN = 0.25
LABEL_HEIGHT = 18
ONE_EACH = "name a folder, which gets a PNG for each view"
# A path with such an ending is meant as one file, in a format that is not written.
FOREIGN_ENDINGS = (".avi", ".bmp", ".jpeg", ".jpg", ".m4v", ".mkv", ".mov", ".tif", ".tiff", ".webp")


class PictureError(UserError):
    """A picture cannot be written."""


def to_bytes(picture: Float[Tensor, "H W *channels"]) -> UInt8[np.ndarray, "H W *channels"]:
    """A picture in [0, 1] (clamped) in 8 bits, each value rounded to the nearest of the 256; NaN becomes 0."""
    values = torch.nan_to_num(picture.detach().float(), nan=0.0).clamp(0, 1).mul(255).round()
    return values.to(torch.uint8).cpu().numpy()


def write_png(picture: UInt8[np.ndarray, "H W *channels"], path: Path) -> None:
    """Writes grey [H W] or RGB [H W 3] bytes, under a temporary name first.

    Raises:
        PictureError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(_png(picture))
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise PictureError(f"{path}: cannot be written: {error.strerror or error}") from None


def write_pngs(
    pictures: Iterable[tuple[str, UInt8[np.ndarray, "H W *channels"]]], folder: Path, outdated: str | None = None
) -> list[Path]:
    """Writes pictures into a folder, all of them or, where one cannot be drawn or written, none; returns their paths.

    Args:
        pictures: each with its file's name; taken one at a time.
        folder: made if it is not there.
        outdated: a pattern of names; such files of before are deleted once all new ones are drawn.

    Raises:
        PictureError: a file cannot be written.
    """
    there = folder.is_dir()
    partial = folder / "pictures.partial"
    names: list[str] = []
    path = folder
    try:
        # What an interrupted drawing left behind.
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            for name, picture in pictures:
                path = folder / name
                (partial / name).write_bytes(_png(picture))
                names.append(name)
            for old in folder.glob(outdated) if outdated else ():
                old.unlink()
            for name in names:
                path = folder / name
                os.replace(partial / name, path)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            if not there and not any(folder.iterdir()):
                folder.rmdir()
    except OSError as error:
        raise PictureError(f"{path}: cannot be written: {error.strerror or error}") from None
    return [folder / name for name in names]


def _png(picture: UInt8[np.ndarray, "H W *channels"]) -> bytes:
    pixels = picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
    return cv2.imencode(".png", pixels)[1].tobytes()


def draw_label(sheet: UInt8[np.ndarray, "H W 3"], text: str, left: int, top: int, width: int) -> None:
    """Writes white text into a strip of a sheet, `LABEL_HEIGHT` high, in letters as small as its width asks for."""
    # OpenCV's own font has ASCII only, and no other font is sure to be installed.
    shown = text.encode("ascii", "replace").decode()
    font, size, margin = cv2.FONT_HERSHEY_SIMPLEX, 0.4, 4
    needed = cv2.getTextSize(shown, font, size, 1)[0][0]
    size *= min(1.0, max(width - 2 * margin, 1) / max(needed, 1))
    corner = (left + margin, top + LABEL_HEIGHT - margin - 1)
    cv2.putText(sheet, shown, corner, font, size, (255, 255, 255), 1, cv2.LINE_AA)


def check_folder_name(path: Path, remedy: str) -> None:
    """Refuses to make a folder of what is called like a picture or a film in a format that is not written.

    Raises:
        PictureError: naming the path, the ending and `remedy`.
    """
    if path.suffix.lower() in FOREIGN_ENDINGS:
        raise PictureError(f"{path}: no {path.suffix.lower()!r} is written: {remedy}")


def nearness_range(depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"]) -> tuple[float, float]:
    """From the 2nd to the 98th percentile of a picture's inverse depths where something is; (0, 0) where nothing is."""
    nearness, covered = _nearness(depth, alpha)
    if not covered.any():
        return 0.0, 0.0
    low, high = np.quantile(nearness[covered].cpu().numpy(), DEPTH_RANGE)
    return float(low), float(high)


def colour_depth(
    depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"], limits: tuple[float, float] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The expected depth as colours, near yellow and far dark; black where nothing is.

    Colours are even in inverse depth, so near things differ most.

    Args:
        depth: alpha-weighted sums of depths, as `Rendering.depth`.
        alpha: the opacity accumulated, in [0, 1].
        limits: the inverse depths shown darkest and brightest; None: this picture's own `nearness_range`.
    """
    nearness, covered = _nearness(depth, alpha)
    low, high = nearness_range(depth, alpha) if limits is None else limits
    grey = to_bytes((nearness - low) / max(high - low, 1e-12))
    coloured = cv2.cvtColor(cv2.applyColorMap(grey, cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)
    return np.where(covered.cpu().numpy()[..., None], coloured, np.uint8(0))


def _nearness(
    depth: Float[Tensor, "H W"], alpha: Float[Tensor, "H W"]
) -> tuple[Float[Tensor, "H W"], Bool[Tensor, "H W"]]:
    """Inverse expected depths, 0 where nothing is, and where something is."""
    covered = (alpha > COVERED) & (depth > 0)
    return torch.where(covered, alpha / depth.clamp(min=1e-12), 0.0), covered


def colour_error(
    x: Float[Tensor, "H W 3"], y: Float[Tensor, "H W 3"], mask: Bool[Tensor, "H W"] | None = None
) -> UInt8[np.ndarray, "H W 3"]:
    """The mean absolute difference of the channels as colours, black (0) to bright (1/4 and more); masked: black."""
    error = (x.clamp(0, 1) - y.clamp(0, 1)).abs().mean(-1) / ERROR_SHOWN
    if mask is not None:
        error = error * mask
    return cv2.cvtColor(cv2.applyColorMap(to_bytes(error), cv2.COLORMAP_INFERNO), cv2.COLOR_BGR2RGB)


def contact_sheet(
    rows: Sequence[tuple[str, Float[Tensor, "H W 3"], Float[Tensor, "H W 3"]]], width: int = 1200
) -> UInt8[np.ndarray, "A B 3"]:
    """Photograph, render and error of several views, one view a row under its label, at most `width` pixels wide.

    Args:
        rows: each view's label, its photograph and its render, both [H W 3] in [0, 1]; at least one row.
        width: of the whole sheet; pictures are shrunk to fit, never enlarged.
    """
    tile = min(width // 3, max(photograph.shape[1] for _, photograph, _ in rows))
    sheet = []
    for label, photograph, render in rows:
        strip = np.full((LABEL_HEIGHT, 3 * tile, 3), 32, dtype=np.uint8)
        for column, text in enumerate((label, "render", "error")):
            draw_label(strip, text, column * tile, 0, tile)
        height = max(1, round(photograph.shape[0] * tile / photograph.shape[1]))
        pictures = (to_bytes(photograph), to_bytes(render), colour_error(render, photograph))
        shrunk = [cv2.resize(picture, (tile, height), interpolation=cv2.INTER_AREA) for picture in pictures]
        sheet += [strip, np.concatenate(shrunk, axis=1)]
    return np.concatenate(sheet, axis=0)


@torch.no_grad()
def render_split(
    model: SplatModel, views: Sequence[View], read: Callable[[int], Photograph], mode: str, folder: Path
) -> list[Path]:
    """Writes one PNG for each view, named after it, and returns the paths in the views' order.

    Args:
        model: what is drawn, over its own background.
        views: from where.
        read: the photograph of view i, asked for by the mode "error" alone.
        mode: "rgb", "depth" (coloured, each picture over its own range), "alpha" or "error" (against the photograph).
        folder: where to; made if it is not there.

    Raises:
        PictureError: a file cannot be written (there is none then), or there is no such mode.
    """
    if mode not in MODES:
        raise PictureError(f"no render mode {mode!r}: one of {', '.join(MODES)}")
    check_folder_name(folder, ONE_EACH)

    def pictures() -> Iterator[tuple[str, UInt8[np.ndarray, "H W *channels"]]]:
        for i, (view, name) in enumerate(zip(views, file_names([view.name for view in views]), strict=True)):
            picture = model.render(view.camera, depth=mode == "depth")
            if mode == "error":
                target = target_of(read(i), picture.background)
                drawn = colour_error(picture.rgb, target.rgb, target.mask)
            elif mode == "depth":
                assert picture.rendering.depth is not None
                drawn = colour_depth(picture.rendering.depth, picture.rendering.alpha)
            else:
                drawn = to_bytes(picture.rgb if mode == "rgb" else picture.rendering.alpha)
            yield f"{name}.png", drawn

    return write_pngs(pictures(), folder)


def file_names(names: Sequence[str]) -> list[str]:
    """File names without ending for views' names, all different even on a disk that ignores case.

    Folders become part of the name and the ending is dropped; where two views would share a name, later ones get `_2`.
    """
    taken: set[str] = set()
    chosen = []
    for name in names:
        path = Path(name)
        path = path.with_suffix("") if path.suffix.lower() in PICTURE_ENDINGS else path
        parts = [part for part in path.parts if part not in (path.anchor, "..")]
        stem = unique = "_".join(parts) or "view"
        number = 2
        while unique.casefold() in taken:
            unique, number = f"{stem}_{number}", number + 1
        taken.add(unique.casefold())
        chosen.append(unique)
    return chosen
