"""The result shows itself, is saved and read back, and holds no markup of prompts or models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import neuronshield as ns
from neuronshield.core.statistics import Interval
from neuronshield.protocols.comparison import ModalityProtocol
from neuronshield.protocols.pages import write_folder
from neuronshield.protocols.tables import (
    Answered,
    Directional,
    DirectionPoint,
    Effect,
    FoundSet,
    Outcome,
    Overlapped,
    Round,
    Side,
    Spread,
)

NAN, ALL = float("nan"), Interval(1.0, 0.5, float("inf"))
FALL = Interval(0.5, 0.25, 0.75)


@pytest.fixture
def found() -> ModalityProtocol:
    sides = tuple(
        Side(m, (f"en/{m}",), 20, 18, 20, 20, n_confirm=20, n_test=20, n_requests=20, difference=ALL, refused=FALL)
        for m in ("text", "image")
    )
    told = Answered(FALL, Interval(1.0, 0.8, 1.0), FALL, control=FALL, n=20)
    effects = tuple(
        Effect("text", target, 2, 20, margin=ALL, mass=FALL, controls={"random": Spread(0, -1, 1, 19)}, p={"random": 0.05},
               answers=answers, verdict="passed")
        for target, answers in (("text", told), ("image", None))
    )  # fmt: skip
    overlap = Overlapped(0.0, NAN, 0.1, 0.6, NAN, selected="candidates")
    outcome = Outcome(
        "behavioural", "gate", (FoundSet("text", ((0, 3), (1, 5))), FoundSet("image", ())), overlap,
        rounds=(Round("text", 1, 4, 2, 300, 7.5),), effects=effects, verdict="shared, transfers", reason="<b>because</b>",
    )  # fmt: skip
    point = DirectionPoint("text", "image", 1, 2, margin=ALL, mass=FALL, random=Spread(0, -1, 1, 19), p=0.05)
    directions = Directional((point,), {"text": 2, "image": None}, 0.9, "none found", "nothing")
    return ModalityProtocol(
        ("text", "image"), sides, (outcome,), directions, 2, margins=7, answers=3, provenance={"model": "<i>m"}
    )


def test_a_saved_result_is_read_back(found: ModalityProtocol, tmp_path: Path):
    again = ModalityProtocol.load(found.save(tmp_path / "protocol.json"))
    assert again == found
    assert again.outcomes[0].sets == found.outcomes[0].sets
    assert again.directions.needed == {"text": 2, "image": None}
    assert again != replace(found, margins=8)


def test_a_file_of_another_kind_is_refused(tmp_path: Path):
    path = tmp_path / "x.json"
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ns.InputError, match=r"not a file of neuronshield\.ModalityProtocol/1"):
        ModalityProtocol.load(path)


def test_a_row_has_the_falls_and_the_references(found: ModalityProtocol):
    frame = found.to_frame()
    assert frame[["source", "target", "neurons"]].to_numpy().tolist() == [["text", "text", 2], ["text", "image", 2]]
    assert frame.loc[0, "ratio"] == 0.5
    assert frame.loc[0, "control"] == 1
    assert frame["protocol"].unique().tolist() == ["behavioural (gate)"]
    assert found.rounds().loc[0, "confirmed"] == 2


def test_neurons_say_their_site_and_where_they_are_from(found: ModalityProtocol):
    neurons = found.neurons("behavioural", "text", site="gate")
    assert (list(neurons), neurons.site) == ([(0, 3), (1, 5)], "gate")
    assert neurons.provenance["method"] == "behavioural"
    with pytest.raises(ns.InputError, match="did you mean 'behavioural'"):
        found.outcome("behavioral")


def test_nothing_from_outside_is_markup(found: ModalityProtocol, tmp_path: Path):
    assert "<b>because" not in found._repr_html_()
    assert "&lt;b&gt;because" in found._repr_html_()
    folder = write_folder(found, tmp_path / "out")
    assert {p.name for p in folder.iterdir()} == {"protocol.json", "protocol.html", "protocol.md", "neuronshield.json"}
    assert "<b>because" not in (folder / "protocol.html").read_text(encoding="utf-8")
    write_folder(found, folder)  # an earlier result is replaced
    (folder / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ns.InputError, match=r"mine\.txt"):
        write_folder(found, folder)


def test_the_figure_has_a_point_for_every_effect_and_direction(found: ModalityProtocol):
    traces = {trace.name: trace for trace in found.figure().data if trace.name}
    assert len(traces["in text"].x) == len(traces["in image"].x) == 1
    assert traces["in text"].x[0] == 1.0
    with pytest.raises(ns.InputError, match="'modalities' is missing"):
        ns.figures.protocol_effects({})


def test_the_representation_fits_a_line(found: ModalityProtocol):
    assert (
        repr(found) == "ModalityProtocol(text and image; behavioural (gate): shared, transfers; directions: none found)"
    )
    assert "20 test requests" in str(found)
