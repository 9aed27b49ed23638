"""A real Ray cluster of two workers on this machine gives the same bits, replaces a worker that dies, and goes on after the driver died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import InputError
from neuronshield.core.journal import Journal
from neuronshield.find import shards as find_shards
from neuronshield.model import ray_engine
from neuronshield.model import units as units_module
from neuronshield.model.engine import Unit

ray: Any = pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

OPTIONS: dict[str, Any] = dict(refusals=["sorry"], compliances=["sure"], max_new_tokens=3, batch_size=4, progress=False)


@pytest.fixture(scope="module")
def engine() -> Iterator[ns.RayEngine]:
    with ns.RayEngine("local", replicas=2) as out:
        yield out
    assert not ray.is_initialized()  # the cluster was started by the engine


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Units so small that there are many of them."""
    monkeypatch.setattr(find_shards, "PROMPTS", 7)
    monkeypatch.setattr(units_module, "ANSWERED", 4)


def pids(engine: ns.RayEngine) -> list[int]:
    return [ray.get(actor.pid.remote()) for actor in engine.pool.actors]


def test_two_workers_give_the_bits_of_none_and_the_handlers_of_signals_stay(llama: ns.Model, engine: ns.RayEngine):
    prompts = tiny.prompts()
    handler = signal.getsignal(signal.SIGTERM)
    alone = ns.capture(llama, prompts, batch_size=4, progress=False)
    assert alone == ns.capture(llama, prompts, batch_size=4, engine=engine, progress=False)
    assert len(set(pids(engine))) == 2
    assert signal.getsignal(signal.SIGTERM) == handler
    here, there = (ns.evaluate(llama, prompts, engine=e, **OPTIONS) for e in (None, engine))
    assert [a.response for a in here.answers] == [a.response for a in there.answers]


