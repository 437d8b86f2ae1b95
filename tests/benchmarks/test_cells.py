"""What is counted and measured, and the command that does it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from nfc_gs import cli
from nfc_gs.benchmarks import cells, loads
from nfc_gs.benchmarks.stopwatch import Stopwatch, Watch
from nfc_gs.core.gaussians import Splats
from nfc_gs.rasterizers.cpu import Cpu
from tests.conftest import REPOSITORY
from tests.rasterizers import scenes

# Parameters and two moments of each, in float32, of harmonics of degree 3: 3 + 3 + 4 + 3 + 1 + 45 numbers.
BYTES_OF_REGRESSION = 59 * 3 * 4
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a peak that can be set back")


@pytest.mark.parametrize(("width", "height"), [(16, 16), (37, 21), (1, 1)])
@pytest.mark.parametrize("count", [1, 3])
def test_splats_that_cover_the_picture_are_looked_at_by_every_pixel(width, height, count):
    tensors = {
        "means": torch.tensor([[0.0, 0.0, 4.0]]),
        "scales": torch.full((1, 3), 1e4),
        "quats": torch.tensor([[1.0, 0.0, 0.0, 0.0]]),
        "opacities": torch.tensor([0.5]),
        "values": torch.ones(1, 3),
    }
    splats = Splats(**{name: tensor.expand(count, *tensor.shape[1:]) for name, tensor in tensors.items()})
    pairs = cells._pairs(lambda: Cpu()(splats, scenes.camera(width, height), torch.zeros(3)))
    assert pairs == count * width * height


PEAKS = """
import json, numpy as np
from nfc_gs.benchmarks import cells
np.ones(2 * 60 * 125_000)  # an earlier one, twice as high
print(json.dumps([cells.peak(work, "cpu").megabytes for work in (lambda: None, lambda: np.ones(60 * 125_000))]))
"""


@LINUX
def test_a_peak_is_that_of_the_work_alone():
    # In a process of its own: tests before this one may have had freed memory kept, which later work then begins with.
    said = subprocess.run([sys.executable, "-c", PEAKS], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    low, high = json.loads(said.stdout)
    # Other threads may take or give back a little at the same time.
    assert 0.9 * 60 < high - low < 1.3 * 60


def test_every_part_that_is_watched_is_there():
    # Those on a GPU, too, where nobody looks on a machine without one.
    with Watch(Stopwatch(lambda: 0.0)) as watch:
        for place, part, then in (*cells.CPU_PARTS, *cells.GPU_PARTS):
            watch.function(place, part, then)


def test_where_linux_does_not_tell_the_reason_is_told(monkeypatch, tmp_path):
    monkeypatch.setattr(cells, "PEAK_RESET", tmp_path / "missing" / "clear_refs")
    peak = cells.peak(lambda: None, "cpu")
    assert peak.megabytes is None
    assert "cannot be written" in peak.reason


@pytest.mark.parametrize("method", sorted(loads.METHODS))
def test_bench_measures_every_cell_and_says_of_what(method, tmp_path, capsys):
    path = tmp_path / "bench.json"
    arguments = (
        f"bench --splats 40,90 --pixels 31x17 --channels 3,5 --threads 1,2 --repeats 1 --seed 3 --method {method}"
    )
    assert cli.main([*arguments.split(), "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "90 splats, 31x17 pixels" in printed and "whole step" in printed
    record = json.loads(path.read_text())
    assert record["settings"]["seed"] == 3 and record["versions"]["torch"] == torch.__version__
    assert record["commit"] or record["commit_reason"]
    sizes = [(cell["splats"], cell["width"], cell["height"], cell["threads"]) for cell in record["cells"]]
    assert sizes == [(n, 31, 17, t) for n in (40, 90) for t in (1, 2)]
    for cell in record["cells"]:
        medians = {name: spread["median"] for name, spread in cell["parts"].items()}
        for part in (*cells.RASTERIZATION, "data", "codes", "harmonics", "harmonics, backward", "projection"):
            assert medians[part] > 0, part
        assert {"projection, backward", "losses", "losses, backward", "strategy", "optimizer"} < set(medians)
        assert {d["channels"] for d in cell["drawings"]} == {3, 5}
        assert all(d["pairs"] > 0 and d["rasterization"]["median"] > 0 for d in cell["drawings"])
        assert cell["edit"] > 0 and cell["decode"] > 0
        if method == "regression":
            assert cell["persistent_bytes"] == BYTES_OF_REGRESSION


def test_the_parts_of_one_step_add_up_to_it():
    cell = cells.measure(loads.shells(60, 0).seen(20, 20), "nfc", Cpu(), 1, (3,), 1, 0)
    assert sum(part.median for part in cell.parts.values()) == pytest.approx(cell.step.median, rel=1e-9)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--splats 0", "'0' is no whole number from 1 on"),
        ("--pixels 3x4x5", "neither a side"),
        ("--pixels 10x", "'' is no whole number"),
        ("--threads some", "'some' is no whole number"),
        ("--seed -1", "is no whole number from 1 on"),
        ("--repeats 1.5", "'1.5' is no whole number"),
        ("--scene nowhere.ply", "nowhere.ply"),
        ("--json nowhere/bench.json", "there is no folder nowhere"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as left:
        raise SystemExit(cli.main(["bench", *arguments.split()]))
    assert left.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("nfc-gs: ") and said in lines[0]


def test_no_more_splats_are_asked_of_a_scene_than_it_has(tmp_path, capsys):
    from tests.benchmarks.test_loads import garden

    np.savez(tmp_path / "garden.npz", **garden(50))
    assert cli.main(["bench", "--scene", str(tmp_path / "garden.npz"), "--splats", "51"]) == 2
    assert "fewer than the 51 asked for" in capsys.readouterr().err
    small = ["--splats", "10", "--threads", "1", "--repeats", "1"]
    assert cli.main(["bench", "--scene", str(tmp_path / "garden.npz"), *small]) == 0
    assert "10 splats, 40x30 pixels" in capsys.readouterr().out
