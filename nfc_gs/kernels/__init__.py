"""The CPU's inner loops, compiled by Numba: arrays in, arrays out.

Every kernel is a module-level function, so that Numba's on-disk cache serves the second start. They know nothing of
torch, settings or Gaussians' parameterizations; the modules that call them carry the mathematics' types and shapes.
"""

import atexit
import shutil
import tempfile

from numba import config, njit


def _probe() -> None: ...


try:
    njit(cache=True)(_probe)
except RuntimeError:
    # Neither this folder nor the user's cache can be written: what is compiled is kept for this process only.
    config.CACHE_DIR = tempfile.mkdtemp(prefix="nfc_gs_")
    atexit.register(shutil.rmtree, config.CACHE_DIR, ignore_errors=True)
