"""The error for bad input.

Everything that can be wrong with what was given (a file, a column, a layer, a name) is raised as `InputError` with a
single line: what is wrong, where, and what to do. The command line prints that line and exits with status 2. Any other
exception is a defect of neuronshield.
"""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input, in one line: what, where, what to do.

    >>> raise InputError("prompts.jsonl:7: label 'bad': use 'harmful' or 'benign'")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: prompts.jsonl:7: label 'bad': use 'harmful' or 'benign'

    Args:
        message: the line; line breaks in it become spaces.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
