"""By which file a folder's format is known: for messages that say what a folder of another kind is."""

from pathlib import Path

# What only a folder of this kind has, and its `dataset.kind`.
MARKERS = {
    "transforms_train.json": "blender (dynamic.datasets.dnerf if something moves)",
    "transforms.json": "nerfstudio",
    "sparse": "colmap",
    "poses_bounds.npy": "dynamic.datasets.neural_3d_video, a moving scene",
    "dataset.json": "dynamic.datasets.hypernerf, a moving scene",
}


def other_format(folder: Path, own: str) -> str:
    """What is in a folder that lacks what its kind needs, `own`: the end of a message, empty where nothing is known."""
    found = [marker for marker in MARKERS if marker != own and (folder / marker).exists()]
    return f"; {found[0]} is there: its dataset.kind is {MARKERS[found[0]]}" if found else ""
