"""The error for bad input.

Everything that can be wrong with what was given (a file, a column, a layer, a name) is raised as `InputError` with a
single line: what is wrong, where, and what to do. The command line prints that line and exits with status 2. Any other
exception is a defect of neuronshield.
"""

from __future__ import annotations

import errno
import re

__all__ = ["InputError", "out_of_memory"]

TOO_LITTLE = re.compile(r"out of memory|can't allocate memory|not enough memory|bad_?alloc|ALLOC_FAILED", re.IGNORECASE)


class InputError(ValueError):
    """Bad input, in one line: what, where, what to do.

    >>> raise InputError("prompts.jsonl:7: label 'bad': use 'harmful' or 'benign'")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: prompts.jsonl:7: label 'bad': use 'harmful' or 'benign'

    Args:
        message: the line; line breaks in it become spaces, halves of surrogate pairs are escaped.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.encode("utf-8", "backslashreplace").decode().split()))


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device: PyTorch raises a type of its own or a plain `RuntimeError`.

    >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("CUDA error: out of memory")), out_of_memory(KeyError("a"))
    (True, True, False)

    Args:
        error: what was raised.
    """
    if isinstance(error, MemoryError) or any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and TOO_LITTLE.search(str(error)) is not None
