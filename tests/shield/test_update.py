"""The masked update is gradient masking, step for step, and changes nothing outside its mask."""

# ruff: noqa: ARG005
from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from masking import LR, MEMBERS, STEPS, double, masks, neurons, one_batch, parameters, reference

import neuronshield as ns
from neuronshield.data.languages import Prefixes
from neuronshield.shield import unmasked, variants
from neuronshield.shield.objective import Taught
from neuronshield.shield.unmasked import full_update, plain_lora
from neuronshield.shield.update import masked_update
from neuronshield.shield.variants import frozen_set_update, masked_lora


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_training_a_frozen_one_hot_lora_is_training_under_a_gradient_mask(family: str):
    model = double(family)
    before, prompts = parameters(model), one_batch(model)
    update = masked_update(model, neurons(), prompts, steps=STEPS, lr=LR, batch_size=2, progress=False)
    after, expected = parameters(update.model), reference(model, prompts, masks(model, MEMBERS))
    assert list(after) == list(before)
    moved = max(float((after[n] - before[n]).abs().max()) for n in after)
    assert moved > 1e-3
    for name in after:
        torch.testing.assert_close(after[name], expected[name], rtol=0, atol=1e-9, msg=name)


@pytest.mark.parametrize("family", ["llama", "gpt2", "llava"])
def test_every_weight_outside_the_mask_keeps_its_bits_and_the_base_model_all_of_them(family: str, tmp_path: Path):
    model = double(family)
    for p in model.module.parameters():  # -0.0 + 0.0 would be 0.0
        p.data.view(-1)[::3] = -0.0
    before = parameters(model)
    update = masked_update(model, neurons(), one_batch(model), steps=2, lr=LR, batch_size=2, progress=False)
    after, base = parameters(update.model), parameters(model)
    loaded = parameters(
        ns.load_adapter(ns.load(model.module, processor=model.processor), update.save(tmp_path / "adapter"))
    )
    for name, mask in masks(model, MEMBERS).items():
        old = before[name].view(torch.int64)
        assert torch.equal(old[~mask], after[name].view(torch.int64)[~mask]), name
        assert torch.equal(after[name].view(torch.int64), loaded[name].view(torch.int64)), name
        assert torch.equal(old, base[name].view(torch.int64)), name


@pytest.mark.parametrize(
    ("how", "options", "expected"),
    [
        ("KL retention", {"retention": 3.0}, {"retention": 3.0}),
        ("weight decay", {"optimiser": partial(torch.optim.AdamW, weight_decay=0.5)}, {"decay": 0.5}),
        ("another optimiser", {"optimiser": partial(torch.optim.SGD, momentum=0.7)}, {"momentum": 0.7}),
        ("in parts", {"accumulate": 2}, {}),
        ("recomputing activations", {"gradient_checkpointing": True}, {}),
        ("the down-projection only", {"parts": ("down",)}, {}),
        ("gate and up only", {"parts": ("up", "gate")}, {}),
    ],
)
def test_it_stays_gradient_masking(how: str, options: dict[str, Any], expected: dict[str, Any]):
    model = double("llama")
    prompts = one_batch(model)
    if how == "KL retention":
        prompts = ns.PromptSet(replace(p, target=p.target if p.label == "harmful" else None) for p in prompts)
    update = masked_update(model, neurons(), prompts, steps=STEPS, lr=LR, batch_size=2, progress=False, **options)
    keep = masks(model, MEMBERS)
    for name, mask in keep.items():
        if "parts" in options and not any(f"{part}_proj" in name for part in options["parts"]):
            mask[:] = False
    after, wanted, before = parameters(update.model), reference(model, prompts, keep, **expected), parameters(model)
    assert max(float((after[n] - before[n]).abs().max()) for n in after) > 1e-4
    for name in after:
        torch.testing.assert_close(after[name], wanted[name], rtol=0, atol=1e-9, msg=name)


