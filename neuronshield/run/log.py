"""run.log: what a run logged."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["logged"]

logger = logging.getLogger("neuronshield")


class _Log(logging.FileHandler):
    """A log that goes silent where the disk is full, which is told where results are written."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Say nothing."""


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """A context in which what is logged is appended to a file, from level INFO on.

    >>> with logged(Path("run.log")):
    ...     logging.getLogger("neuronshield").info("find")
    >>> Path("run.log").read_text().split()[2:]
    ['INFO', 'find']

    Args:
        path: the file; it is made with the first line.
    """
    handler = _Log(path, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level or logging.INFO, logging.INFO))
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        with suppress(OSError):
            handler.close()
