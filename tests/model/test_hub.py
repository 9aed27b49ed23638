"""A name that cannot be had is said in seconds: offline, at a hub that never answers, and for what is no name at all."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import neuronshield as ns
from neuronshield.core import repositories
from neuronshield.model import hub


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The hub may be asked, and nothing is in the cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(8)
        kept: list[socket.socket] = []
        threading.Thread(target=lambda: kept.append(server.accept()[0]), daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.usefixtures("online")
def test_a_hub_that_never_answers_is_given_up_after_the_stated_time(silent: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silent)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", silent + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(repositories, "ANSWER", 0.3)
    start = time.monotonic()
    with pytest.raises(
        ns.InputError, match=r"not in the cache, and 127\.0\.0\.1 did not answer within 2 s .* and 0\.3 s"
    ):
        hub.found("nobody/nothing")
    assert time.monotonic() - start < 2


@pytest.mark.usefixtures("online")
def test_what_is_in_the_cache_is_loaded_from_there_while_the_hub_does_not_answer(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "offline", lambda _: "the hub cannot be reached")
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: "config.json")
    assert hub.found("somebody/something") == {"local_files_only": True}
    monkeypatch.setattr(hub, "offline", lambda _: None)
    assert hub.found("somebody/something") == {}


@pytest.mark.parametrize("name", ["nobody/no/thing", "a b", "--x", "x" * 200])
def test_what_is_no_name_is_said_without_asking(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "offline", lambda _: pytest.fail("asked"))
    with pytest.raises(ns.InputError, match="no such folder, and no name on the hub"):
        hub.found(name)


def test_a_wrong_name_offline_is_said_before_torch_is_imported(tmp_path: Path):
    code = (
        "import sys; from neuronshield import cli\n"
        "sys.argv = ['neuronshield', 'run', '--model', 'nobody/nothing', '--prompts', 'p.jsonl']\n"
        "try: cli.main()\n"
        "finally: print(any(m in sys.modules for m in ('torch', 'transformers')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "False\n")
    assert done.stderr.startswith(
        "neuronshield: cannot load model 'nobody/nothing': it is not in the cache, and HF_HUB_OFFLINE"
    )
    assert not list(tmp_path.iterdir())
