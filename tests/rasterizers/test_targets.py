"""Other processors' instructions: the same kernels, compiled for less than this machine has, draw the same.

Each target is compiled in a process of its own, once for a machine: the cache keeps them apart by processor.
"""

import os
import platform
import subprocess
import sys

import pytest
import torch
from llvmlite import binding
from torch import Tensor

from nfc_gs.kernels.threads import set_thread_count
from nfc_gs.rasterizers.cpu import Cpu
from tests.conftest import REPOSITORY
from tests.rasterizers import scenes
from tests.rasterizers.test_backends import Drawn, draw

# Other instructions round sums in another order, and products and sums together or apart.
PICTURE = 1e-5
GRADIENT = 1e-4
WIDTH, HEIGHT, COUNT, CHANNELS = 45, 37, 300, 5
HAVE = binding.get_host_cpu_features()
INTEL = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the targets are x86-64's")
# Names, features, and the registers that their code may and may not use.
TARGETS = [
    pytest.param("generic", "", "xmm", ("ymm", "zmm"), id="generic"),
    pytest.param(
        "haswell", "+avx2,+fma", "ymm", ("zmm",),
        marks=pytest.mark.skipif(not (HAVE.get("avx2") and HAVE.get("fma")), reason="this machine has no AVX2"),
        id="avx2",
    ),
]  # fmt: skip

PROGRAM = """
import sys
import torch
from numba import float32, int32, int64, njit, uint16
from nfc_gs.kernels import tiles
from tests.rasterizers.test_targets import drawing, tensors
torch.save(tensors(drawing()), sys.argv[1])
# What comes from the cache has no assembler text; this is compiled afresh.
touch_blocks = njit(tiles.touch_blocks.py_func)
touch_blocks.compile((float32[::1], int32[::1], float32, float32, int64[::1], uint16[::1]))
(code,) = touch_blocks.inspect_asm().values()
print(*(name for name in ("xmm", "ymm", "zmm") if "%" + name in code))
"""


def drawing() -> Drawn:
    set_thread_count(1)
    return draw(Cpu(), scenes.splats(COUNT, CHANNELS, 9, torch.float32), scenes.camera(WIDTH, HEIGHT), absgrad=True)


def tensors(drawn: Drawn) -> dict[str, Tensor]:
    """The picture, and the gradients by what they are of."""
    rendering = drawn.rendering
    pictures = {"channels": rendering.channels, "alpha": rendering.alpha, "depth": rendering.depth}
    return {name: tensor.detach() for name, tensor in (pictures | drawn.gradients).items()}


@INTEL
@pytest.mark.parametrize(("name", "features", "used", "unused"), TARGETS)
def test_another_target_draws_and_differentiates_the_same(name, features, used, unused, tmp_path):
    target = {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
    path = tmp_path / "drawn.pt"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(path)],
        cwd=REPOSITORY, env=os.environ | target | {"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True,
    )  # fmt: skip
    # A negative status is the signal that ended it: -4 would be an illegal instruction.
    assert done.returncode == 0, done.stderr
    registers = done.stdout.split()
    assert used in registers and not set(unused) & set(registers)
    ours, theirs = tensors(drawing()), torch.load(path)
    assert ours.keys() == theirs.keys()
    for what in ("channels", "alpha", "depth"):
        error = (ours[what] - theirs[what]).abs()
        # In a pixel on the edge of a splat one side may see alpha 1/255 and the other none.
        assert error.quantile(0.999) < 3 * PICTURE and error.max() < 3 / 255, what
    for what in ("means", "scales", "quats", "opacities", "values", "means2d"):
        assert (ours[what] - theirs[what]).norm() < GRADIENT * ours[what].norm(), what
