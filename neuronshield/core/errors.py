"""The one error a user of neuronshield should ever have to read.

Everything that can be wrong with what came in (a file, a column, a layer, a name) is raised as
`InputError` with a single line that says what is wrong, where, and what to do about it. The command
line prints that line and exits with status 2; anything else that is raised is a bug of ours.
"""

from __future__ import annotations

__all__ = ["InputError"]


class InputError(ValueError):
    """Bad input, said in one line: what, where, what to do.

    >>> raise InputError("prompts.jsonl:7: label 'bad': use 'harmful' or 'benign'")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: prompts.jsonl:7: label 'bad': use 'harmful' or 'benign'
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
