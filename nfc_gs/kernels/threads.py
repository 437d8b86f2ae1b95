"""Runs a piece of work on several threads; the kernels release Python's lock, so threads are enough.

To wake a sleeping thread costs about 0.1 ms on a virtual machine, as much as many a piece of work, and a training step
shares some twenty. So a worker that has finished looks out for the next piece for a while before it sleeps: in a kernel,
and thus without Python's lock. The caller lets it take that lock, begin and let go of the lock again before it goes on
itself, or it would have to sleep until it got the lock back.
"""

import os
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

T = TypeVar("T")

# Seconds that a worker looks out for work before it sleeps: more than a training step's stretches on one thread.
_LOOK_OUT = 2e-3
# Seconds that the caller waits for workers that are awake to begin, and then for them to be in their kernels.
_BEGIN, _ENTER = 1e-4, 4e-5
# What is in a worker's row, two lines of the cache long: the rounds it was asked for, has begun, and is done with.
_ASKED, _BEGUN, _DONE, _ROW = 0, 1, 2, 16
# What is in a row of `new_queues`: the next thing, and the one behind the last.
_NEXT, _END = 0, 1
# Light work on fewer numbers takes one thread some 0.2 ms: to share it would cost what it saves, or more.
_WORTH_SHARING = 2**19
_SETTINGS = {"nogil": True, "cache": True}


def available() -> int:
    """How many cores this process may use."""
    # Only Linux says which.
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


# OMP_NUM_THREADS is what torch goes by, too, until somebody says otherwise.
_asked_for = os.environ.get("OMP_NUM_THREADS", "")
_count = int(_asked_for) if _asked_for.isdecimal() and int(_asked_for) > 0 else available()


def thread_count() -> int:
    """How many threads the kernels run on."""
    return _count


def threads_for(numbers: int) -> int:
    """How many threads to share light work among, a few operations for each of so many numbers: all or one."""
    return _count if numbers >= _WORTH_SHARING else 1


def set_thread_count(threads: int) -> None:
    """Has the kernels run on so many threads from now on, at least one."""
    global _count
    assert threads >= 1, f"{threads} threads"
    _count = threads


@intrinsic
def _look(typing, array, row, column):  # type: ignore[no-untyped-def]
    """`array[row, column]`, read anew; what its writer had written before can then be seen, too."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        return builder.load_atomic(_place(context, builder, signature, values), "acquire", 8)

    return types.int64(array, types.intp, types.intp), generate


@intrinsic
def _tell(typing, array, row, column, value):  # type: ignore[no-untyped-def]
    """`array[row, column] = value`, after all that was written before."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        builder.store_atomic(values[3], _place(context, builder, signature, values), "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp, types.int64), generate


