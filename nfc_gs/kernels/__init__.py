"""The CPU's inner loops, compiled by Numba: arrays in, arrays out.

Every kernel is a module-level function, so that Numba's on-disk cache serves the second start. They know nothing of
torch, settings or Gaussians' parameterizations; the modules that call them carry the mathematics' types and shapes.
"""

import atexit
import logging
import shutil
import sys
import tempfile
from typing import NamedTuple

from numba import config, njit
from numba.core import event
from numba.core.dispatcher import Dispatcher

logger = logging.getLogger(__name__)


class CacheUse(NamedTuple):
    """How many kernels this process has read from the cache on disk, and how many it has compiled itself."""

    read: int
    compiled: int


def cache_use() -> CacheUse:
    """Counts the kernels of all packages called `kernels` that were needed so far."""
    statistics = [kernel.stats for kernels in used_modules().values() for kernel in kernels]
    return CacheUse(
        sum(sum(found.cache_hits.values()) for found in statistics),
        sum(sum(found.cache_misses.values()) for found in statistics),
    )


def used_modules() -> dict[str, list[Dispatcher]]:
    """The kernels, by the module that defines them, of all modules that were imported so far."""
    return {
        name: [kernel for kernel in vars(module).values() if _is_kernel(kernel) and kernel.py_func.__module__ == name]
        for name, module in list(sys.modules.items())
        if name.rpartition(".")[0].endswith("kernels")
    }


def _is_kernel(value: object) -> bool:
    return isinstance(value, Dispatcher) and value.py_func.__module__.rpartition(".")[0].endswith("kernels")


class _Announcement(event.Listener):
    """Says once that kernels are compiled; Numba calls it only when something is, not when the cache has it."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.made = False

    def on_start(self, event: event.Event) -> None:
        """Numba begins to compile."""
        if not self.made and _is_kernel(event.data["dispatcher"]):
            self.made = True
            logger.info("compiling the CPU kernels, %s (about a minute for all of them) ...", self.where)

    def on_end(self, event: event.Event) -> None:
        """Numba has compiled."""


def _probe() -> None: ...


_where = "once for this machine"
try:
    njit(cache=True)(_probe)
except RuntimeError:
    # Neither this folder nor the user's cache can be written: what is compiled is kept for this process only.
    config.CACHE_DIR = tempfile.mkdtemp(prefix="nfc_gs_")
    atexit.register(shutil.rmtree, config.CACHE_DIR, ignore_errors=True)
    _where = "at every start until NUMBA_CACHE_DIR names a folder that can be written"
event.register("numba:compile", _Announcement(_where))