def test_what_was_not_proven_is_named(llama: ns.Model, recwarn: pytest.WarningsRecorder):
    named = ns.NeuronSet(MEMBERS, provenance={"method": "contribution", "cell": "en/text"})
    with pytest.warns(UserWarning, match=r"3 neurons \(contribution, en/text\) were not proven"):
        masked_update(llama, named, tiny.prompts(), steps=1, progress=False)
    recwarn.clear()
    proven = ns.NeuronSet(MEMBERS, provenance={"verified_on": "abc"})
    cases: list[tuple[ns.NeuronSet, dict[str, Any] | None]] = [
        (named, {"allow_unproven": True}),
        (proven, {}),
        (proven & named, {}),
        (proven - named, None),
    ]
    for fine, options in cases:
        if options is not None:
            masked_update(llama, fine, tiny.prompts(), steps=1, progress=False, **options)
    assert not [w for w in recwarn if "proven" in str(w.message)]
    with pytest.warns(UserWarning, match="not proven"):
        masked_update(llama, proven | named, tiny.prompts(), steps=1, progress=False)
    nothing = ns.NeuronSet([], provenance={"verdict": "failed; necessity: zero"})
    with pytest.raises(ns.InputError, match="empty; verify said: failed; necessity: zero"):
        masked_update(llama, nothing, tiny.prompts(), steps=1, progress=False)


@pytest.mark.parametrize(
    ("pairs", "options", "said"),
    [
        ([], {}, "the neuron set is empty"),
        ([(3, 0)], {}, "does not exist"),
        ([(0, 29)], {}, "does not exist"),
        (MEMBERS, {"objective": "dpo"}, "objective='dpo' is unknown"),
        (MEMBERS, {"parts": ("gate", "attention")}, "parts='attention' is unknown"),
        (MEMBERS, {"parts": ()}, "has none of them to train"),
        (MEMBERS, {"zeroed": True}, "masked_update: zeroed= is unknown"),
        (MEMBERS, {"train": "rest"}, "train= is unknown"),
        (MEMBERS, {"budget": 1e-3}, "over the budget of 0.100%; take at most 0 neurons"),
        (MEMBERS, {"batch_size": 1}, "batch_size=1: must be a whole number of at least 2"),
        (MEMBERS, {"lr": float("nan")}, "lr=nan: must be a finite number above zero"),
    ],
)
def test_what_cannot_be_trained_is_said(
    llama: ns.Model, pairs: list[tuple[int, int]], options: dict[str, Any], said: str
):
    with pytest.raises(ns.InputError, match=said):
        masked_update(llama, ns.NeuronSet(pairs), tiny.prompts(), steps=1, progress=False, **options)


def test_a_part_that_the_family_lacks_is_left_out_and_alone_refused(gpt2: ns.Model):
    update = masked_update(gpt2, neurons(), tiny.prompts(), steps=1, allow_unproven=True, progress=False)
    assert update.form == "up and down weights of the set"
    with pytest.raises(ns.InputError, match=r"parts=\['gate'\]: 'GPT2LMHeadModel' has none of them to train"):
        masked_update(gpt2, neurons(), tiny.prompts(), parts=["gate"], steps=1, progress=False)


#: The public functions, without their types: these calls are wrong.
update: Any = masked_update
lora: Any = plain_lora
full: Any = full_update
rows: Any = masked_lora
frozen: Any = frozen_set_update
read: Any = ns.load_adapter