@intrinsic
def _add_one(typing, array, row, column):  # type: ignore[no-untyped-def]
    """`array[row, column] += 1` and what was there before, as one thing that no other thread comes between."""

    def generate(context, builder, signature, values):  # type: ignore[no-untyped-def]
        place = _place(context, builder, signature, values)
        return builder.atomic_rmw("add", place, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(array, types.intp, types.intp), generate


@njit(**_SETTINGS)
def take(queues, number):
    """The next thing for thread `number`, of those dealt by `new_queues`; -1 when there is none left.

    Its own first, then what others have left: so neighbours stay on one core, and none waits for a core that is slow.
    """
    threads = queues.shape[0]
    for other in range(threads):
        row = (number + other) % threads
        # Looked at first, or many that find nothing would keep those who do waiting.
        if _look(queues, row, _NEXT) < queues[row, _END]:
            taken = _add_one(queues, row, _NEXT)
            if taken < queues[row, _END]:
                return taken
    return np.int64(-1)


def new_queues(first: int, last: int, threads: int) -> np.ndarray:
    """The numbers first .. last - 1 dealt out among threads, for `take`; a row a thread, two lines of the cache long."""
    queues = np.zeros((threads, _ROW), np.int64)
    for number in range(threads):
        begin, end = part(last - first, number, threads)
        queues[number, _NEXT], queues[number, _END] = first + begin, first + end
    return queues


def _place(context, builder, signature, values):  # type: ignore[no-untyped-def]
    data = context.make_array(signature.args[0])(context, builder, values[0]).data
    row = builder.mul(values[1], ir.Constant(values[1].type, _ROW))
    return builder.gep(data, [builder.add(row, values[2])])


@njit(**_SETTINGS)
def _look_out(rows, row, done, looks):
    """A worker says what it is done with, and looks out for the next round; whether there is one."""
    _tell(rows, row, _DONE, done)
    for _ in range(looks):  # noqa: SIM110  Numba has no any()
        if _look(rows, row, _ASKED) != done:
            return True
    return False


@njit(**_SETTINGS)
def _ask(rows, awake, asked, looks, pause):
    """Asks the first len(awake) workers for a round, and waits until those that are awake have begun, and `pause`."""
    for row in range(awake.size):
        _tell(rows, row, _ASKED, asked)
    for row in range(awake.size):
        if awake[row]:
            for _ in range(looks):
                if _look(rows, row, _BEGUN) == asked:
                    break
    for _ in range(pause):
        _look(rows, 0, _ASKED)


@njit(**_SETTINGS)
def _wait(rows, workers, asked, looks):
    """Waits until so many workers are done, or for `looks` looks at each."""
    for row in range(workers):
        for _ in range(looks):
            if _look(rows, row, _DONE) == asked:
                break


class _Worker(threading.Thread):
    """One thread that does its part of each round. What it shares with the caller is touched under Python's lock."""

    def __init__(self, rows: np.ndarray, row: int, looks: int) -> None:
        super().__init__(name=f"nfc-gs-{row + 1}", daemon=True)
        self.work: Callable[[int], Any] | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.round = 0
        self.asleep = False
        self.bell: SimpleQueue[None] = SimpleQueue()
        self.finished: SimpleQueue[None] = SimpleQueue()
        self._rows, self._row, self._looks = rows, row, looks

    def run(self) -> None:
        done = 0
        while True:
            if not _look_out(self._rows, self._row, done, self._looks):
                self.asleep = True
                # Only now, as the caller says what round it is before it looks whether we sleep.
                while self.round == done:
                    self.bell.get()
                self.asleep = False
            if self.round == done:
                continue
            done = self.round
            self._rows[self._row, _BEGUN] = done
            assert self.work is not None
            try:
                self.result = self.work(self._row + 1)
            except BaseException as error:
                self.error = error
            self.work = None
            self.finished.put(None)


class _Team:
    """The workers, started when first needed and then kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows = np.zeros((max(available(), 64), _ROW), np.int64)
        self._workers: list[_Worker] = []
        self._round = 0
        self._looks_a_second = 0.0
        self._under_way = False

    def share(self, work: Callable[[int], T], threads: int) -> list[T]:
        # A second caller at the same time, or one from within a piece of work, would find the cores taken anyway.
        if threads == 1 or threads > len(self._rows) or not self._lock.acquire(blocking=False):
            return [work(number) for number in range(threads)]
        try:
            if self._under_way:
                # Ctrl-C broke off the last round before all had ended: what its workers still do and say is not ours.
                self._rows, self._workers = np.zeros_like(self._rows), []
            self._under_way = True
            return self._share(work, self._first(threads - 1))
        finally:
            self._lock.release()

    def _first(self, count: int) -> list[_Worker]:
        if not self._looks_a_second:
            _look_out(self._rows, len(self._rows) - 1, 0, 1)  # compiles
            self._looks_a_second = max(self._speed() for _ in range(5))
        while len(self._workers) < count:
            worker = _Worker(self._rows, len(self._workers), int(_LOOK_OUT * self._looks_a_second))
            self._workers.append(worker)
            worker.start()
        return self._workers[:count]

    def _speed(self) -> float:
        """Looks a second, if nothing else takes this core in the meantime."""
        began = time.perf_counter()
        _look_out(self._rows, len(self._rows) - 1, 0, 50_000)
        return 5e4 / (time.perf_counter() - began)

    def _share(self, work: Callable[[int], T], workers: list[_Worker]) -> list[T]:
        self._round += 1
        awake = np.empty(len(workers), np.bool_)
        for number, worker in enumerate(workers):
            worker.work, worker.result, worker.error = work, None, None
            worker.round = self._round
            awake[number] = not worker.asleep
            if worker.asleep:
                worker.bell.put(None)
        speed = self._looks_a_second
        _ask(self._rows, awake, self._round, int(_BEGIN * speed), int(_ENTER * speed) if awake.any() else 0)
        try:
            mine = work(0)
            _wait(self._rows, len(workers), self._round, int(_LOOK_OUT * speed))
        finally:
            # Whatever happened here, the others may still be writing.
            for worker in workers:
                worker.finished.get()
            self._under_way = False
        for worker in workers:
            if worker.error is not None:
                raise worker.error
        return [mine, *(worker.result for worker in workers)]


_team = _Team()


def _renew_team() -> None:
    global _team
    _team = _Team()


if os.name == "posix":
    # A forked process inherits the team but none of its threads.
    os.register_at_fork(after_in_child=_renew_team)


def share(work: Callable[[int], T], threads: int) -> list[T]:
    """`[work(0), ..., work(threads - 1)]`, at the same time; the caller's own thread does the first.

    What a piece raises is raised here, after all have ended; but Ctrl-C may come before the others have.
    """
    return _team.share(work, threads)


def part(count: int, number: int, threads: int) -> tuple[int, int]:
    """The range [first, last) of `count` things that thread `number` of `threads` has."""
    return count * number // threads, count * (number + 1) // threads
