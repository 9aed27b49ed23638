"""What mkdocs needs beside the pages: the notebooks as pages with their committed outputs, and the pictures in assets/."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
STYLE = re.compile(r"<(style|script)\b.*?</\1>", re.S)
LOOK = re.compile(r"""(<(?:table|tr|td|th)\b[^>]*?) (?:class|border|style)=["'][^"']*["']""")
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def on_files(files: Files, config: Any) -> Files:
    """Add the notebooks and the pictures to the site."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        page, pictures = notebook_page(path)
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page))
        for name, content in pictures.items():
            files.append(File.generated(config, f"notebooks/{name}", content=content))
    for path in sorted((ROOT / "assets").glob("*.png")):
        files.append(File.generated(config, f"assets/{path.name}", abs_src_path=str(path)))
    return files


def notebook_page(path: Path) -> tuple[str, dict[str, bytes]]:
    """A notebook as Markdown, and its pictures by name."""
    parts: list[str] = []
    pictures: dict[str, bytes] = {}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            parts.append(output_part(output, path.stem, pictures))
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def output_part(output: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> str:
    """One output as Markdown: a picture where there is one, else a table, else text."""
    data = output.get("data", {})
    if "image/png" in data:
        name = f"{stem}-{len(pictures) + 1}.png"
        pictures[name] = base64.b64decode("".join(data["image/png"]))
        return f'<div class="notebook-output" markdown>\n\n![Output of the cell above]({name})\n\n</div>'
    if "text/html" in data:
        html = STYLE.sub("", "".join(data["text/html"])).strip()
        while LOOK.search(html):
            html = LOOK.sub(r"\1", html)
        html = "\n".join(line for line in html.splitlines() if line.strip())
        return f'<div class="notebook-output">\n{html}\n</div>'
    text = "".join(output.get("text", data.get("text/plain", "")))
    if not text.strip() or output.get("name") == "stderr":
        return ""
    return f"```text\n{ANSI.sub('', text).rstrip()}\n```"
