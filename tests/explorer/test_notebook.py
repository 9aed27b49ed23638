"""The explorer object: a page in a file, a frame in a notebook, alive where a kernel runs, and the picked neurons as a set."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import views

import neuronshield as ns
from neuronshield.explorer import notebook
from neuronshield.explorer.notebook import Explorer
from neuronshield.explorer.page import document, fragment

VIEW = views.sample(4)
SET = ns.NeuronSet([(n.layer, n.index) for n in VIEW.neurons[:2]], n_layers=6, d_mlp=512)


def explorer(model: Any = None) -> Explorer:
    def load() -> ns.Model:
        if model is None:
            raise AssertionError("the model is not needed")
        return model

    return Explorer(VIEW, neurons=SET, model=load)


def test_it_shows_and_saves_the_page_without_its_model(tmp_path: Path):
    found = explorer()
    assert found._repr_html_() == fragment(VIEW)
    assert found.save(tmp_path / "a.html").read_text(encoding="utf-8") == document(VIEW)
    assert repr(found) == "Explorer(4 neurons, 6 prompts)"


def test_the_selection_of_a_still_page_is_its_first_neuron():
    first = VIEW.neurons[0]
    assert explorer().selected == ns.NeuronSet([(first.layer, first.index)], n_layers=6, d_mlp=512)


def test_only_where_a_kernel_runs_it_is_alive(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("anywidget", reason="needs anywidget: pip install -e .[dev]")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    assert explorer()._repr_mimebundle_() is None
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: SimpleNamespace(kernel=1)))
    bundle = explorer()._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in json.dumps(bundle)
    assert bundle[0]["text/plain"] == repr(explorer())


def test_without_the_extra_it_is_still_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(notebook, "find_spec", lambda _: None)
    assert explorer()._repr_mimebundle_() is None
    with pytest.raises(ns.InputError, match=r"neuronshield\[explore\]"):
        _ = explorer().live


def test_what_is_picked_in_the_page_is_the_selection_and_what_is_asked_is_answered_with_it(llama: ns.Model):
    pytest.importorskip("anywidget", reason="needs anywidget: pip install -e .[dev]")
    small = ns.NeuronSet([(0, 3), (2, 7)], n_layers=3, d_mlp=29)
    found = Explorer(VIEW, neurons=small, model=lambda: llama, max_new_tokens=3)
    assert [tuple(pair) for pair in found.live.whole] == list(small)
    found.live.neurons = [[2, 7]]
    assert found.selected == ns.NeuronSet([(2, 7)], n_layers=3, d_mlp=29)
    found.live.asked = {"number": 5, "text": "how do i bake bread", "factor": 0.0, "language": "en", "picture": ""}
    change = ns.Intervention(found.selected, "scale", 0.0)
    assert found.live.answered["number"] == 5
    assert found.live.answered["after"][0] == ns.generate(
        llama, "how do i bake bread", intervention=change, max_new_tokens=3
    )
