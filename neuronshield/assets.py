"""Where the files that ship with the package are: inside an installed wheel, or at the root of a checkout."""

from __future__ import annotations

from pathlib import Path

__all__ = ["assets"]


def assets() -> Path:
    """The folder of shipped files.

    >>> (assets() / "prompts" / "benign-en.txt").exists()
    True
    """
    package = Path(__file__).resolve().parent
    inside = package / "assets"
    return inside if inside.is_dir() else package.parent / "assets"
