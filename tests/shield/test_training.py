"""Settings are the same for every trainer; a run can be resumed and stops at a loss that is not finite."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import tiny
import torch
from masking import LR, neurons, parameters

import neuronshield as ns
from neuronshield.shield.training import ADAMW, TrainingConfig, TrainingOptions, training_config
from neuronshield.shield.unmasked import full_update, plain_lora
from neuronshield.shield.update import masked_update
from neuronshield.shield.variants import frozen_set_update, masked_lora

TRAINERS: dict[str, Any] = {
    "masked_update": lambda *a, **k: masked_update(*a, allow_unproven=True, **k),
    "masked_lora": lambda *a, **k: masked_lora(*a, allow_unproven=True, **k),
    "frozen_set_update": frozen_set_update,
    "plain_lora": lambda m, _, p, **k: plain_lora(m, 500, p, **k),
    "full_update": lambda m, _, p, **k: full_update(m, p, **k),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINERS)
def test_every_trainer_takes_one_config_and_keywords_change_its_fields(llama: ns.Model, name: str):
    train = TRAINERS[name]
    rows = ns.PromptSet(replace(p, target=p.target if p.label == "harmful" else None) for p in tiny.prompts())
    config = TrainingConfig(steps=3, lr=2e-2, batch_size=4, retention=7.0, seed=5, progress=False)
    whole = train(llama, neurons(), rows, config=config)
    changed = train(llama, neurons(), rows, config=config, steps=2, lr=1e-2)
    assert {k: whole.provenance[k] for k in ("steps", "lr", "batch_size", "retention", "seed")} == {
        "steps": 3, "lr": 2e-2, "batch_size": 4, "retention": 7.0, "seed": 5,
    }  # fmt: skip
    assert (changed.provenance["steps"], changed.provenance["lr"], changed.provenance["retention"]) == (2, 1e-2, 7.0)
    assert len(changed.losses) == 2
    assert train(llama, neurons(), rows, config=config).losses == whole.losses
    with pytest.raises(ns.InputError, match=rf"{name}: stps= is unknown; did you mean 'steps'\?"):
        train(llama, neurons(), rows, stps=5)


def test_keywords_and_fields_are_the_same_and_so_are_their_defaults():
    assert list(TrainingOptions.__annotations__) == [f.name for f in fields(TrainingConfig)]
    config = training_config("masked_update", None, {})
    assert config == TrainingConfig()
    assert (config.steps, config.lr, config.batch_size, config.retention) == (60, 3e-3, 16, 4.0)
    assert (config.objective, config.texts, config.optimiser, config.accumulate) == ("supervised", (), ADAMW, 1)
    assert (config.gradient_checkpointing, config.checkpoint, config.seed, config.progress) == (False, None, 0, True)
    with pytest.raises(FrozenInstanceError):
        config.steps = 5  # type: ignore[misc]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"accumulate": 0}, "accumulate=0: must be a whole number of at least 1"),
        ({"steps": True}, "steps=True: must be a whole number"),
        ({"lr": 0}, "lr=0: must be a finite number above zero"),
        ({"lr": "1e-3"}, "lr='1e-3': must be a finite number above zero"),
        ({"retention": -1.0}, "retention=-1.0: must be a finite number of at least zero"),
        ({"objective": "dpo"}, "objective='dpo' is unknown; use one of supervised, preference"),
        ({"seed": -1}, "seed=-1: must be a whole number of at least 0"),
    ],
)
def test_a_setting_outside_its_range_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(ns.InputError, match=said):
        TrainingConfig(**options)


class Rates(torch.optim.SGD):
    """Keeps the learning rate of every step."""

    seen: ClassVar[list[float]] = []

    def step(self, closure: Any = None) -> Any:
        Rates.seen.append(self.param_groups[0]["lr"])
        return super().step(closure)


def test_the_learning_rate_falls_by_a_cosine_to_a_tenth(llama: ns.Model):
    Rates.seen.clear()
    masked_update(
        llama, neurons(), tiny.prompts(), steps=8, lr=0.2, optimiser=Rates, allow_unproven=True, progress=False
    )
    assert Rates.seen == pytest.approx([0.02 + 0.09 * (1 + np.cos(np.pi * t / 8)) for t in range(8)])
    assert Rates.seen[0] == pytest.approx(0.2)


class Killed(Exception):
    pass


class Dies(torch.optim.AdamW):
    """Stops the run in the middle of its fourth step."""

    def step(self, closure: Any = None) -> Any:
        self.taken = getattr(self, "taken", 0) + 1
        if self.taken == 4:
            raise Killed
        return super().step(closure)


def test_a_killed_run_goes_on_where_it_was(llama: ns.Model, tmp_path: Path):
    common: dict[str, Any] = {"steps": 9, "lr": LR, "progress": False}
    whole = masked_update(llama, neurons(), tiny.prompts(), **common)
    file = tmp_path / "run" / "state.safetensors"
    with pytest.raises(Killed):
        masked_update(
            llama, neurons(), tiny.prompts(), checkpoint=file, optimiser=partial(Dies, weight_decay=0.0), **common
        )
    resumed = masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **common)
    assert resumed.losses == whole.losses
    for a, b in zip(parameters(whole.model).values(), parameters(resumed.model).values(), strict=True):
        assert torch.equal(a, b)
    assert [p.name for p in file.parent.iterdir()] == ["state.safetensors"]
    with pytest.raises(ns.InputError, match=r"of another run \(lr differ\)"):
        masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **{**common, "lr": 2 * LR})
    file.write_bytes(b"not it")
    with pytest.raises(ns.InputError, match="not a training checkpoint"):
        masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **common)


class Poison(torch.optim.SGD):
    """Takes two good steps and then a ruinous one."""

    def step(self, closure: Any = None) -> Any:
        self.taken = getattr(self, "taken", 0) + 1
        out = super().step(closure)
        if self.taken == 3:
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.fill_(float("inf"))
        return out


def test_a_loss_that_stops_being_finite_keeps_the_last_good_adapter(llama: ns.Model, tmp_path: Path):
    with pytest.warns(UserWarning, match="loss is nan at step 3.*last good adapter was kept"):
        update = masked_update(
            llama, neurons(), tiny.prompts(), steps=9, optimiser=Poison, allow_unproven=True, progress=False
        )
    assert len(update.losses) == 3
    assert "step 3" in (update.stopped or "")
    assert "stopped early" in repr(update)
    after, before = parameters(update.model), parameters(llama)
    assert all(torch.isfinite(p).all() for p in after.values())
    assert any(not torch.equal(after[n], before[n]) for n in after)
    update.save(tmp_path / "adapter")


def test_a_loss_that_is_not_finite_stops_with_its_step():
    broken = tiny.llama()
    broken.lm_head.weight.data[0, 0] = float("nan")
    model = ns.load(broken, processor=tiny.tokenizer())
    with pytest.raises(ns.InputError, match="loss is nan at step 0"):
        masked_update(model, neurons(), tiny.prompts(), steps=3, progress=False)


@pytest.mark.slow
def test_the_loss_falls_and_the_seed_decides(llama: ns.Model):
    def losses(seed: int) -> tuple[float, ...]:
        return masked_update(llama, neurons(), tiny.prompts(), steps=25, lr=3e-2, seed=seed, progress=False).losses

    first = losses(0)
    assert np.mean(first[-5:]) < np.mean(first[:5]) - 0.1
    assert first == losses(0)
    assert first != losses(1)


def test_a_config_shows_what_differs_from_the_defaults():
    assert repr(TrainingConfig()) == "TrainingConfig()"
    assert repr(TrainingConfig(steps=5, lr=1e-2)) == "TrainingConfig(steps=5, lr=0.01)"
    long = TrainingConfig(
        steps=5, lr=0.123456789, texts=["word " * 90] * 9, checkpoint="x" * 200, optimiser=torch.optim.SGD, seed=7
    )
    assert len(repr(long)) <= 120
    assert "\n" not in repr(long)
