"""Shares the rows of an array among threads; the kernels release Python's lock, so threads are enough."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# Threads are started when first needed and then kept: starting one costs as much as a thousand rows.
_POOL = ThreadPoolExecutor(thread_name_prefix="nfc-gs-rows")


def split(kernel: Callable[..., None], rows: int, threads: int, *arguments: object) -> None:
    """Calls `kernel(first, last, *arguments)` on `threads` runs of consecutive rows, which cover 0 .. `rows`.

    A kernel must write only what belongs to its own rows; then the result is the same for every number of threads.
    """
    threads = max(1, min(threads, rows))
    bounds = [rows * i // threads for i in range(threads + 1)]
    others = [_POOL.submit(kernel, bounds[i], bounds[i + 1], *arguments) for i in range(1, threads)]
    kernel(bounds[0], bounds[1], *arguments)
    for other in others:
        other.result()
