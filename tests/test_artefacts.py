"""Every artefact is read back as it was written, or refused in one line that names its file."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import planted_results
import pytest
import torch
from safetensors import safe_open

import neuronshield as ns
from neuronshield import InputError
from neuronshield.check.evaluation import Answer
from neuronshield.core.results import load_arrays, load_json, save_arrays, save_json
from neuronshield.core.statistics import Interval
from neuronshield.find.cells import CellSets
from neuronshield.find.groups import Group, Moments, Stats
from neuronshield.find.overlaps import ARRAYS, SAMPLED
from neuronshield.prove.tables import Claim
from neuronshield.shield.barrier import Barrier
from neuronshield.shield.guard import Guard
from neuronshield.shield.transition import Transition

SHAPE = (3, 29)


def neurons() -> ns.NeuronSet:
    return ns.NeuronSet([(0, 3), (1, 5), (2, 7)], n_layers=3, d_mlp=29, provenance={"method": "x", "seen": ["r1"]})


def stats() -> Stats:
    rng = np.random.default_rng(0)
    groups = {
        Group(label, "en", "text", fold): Moments.of(rng.normal(size=(5, *SHAPE)))
        for label in ("harmful", "benign") for fold in range(8)
    }  # fmt: skip
    norms = rng.uniform(1, 2, SHAPE)
    return Stats(groups, norms, norms * 2, tokens="last_prompt", n_params=11680, params_per_neuron=60)


def overlap() -> ns.Overlap:
    rng = np.random.default_rng(1)
    arrays = {name: rng.uniform(0.1, 1, (9,) * (name in SAMPLED) + (2, 2)) for name in ARRAYS}
    arrays["pairs"] = np.full((2, 2), 8)
    sets = CellSets({"en/text": neurons(), "sw/text": neurons()})
    return ns.Overlap(list(sets), **arrays, sets=sets, method="contribution", provenance={"data": "d"})


def evaluation() -> ns.Evaluation:
    prompts = [ns.Prompt(str(i), f"how {i}", "harmful" if i % 2 else "benign") for i in range(4)]
    return ns.Evaluation([Answer(p, "sorry no", refused=True, right=None) for p in prompts], "shield", 0, {"data": "d"})


def guard() -> Guard:
    two = ns.NeuronSet([(1, 2), (1, 5)], n_layers=3, d_mlp=29)
    barriers = (
        Barrier(torch.tensor([1.0, -1.0]), 0.5),
        Barrier(torch.tensor([0.5, 2.0]), -0.5, Transition(gain=0.25, reach=2.0)),
    )
    levels = {"harmful": np.array([[1.0, 0.5, 0.25], [0.75, 1.0, 1.0]])}
    return Guard(two, {1: barriers}, levels=levels, separation={1: (0.75, 0.5)})


def proof() -> ns.Proof:
    return planted_results.proof([Claim("necessity: mean", Interval(0.5, 0.4, 0.6), "passed", {"random": [0.1]})])


MADE: dict[str, Callable[[], Any]] = {
    "NeuronSet": neurons,
    "CellSets": lambda: CellSets({"en/text": neurons(), "sw/text": neurons()}),
    "Stats": stats,
    "Scores": lambda: ns.contrast(stats()),
    "Overlap": overlap,
    "Proof": proof,
    "Evaluation": evaluation,
    "Guard": guard,
    "Intervention": lambda: ns.Intervention(neurons(), "mean", torch.arange(87.0).reshape(SHAPE), cells=["sw/text"]),
}
JSON = ("Proof", "Evaluation", "Intervention")


@pytest.fixture(scope="module", params=MADE)
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path, str]:
    """An artefact, its file, and the format that the file names."""
    made = MADE[request.param]()
    path = made.save(tmp_path_factory.mktemp("saved") / "artefact")
    if request.param in JSON:
        return made, path, json.loads(path.read_text(encoding="utf-8"))["format"]
    with safe_open(path, "np") as file:
        return made, path, json.loads(file.metadata()["neuronshield"])["format"]


def _is_json(form: str) -> bool:
    return any(name in form for name in JSON)


def opened(path: Path, form: str) -> tuple[dict[str, np.ndarray], Any]:
    return ({}, load_json(path, form)) if _is_json(form) else load_arrays(path, form)


def resealed(path: Path, form: str, arrays: dict[str, np.ndarray], about: Any) -> Path:
    """The same with another content and a right checksum: a file that another program could have written."""
    if _is_json(form):
        return save_json(path, form, about)
    return save_arrays(path, form, arrays, about)


def test_it_comes_back_from_its_file(saved: tuple[Any, Path, str]):
    made, path, _ = saved
    assert type(made).load(path) == made


def test_no_cut_and_no_flipped_bit_is_accepted_as_something_else(saved: tuple[Any, Path, str], tmp_path: Path):
    made, path, _ = saved
    raw, damaged = path.read_bytes(), tmp_path / "damaged"
    for i in np.linspace(0, len(raw) - 1, 40).astype(int):
        for data in (raw[:i], raw[:i] + bytes([raw[i] ^ 4]) + raw[i + 1 :]):
            damaged.write_bytes(data)
            with pytest.raises(InputError, match=r"damaged: "):
                type(made).load(damaged)


@pytest.mark.parametrize(
    ("version", "said"), [("0", "written by an older version"), ("99", "written by another version")]
)
def test_another_version_is_refused(saved: tuple[Any, Path, str], tmp_path: Path, version: str, said: str):
    made, path, form = saved
    other = resealed(tmp_path / "other", f"{form.partition('/')[0]}/{version}", *opened(path, form))
    with pytest.raises(InputError, match=f"other: holds .*{said}"):
        type(made).load(other)


def test_another_artefact_is_refused(saved: tuple[Any, Path, str], tmp_path: Path):
    made, _, _ = saved
    other = guard() if isinstance(made, ns.NeuronSet) else neurons()
    with pytest.raises(InputError, match=r"other: holds a neuronshield\.\w+, .*read it with ns\.[\w.]+\.load"):
        type(made).load(other.save(tmp_path / "other"))


def test_what_is_no_file_is_refused(saved: tuple[Any, Path, str], tmp_path: Path):
    made, _, _ = saved
    with pytest.raises(InputError, match="is a folder; give the name of a file"):
        type(made).load(tmp_path)
    with pytest.raises(InputError, match="none: no such file"):
        type(made).load(tmp_path / "none")


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every field of a description by its address; of a list the first two items, nothing inside a provenance."""
    yield at
    if at and at[-1] in ("provenance", "seen"):
        return
    items = value.items() if isinstance(value, dict) else enumerate(value[:2]) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*at, key))


