"""What is compiled, when, and where it is kept; each in a process of its own, by Numba's own counters."""

import json
import os
import pkgutil
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dynamic.kernels
import nfc_gs.kernels
from tests.conftest import REPOSITORY

ONCE = "compiling the CPU kernels, once for this machine (about a minute for all of them) ..."
ALWAYS = "compiling the CPU kernels, at every start until NUMBA_CACHE_DIR names a folder that can be written"

# The cross-entropy of one half is the logarithm of two, whatever the label.
ONE_KERNEL = """
import json, logging, math, sys
import numpy as np
from numba import config
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
from nfc_gs.kernels import cache_use, entropy
halves, labels, found = np.full(20, 0.5, np.float32), np.arange(20, dtype=np.float32) % 2, np.empty((2, 20), np.float32)
entropy.cross_entropy(0, 20, halves, labels, np.float32(1e-3), found[0], found[1])
assert np.allclose(found[0], math.log(2), rtol=1e-5)
print(json.dumps([*cache_use(), config.CACHE_DIR, entropy.__file__]))
"""


def run(code: str, environment: dict[str, str], folder: Path = REPOSITORY) -> subprocess.CompletedProcess:
    """Runs it with the package that lies in `folder`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("NUMBA", "XDG"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env=inherited | {"PYTHONPATH": str(folder)} | environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done


def test_a_missing_folder_for_the_cache_is_made_and_the_second_start_compiles_nothing_and_says_nothing(tmp_path):
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "not" / "yet")}
    first, second = run(ONE_KERNEL, environment), run(ONE_KERNEL, environment)
    assert first.stderr.splitlines() == [ONCE]
    assert json.loads(first.stdout)[0] == 0 < json.loads(first.stdout)[1]
    assert second.stderr == ""
    # Only the kernel that Python calls is read; what it calls is part of it.
    assert json.loads(second.stdout)[:2] == [1, 0]


def test_a_folder_that_cannot_be_one_is_passed_over_for_the_packages_own(tmp_path):
    (tmp_path / "file").write_text("")
    environment = {"NUMBA_CACHE_DIR": str(tmp_path / "file")}
    run(ONE_KERNEL, environment)
    assert json.loads(run(ONE_KERNEL, environment).stdout)[:2] == [1, 0]


def test_where_nothing_can_be_written_kernels_are_compiled_for_the_process_and_the_user_is_told(tmp_path):
    # A file where a folder should be stops even root, whom a read-only folder would not.
    package = tmp_path / "nfc_gs"
    shutil.copytree(REPOSITORY / "nfc_gs", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "kernels" / "__pycache__").write_text("")
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    environment = {name: str(tmp_path / "file") for name in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME", "HOME")}
    environment["TMPDIR"] = str(tmp_path / "temporary")
    for _ in range(2):
        done = run(ONE_KERNEL, environment, tmp_path)
        read, compiled, folder, where = json.loads(done.stdout)
        assert Path(where).is_relative_to(tmp_path)
        assert read == 0 < compiled
        assert Path(folder).is_relative_to(tmp_path / "temporary")
        assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith(ALWAYS)
    assert not list((tmp_path / "temporary").iterdir())


WARM = """
import json, sys
from nfc_gs import cli
from nfc_gs.kernels import used_modules
status = cli.main(["doctor", "--warm"])
print(json.dumps({n: sum(len(k.stats.cache_hits) + len(k.stats.cache_misses) for k in ks) for n, ks in used_modules().items()}))
sys.exit(status)
"""
TRAIN = """
import json, sys
from nfc_gs import cli
from nfc_gs.kernels import cache_use
small = ["steps=3", "threads=1", "dataset.size=32", "dataset.points=200", "output={folder}"]
for arguments in {runs}:
    assert cli.main(["train", *arguments, *small]) == 0
for command in (["eval", "{folder}/nfc"], ["render", "{folder}/nfc", "--mode", "depth", "--output", "{folder}/pictures"]):
    assert cli.main(command) == 0
print(json.dumps(cache_use()))
"""
RUNS = [
    ["configs/toy.yaml", "configs/methods/nfc.yaml", "name=nfc"],
    ["configs/toy.yaml", "name=distractors", "distractors={}"],
    ["configs/toy.yaml", "name=bases", "deformation={kind: dynamic.deformations.bases}"],
    ["configs/toy.yaml", "name=hexplane", "deformation={kind: dynamic.deformations.hexplane}"],
    ["configs/toy.yaml", "name=classic", "strategy={kind: classic}", "schedule.sh_degree=3", "schedule.sh_every=1"],
]


def test_doctor_warms_every_kernel_so_that_trainings_compile_nothing(tmp_path):
    done = run(WARM, {})
    *lines, used = done.stdout.splitlines()
    assert [line for line in lines if re.fullmatch(r"CPU kernels: \d+ read from the cache, \d+ compiled", line)]
    kernels = {
        name: count for name, count in json.loads(used).items() if name.rpartition(".")[2] in modules_with_kernels()
    }
    assert len(kernels) == len(modules_with_kernels())
    assert all(kernels.values()), kernels
    done = run(TRAIN.format(folder=tmp_path, runs=RUNS), {})
    read, compiled = json.loads(done.stdout.splitlines()[-1])
    assert read >= len(kernels)
    assert compiled == 0
    assert "compiling" not in done.stderr


def modules_with_kernels() -> set[str]:
    """By their sources."""
    found = set()
    for package in (nfc_gs.kernels, dynamic.kernels):
        for module in pkgutil.iter_modules(package.__path__):
            source = (Path(package.__path__[0]) / f"{module.name}.py").read_text()
            if "@njit" in source:
                found.add(module.name)
    return found
