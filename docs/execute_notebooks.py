"""Runs notebooks and keeps their outputs, figures as pictures too: python docs/execute_notebooks.py [NAME ...]

An explorer, which is HTML with a script, is kept as a picture only: code hosts drop scripts, and who runs the notebook sees it alive. The
metadata of its cell may say what the picture shows, as {"explorer": {"cells": ["en/text"], "height": 860}}; see `explorer_pictures.picture`.

Needs the `dev` extra and a Chromium on the PATH, which BROWSER_PATH names.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import tempfile
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import nbformat
from explorer_pictures import picture
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

WIDGET = "application/vnd.jupyter.widget-view+json"
#: An explorer in a notebook: its title, and the page inside.
EXPLORER = re.compile(r"<iframe title=\"([^\"]*)\" sandbox=\"allow-scripts\"[^>]*srcdoc='([^']*)'", re.S)
#: Run by the kernel before a notebook: how large the pictures of figures are.
STARTUP = "import plotly.io\nplotly.io.defaults.default_width, plotly.io.defaults.default_scale = 1050, 1.25\n"


def execute(path: Path) -> None:
    """Run one notebook and write it back without what only this machine knows."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=1800, kernel_name="python3", resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if not of_this_machine(o)]
            for output in cell.outputs:
                photograph(output, cell.metadata.get("explorer", {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.write(notebook, path)


def of_this_machine(output: Any) -> bool:
    """Whether an output is a warning or a progress bar."""
    data = output.get("data", {})
    return output.get("name") == "stderr" or (WIDGET in data and "text/html" not in data)


def photograph(output: Any, shown: dict[str, Any]) -> None:
    """Put a picture in the place of an explorer."""
    found = EXPLORER.search("".join(output.get("data", {}).get("text/html", "")))
    if found:
        png = picture(html.unescape(found[2]), **shown)
        output.data = {"image/png": b64encode(png).decode(), "text/plain": f"Explorer: {html.unescape(found[1])}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb")))
    names = parser.parse_args().names
    with tempfile.TemporaryDirectory() as folder:
        startup = Path(folder) / "profile_default" / "startup"
        startup.mkdir(parents=True)
        (startup / "pictures.py").write_text(STARTUP, encoding="utf-8")
        os.environ.update(IPYTHONDIR=folder, PLOTLY_RENDERER="plotly_mimetype+png")
        for name in names:
            start = time.perf_counter()
            execute(NOTEBOOKS / f"{name}.ipynb")
            print(f"{name}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
