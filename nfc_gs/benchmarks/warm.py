"""Has every kernel compiled before it is needed, by training a little with everything that has kernels."""

from collections.abc import Mapping, Sequence
from typing import Any

from nfc_gs.benchmarks.loads import METHODS, STEPS, make_trainer, shells
from nfc_gs.kernels import CacheUse, cache_use
from nfc_gs.kernels.threads import share
from nfc_gs.rasterizers.cpu import Cpu


def warm(deformations: Sequence[str]) -> CacheUse:
    """Takes a step in the middle of a tiny training for each method, for each of these deformations, and with distractors."""
    share(lambda number: number, 2)  # the kernels by which threads wait for each other
    load = shells(64, 0).seen(20, 20)
    settings: list[Mapping[str, Any]] = [
        {"distractors": {}},
        *({"deformation": {"kind": kind}} for kind in deformations),
    ]
    for method, over in [*((method, {}) for method in METHODS), *(("regression", over) for over in settings)]:
        trainer = make_trainer(load, method, Cpu(), 0, over)
        trainer.done = STEPS // 2
        trainer.step()
        trainer.photographs.close()
        trainer.held_out.close()
    return cache_use()
