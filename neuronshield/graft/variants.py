"""The names under which `ns.load` knows the graft, and where its files are."""

from __future__ import annotations

from pathlib import Path

from ..core.files import shipped

__all__ = ["NAMES", "SOURCE", "folder"]

#: What `source` says of its prompts.
SOURCE = "smollm2-vision"

#: What projects the tower's features, and whether the safety tuning is merged in.
NAMES: dict[str, tuple[str, bool]] = {
    "smollm2-vision": ("regressed", True),
    "smollm2-vision-captioned": ("captioned", True),
    "smollm2-vision-untuned": ("regressed", False),
}


def folder() -> Path:
    """The folder of the graft's files: inside an installed package, or at the root of a checkout.

    >>> folder().name
    'smollm2-vision'
    """
    return shipped() / "smollm2-vision"