def with_value(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    if not at:
        return new
    out = copy.deepcopy(value)
    inner = out
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = new
    return out


@pytest.mark.slow
def test_a_field_of_another_type_is_refused_though_the_checksum_is_right(saved: tuple[Any, Path, str], tmp_path: Path):
    made, path, form = saved
    arrays, about = opened(path, form)
    kinds: dict[type, list[Any]] = {
        str: [5, None, ["a"]],
        int: ["5", 2.5, [1]],
        float: ["0.5", [1]],
        bool: ["x", 3],
        dict: ["x", [1]],
        list: ["x", 5],
    }
    tried, every = 0, list(places(about))
    for at in every[:: 1 + len(every) // 25]:
        value, beside = about, None
        for key in at:
            value, beside = value[key], value
        whole = isinstance(beside, list) and any(isinstance(x, float) for x in beside)  # a whole number among floats
        for new in kinds.get(float if whole and type(value) is int else type(value), []):
            if not arrays and (new is None or not at):  # optional fields; JSON files hold objects
                continue
            resealed(tmp_path / "x", form, arrays, with_value(about, at, new))
            with pytest.raises(InputError, match="x: ") as caught:
                type(made).load(tmp_path / "x")
            assert "\n" not in str(caught.value)
            tried += 1
    assert tried > 5


SPOILT = {
    "missing": lambda _: None,
    "a row less": lambda a: a[:-1],
    "a column less": lambda a: a[..., :-1],
    "one axis more": lambda a: a[None],
    "not numbers": lambda a: np.full(a.shape, np.nan),
}
#: What a field may be without: more or fewer samples or members, no array at all, and references that are not known.
ALLOWED: set[tuple[str, ...]] = {
    ("Overlap", "not numbers"), ("Overlap", "permuted", "a row less"), ("Overlap", "members", "a row less"),
    ("CellSets", "members", "a row less"), ("Scores", "difference", "missing"), ("Scores", "difference", "not numbers"),
}  # fmt: skip


def test_an_array_of_another_shape_is_refused_though_the_checksum_is_right(
    saved: tuple[Any, Path, str], tmp_path: Path
):
    made, path, form = saved
    name = type(made).__name__
    if name in JSON:
        pytest.skip("has no arrays")
    arrays, about = opened(path, form)
    for array in arrays:
        for how, spoil in SPOILT.items():
            if {(name, how), (name, array, how)} & ALLOWED:
                continue
            new = {**arrays, array: spoil(arrays[array])}
            resealed(tmp_path / "x", form, {k: v for k, v in new.items() if v is not None}, about)
            with pytest.raises(InputError, match="x: "):
                type(made).load(tmp_path / "x")
