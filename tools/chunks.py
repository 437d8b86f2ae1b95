"""Cuts a COLMAP capture into chunks that are trained one by one, joins what was trained, and scores it. See docs/large_captures.md.

    python tools/chunks.py split path/to/capture --boxes 4 --output chunks
    python tools/chunks.py join chunks --output joined.ply       # of chunks/0/scene.ply, chunks/1/scene.ply, ...
    python tools/chunks.py score joined.ply path/to/capture      # on the photographs that no chunk was trained on

`split` divides the ground plan, the two directions in which the cameras' places differ most, again and again at the median of
COLMAP's points along the longer side. A chunk's folder links to the photographs that see its box, by the share of their points that
lie in it, wherever they were taken from, and to the whole model; it lists those that are held out, which are every 8th of the whole
capture by name, in `test.txt`. `join` keeps of each chunk's Gaussians those in its box; the boxes fill the plane, so each place
belongs to one of them.
"""

import nfc_gs  # noqa: F401  # isort: skip (before torch, whose idle threads it tells to sleep)
import argparse
import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64
from plyfile import PlyData, PlyElement, PlyParseError

from nfc_gs.captures.photographs import PhotographStore
from nfc_gs.captures.pictures import find_picture
from nfc_gs.captures.sparse_models import find_model, read_model, registered_images
from nfc_gs.config import UserError
from nfc_gs.datasets.colmap import Colmap
from nfc_gs.evaluation import Lpips, evaluate
from nfc_gs.exporters.ply import load
from nfc_gs.rasterizers.auto import Auto

CHUNK, SCENE, HELD_OUT = "chunk.json", "scene.ply", "test.txt"
# As the data set holds out, and as 3DGS does.
TEST_EVERY = 8


@dataclass(frozen=True, eq=False)
class Box:
    """A part [low, high) of the ground plan, whose outer sides are infinite."""

    low: Float64[np.ndarray, "2"]
    high: Float64[np.ndarray, "2"]

    def holds(self, places: Float64[np.ndarray, "N 2"]) -> Bool[np.ndarray, " N"]:
        """Who is in it."""
        inside: Bool[np.ndarray, " N"] = ((places >= self.low) & (places < self.high)).all(1)
        return inside


def ground_plan(positions: Float64[np.ndarray, "N 3"]) -> Float64[np.ndarray, "2 3"]:
    """The two directions in which the cameras differ most."""
    _, _, directions = np.linalg.svd(positions - positions.mean(0), full_matrices=False)
    return directions[:2]


def boxes(places: Float64[np.ndarray, "N 2"], count: int) -> list[Box]:
    """So many boxes with about equally many places; the one with the most is divided next.

    Raises:
        UserError: there are too few places.
    """
    found = [Box(np.full(2, -math.inf), np.full(2, math.inf))]
    while len(found) < count:
        box = max(found, key=lambda each: int(each.holds(places).sum()))
        here = places[box.holds(places)]
        # A few points are always far away, and wrong.
        axis = int((np.quantile(here, 0.98, 0) - np.quantile(here, 0.02, 0)).argmax())
        cut = float(np.median(here[:, axis]))
        if not 0 < (here[:, axis] < cut).sum() < len(here):
            raise UserError(f"--boxes {count}: too few points to divide for so many")
        side, at = np.arange(2) == axis, found.index(box)
        found[at : at + 1] = [Box(box.low, np.where(side, cut, box.high)), Box(np.where(side, cut, box.low), box.high)]
    return found


def split(capture: Path, output: Path, images: str, count: int, share: float) -> None:
    """Makes a folder for each box."""
    if count < 1:
        raise UserError(f"--boxes {count}: must be at least 1")
    if output.exists():
        raise UserError(f"{output}: already there; name another folder with --output")
    model, _ = find_model(capture, None)
    reconstruction = read_model(model)
    registered = sorted(registered_images(reconstruction), key=lambda image: image.name)
    files = {image.name: find_picture(capture / images / image.name) for image in registered}
    there = [image for image in registered if files[image.name] is not None]
    if not there:
        raise UserError(f"{capture / images}: holds none of the {len(registered)} photographs of {model}")
    held_out = {image.name for image in registered[::TEST_EVERY]}
    plan = ground_plan(np.array([image.projection_center() for image in registered], np.float64))
    places = np.array([point.xyz for point in reconstruction.points3D.values()]).reshape(-1, 3) @ plan.T
    numbers = {identity: number for number, identity in enumerate(reconstruction.points3D)}
    seen = {
        image.name: places[[numbers[point.point3D_id] for point in image.get_observation_points2D()]] for image in there
    }
    if not any(map(len, seen.values())):
        raise UserError(f"{model}: does not say which photograph sees which point, so it cannot be cut")
    for number, box in enumerate(boxes(places, count)):
        folder = output / str(number)
        (folder / images).mkdir(parents=True)
        (folder / "sparse").symlink_to(model.resolve(), target_is_directory=True)
        chosen = [name for name, mine in seen.items() if len(mine) and box.holds(mine).mean() >= share]
        for name in chosen:
            source = files[name]
            assert source is not None
            link = folder / images / source.relative_to(capture / images)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(source.resolve())
        tests = [name for name in chosen if name in held_out]
        (folder / HELD_OUT).write_text("".join(f"{name}\n" for name in tests))
        described = {"plan": plan.tolist(), "low": box.low.tolist(), "high": box.high.tolist()}
        (folder / CHUNK).write_text(json.dumps(described) + "\n")
        inside = box.holds(places).mean()
        print(f"{folder}: {inside:.0%} of the points, {len(chosen) - len(tests)} photographs and {len(tests)} held out")
    print(
        f"for each N: nfc-gs train configs/static/colmap.yaml dataset.folder={output}/N dataset.images={images} "
        f"dataset.skip_missing=true dataset.test_list={output}/N/{HELD_OUT} name=chunk_N\n"
        f"then nfc-gs export runs/chunk_N --output {output}/N/{SCENE}, and join"
    )


