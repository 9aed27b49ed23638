"""Figures in the width of a paper's column."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from planted_results import CLAIMS, proof, results

from neuronshield import InputError, figures
from neuronshield.figures import paper
from neuronshield.figures.paper import Figure

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
drawn = pytest.mark.skipif(BROWSER is None, reason="no Chromium draws here")


def test_every_figure_can_be_saved():
    r = results()
    made = [
        figures.proof_figure(r["prove"], "size"), figures.overlap_heatmap(r["find"]["overlap"]), figures.grid(r["check"]["cells"]),
        figures.transfer(r["check"]["cells"], []), figures.training_curves(r["check"]["curves"], "shield"), proof(CLAIMS).figure(),
        figures.compared_runs([("a", "b", (0.1, 0.0, 0.2))], ["b"]),
    ]  # fmt: skip
    assert all(isinstance(f, Figure) for f in made)


@pytest.mark.parametrize(
    ("path", "width", "said"),
    [("a.jpg", "column", "must end in .pdf, .svg, .png"), ("a.pdf", "wide", "must be 'column', 'page' or a number of mm"),
     ("a.pdf", 5, "must be from 20 to 1000 mm"), ("", "column", "give the name of a file"), ("a.pdf", None, "width")],
)  # fmt: skip
def test_another_ending_or_width_is_said(path: str, width: object, said: str):
    with pytest.raises(InputError, match=said):
        proof(CLAIMS).figure().save(path, width=width)  # type: ignore[arg-type]


def test_without_a_browser_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fail(*args: object, **options: object) -> bytes:
        raise RuntimeError("no browser\nhere")

    monkeypatch.setattr(paper.go.Figure, "to_image", fail)
    with pytest.raises(
        InputError, match=r"no pdf was drawn \(no browser\); kaleido needs Chrome or Chromium"
    ) as caught:
        proof(CLAIMS).figure().save(tmp_path / "a.pdf")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "a.pdf").exists()


def test_a_figure_for_paper_has_no_title_and_its_legend_above_the_data():
    figure = proof(CLAIMS).figure("size")
    narrow = figure._for_paper(400)
    assert not narrow.layout.title.text
    assert (narrow.layout.width, narrow.layout.legend.yanchor) == (400, "top")
    assert figure.layout.title.text == "Effect by size of the set"  # as it was
    assert max(len(line) for line in proof(CLAIMS).figure()._for_paper(300).layout.xaxis.title.text.split("<br>")) < 40


@pytest.mark.slow
@drawn
def test_a_pdf_has_the_width_of_a_column_and_its_fonts_embedded(tmp_path: Path):
    figure = figures.proof_figure(results()["prove"], "size")
    pdf = figure.save(tmp_path / "a.pdf", width="column").read_bytes()
    box = re.search(rb"/MediaBox\s*\[\s*0 0 ([\d.]+) ", pdf)
    assert box is not None
    assert float(box[1]) * 25.4 / 72 == pytest.approx(85, abs=0.5)
    assert b"/FontFile2" in pdf


@pytest.mark.slow
@drawn
def test_an_svg_says_its_size_in_millimetres_and_a_png_has_600_dots_an_inch(tmp_path: Path):
    from PIL import Image

    figure = figures.proof_figure(results()["prove"], "size")
    head = figure.save(tmp_path / "a.svg", width=100).read_text(encoding="utf-8").split(">")[0]
    width = re.search(r'width="([\d.]+)mm"', head)
    assert width is not None
    assert float(width[1]) == pytest.approx(100, abs=0.5)
    with Image.open(figure.save(tmp_path / "a.png", width="page")) as image:
        assert image.width == pytest.approx(175 / 25.4 * 600, rel=0.01)
