"""The global random state of the process, which belongs to the user: libraries that seed it are run inside `random_state_kept`."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

__all__ = ["random_state_kept"]


@contextmanager
def random_state_kept() -> Iterator[None]:
    """A context after which the global random states of Python, numpy and torch are what they were.

    >>> before = torch.get_rng_state()
    >>> with random_state_kept():
    ...     _ = torch.manual_seed(5)
    >>> torch.equal(torch.get_rng_state(), before)
    True
    """
    import torch

    python, numpys = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