CALLS: dict[str, tuple[Any, str]] = {
    "swapped": (
        lambda m, n, p: update(m, p, n),
        "masked_update(model, neurons, prompts): neurons must be NeuronSet, got PromptSet; pass one set",
    ),
    "a dict of sets": (
        lambda m, n, p: update(m, {"en/text": n}, p),
        "neurons must be NeuronSet, got dict; pass one set, such as proof.verified or sets['en/text']",
    ),
    "a name for a model": (lambda m, n, p: update("organism", n, p), "model must be Model, got str 'organism'"),
    "text for prompts": (lambda m, n, p: update(m, n, ["how"]), "prompts must be PromptSet, got list"),
    "no batch": (
        lambda m, n, p: update(m, n, p, batch_size=0),
        "batch_size=0: must be a whole number of at least 2",
    ),
    "no steps": (lambda m, n, p: update(m, n, p, steps=0), "steps=0: must be a whole number of at least 1"),
    "half a step": (lambda m, n, p: update(m, n, p, steps=2.5), "steps=2.5: must be a whole number"),
    "a misspelt keyword": (
        lambda m, n, p: update(m, n, p, stps=5),
        "masked_update: stps= is unknown; did you mean 'steps'?",
    ),
    "a misspelt own keyword": (lambda m, n, p: update(m, n, p, part=["up"]), "did you mean 'parts'?"),
    "a string of text": (
        lambda m, n, p: update(m, n, p, texts="here"),
        "texts must be a list of sentences, got str 'here'",
    ),
    "a dict of settings": (
        lambda m, n, p: update(m, n, p, config={"steps": 5}),
        "config must be TrainingConfig, got dict",
    ),
    "no parts": (lambda m, n, p: update(m, n, p, parts=None), "masked_update: parts=None: must be a list of names"),
    "a part": (
        lambda m, n, p: update(m, n, p, parts="gate"),
        "parts='gate': must be a list of names, some of gate, up, down",
    ),
    "a word for a budget": (
        lambda m, n, p: update(m, n, p, budget="x"),
        "budget='x': must be a share of the parameters",
    ),
    "a negative budget": (lambda m, n, p: update(m, n, p, budget=-1), "masked_update: budget=-1: must be a share"),
    "a named optimiser": (lambda m, n, p: update(m, n, p, optimiser="adam"), "optimiser='adam': must be called as"),
    "dpo": (
        lambda m, n, p: update(m, n, p, objective="dpo"),
        "objective='dpo' is unknown; use one of supervised, preference; did you mean 'preference'?",
    ),
    "sft": (
        lambda m, n, p: update(m, n, p, objective="SFT"),
        "objective='SFT' is unknown; use one of supervised, preference; did you mean 'supervised'?",
    ),
    "a proof": (
        lambda m, n, p: update(m, ns.verify(m, n, p, refusals=["sorry"], compliances=["sure"]), p),
        "neurons must be NeuronSet, got Proof; pass one set, such as proof.verified",
    ),
    "swapped budget": (
        lambda m, n, p: lora(m, p, 500),
        "plain_lora(model, budget, prompts): budget must be int, got PromptSet; the number of trained numbers",
    ),
    "no budget": (lambda m, n, p: lora(m, 0, p), "plain_lora: budget=0: must be a whole number of at least 1"),
    "a set in full_update": (
        lambda m, n, p: full(m, n),
        "full_update(model, prompts): prompts must be PromptSet",
    ),
    "an objective it lacks": (
        lambda m, n, p: lora(m, 500, p, objective="preference"),
        "plain_lora: objective='preference' is unknown; use one of supervised",
    ),
    "no rank": (
        lambda m, n, p: rows(m, n, p, rank=0),
        "masked_lora: rank=0: must be a whole number of at least 1",
    ),
    "a rank above the projections'": (
        lambda m, n, p: rows(m, n, p, rank=1000),
        "masked_lora: rank=1000: the MLP projections have rank 20; use a rank of at most 20",
    ),
    "a frozen set's rank above the projections'": (
        lambda m, n, p: frozen(m, n, p, rank=21),
        "frozen_set_update: rank=21: the MLP projections have rank 20",
    ),
    "a budget above the full rank": (
        lambda m, n, p: lora(m, 10**9, p),
        "plain_lora: budget=1000000000 is above 8820, at which the LoRA has the full rank 20",
    ),
    "parts of a LoRA": (lambda m, n, p: rows(m, n, p, parts=("down",)), "masked_lora: parts= is unknown"),
    "the set second": (
        lambda m, n, p: ns.clamp_edit(m, p, n),
        "clamp_edit(model, neurons, prompts): neurons must be NeuronSet",
    ),
    "a folder for a model": (
        lambda m, n, p: read("adapter", m),
        "load_adapter(model, folder): model must be Model",
    ),
    "a guard of prompts": (
        lambda m, n, p: ns.guard.fit_guard(m, p, n),
        "fit_guard(model, neurons, prompts): neurons must be NeuronSet",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_call_gets_one_line(llama: ns.Model, call: str):
    make, said = CALLS[call]
    with pytest.raises(ns.InputError) as caught:
        make(llama, neurons(), tiny.prompts())
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_prefixes_of_the_model_are_used_where_none_are_given(llama: ns.Model):
    """A harmful prompt without a target is taught the first refusal prefix."""
    prompts = ns.PromptSet(replace(p, target=None) for p in tiny.prompts())
    common: dict[str, Any] = {"steps": 2, "allow_unproven": True, "progress": False}
    carrying = replace(llama, prefixes=Prefixes(refusals=["no"], compliances=["yes"]))
    given = masked_update(llama, neurons(), prompts, refusals=["no"], compliances=["yes"], **common)
    assert masked_update(carrying, neurons(), prompts, **common).losses == given.losses
    assert masked_update(carrying, neurons(), prompts, refusals=["sorry"], **common).losses != given.losses


def test_an_update_is_one_line_and_frozen(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, allow_unproven=True, progress=False)
    assert repr(update) == "Update(gate and up and down weights of the set; 180 numbers, 1.541% of the parameters)"
    with pytest.raises(FrozenInstanceError):
        update.trained = 0  # type: ignore[misc]


# -- what an update says about itself ------------------------------------------------------------------------------
SHORT: dict[str, Any] = {"steps": 3, "lr": 1e-2, "progress": False}
FORMS: dict[str, Any] = {
    "masked_update": lambda m, p: masked_update(m, neurons(), p, allow_unproven=True, **SHORT),
    "one part": lambda m, p: masked_update(m, neurons(), p, parts=["down"], allow_unproven=True, **SHORT),
    "masked_lora": lambda m, p: masked_lora(m, neurons(), p, rank=2, allow_unproven=True, **SHORT),
    "frozen_set_update": lambda m, p: frozen_set_update(m, neurons(), p, rank=2, **SHORT),
    "plain_lora": lambda m, p: plain_lora(m, 1000, p, **SHORT),
    "full_update": lambda m, p: full_update(m, p, **SHORT),
    "clamp_edit": lambda m, p: ns.clamp_edit(m, neurons(), p),
    "low_rank_edit": lambda m, p: ns.low_rank_edit(m, neurons(), p, refusals=["sorry"], compliances=["sure"]),
}


def moved(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> int:
    """How many numbers differ, or are there only afterwards."""
    return sum(
        int((p != before[n]).sum()) if n in before else p.numel() for n, p in after.items()
    )  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_reported_numbers_are_those_that_change(form: str, family: str, monkeypatch: pytest.MonkeyPatch):
    model = double(family)
    factors: dict[str, dict[str, torch.Tensor]] = {}
    attached = variants.attach

    def watched(*args: Any, **options: Any) -> Any:
        adapter = attached(*args, **options)
        factors["before"] = {str(i): p.detach().clone() for i, p in enumerate(adapter.parameters())}
        factors["after"] = {str(i): p for i, p in enumerate(adapter.parameters())}
        return adapter

    for module in (variants, unmasked):
        monkeypatch.setattr(module, "attach", watched)
    update = FORMS[form](model, tiny.prompts())
    base, merged = parameters(model), parameters(update.model)
    # of a LoRA the factors train; of all others, the weights
    count = moved(factors["before"], factors["after"]) if factors else moved(base, merged)
    assert update.trained == count > 0
    assert update.param_fraction == pytest.approx(count / sum(p.numel() for p in base.values()), rel=1e-12)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_share_of_a_set_is_the_share_that_its_update_trains(family: str):
    # trap: a neuron of GPT-2 has a bias, which no update trains
    model = double(family)
    update = masked_update(model, neurons(), tiny.prompts(), allow_unproven=True, **SHORT)
    assert neurons().param_fraction(model) == pytest.approx(update.param_fraction, rel=1e-12)


def facts(update: ns.Update) -> Taught:
    assert update.taught is not None
    return update.taught


def own_answers(share: int = 1) -> ns.PromptSet:
    """The prompts, where one in `share` benign ones has no target."""
    benign = iter(range(1000))
    return ns.PromptSet(
        replace(p, target="sure" if p.label == "benign" and next(benign) % share else None) for p in tiny.prompts()
    )


@pytest.mark.slow
def test_what_was_held_by_kl_and_what_was_taught_is_counted(llama: ns.Model):
    many: dict[str, Any] = {**SHORT, "steps": 8, "allow_unproven": True, "batch_size": 20}
    n = len(tiny.prompts().where(label="benign"))
    kept = masked_update(llama, neurons(), own_answers(), compliances=["sure"], **many)
    assert (facts(kept).targets, facts(kept).held, kept.retention) == (0, n, 4.0)
    mixed = masked_update(llama, neurons(), own_answers(3), compliances=["sure"], retention=2.0, **many)
    assert (facts(mixed).targets, facts(mixed).held, mixed.retention) == (n - n // 3, n // 3, 2.0)
    taught = masked_update(llama, neurons(), own_answers(1000), **many, retention=7.0)
    assert facts(taught).targets + facts(taught).held == n
    assert taught.provenance["retention"] == 7.0  # one benign prompt has no target
    every = ns.PromptSet(replace(p, target="sure") for p in tiny.prompts())
    none = masked_update(llama, neurons(), every, **many, retention=7.0)
    assert (facts(none).targets, facts(none).held, none.retention, none.provenance["retention"]) == (n, 0, None, None)
    assert (
        none.losses == masked_update(llama, neurons(), every, **many, retention=0.1).losses
    )  # the weight acts on nothing
    text = masked_update(llama, neurons(), every, **many, texts=["one step"])
    assert (facts(text).texts, facts(text).held, text.retention) == (1, 0, 4.0)


def test_prompts_that_no_step_reached_are_not_counted(llama: ns.Model):
    update = masked_update(llama, neurons(), tiny.prompts(), steps=2, batch_size=4, allow_unproven=True, progress=False)
    assert (facts(update).refusals, facts(update).prompts) == (4, 8)


@pytest.mark.parametrize("form", ["masked_update", "plain_lora", "full_update", "frozen_set_update"])
def test_a_snapshot_is_the_model_after_that_step(form: str, llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(SHORT, "snapshots", [1, 3])
    update = FORMS[form](llama, tiny.prompts())
    last = parameters(update.model)
    assert sorted(update.snapshots) == [1, 3]
    early = parameters(update.at(1))
    assert moved(early, last) > 0
    assert moved(parameters(llama), early) > 0
    assert all(torch.equal(p, last[name]) for name, p in parameters(update.at(3)).items())
    assert all(torch.equal(p, last[name]) for name, p in parameters(update.model).items())
    # the first step is the same whatever comes after it: the learning rate of step 0 is lr
    monkeypatch.setitem(SHORT, "snapshots", [])
    monkeypatch.setitem(SHORT, "steps", 1)
    for name, p in parameters(FORMS[form](llama, tiny.prompts()).model).items():
        torch.testing.assert_close(p, early[name], rtol=0, atol=1e-7, msg=name)
    with pytest.raises(ns.InputError, match=r"Update.at\(2\): kept are 1, 3; train with snapshots="):
        update.at(2)
    with pytest.raises(ns.InputError, match=r"Update.at\(\[1\]\): kept are 1, 3"):
        update.at([1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"snapshots": [0]}, "snapshots=0: must be a whole number of at least 1"),
        ({"snapshots": [2, 9]}, r"snapshots=\[2, 9\]: there are 4 steps"),
        ({"snapshots": 3}, "snapshots must be Iterable, got int 3; steps, such as"),
    ],
)
def test_a_snapshot_that_cannot_be_kept_is_refused(options: dict[str, Any], said: str):
    with pytest.raises(ns.InputError, match=said):
        ns.TrainingConfig(**{"steps": 4, **options})
