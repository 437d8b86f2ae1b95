"""Times the parts of running code from outside, so that what is timed is what runs and no line of it knows."""

import functools
import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch


class Stopwatch:
    """Milliseconds by part. Parts nest; a moment counts for the innermost part alone, so that the parts add up."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._open: list[str] = []
        self._last = 0.0
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """What happens inside belongs to this part, but for the parts within."""
        self._charge()
        self._open.append(name)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def call_it(self, name: str) -> None:
        """From now on the innermost part is another one."""
        self._charge()
        self._open[-1] = name

    def reset(self) -> None:
        """Forgets all times."""
        self.milliseconds = {}

    def _charge(self) -> None:
        now = self._clock()
        if self._open:
            name = self._open[-1]
            self.milliseconds[name] = self.milliseconds.get(name, 0.0) + 1e3 * (now - self._last)
        self._last = now


def clock(threads: int, device: str) -> Callable[[], float]:
    """Seconds: of CPU time for one thread, which other programs disturb least; on the wall otherwise."""
    if device == "cuda":

        def synchronized() -> float:
            torch.cuda.synchronize()
            return time.perf_counter()

        return synchronized
    return time.process_time if threads == 1 else time.perf_counter


class Watch(ExitStack):
    """While it is entered, calls of named functions are parts of a stopwatch; afterwards all is as it was."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        super().__init__()
        self.stopwatch = stopwatch

    def function(self, place: str, part: str, then: str | None = None) -> None:
        """Watches `module:Class.function`; when it has returned, the part around it is called `then`."""
        module, _, path = place.partition(":")
        owner: Any = importlib.import_module(module)
        *above, name = path.split(".")
        for step in above:
            owner = getattr(owner, step)
        self.attribute(owner, name, part, then)

    def attribute(self, owner: Any, name: str, part: str, then: str | None = None) -> None:
        """Watches a function that is an attribute of a module, a class or an object."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def watched(*arguments: Any, **settings: Any) -> Any:
            with self.stopwatch.part(part):
                result = original(*arguments, **settings)
            if then is not None:
                self.stopwatch.call_it(then)
            return result

        self.replace(owner, name, watched)

    def replace(self, owner: Any, name: str, replacement: Any) -> None:
        """Puts something in an attribute's place for as long as the watch lasts."""
        own = vars(owner)
        if name in own:
            self.callback(setattr, owner, name, own[name])
            if isinstance(own[name], staticmethod):
                replacement = staticmethod(replacement)
        else:
            self.callback(delattr, owner, name)
        setattr(owner, name, replacement)
