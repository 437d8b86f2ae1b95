"""What runs a study's processes."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Order:
    """One process to be started: its words, what is added to its environment, where its output goes, and its threads.

    `slot` is which of the places that work at the same time it takes, from 0.
    """

    name: str
    command: list[str]
    environment: Mapping[str, str]
    log: Path
    threads: int
    slot: int


class Process(abc.ABC):
    """A process that was started."""

    @abc.abstractmethod
    def status(self) -> int | None:
        """Its exit status, negative if a signal ended it; None while it runs or waits."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Tells it to save and end, without waiting; told twice, it ends at once."""


class Workers(abc.ABC):
    """Starts processes somewhere."""

    @abc.abstractmethod
    def start(self, order: Order) -> Process:
        """The process, on its way.

        Raises:
            UserError: nothing can be started here.
        """
