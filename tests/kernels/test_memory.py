"""Freed memory is used again: seen by counting page faults in a process of its own."""

import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from nfc_gs.kernels.memory import keep_freed_memory
if "keep" in sys.argv:
    assert keep_freed_memory() is (sys.argv[1] == "keep")
for _ in range(3):
    np.ones(2**20, np.float32)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    # Two at a time: of one alone glibc learns to keep it.
    first, second = np.ones(2**20, np.float32), np.ones(2**20, np.float32)
    del first, second
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
# 50 times two blocks of 4 MiB are this many pages of 4 KiB.
PAGES = 50 * 2 * 1024


def faults(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, *arguments],
        env={"PATH": "", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_freed_memory_is_used_again():
    assert faults("keep") < 0.1 * PAGES


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_what_the_user_has_told_glibc_is_left_alone():
    assert faults("leave", "keep", MALLOC_MMAP_THRESHOLD_="65536") > 0.5 * PAGES
