"""A model behind `transformers serve`, asked as any OpenAI-compatible server is; the tests and benchmarks/served.py use it."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import neuronshield as ns

START, ANSWER, STOP = 240.0, 60.0, 15.0  # seconds, at most
Ask = Callable[[ns.Prompt], dict[str, Any]]


@contextmanager
def serving(folder: Path, *, max_tokens: int = 32) -> Iterator[Ask]:
    """A function that gives the server's whole answer to a prompt; the server is stopped at the end of the block.

    Args:
        folder: what is served.
        max_tokens: tokens an answer, at most.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from transformers.cli.transformers import main; main()", "serve", f"./{folder.name}",
               "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--device", "cpu"]  # fmt: skip
    log = folder.with_name(f"{folder.name}.log")
    with log.open("w") as file:
        server = subprocess.Popen(
            command, cwd=folder.parent, stdout=file, stderr=file, env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        )  # fmt: skip
        try:
            _wait(server, port, log)
            yield lambda prompt: _asked(port, f"./{folder.name}", prompt, max_tokens=max_tokens)
        finally:
            server.terminate()
            try:
                server.wait(STOP)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    """Return when the server is healthy; raise if it has ended or does not come up."""
    end = time.monotonic() + START
    while time.monotonic() < end:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended: {log.read_text()[-600:]}")
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError(f"the server did not come up: {log.read_text()[-600:]}")


def _asked(port: int, name: str, prompt: ns.Prompt, *, max_tokens: int) -> dict[str, Any]:
    body = {
        "model": name,
        "messages": [{"role": "user", "content": content(prompt)}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=ANSWER) as answer:
        return dict(json.load(answer))


def content(prompt: ns.Prompt) -> list[dict[str, Any]]:
    """A prompt as the parts of an OpenAI message: every picture as a data URI, then the text."""
    parts: list[dict[str, Any]] = []
    for picture in prompt.images:
        raw = io.BytesIO()
        picture.save(raw, "PNG")  # type: ignore[union-attr]
        uri = "data:image/png;base64," + base64.b64encode(raw.getvalue()).decode()
        parts.append({"type": "image_url", "image_url": {"url": uri}})
    return [*parts, {"type": "text", "text": prompt.prompt}]


def text(answer: dict[str, Any]) -> str:
    """What was answered."""
    return str(answer["choices"][0]["message"]["content"]).strip()


def with_adapter(base: Path, adapter: Path, place: Path) -> Path:
    """A folder that `transformers serve` takes an adapter from: the whole base model, and the two files of the adapter."""
    place.mkdir()
    for file in [*base.iterdir(), adapter / "adapter_config.json", adapter / "adapter_model.safetensors"]:
        (place / file.name).symlink_to(file.resolve())
    return place
