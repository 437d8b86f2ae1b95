"""Runs a piece of work on several threads; the kernels release Python's lock, so threads are enough."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="nfc_gs")


# Kept from call to call: starting threads would cost as much as drawing a small picture.
_workers = _pool()


def _renew_workers() -> None:
    global _workers
    _workers = _pool()


if os.name == "posix":
    # A forked process inherits the pool but none of its threads.
    os.register_at_fork(after_in_child=_renew_workers)


def share(work: Callable[[int], T], threads: int) -> list[T]:
    """`[work(0), ..., work(threads - 1)]`, at the same time; the caller's own thread does the first."""
    if threads == 1:
        return [work(0)]
    others = [_workers.submit(work, number) for number in range(1, threads)]
    return [work(0), *(other.result() for other in others)]


def part(count: int, number: int, threads: int) -> tuple[int, int]:
    """The range [first, last) of `count` things that thread `number` of `threads` has."""
    return count * number // threads, count * (number + 1) // threads
