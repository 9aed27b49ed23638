"""The live page: in plain Chromium against a fake kernel, and in JupyterLab against a kernel that runs the organism."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import browser as chrome
import pytest
import tiny
import views

import neuronshield as ns
from neuronshield.explorer.notebook import Explorer
from neuronshield.explorer.trial import own_prompt, tried

pytest.importorskip("anywidget", reason="needs anywidget: pip install -e .[dev]")

VIEW = views.sample(7, 3, ("en", "zh", "ar", "sw"))
SET = ns.NeuronSet([(n.layer, n.index) for n in VIEW.neurons[:3]], n_layers=6, d_mlp=512)
SHARED = ("data", "whole", "pictures", "neurons", "asked", "answered")
#: What anywidget gives a page: values that are read, set, watched, and sent to Python.
KERNEL = """
const watched = {}, sent = [];
window.sent = sent;
window.kernel = {
  get: (name) => state[name],
  set: (name, value) => { state[name] = value; (watched["change:" + name] || []).forEach((f) => f()); },
  on: (event, f) => (watched[event] = watched[event] || []).push(f),
  off: (event, f) => (watched[event] = (watched[event] || []).filter((g) => g !== f)),
  save_changes: () => sent.push(JSON.parse(JSON.stringify({ neurons: state.neurons, asked: state.asked }))),
};
"""


def page() -> str:
    """The widget's module and style in a page with a fake kernel."""
    live = Explorer(VIEW, neurons=SET, model=lambda: None).live  # type: ignore[arg-type,return-value]
    state = json.dumps({name: getattr(live, name) for name in SHARED}).replace("<", "\\u003c")
    module = str(live._esm).replace("export default { render };", "window.render = render;")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cell</title><style>{live._css}</style></head>'
        f'<body><main><h1>A notebook</h1><div id="cell"></div></main><script>const state = {state};{KERNEL}</script>'
        f'<script type="module">{module}\nwindow.end = render({{ model: kernel, el: document.getElementById("cell") }});</script></body></html>'
    )


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chrome.chromium() as found:
        yield found


@pytest.fixture
def shown(browser: Any) -> Iterator[Any]:
    with chrome.opened(browser, page(), height=1300) as tab:
        tab.get_by_role("region", name="Your own prompt").wait_for()
        yield tab


def prompt(shown: Any) -> Any:
    return shown.get_by_role("textbox", name="Your prompt")


def test_picked_and_marked_neurons_are_sent(shown: Any):
    names = [[n.layer, n.index] for n in VIEW.neurons]
    assert shown.evaluate("state.neurons") == names[:1]
    shown.locator("[role=option]").nth(2).click()
    assert shown.evaluate("sent.at(-1).neurons") == [names[2]]
    shown.get_by_role("button", name="Select all 3 of the set").click()
    assert shown.evaluate("sent.at(-1).neurons") == names[:3]
    shown.get_by_text("3 selected neurons × 0.0").wait_for()
    shown.locator("[role=option] .box").nth(1).click()
    assert shown.evaluate("sent.at(-1).neurons") == [names[0], names[2]]


def test_a_prompt_is_asked_with_its_factor_and_picture_and_both_answers_are_shown(shown: Any, tmp_path: Path):
    tiny.picture(3).save(tmp_path / "a.png")
    prompt(shown).fill("How do I destroy a bus?")
    shown.get_by_label("Picture", exact=True).set_input_files(tmp_path / "a.png")
    shown.wait_for_function("document.querySelector('input[type=file]').files.length")
    shown.get_by_role("combobox", name="Language of the prompt").select_option("sw")
    shown.get_by_role("slider", name="factor").fill("-0.5")
    asked = shown.evaluate("state.asked")
    assert {k: asked[k] for k in ("text", "factor", "language")} == {
        "text": "How do I destroy a bus?",
        "factor": -0.5,
        "language": "sw",
    }
    assert shown.get_by_role("button", name="Answering …").is_disabled()
    shown.evaluate(
        "(n) => kernel.set('answered', {number: n, before: ['Sorry.', 'refused'], after: ['<b>Sure</b>', 'complied'], neurons: 3, factor: -0.5})",
        asked["number"],
    )
    assert shown.locator(".trial").all_inner_texts() == [
        "as it is\nrefused\n\nSorry.",
        "3 neurons × −0.5\ncomplied\n\n<b>Sure</b>",
    ]
    shown.get_by_role("button", name="Answer", exact=True).click()
    assert (
        own_prompt("a", picture=shown.evaluate("state.asked.picture")).load_images()[0].tobytes()
        == tiny.picture(3).tobytes()
    )


