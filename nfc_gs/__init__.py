"""Gaussian splatting with encoded-bit classification."""

import os

__version__ = "0.1.0"

# torch's OpenMP threads wait for their next piece of work by spinning, on the very cores that our own kernels need: a
# training step on two threads took 1.6, 2.0 and 1.2 times as long in three paired runs (OMP_WAIT_POLICY=ACTIVE against
# PASSIVE, python -m benchmarks.step --threads 2). torch reads it when it is imported, so it stands here; a value that
# the user has set is left alone.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
