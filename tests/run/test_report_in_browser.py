"""The report in a browser: on a desktop, on a phone, in print; nothing leaves the page."""

from __future__ import annotations

import csv
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from planted_results import results

from neuronshield.run.answer_files import COLUMNS
from neuronshield.run.folder import write_results
from neuronshield.run.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")]
sync_api = pytest.importorskip("playwright.sync_api")


def write_answers(folder: Path) -> None:
    rows = [
        (condition, None, f"{label}-{modality}", "ar", modality, label, "r", "كيف أخبز الخبز؟ " + "long" * 40, f"{condition} says",
         "refused" if label == "harmful" else "complied", True, None, False, None, None, "words")
        for condition in ("no update", "shield", "plain LoRA") for modality in ("text", "image") for label in ("harmful", "benign")
    ]  # fmt: skip
    pd.DataFrame(rows, columns=list(COLUMNS)).astype({"steps": "Int64"}).to_parquet(folder / "answers.parquet")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    write_results(folder, results())
    write_answers(folder)
    return write_report(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser: Any, report: Path) -> Iterator[Any]:
    """The report at the size of a desktop; any other request, and any error of its script, fails."""
    shown = browser.new_page(viewport={"width": 1280, "height": 900})
    asked: list[str] = []
    shown.on("request", lambda request: asked.append(request.url))
    shown.on("pageerror", lambda error: asked.append(str(error)))
    shown.goto(report.as_uri())
    yield shown
    shown.close()
    assert [a for a in asked if not a.startswith(("data:", "blob:"))] == [report.as_uri()]


def test_a_phone_shows_the_page_without_moving_it_sideways(page: Any):
    for width in (390, 820, 1280):
        page.set_viewport_size({"width": width, "height": 844})
        page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_answers_are_filtered_by_condition_cell_label_and_outcome(page: Any):
    def shown() -> tuple[int, str]:
        return page.locator(".said li:visible").count(), page.locator(".filters output").inner_text()

    assert shown() == (12, "12 answers shown")
    page.select_option("[data-filter=condition]", "shield")
    assert shown() == (4, "4 answers shown")
    page.select_option("[data-filter=cell]", "ar/image")
    page.select_option("[data-filter=label]", "benign")
    assert shown() == (1, "1 answer shown")
    page.select_option("[data-filter=outcome]", "refused")
    assert shown() == (0, "0 answers shown")


def test_the_switch_hides_what_is_harmful_and_only_that(page: Any):
    def colour(label: str) -> str:
        return str(
            page.locator(f"[data-label={label}] .words p").first.evaluate(
                "e => getComputedStyle(e.parentElement).color"
            )
        )

    before = colour("benign")
    page.check("#redact")
    assert colour("harmful") == "rgba(0, 0, 0, 0)"
    assert colour("benign") == before


def test_a_definition_is_shown_on_focus_and_on_hover_and_goes_away(page: Any):
    term = page.locator(".term", has_text="refusal margin").first
    term.focus()
    assert "refusal prefixes minus that of compliance" in page.locator("#tip").inner_text()
    page.keyboard.press("Escape")
    assert not page.locator("#tip").is_visible()
    page.locator("main h1").hover()
    term.hover()
    assert page.locator("#tip").is_visible()
    page.mouse.move(5, 5)
    assert not page.locator("#tip").is_visible()


def test_a_figure_is_saved_as_png_svg_and_csv(page: Any, tmp_path: Path):
    saved = {}
    for kind in ("png", "svg", "csv"):
        with page.expect_download() as waiting:
            page.click(f"#figure-claims-margin [data-save={kind}]")
        assert waiting.value.suggested_filename == f"figure-claims-margin.{kind}"
        saved[kind] = tmp_path / kind
        waiting.value.save_as(saved[kind])
    with Image.open(saved["png"]) as image:
        assert image.width == 3 * 700
        assert image.convert("RGB").getpixel((1, 1)) == (255, 255, 255)  # light, whatever the page's theme
        assert len(image.convert("RGB").getcolors(maxcolors=100_000) or []) > 50
    assert "var(--s0," in saved["svg"].read_text(encoding="utf-8")
    rows = list(csv.reader(io.StringIO(saved["csv"].read_text(encoding="utf-8"))))
    assert rows[:2] == [["set", "number", "necessity: zero", "necessity: mean"], ["the set", "value", "0.61", "0.08"]]


def test_print_has_every_figure_and_folds_nothing(page: Any):
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    figures = page.locator("svg.fig")
    assert figures.count() == len(page.locator("figure").all()) > 10
    for figure in figures.all():
        assert figure.is_visible()
        assert figure.bounding_box()["height"] > 50
    assert page.locator(".tools:visible, nav:visible, .filters:visible").count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('.scroll')].every((e) => getComputedStyle(e).overflowX === 'visible')"
    )
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert len(re.findall(rb"/Type\s*/Page[^s]", page.pdf(format="A4"))) > 3


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(page: Any, scheme: str):
    axe = pytest.importorskip("axe_playwright_python")
    page.emulate_media(color_scheme=scheme)
    page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    page.evaluate((Path(axe.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run().then((r) => r.violations.map((v) => [v.id, v.nodes[0].html]))")
    assert found == []
