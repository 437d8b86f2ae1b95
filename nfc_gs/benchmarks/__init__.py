"""What a training step costs on this machine, part by part: `nfc-gs bench`."""

from nfc_gs.benchmarks.run import Plan, run
from nfc_gs.benchmarks.warm import warm

__all__ = ["Plan", "run", "warm"]
