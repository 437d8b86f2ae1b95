"""Processes on this machine."""

import os
import signal
import subprocess
from contextlib import suppress

from nfc_gs.config import spec
from nfc_gs.studies.workers.base import Order, Process, Workers


class Child(Process):
    """A child in a process group of its own, so that a terminal's Ctrl-C reaches it once, from us."""

    def __init__(self, order: Order, environment: dict[str, str]) -> None:
        order.log.parent.mkdir(parents=True, exist_ok=True)
        with order.log.open("ab") as log:
            self.child = subprocess.Popen(
                order.command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def status(self) -> int | None:
        """Its exit status, or None while it runs."""
        return self.child.poll()

    def stop(self) -> None:
        """Ctrl-C for it and whatever it started."""
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGINT)


@spec
class Local(Workers):
    """Child processes. `devices` are the GPUs that slots take in turn, as CUDA_VISIBLE_DEVICES names them; none: all see all.

    Where CUDA_VISIBLE_DEVICES is set and `devices` is not, its entries are taken in turn.
    """

    devices: tuple[str, ...] = ()

    def start(self, order: Order) -> Child:
        """The child, started."""
        environment = {**os.environ, **order.environment}
        devices = self.devices or tuple(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")))
        if devices:
            environment["CUDA_VISIBLE_DEVICES"] = devices[order.slot % len(devices)]
        return Child(order, environment)


Spec = Local
