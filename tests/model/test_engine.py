"""Units: the same numbers with any number of workers, keys that name what decides a result, and a journal that is used."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError, NeuronSet
from neuronshield.core.journal import Journal, Result
from neuronshield.find import shards as find_shards
from neuronshield.model import units as units_module
from neuronshield.model.encoding import batches
from neuronshield.model.engine import Context, InProcess, Unit, part_of, shards
from neuronshield.model.engines import engine_of
from neuronshield.model.forward import margins
from neuronshield.model.identity import digests, identity
from neuronshield.model.intervention import Intervention
from neuronshield.model.prefixes import OpeningTokens
from neuronshield.model.replica import Replica, packed, spec_of, weights_of
from neuronshield.model.units import run_margins

NEURONS = NeuronSet([(0, 3), (1, 5), (2, 7)], n_layers=3, d_mlp=29)
VERIFY: dict[str, Any] = dict(draws=2, graded=4, refusals=["sorry"], compliances=["sure"], progress=False)


class Workers:
    """An engine of several replicas in this process, each with a model of its own; they take units in turn, the last first."""

    def __init__(self, n: int) -> None:
        self.n, self.done = n, 0

    def with_journal(self, journal: Journal) -> Workers:
        raise NotImplementedError

    def on(self, model: ns.Model) -> Workers:
        self.model, self.replicas = model, [Replica(threads=1) for _ in range(self.n)]
        theirs = digests(model.module)
        for replica in self.replicas:
            mine = replica.bind(spec_of(model), device="cpu")
            different = [name for name in theirs if mine[name] != theirs[name]]
            assert replica.patch(weights_of(model, different)) == identity(model)
        return self

    def map(self, units: Iterable[Unit], **_: object) -> Iterator[Result]:
        given = list(units)
        found: dict[int, Result] = {}
        for i in reversed(range(len(given))):
            result = self.replicas[i % self.n].run(packed(self.model, given[i]))
            assert not isinstance(result, str)
            found[i] = result
            self.done += 1
        yield from (found[i] for i in range(len(given)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units so small that there are many of them."""
    monkeypatch.setattr(find_shards, "PROMPTS", 7)
    monkeypatch.setattr(units_module, "CONDITIONS", 4)
    monkeypatch.setattr(units_module, "ANSWERED", 8)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_capture_gives_the_same_bits_with_any_number_of_workers(llama: ns.Model, n: int):
    prompts, engine = tiny.prompts(), Workers(n)
    alone = ns.capture(llama, prompts, tokens="prompt", batch_size=4, progress=False)
    spread = ns.capture(llama, prompts, tokens="prompt", batch_size=4, engine=engine, progress=False)
    assert engine.done > 5
    assert alone == spread
    assert list(alone.groups) == list(spread.groups)
    both = [s.moments("harmful", "sw/text") for s in (alone, spread)]
    assert both[0].mean.dtype == np.float64
    assert (both[0].m2 == both[1].m2).all()


TOKENS = {language: OpeningTokens([19, 20], [18]) for language in ("en", "sw")}


def conditions(n: int) -> list[Intervention | None]:
    """A clean run, and interventions that share their values as those of `verify` do."""
    means, donors = torch.randn(3, 29), torch.randn(n, 3, 29)
    sets = [NeuronSet([(i % 3, i), (2, i + 1)], n_layers=3, d_mlp=29) for i in range(3)]
    kinds: list[tuple[Any, Any]] = [("zero", None), ("mean", means), ("patch", donors), ("scale", 0.5)]
    return [None, *(Intervention(s, kind, value) for s in sets for kind, value in kinds)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("name", "frozen"), [("llama", False), ("llama", True), ("llava", False)])
