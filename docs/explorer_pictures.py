"""Pictures of the explorer for docs/explore.md: python docs/explorer_pictures.py neuronshield-out [--smollm2 PAGE]

The neurons are those of benchmarks/results/explore.json, the pages what `ns.explore("neuronshield-out")` and `benchmarks/explore.py --smollm2 PAGE`
save. Needs Playwright (in the `dev` extra) and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import FloatRect, Page, sync_playwright

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "benchmarks" / "results"
WIDTH = 1050  # CSS pixels
#: What is shown of the neurons of explore.json.
SHOWN: tuple[dict[str, Any], ...] = (
    {"cells": ["en/text"], "height": 900},
    {"cells": ["it/text"], "condition": "set ablated", "height": 900},
    {"cells": ["en/image"], "height": 1060},
)
#: Clicks a cell of the grid of languages and modalities.
PICK = """([language, modality]) => {
  const { rows } = document.querySelector("table.grid");
  const column = [...rows[0].cells].findIndex((c) => c.textContent === language);
  [...rows].find((r) => r.cells[0].textContent === modality).cells[column].querySelector("button").click();
}"""


def picture(
    html: str,
    *,
    neuron: tuple[int, int] | None = None,
    cells: Sequence[str] = (),
    condition: str = "",
    height: int = 860,
) -> bytes:
    """An explorer as a PNG.

    Args:
        html: the page.
        neuron: the one that is shown; the first of the list without it.
        cells: whose prompts are shown, such as "en/image"; the first one without any. The prompts of further ones are put below.
        condition: whose answers are shown, such as "set ablated"; "" for those of the model as it is.
        height: in CSS pixels, of the page and of what is put below.
    """
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": height})
        page.set_content(html)
        page.wait_for_selector(".explorer h2")
        if neuron is not None:
            page.evaluate("neuron => view.select([neuron])", list(neuron))
        if condition:
            page.locator(f'input[type="radio"][value="{condition}"]').check()
        shots = []
        for i, cell in enumerate(cells or [""]):
            if cell:
                page.evaluate(PICK, cell.split("/"))
            page.evaluate("document.activeElement.blur()")
            page.wait_for_timeout(400)
            shots.append(page.screenshot(clip=below(page, height) if i else None))
        browser.close()
    return stacked([Image.open(io.BytesIO(shot)).convert("RGB") for shot in shots])


def below(page: Page, height: int) -> FloatRect:
    """Where the prompts are, from their heading to the end of the last answer that fits."""
    page.set_viewport_size({"width": WIDTH, "height": 2 * height})
    page.wait_for_timeout(200)
    top = page.locator(".controls").bounding_box()
    ends = [box for pair in page.locator(".pair").all() if (box := pair.bounding_box())]
    assert top is not None
    fits = [e["y"] + e["height"] for e in ends if e["y"] + e["height"] < top["y"] + height]
    left = top["x"] - 16
    return {
        "x": left,
        "y": top["y"] - 8,
        "width": WIDTH - left,
        "height": max([*fits, top["y"] + 400]) - top["y"] + 20,
    }


def stacked(parts: Sequence[Image.Image]) -> bytes:
    """Pictures one above the other, those after the first at the right edge, as a PNG of 256 colours."""
    whole = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), parts[0].getpixel((0, parts[0].height - 1)))
    top = 0
    for part in parts:
        whole.paste(part, (WIDTH - part.width, top))
        top += part.height
    out = io.BytesIO()
    few = whole.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    few.save(out, "png", optimize=True)
    return out.getvalue()


def chromium() -> str:
    """The browser."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("needs Chromium on the PATH (Debian: apt-get install chromium)")
    return found


def main() -> None:
    import neuronshield as ns

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run of the organism")
    parser.add_argument("--smollm2", type=Path, metavar="PAGE", help="the page that benchmarks/explore.py wrote")
    args = parser.parse_args()
    page = args.run.with_name(f"{args.run.name}-explorer.html")
    html = ns.explore(args.run, progress=False).save(page).read_text(encoding="utf-8")
    page.unlink()
    rows = json.loads((RESULTS / "explore.json").read_text(encoding="utf-8"))["rows"]
    for i, (row, shown) in enumerate(zip(rows, SHOWN, strict=True), 1):
        layer, index = (int(n) for n in re.findall(r"\d+", row["neuron"]))
        keep(f"explorer-{i}.png", picture(html, neuron=(layer, index), **shown))
    if args.smollm2 is not None:
        keep("explorer-smollm2.png", picture(args.smollm2.read_text(encoding="utf-8")))


def keep(name: str, content: bytes) -> None:
    """Write a picture and say how large it is."""
    (DOCS / "assets" / name).write_bytes(content)
    print(f"docs/assets/{name}: {len(content) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
