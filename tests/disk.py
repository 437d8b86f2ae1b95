"""A disk that takes no more."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def full_beyond(most: int) -> Iterator[None]:
    """The system itself refuses to let any file grow beyond so many bytes; whoever goes on writing gets an OSError.

    What compiles kernels must have done so before: their cache would be refused, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
