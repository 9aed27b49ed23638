"""Runs notebooks and keeps their outputs, figures as pictures too: python docs/execute_notebooks.py [NAME ...]

Needs nbclient (in the `dev` extra), kaleido (`pip install kaleido`) and a Chromium, which BROWSER_PATH names.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"

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
        if cell.cell_type == "code":  # progress bars and warnings of this machine
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    notebook.metadata = nbformat.from_dict({"kernelspec": kernel, "language_info": {"name": "python"}})
    nbformat.write(notebook, path)


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
