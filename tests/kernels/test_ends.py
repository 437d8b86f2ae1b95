"""Kernels that read several numbers at once read none beyond an array: pages that nobody may touch lie behind it."""

import subprocess
import sys

import pytest

# The gradient of a picture of one channel, or two, that ends where such a page begins.
DRAW = """
import ctypes, mmap, sys
import numpy as np
import torch
from nfc_gs.rasterizers.cpu import Cpu
from tests.rasterizers import scenes

libc = ctypes.CDLL(None)
libc.mprotect.argtypes = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
assert libc.mprotect(ctypes.addressof(ctypes.c_char.from_buffer(memory)) + mmap.PAGESIZE, mmap.PAGESIZE, 0) == 0
width, height, channels = map(int, sys.argv[1:])
bytes_in = 4 * width * height * channels
picture = np.frombuffer(memory, np.float32, bytes_in // 4, mmap.PAGESIZE - bytes_in).reshape(height, width, channels)
picture[:] = 1
cloud = scenes.splats(40, 3, dtype=torch.float32)
rendering = Cpu()(cloud, scenes.camera(width, height), torch.zeros(3))
sums, weights = rendering.gather(torch.from_numpy(picture))
assert weights.max() > 0
# Sums of the same products, in another order.
torch.testing.assert_close(sums, weights[:, None].expand_as(sums), rtol=1e-5, atol=1e-6)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for such pages")
@pytest.mark.parametrize(("width", "channels"), [(5, 1), (6, 1), (9, 2), (5, 17)])
def test_the_gradient_of_a_picture_is_read_to_its_end_and_no_further(width, channels):
    done = subprocess.run([sys.executable, "-c", DRAW, str(width), "4", str(channels)], capture_output=True, text=True)
    assert done.returncode == 0, f"ended with {done.returncode}: {done.stderr[-500:]}"
