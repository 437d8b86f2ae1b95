"""COLMAP's layout: photographs in `images`, cameras and points in `sparse`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pycolmap

from nfc_gs.captures.assembly import Background, Capture, assemble, every, find_mask, split
from nfc_gs.captures.lenses import Lens
from nfc_gs.captures.pictures import PICTURE_ENDINGS, find_picture
from nfc_gs.captures.sparse_models import find_model, read_model, registered_images
from nfc_gs.config import Folder, NonNegativeInt, PositiveInt, spec
from nfc_gs.core.scene import Scene
from nfc_gs.datasets.base import Dataset, DatasetError

log = logging.getLogger(__name__)


@spec
class Colmap(Dataset):
    """Photographs whose cameras COLMAP found (Schoenberger and Frahm 2016); every camera model but the spherical ones.

    With `downscale` f, pictures come from `<images>_<f>` where that folder exists (their endings may differ), otherwise
    they are averaged down. `sparse` names the model's folder; by default the one with most images below `sparse` or
    `colmap/sparse`. `masks`: 0 in `masks/<name>.png` means that a pixel does not count (`ignore`), or the mask is the
    subject's opacity before `background` (`alpha`); `auto` ignores where there is such a folder. Every `test_every`-th
    picture by name is held out, or those of the file `test_list`, one name a line. `normalise` moves the cameras' mean
    to the origin and scales their extent to 1; exports undo it. `skip_missing` leaves out pictures without a file.
    """

    folder: Folder
    images: str = "images"
    downscale: PositiveInt = 1
    sparse: str | None = None
    masks: Literal["auto", "none", "ignore", "alpha"] = "auto"
    background: Background = "black"
    test_every: NonNegativeInt = 8
    test_list: Folder | None = None
    normalise: bool = True
    skip_missing: bool = False

    def load(self, seed: int) -> Scene:
        """The scene, with structure from motion's points."""
        if not self.folder.is_dir():
            raise DatasetError(f"{self.folder}: no such folder; set dataset.folder to the one that holds `sparse`")
        model, counts = find_model(self.folder, self.sparse)
        if len(counts) > 1:
            others = ", ".join(f"{path.name} ({count})" for path, count in counts.items() if path != model)
            log.warning("%s: using %s with %d images; others: %s", self.folder, model.name, counts[model], others)
        reconstruction = read_model(model)
        images = registered_images(reconstruction)
        folder, downscale = self._pictures()
        captures = self._captures(reconstruction, images, model, folder)
        _tell_unregistered(folder, images)
        train, test = self._split(captures)
        points = list(reconstruction.points3D.values())
        tracked = any(point.track.length() for point in points)
        xyz = np.array([point.xyz for point in points]).reshape(-1, 3)
        rgb = np.array([point.color for point in points]).reshape(-1, 3)
        return assemble(
            train,
            test,
            points=(xyz, rgb),
            downscale=downscale,
            normalise=self.normalise,
            background=self.background,
            seen_in=_tracks(reconstruction) if tracked else None,
        )

    def _pictures(self) -> tuple[Path, int]:
        """The folder of the pictures, and how often they must still be downscaled."""
        small = self.folder / f"{self.images}_{self.downscale}"
        if self.downscale > 1 and small.is_dir():
            return small, 1
        folder = self.folder / self.images
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; set dataset.images to the pictures' folder")
        return folder, self.downscale

    def _captures(
        self, reconstruction: pycolmap.Reconstruction, images: list[pycolmap.Image], model: Path, folder: Path
    ) -> list[Capture]:
        lenses = {number: _lens(camera, model) for number, camera in reconstruction.cameras.items()}
        masks = self.folder / "masks"
        if self.masks in ("ignore", "alpha") and not masks.is_dir():
            raise DatasetError(f"{masks}: no such folder, which dataset.masks={self.masks} needs")
        use_masks = self.masks != "none" and masks.is_dir()
        captures, missing = [], []
        for image in images:
            path = find_picture(folder / image.name)
            if path is None:
                missing.append(image.name)
                continue
            mask = find_mask(masks, image.name) if use_masks else None
            if use_masks and mask is None:
                raise DatasetError(f"{masks}: no mask for {image.name}; add it, or set dataset.masks=none")
            captures.append(
                Capture(
                    name=image.name,
                    path=path,
                    world_to_camera=np.vstack([image.cam_from_world().matrix(), [0.0, 0.0, 0.0, 1.0]]),
                    lens=lenses[image.camera_id],
                    source=model,
                    camera_name=f"camera {image.camera_id}",
                    mask=mask,
                    mask_is_alpha=self.masks == "alpha",
                )
            )
        if missing and (not self.skip_missing or not captures):
            raise DatasetError(
                f"{model} names {len(images)} photographs; {len(missing)} are not in {folder} (first: {missing[0]}). "
                "Restore them, or leave them out with dataset.skip_missing=true"
            )
        if missing:
            log.warning("%s: %d registered photographs are missing (first: %s)", folder, len(missing), missing[0])
        return captures

    def _split(self, captures: list[Capture]) -> tuple[list[Capture], list[Capture]]:
        if self.test_list is None:
            return every(captures, self.test_every)
        try:
            names = {line.strip() for line in self.test_list.read_text().splitlines() if line.strip()}
        except (OSError, UnicodeDecodeError) as error:
            raise DatasetError(f"{self.test_list}: cannot be read ({error}); it lists test pictures by name") from None
        unknown = sorted(names - {capture.name for capture in captures})
        if unknown:
            raise DatasetError(f"{self.test_list}: names {unknown[0]}, which is not among the registered photographs")
        return split(captures, lambda name: name in names)


def _tracks(reconstruction: pycolmap.Reconstruction) -> Callable[[str], list[int]]:
    """The numbers of the points, in the model's order, that COLMAP found in the picture of a name."""
    numbers = {identity: number for number, identity in enumerate(reconstruction.points3D)}
    images = {image.name: image for image in registered_images(reconstruction)}
    return lambda name: [numbers[point.point3D_id] for point in images[name].get_observation_points2D()]


def _lens(camera: pycolmap.Camera, model: Path) -> Lens:
    try:
        lens = Lens(
            model=camera.model.name,
            params=tuple(map(float, camera.params)),
            width=int(camera.width),
            height=int(camera.height),
        )
    except ValueError as error:
        raise DatasetError(f"{model}: camera {camera.camera_id}: {error}") from None
    if lens.is_spherical:
        raise DatasetError(
            f"{model}: camera {camera.camera_id} has the model {lens.model}, which sees all around; split its pictures "
            "into perspective ones first"
        )
    if min(lens.focal) <= 0 or not lens.width or not lens.height:
        raise DatasetError(
            f"{model}: camera {camera.camera_id} has focal length {min(lens.focal):g} or an empty picture"
        )
    return lens


def _tell_unregistered(folder: Path, images: list[pycolmap.Image]) -> None:
    """Warns of photographs that COLMAP could not place."""
    known = {str(Path(image.name).with_suffix("")) for image in images}
    files = [path for path in folder.rglob("*") if path.suffix in PICTURE_ENDINGS]
    unplaced = sorted(str(path.relative_to(folder)) for path in files)
    unplaced = [name for name in unplaced if str(Path(name).with_suffix("")) not in known]
    if unplaced:
        log.warning(
            "%s: %d of %d photographs have no pose and are not used (first: %s)",
            folder,
            len(unplaced),
            len(files),
            unplaced[0],
        )


Spec = Colmap
