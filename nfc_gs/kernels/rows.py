"""Shares the rows of an array among threads."""

from collections.abc import Callable

from nfc_gs.kernels.threads import part, share


def split(kernel: Callable[..., None], rows: int, threads: int, *arguments: object) -> None:
    """Calls `kernel(first, last, *arguments)` on `threads` runs of consecutive rows, which cover 0 .. `rows`.

    A kernel must write only what belongs to its own rows; then the result is the same for every number of threads.
    """
    threads = max(1, min(threads, rows))
    share(lambda number: kernel(*part(rows, number, threads), *arguments), threads)