def test_a_replica_that_the_cluster_has_no_room_for_is_said_to_wait(
    llama: ns.Model, engine: ns.RayEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    assert "free: " in engine.pool.why_waiting()
    assert f"takes 0 GPUs and {engine.pool.threads} CPUs" in engine.pool.why_waiting()
    monkeypatch.setattr(ray_engine, "PATIENCE", 0.0)
    other = llama.replace(id="other")
    ns.capture(other, tiny.prompts(), batch_size=4, engine=engine, progress=False)
    assert "waiting for a replica" in caplog.text


def test_changed_weights_are_sent_and_the_organism_is_loaded_by_its_name(
    organism_model: ns.Model, engine: ns.RayEngine, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(find_shards, "PROMPTS", 512)
    prompts = ns.PromptSet.from_records(
        [{"prompt": text, "label": label} for text in ("abc", "how do i bake bread") for label in ("harmful", "benign")]
    )
    sent: list[list[str]] = []
    weights_of = ray_engine.weights_of

    def counted(model: ns.Model, names: list[str]) -> bytes:
        sent.append(names)
        return weights_of(model, names)

    monkeypatch.setattr(ray_engine, "weights_of", counted)
    alone = ns.capture(organism_model, prompts, progress=False)
    assert alone == ns.capture(organism_model, prompts, engine=engine, progress=False)
    assert sent == []
    name = f"{organism_model.layers_path}.3.{organism_model.site.down}.weight"
    weight = organism_model.module.get_parameter(name)
    try:
        with torch.no_grad():
            weight[:, 7] *= 2
        changed = ns.capture(organism_model, prompts, progress=False)
        assert changed != alone
        assert changed == ns.capture(organism_model, prompts, engine=engine, progress=False)
        assert sent == [[name]]
    finally:
        with torch.no_grad():
            weight[:, 7] /= 2


def test_a_worker_that_dies_is_replaced_and_its_unit_is_done_again(
    llama: ns.Model, engine: ns.RayEngine, tmp_path: Path
):
    prompts, journal = tiny.prompts(), Journal(tmp_path)
    alone = ns.capture(llama, prompts, batch_size=4, progress=False)
    ns.capture(llama, prompts[:4], engine=engine, progress=False)
    before = pids(engine)
    put, done = Journal.put, []

    def killing(self: Journal, key: str, arrays: Any, about: Any) -> Path:
        done.append(key)
        if len(done) == 2:
            os.kill(before[0], signal.SIGKILL)
        return put(self, key, arrays, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "put", killing)
        spread = ns.capture(llama, prompts, batch_size=4, engine=engine.with_journal(journal), progress=False)
    assert spread == alone
    assert len(done) == len(set(done)) == len(journal) > 5  # every unit was finished once
    after = pids(engine)
    assert before[0] not in after
    assert before[1] in after
    assert len(after) == 2


class Deadly:
    """Ends the process that reads it."""

    def __reduce__(self) -> Any:
        return os._exit, (1,)


def test_a_unit_that_kills_every_worker_ends_in_one_line(llama: ns.Model, engine: ns.RayEngine, tmp_path: Path):
    journaled = engine.with_journal(Journal(tmp_path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_engine, "packed", lambda *_: Deadly())
        patch.setattr(ray_engine, "TRIES", 2)
        with pytest.raises(InputError, match="its worker died 2 times") as said:
            ns.capture(llama, tiny.prompts()[:4], engine=journaled, progress=False)
    assert "\n" not in str(said.value)
    assert ns.capture(llama, tiny.prompts()[:4], engine=engine, progress=False).n_layers == 3  # the engine still works


def test_what_is_wrong_with_a_prompt_is_said_in_the_same_line(llama: ns.Model, engine: ns.RayEngine):
    bad = Unit(
        "neuronshield.model.units:answers_of", (tiny.prompts()[0],), (None,), {"max_new_tokens": 0, "batch_size": 4}
    )
    with pytest.raises(InputError, match="max_new_tokens=0: must be a whole number of at least 1"):
        list(engine.on(llama).map([bad]))


DRIVER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import tiny, torch
import neuronshield as ns
from neuronshield.core.journal import Journal
from neuronshield.find import shards

torch.set_num_threads(1)
shards.PROMPTS = 7
put, done = Journal.put, []

def counted(*args, **options):
    if len(done) == {units}:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return put(*args, **options)

Journal.put = counted
model = ns.load(tiny.llama(), processor=tiny.tokenizer())
engine = ns.RayEngine({address!r}, replicas=1, journal=Journal({journal!r}))
ns.capture(model, tiny.prompts(), batch_size=4, engine=engine, progress=False)
"""


def test_a_driver_that_was_killed_goes_on_with_its_journal(llama: ns.Model, engine: ns.RayEngine, tmp_path: Path):
    address = ray.get_runtime_context().gcs_address
    engine.pool.end(engine.pool.actors[0])  # it leaves its CPU to the other driver
    code = DRIVER.format(tests=str(Path(tiny.__file__).parent), units=4, address=address, journal=str(tmp_path))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert len(Journal(tmp_path)) == 4
    computed: list[str] = []
    put = Journal.put

    def counted(self: Journal, key: str, arrays: Any, about: Any) -> Path:
        computed.append(key)
        return put(self, key, arrays, about)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "put", counted)
        found = ns.capture(
            llama, tiny.prompts(), batch_size=4, engine=engine.with_journal(Journal(tmp_path)), progress=False
        )
    assert found == ns.capture(llama, tiny.prompts(), batch_size=4, progress=False)
    assert len(computed) == len(Journal(tmp_path)) - 4 > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"replicas": 999}, "999 replicas need a CPU each, and the cluster has"),
        ({"replicas": 0}, "replicas=0: must be a whole number of at least 1"),
        ({"gpus_per_replica": 1}, "GPUs need 1, and the cluster has 0"),
        ({"gpus_per_replica": 1.5}, "gpus_per_replica=1.5: must be a whole number, or a part of 1"),
        ({"journal": "folder"}, r"Journal\(folder\) makes one"),
    ],
)
@pytest.mark.usefixtures("engine")
def test_a_cluster_that_is_too_small_and_wrong_arguments_are_refused(options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        ns.RayEngine(**options)
    assert ray.is_initialized()  # the cluster of the other engine is left alone