def test_margins_have_the_same_bits_with_workers_and_without(request: pytest.FixtureRequest, name: str, frozen: bool):
    model: ns.Model = request.getfixturevalue(name)
    prompts = tiny.prompts(pictures=name == "llava", languages=["en"])[:8]
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "conditions": conditions(len(prompts)),
        "tokens": TOKENS,
        "batch_size": 4,
        "frozen": frozen,
    }
    alone = run_margins(InProcess().on(model), model, prompts, **options)
    engine = Workers(2)
    assert (alone == run_margins(engine.on(model), model, prompts, **options)).all()
    assert engine.done == 2 * 4
    whole = margins(model, prompts, options["conditions"], TOKENS, batch_size=4, frozen=frozen)
    np.testing.assert_allclose(alone, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("small")
def test_verify_and_evaluate_give_the_same_with_workers(llama: ns.Model):
    model, prompts, engine = llama, tiny.prompts(languages=["en"]), Workers(1)
    options: dict[str, Any] = {
        "refusals": ["sorry"],
        "compliances": ["sure"],
        "max_new_tokens": 3,
        "batch_size": 8,
        "progress": False,
    }
    here, there = (ns.evaluate(model, prompts, engine=e, **options) for e in (None, engine))
    assert [a.response for a in here.answers] == [a.response for a in there.answers]
    alone = ns.verify(model, NEURONS, prompts, batch_size=8, **VERIFY)
    assert alone == ns.verify(model, NEURONS, prompts, batch_size=8, engine=engine, **VERIFY)
    assert engine.done > 5


def test_what_conditions_share_is_prepared_once_for_units_of_the_same_prompts(
    llama: ns.Model, monkeypatch: pytest.MonkeyPatch
):
    made: list[int] = []
    prepare = units_module.prepare

    def counted(*args: Any, **options: Any) -> Any:
        made.append(1)
        return prepare(*args, **options)

    monkeypatch.setattr(units_module, "prepare", counted)
    monkeypatch.setattr(units_module, "CONDITIONS", 4)
    prompts = tiny.prompts()[:8]
    runner = InProcess().on(llama)
    for _ in range(2):
        run_margins(runner, llama, prompts, conditions=conditions(8)[:9], tokens=TOKENS, batch_size=4)
    assert len(made) == 2
    monkeypatch.setattr(units_module, "KEPT_BYTES", 1)
    runner = InProcess().on(llama)
    for _ in range(2):
        run_margins(runner, llama, prompts, conditions=conditions(8)[:9], tokens=TOKENS, batch_size=4)
    assert len(made) == 2 + 4
    assert len(runner.context.kept["prepared"]) == 1  # type: ignore[attr-defined]


def test_the_units_of_capture_do_not_change_what_is_computed(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    prompts = tiny.prompts()
    whole = ns.capture(llama, prompts, progress=False)
    monkeypatch.setattr(find_shards, "PROMPTS", 7)
    cut = ns.capture(llama, prompts, progress=False)
    for label in ("harmful", "benign"):
        one, other = (s.moments(label, "en/text") for s in (whole, cut))
        assert one.n == other.n
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(one.m2, other.m2, rtol=1e-4, atol=1e-9)


# -- shards and parts -------------------------------------------------------------------------------------
@pytest.mark.parametrize(("size", "n"), [(4, 1), (7, 2), (64, 1)])
def test_the_batches_of_shards_are_those_of_all_prompts(llama: ns.Model, size: int, n: int):
    prompts = tiny.prompts()
    whole = [batch.ids for batch in batches(llama, prompts, batch_size=size)]
    cut = [
        batch.ids
        for rows in shards(prompts, size, batches=n)
        for batch in batches(llama, [prompts[i] for i in rows], batch_size=size)
    ]
    assert cut == whole


def test_a_part_of_an_intervention_has_the_values_of_its_rows_and_is_cut_once():
    prompts = tiny.prompts()
    value = torch.arange(60 * 3 * 29, dtype=torch.float32).reshape(60, 3, 29)
    both = [Intervention(s, "patch", value) for s in (NEURONS, NeuronSet([(1, 1)], n_layers=3, d_mlp=29))]
    here = Intervention(NEURONS, "zero", cells=["en/text"])
    swahili = [i for i, p in enumerate(prompts) if p.language == "sw"][:2]
    first, second, third, clean = part_of([*both, here, None], prompts, swahili)
    assert first is not None
    assert second is not None
    assert first.value.tolist() == value[swahili].tolist()
    assert first.value.data_ptr() == second.value.data_ptr()
    assert third is None
    assert clean is None


# -- keys -------------------------------------------------------------------------------------------------
def test_a_key_changes_with_everything_that_decides_the_result():
    prompts = tuple(tiny.prompts()[:3])
    value = torch.ones(3, 29)
    other = value.clone()
    other[1, 5] = 2
    unit = Unit("neuronshield.a:b", prompts, (Intervention(NEURONS, "mean", value), None), {"batch_size": 4})
    changed = [
        replace(unit, work="neuronshield.a:c"),
        replace(unit, prompts=prompts[::-1]),
        replace(unit, prompts=(replace(prompts[0], prompt="how"), *prompts[1:])),
        replace(unit, prompts=(replace(prompts[0], target="yes"), *prompts[1:])),
        replace(unit, conditions=unit.conditions[::-1]),
        replace(unit, conditions=(Intervention(NEURONS, "mean", other), None)),
        replace(unit, conditions=(Intervention(NEURONS, "mean", value, positions="all"), None)),
        replace(unit, conditions=(Intervention(NEURONS, "mean", value, cells=["en/text"]), None)),
        replace(unit, options={"batch_size": 5}),
    ]
    keys = [unit.key("model"), unit.key("another"), *(u.key("model") for u in changed)]
    assert len(set(keys)) == len(keys)


def test_a_key_reads_no_value_of_other_neurons():
    prompts = tuple(tiny.prompts()[:1])
    value = torch.ones(3, 29)
    other = value.clone()
    other[0, 0] = 9  # no neuron of the set
    one, two = (Unit("neuronshield.a:b", prompts, (Intervention(NEURONS, "mean", v),)).key("m") for v in (value, other))
    assert one == two


# -- journal ----------------------------------------------------------------------------------------------
@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Units that are computed, as they are computed."""
    done: list[str] = []
    compute = units_module.generate

    def counted(*args: Any, **options: Any) -> Any:
        done.append("answers")
        return compute(*args, **options)

    monkeypatch.setattr(units_module, "generate", counted)
    return done


@pytest.mark.usefixtures("small")
def test_finished_units_are_read_from_the_journal_and_nothing_is_computed_again(
    llama: ns.Model, forwards: list[str], tmp_path: Path
):
    prompts, engine = tiny.prompts(), InProcess(Journal(tmp_path))
    options: dict[str, Any] = {
        "refusals": ["sorry"],
        "compliances": ["sure"],
        "max_new_tokens": 3,
        "batch_size": 4,
        "progress": False,
    }
    first = ns.evaluate(llama, prompts, engine=engine, **options)
    n = len(forwards)
    assert n == len(list(Journal(tmp_path))) > 5
    assert ns.evaluate(llama, prompts, engine=engine, **options) == first == ns.evaluate(llama, prompts, **options)
    assert len(forwards) == 2 * n  # those of the last call, which has no journal
    next(Path(tmp_path).rglob("*.safetensors")).unlink()
    assert ns.evaluate(llama, prompts, engine=engine, **options) == first
    assert len(forwards) == 2 * n + 1


@pytest.mark.usefixtures("small")
def test_a_model_whose_weights_changed_shares_no_unit_with_the_one_before(forwards: list[str], tmp_path: Path):
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    prompts, engine = tiny.prompts()[:8], InProcess(Journal(tmp_path))
    options: dict[str, Any] = {
        "refusals": ["sorry"],
        "compliances": ["sure"],
        "max_new_tokens": 3,
        "batch_size": 4,
        "progress": False,
    }
    ns.evaluate(model, prompts, engine=engine, **options)
    n = len(forwards)
    with torch.no_grad():
        model.module.model.layers[0].self_attn.v_proj.weight.mul_(-1)
    ns.evaluate(model, prompts, engine=engine, **options)
    assert len(forwards) == 2 * n


KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tiny, torch
import neuronshield as ns
from neuronshield.core.journal import Journal
from neuronshield.find import moments, shards
from neuronshield.model.engine import InProcess

torch.set_num_threads(1)
shards.PROMPTS = 7
compute, done = moments.moments_of, []

def counted(*args):
    if len(done) == {units}:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return compute(*args)

moments.moments_of = counted
model = ns.load(tiny.llama(), processor=tiny.tokenizer())
stats = ns.capture(model, tiny.prompts(), batch_size=4, engine=InProcess(Journal({journal!r})), progress=False)
stats.save({out!r})
print(len(done))
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_where_it_stopped(
    llama: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    journal, out = tmp_path / "journal", tmp_path / "stats.safetensors"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(units: int) -> subprocess.CompletedProcess[str]:
        code = KILLED.format(tests=str(Path(tiny.__file__).parent), units=units, journal=str(journal), out=str(out))
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
        )

    assert run(4).returncode == -signal.SIGKILL
    assert len(Journal(journal)) == 4
    assert not out.exists()
    again = run(99)
    assert again.returncode == 0, again.stderr
    monkeypatch.setattr(find_shards, "PROMPTS", 7)
    whole = ns.capture(llama, tiny.prompts(), batch_size=4, progress=False)
    assert int(again.stdout) == len(Journal(journal)) - 4 > 0
    assert ns.Stats.load(out).groups.keys() == whole.groups.keys()
    assert all((ns.Stats.load(out).groups[g].m2 == m.m2).all() for g, m in whole.groups.items())


# -- wrong calls ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("engine", ["spark", 3, Workers, "ray://"])
def test_an_engine_that_is_none_is_refused_in_one_line(llama: ns.Model, engine: Any):
    if engine is Workers:
        engine = object()
    with pytest.raises(InputError, match="engine= must be 'ray', an engine or None"):
        ns.capture(llama, tiny.prompts(), engine=engine, progress=False)


def test_a_unit_runs_nothing_outside_the_package(llama: ns.Model):
    from neuronshield.model.engine import result_of

    with pytest.raises(InputError, match="function of neuronshield"):
        result_of(llama, Unit("os:system", ()), Context())


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("neuronshield.model.ray_engine._SHARED", [])
    with pytest.raises(InputError, match=r"pip install neuronshield\[scale\]"):
        engine_of("ray")