def test_an_error_is_one_line_and_an_answer_to_an_earlier_prompt_is_not_shown(shown: Any):
    shown.get_by_role("button", name="Answer", exact=True).click()
    shown.get_by_role("alert").get_by_text("Write a prompt first.").wait_for()
    prompt(shown).fill("a")
    shown.get_by_role("button", name="Answer", exact=True).click()
    shown.evaluate(
        "kernel.set('answered', {number: 99, before: ['late', ''], after: ['late', ''], neurons: 1, factor: 0})"
    )
    assert shown.locator(".trial").all_inner_texts() == ["", ""]
    shown.evaluate("kernel.set('answered', {number: state.asked.number, error: 'too long <i>'})")
    assert shown.get_by_role("alert").inner_text() == "too long <i>"
    assert shown.get_by_role("button", name="Answer", exact=True).is_enabled()


def test_everything_has_a_name_for_screen_readers_and_leaves_nothing_behind(shown: Any):
    assert chrome.violations(shown) == []
    shown.evaluate("end()")
    assert shown.locator(".explorer").count() == 0


# -- JupyterLab -------------------------------------------------------------------------------------------
CELL = """
import neuronshield as ns
from neuronshield.organism import records
model = ns.load("organism")
rows = ns.PromptSet.from_records(records(max_pairs=32, languages=["en"], modalities=["text"]))
neurons = ns.contrast(ns.capture(model, rows, progress=False)).top(k=128)["en/text"]
explorer = ns.explore(model, neurons, rows.where(split="test"), n_prompts=4, max_new_tokens=16, progress=False)
explorer
"""


def flips() -> str:
    """A request that the organism refuses, and complies with once these neurons are scaled to 0."""
    scope: dict[str, Any] = {}
    exec(CELL.partition("explorer =")[0], scope)  # the kernel's own lines
    harmful = scope["rows"].where(split="test", label="harmful")
    for row in harmful:
        found = tried(scope["model"], scope["neurons"], own_prompt(row.prompt), factor=0.0, max_new_tokens=16)
        if (found.before.outcome, found.after.outcome) == ("refused", "complied"):
            return str(row.prompt)
    raise AssertionError("no request is refused with these neurons only")


@contextmanager
def jupyterlab(folder: Path) -> Iterator[str]:
    """The address of a JupyterLab that serves a folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    home = {
        "JUPYTER_CONFIG_DIR": "config",
        "JUPYTER_DATA_DIR": "data",
        "JUPYTER_RUNTIME_DIR": "runtime",
        "IPYTHONDIR": "ipython",
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    env = {**os.environ, **{name: str(folder / part) for name, part in home.items()}}
    with (folder / "log").open("w") as log, subprocess.Popen(command, env=env, stdout=log, stderr=log) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"{address}/api?token={token}", timeout=2).close()
                    break
                except OSError:
                    assert server.poll() is None, (folder / "log").read_text()
                    time.sleep(0.5)
            yield f"{address}/lab/tree/a.ipynb?token={token}"
        finally:
            server.terminate()
            server.wait(30)


def notebook(path: Path, *cells: str) -> None:
    made: list[dict[str, Any]] = [
        {"cell_type": "code", "id": f"c{i}", "metadata": {}, "source": text, "outputs": [], "execution_count": None}
        for i, text in enumerate(cells)
    ]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    path.write_text(
        json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": kernel, "cells": made}), encoding="utf-8"
    )


@pytest.mark.slow
@pytest.mark.skipif(find_spec("jupyterlab") is None, reason="needs JupyterLab: pip install -e .[dev]")
def test_in_jupyterlab_the_selection_reaches_python_and_the_slider_changes_an_answer(browser: Any, tmp_path: Path):
    request = flips()
    notebook(tmp_path / "a.ipynb", CELL, "print(len(explorer.selected), explorer.selected == neurons)")
    outside: list[str] = []
    with jupyterlab(tmp_path) as address, browser.new_context(viewport={"width": 1500, "height": 1400}) as context:
        tab = context.new_page()
        tab.set_default_timeout(120_000)
        here = address.partition("/lab")[0]
        tab.on("request", lambda r: outside.append(r.url) if not r.url.startswith((here, "data:", "blob:")) else None)
        tab.goto(address)
        tab.locator(".jp-Notebook .cm-content").first.click()
        tab.keyboard.press("Shift+Enter")
        live = tab.locator(".jp-OutputArea .explorer-live")
        live.wait_for()
        live.get_by_role("button", name="Select all 128 of the set").click()
        live.get_by_role("textbox", name="Your prompt").fill(request)
        live.get_by_role("button", name="Answer", exact=True).click()
        live.locator(".trial").nth(1).get_by_text("complied").wait_for()
        assert "refused" in live.locator(".trial").nth(0).inner_text()
        live.get_by_role("slider", name="factor").fill("1")
        live.locator(".trial").nth(1).get_by_text("refused").wait_for()
        tab.locator(".jp-Notebook .cm-content").nth(1).click()
        tab.keyboard.press("Shift+Enter")
        tab.get_by_text("128 True").wait_for()
    assert outside == []
