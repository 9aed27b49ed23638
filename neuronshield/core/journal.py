"""Journal: results of finished units of work, kept so that an interrupted computation goes on where it stopped.

A journal is a folder with one file for each finished unit. The file is named by the unit's key, a hash of everything that
decides the result. It holds arrays and a description, with a checksum (`core.results.save_arrays`), and is written beside its
place and renamed. A process that is killed loses the unit in hand, and no file is ever half-written.

A file that is damaged, or that holds the result of another unit, is not used: a warning names it, and the unit is done again.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import InputError
from .files import as_path
from .results import load_arrays, save_arrays

__all__ = ["Journal", "Result"]

FORMAT = "neuronshield.Unit/1"
ENDING = ".safetensors"
#: Result of a unit: arrays by name, and whatever else JSON can hold.
Result = tuple[dict[str, np.ndarray], Any]

logger = logging.getLogger("neuronshield")


@dataclass(frozen=True)
class Journal:
    """Finished units in a folder, which is made when the first one is written.

    >>> journal = Journal("journal")
    >>> journal.get("0a1b") is None
    True
    >>> _ = journal.put("0a1b", {"mean": np.ones(3)}, about={"tokens": 7})
    >>> journal.get("0a1b"), len(journal)
    (({'mean': array([1., 1., 1.])}, {'tokens': 7}), 1)

    Args:
        folder: where the files are; those of one journal are read by any computation that has the same units.

    Raises:
        InputError: `folder` is no path.
    """

    folder: str | os.PathLike[str]

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", as_path(self.folder, call="Journal(folder)"))

    def path(self, key: str) -> Path:
        """The file of a unit.

        >>> Journal("journal").path("0a1b").as_posix()
        'journal/0a/0a1b.safetensors'

        Args:
            key: of the unit.
        """
        return Path(self.folder) / key[:2] / f"{key}{ENDING}"

    def get(self, key: str) -> Result | None:
        """The result of a unit; None if it is not there, or its file cannot be used (which is logged).

        Args:
            key: of the unit.
        """
        path = self.path(key)
        if not path.is_file():
            return None
        try:
            arrays, about = load_arrays(path, FORMAT)
            if not isinstance(about, Mapping) or about.get("key") != key:
                raise InputError(f"{path}: is the result of another unit")
        except InputError as error:
            logger.warning("%s; this unit is done again", error)
            return None
        return arrays, about.get("about")

    def put(self, key: str, arrays: Mapping[str, np.ndarray], about: Any) -> Path:
        """The path of the file that a unit's result was written to.

        Args:
            key: of the unit.
            arrays: by name.
            about: what else the result is, as JSON can hold it; numbers that are not finite go into an array.

        Raises:
            InputError: the file cannot be written.
        """
        return save_arrays(self.path(key), FORMAT, arrays=arrays, about={"key": key, "about": about})

    def __iter__(self) -> Iterator[str]:
        """Keys of the units that have a file."""
        return (path.stem for path in sorted(Path(self.folder).glob(f"??/*{ENDING}")))

    def __len__(self) -> int:
        return sum(1 for _ in self)
