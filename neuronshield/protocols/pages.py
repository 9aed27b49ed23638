"""The folder of a comparison of protocols: the result as JSON, and a page and a table that show it."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from ..core.folders import replacing_folder
from .comparison import ModalityProtocol

__all__ = ["FILES", "write_folder"]

#: What is written.
FILES = ("protocol.json", "protocol.html", "protocol.md")


def write_folder(found: ModalityProtocol, path: str | os.PathLike[str]) -> Path:
    """Path of the folder that the result, a page with its figure, and a Markdown table were written to.

    Args:
        found: the result.
        path: the folder: missing, empty, or one that this function wrote and nobody changed.

    Raises:
        InputError: a folder that holds anything else, or that cannot be written; nothing in it is touched.
    """

    def write(folder: Path) -> None:
        found.save(folder / FILES[0])
        (folder / FILES[1]).write_text(_page(found), encoding="utf-8")
        (folder / FILES[2]).write_text(found.to_markdown(), encoding="utf-8")

    return replacing_folder(path, write)


def _page(found: ModalityProtocol) -> str:
    title = f"Protocols: {' and '.join(found.modalities)}"
    figure = found.figure().to_html(include_plotlyjs=True, full_html=False)
    style = (
        "body{font-family:system-ui,sans-serif;margin:2em;color:#1b2733}table{border-collapse:collapse;font-size:.85em}"
        "th,td{padding:.2em .5em;border-bottom:1px solid #e3e8ed;text-align:right}"
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style></head>'
        f"<body><h1>{escape(title)}</h1>{found._repr_html_()}{figure}</body></html>\n"
    )