def join(chunks: Path, output: Path) -> None:
    """One PLY of all chunks' own Gaussians."""
    found = [path.parent for path in chunks.glob(f"*/{CHUNK}") if path.parent.name.isdecimal()]
    folders = sorted(found, key=lambda folder: int(folder.name))
    if not folders:
        raise UserError(f"{chunks}: holds no chunks; make them with `split`")
    parts, comments = [], []
    for folder in folders:
        path = folder / SCENE
        if not path.exists():
            raise UserError(f"{path}: is not there; export each chunk's run to it")
        try:
            described = json.loads((folder / CHUNK).read_text())
            plan, low, high = (np.array(described[name], np.float64) for name in ("plan", "low", "high"))
        except (ValueError, KeyError, TypeError):
            raise UserError(f"{folder / CHUNK}: is not as `split` wrote it; split anew") from None
        try:
            data = PlyData.read(str(path))
            rows = data["vertex"].data
            places = np.stack([rows[name] for name in ("x", "y", "z")], 1).astype(np.float64) @ plan.T
        except (PlyParseError, KeyError, ValueError) as error:
            raise UserError(f"{path}: is no PLY of Gaussians ({error})") from None
        own = rows[Box(low, high).holds(places)]
        if parts and own.dtype != parts[0].dtype:
            raise UserError(f"{path}: has other columns than {folders[0] / SCENE}; train all with the same settings")
        print(f"{path}: {len(own):,} of {len(rows):,} Gaussians are in its box")
        parts.append(own)
        comments = data.comments
    joined = np.concatenate(parts)
    whole = PlyData([PlyElement.describe(joined, "vertex")], text=False, byte_order="<", comments=comments)
    partial = output.with_name(f"{output.name}.partial")
    try:
        whole.write(str(partial))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{output}: {len(joined):,} Gaussians")


def score(scene: Path, capture: Path, settings: dict[str, Any]) -> None:
    """PSNR and SSIM on the held-out photographs of the whole capture."""
    views = Colmap(folder=capture, normalise=False, test_every=TEST_EVERY, **settings).load(0).test
    store = PhotographStore(views, int(4e9), 0)
    found = evaluate(load(scene, Auto()), views, store.get, lpips=Lpips.find(None), keep=0)
    store.close()
    print(f"{scene}: {found.psnr:.2f} dB PSNR, {found.ssim:.4f} SSIM on {len(views)} held-out photographs")


def main() -> int:
    """Parses and does it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    cut = commands.add_parser("split", help="make a folder for each chunk")
    cut.add_argument("capture", type=Path)
    cut.add_argument("--output", type=Path, default=Path("chunks"), help="(default: chunks)")
    cut.add_argument("--images", default="images", help="the photographs' folder (default: images)")
    cut.add_argument("--boxes", type=int, default=2, help="how many (default: 2)")
    cut.add_argument("--share", type=float, default=0.1, help="of a photograph's points, in a box (default: 0.1)")
    together = commands.add_parser("join", help="one PLY of all chunks'")
    together.add_argument("chunks", type=Path)
    together.add_argument("--output", type=Path, default=Path("joined.ply"), help="(default: joined.ply)")
    judged = commands.add_parser("score", help="a PLY on the held-out photographs")
    judged.add_argument("scene", type=Path)
    judged.add_argument("capture", type=Path)
    judged.add_argument("--images", default="images")
    judged.add_argument("--downscale", type=int, default=1)
    chosen = parser.parse_args()
    try:
        if chosen.command == "split":
            split(chosen.capture, chosen.output, chosen.images, chosen.boxes, chosen.share)
        elif chosen.command == "join":
            join(chosen.chunks, chosen.output)
        else:
            score(chosen.scene, chosen.capture, {"images": chosen.images, "downscale": chosen.downscale})
    except UserError as mistake:
        print(f"chunks: {mistake}", file=sys.stderr)
        return 2
    except OSError as mistake:
        print(f"chunks: {mistake.filename or chosen.command}: {mistake.strerror}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
