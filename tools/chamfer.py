"""How far a run's Gaussians are from true surfaces, at the times of the meshes.

    pip install 'nfc-gs[mesh]'
    python tools/chamfer.py runs/robot_dance --mesh 0=gt_mesh_t0.0.ply --mesh 0.5=gt_mesh_t0.5.ply --mesh 1=gt_mesh_t1.0.ply

Accuracy is the mean distance from the centres of the Gaussians with opacity above one half to the nearest of 20,000 points
spread evenly over the mesh; completeness the mean distance from those points to the nearest such centre; both in the
units of the input data. The result is also written to chamfer.json in the run folder.
"""

import nfc_gs  # isort: skip  # before torch, whose idle threads it tells to sleep
import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64

from nfc_gs.config import UserError
from nfc_gs.training.run import open_run

POINTS = 20_000
OPAQUE = 0.5


def chamfer(centres: Float64[np.ndarray, "N 3"], mesh: Path) -> dict[str, float]:
    """Accuracy and completeness of `centres` against a mesh file; the points on the mesh are the same every time."""
    import open3d

    surface = open3d.io.read_triangle_mesh(str(mesh))
    if not len(surface.triangles):
        raise UserError(f"{mesh}: is no file, or holds no triangles; a mesh is wanted, as PLY or OBJ")
    open3d.utility.random.seed(0)
    truth = surface.sample_points_uniformly(POINTS)
    found = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(centres))
    return {
        "accuracy": float(np.mean(found.compute_point_cloud_distance(truth))),
        "completeness": float(np.mean(truth.compute_point_cloud_distance(found))),
        "num_gaussians": len(centres),
    }


def measure(run_folder: Path, meshes: dict[float, Path]) -> dict[str, dict[str, float]]:
    """Accuracy and completeness of a run at each time of `meshes`."""
    run = open_run(run_folder)
    model = run.model
    result = {}
    for time, mesh in meshes.items():
        with torch.no_grad():
            gaussians, _ = model.at(time)
            opaque = model.opacity_code.values(gaussians.opacity_logits, unit=True) > OPAQUE
            centres = model.to_world(gaussians.means[opaque]).double().cpu().numpy()
        result[f"{time:g}"] = chamfer(centres, mesh)
    return result


def main() -> None:
    """Parses, measures, prints and writes."""
    parser = argparse.ArgumentParser(
        description=f"{__doc__} (nfc-gs {nfc_gs.__version__})", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument(
        "--mesh", action="append", required=True, metavar="TIME=FILE", help="may be given several times"
    )
    chosen = parser.parse_args()
    try:
        meshes = {}
        for text in chosen.mesh:
            time, _, file = text.partition("=")
            if not file:
                raise UserError(f"--mesh {text}: must be TIME=FILE, as 0.5=mesh.ply")
            meshes[float(time)] = Path(file)
        result = measure(chosen.run, meshes)
    except UserError as mistake:
        print(f"chamfer: {mistake}", file=sys.stderr)
        sys.exit(2)
    except ImportError:
        print("chamfer: open3d is not installed; pip install 'nfc-gs[mesh]'", file=sys.stderr)
        sys.exit(2)
    for time, numbers in result.items():
        print(
            f"t = {time}: accuracy {numbers['accuracy']:.4f}, completeness {numbers['completeness']:.4f} "
            f"({numbers['num_gaussians']:,} Gaussians)"
        )
    (chosen.run / "chamfer.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
