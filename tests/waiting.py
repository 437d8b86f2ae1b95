"""Finds out, without a CUDA device, who would make the program wait for one: everything is done where there are no numbers.

torch's device "meta" knows shapes alone. Whoever asks it for a number, or which of many are true, is refused; so is whoever mixes
its tensors with the CPU's, or has something copied there from the CPU, for which the program waits on a CUDA device too (but
for page-locked memory, `nfc_gs.core.transfer.sent`).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

META = torch.device("meta")


class Asked(Exception):
    """Something on the device was asked for, or sent there."""


class NothingComesOrGoes(TorchDispatchMode):
    """Refuses every operation that a CUDA device makes the program wait for."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        found_on = {tensor.device.type for tensor in _tensors(args)}
        if "meta" in found_on and name.startswith(self.REFUSED):
            raise Asked(name)
        if "meta" in found_on and name in ("index", "index_put", "index_put_"):
            masks = [index for index in args[1] if index is not None and index.dtype == torch.bool]
            # One number put where a mask is true is a fill, for which nobody waits.
            if masks and (name == "index" or args[2].numel() != 1):
                raise Asked(f"{name} by a mask")
        found = function(*args, **(kwargs or {}))
        if name in ("_to_copy", "copy_") and {t.device.type for t in _tensors((*args, found))} == {"cpu", "meta"}:
            raise Asked("a copy from the CPU")
        return found


class NothingIsMadeOfNumbers(TorchFunctionMode):
    """Refuses tensors made on the device of Python's numbers."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        if getattr(function, "__name__", "") in ("tensor", "new_tensor", "as_tensor") and found.device == META:
            raise Asked(function.__name__)
        return found


def _tensors(values) -> list[torch.Tensor]:
    """Those with numbers of their own: one number of the CPU's is handed on with the operation."""
    return [value for value in values if isinstance(value, torch.Tensor) and (value.ndim or value.device == META)]


@contextmanager
def nobody_waits() -> Iterator[None]:
    """Raises Asked, or what torch itself raises, at whatever would wait."""
    with NothingIsMadeOfNumbers(), NothingComesOrGoes():
        yield
