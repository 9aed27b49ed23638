"""Selecting again: the complete rule of a set, on other labels and with larger sizes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import organism
from neuronshield.core.statistics import p_value
from neuronshield.find.moments import record
from neuronshield.find.reselection import Selection, _select, leaves, pooled, reselect, selection_of, shuffled_sets
from neuronshield.find.rules import grown, run_leaf
from neuronshield.find.scores import METHODS
from neuronshield.find.shuffling import shuffled_labels
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.pairs import match, measure

ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"]}
EN, SW = ns.Cell("en", "text"), ns.Cell("sw", "text")
Pick = Callable[[Any], ns.NeuronSet]
COMBINATIONS: dict[str, Pick] = {
    "one cell": lambda s: s[EN],
    "both": lambda s: s[EN] & s[SW],
    "either": lambda s: s[EN] | s[SW],
    "difference": lambda s: s[EN] - s[SW],
    "one of the two": lambda s: s[EN] ^ s[SW],
    "nested": lambda s: (s[EN] | s[SW]) - (s[EN] & s[SW]),
}


UNTARGETED = ns.PromptSet([replace(p, target=None) for p in tiny.prompts()])  # targets are prefixes of their own label


def tree_of(neurons: ns.NeuronSet) -> Any:
    return neurons.provenance["selection"]


def again(selection: Selection, prompts: ns.PromptSet, labels: list[str]) -> ns.NeuronSet:
    """Selected again with labels given for all prompts."""
    label = dict(zip((p.id for p in prompts), labels, strict=True))
    return selection.again([label[p.id] for p in selection.prompts])


def relabelled(prompts: ns.PromptSet, labels: list[str]) -> ns.PromptSet:
    return ns.PromptSet([replace(p, label=label) for p, label in zip(prompts, labels, strict=True)])


@pytest.fixture(scope="module")
def prompts() -> ns.PromptSet:
    return tiny.prompts()


@pytest.fixture(scope="module")
def stats(llama: ns.Model, prompts: ns.PromptSet) -> ns.Stats:
    return ns.capture(llama, prompts, progress=False)


# -- the whole selection, on other labels ------------------------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("method", [*METHODS, "lape"])
def test_other_labels_give_what_capture_and_top_give_on_them(
    llama: ns.Model, prompts: ns.PromptSet, method: str, combination: str
):
    labels = shuffled_labels(prompts, np.random.default_rng(1))

    def pick(rows: ns.PromptSet) -> ns.NeuronSet:
        scores = ns.contrast(ns.capture(llama, rows, progress=False), method=method)
        return COMBINATIONS[combination](scores.top(k=9))

    here = pick(prompts)
    selection = selection_of(llama, here, prompts)
    assert selection.again() == here
    other = pick(relabelled(prompts, labels))
    assert again(selection, prompts, labels) == other
    if method != "lape" and combination == "either":
        assert other != here


@pytest.mark.parametrize("size", [{"k": 9}, {"per_layer": 4}, {"fraction": 0.1}, {"param_fraction": 0.02}])
@pytest.mark.parametrize("sign", [None, "harmful", "benign"])
def test_every_size_and_sign_is_run_again(
    llama: ns.Model, prompts: ns.PromptSet, size: dict[str, Any], sign: str | None
):
    labels = shuffled_labels(prompts, np.random.default_rng(2))
    sets = [
        ns.contrast(ns.capture(llama, rows, progress=False)).top(**size, sign=sign)[SW]
        for rows in (prompts, relabelled(prompts, labels))
    ]
    assert again(selection_of(llama, sets[0], prompts), prompts, labels) == sets[1] != sets[0]


@pytest.mark.parametrize("tokens", ["prompt", "text", "response"])
@pytest.mark.parametrize("method", ["contribution", "effect_size", "cett", "sn_tune"])
def test_a_selection_on_other_tokens_reads_those_again(
    llama: ns.Model, prompts: ns.PromptSet, tokens: Any, method: str
):
    labels = shuffled_labels(prompts, np.random.default_rng(3))
    sets = [
        ns.contrast(ns.capture(llama, rows, tokens=tokens, progress=False), method=method).top(k=9)[EN]
        for rows in (prompts, relabelled(prompts, labels))
    ]
    assert again(selection_of(llama, sets[0], prompts), prompts, labels) == sets[1] != sets[0]


def test_attribution_is_run_again_with_its_own_prefixes(llama: ns.Model):
    labels = shuffled_labels(UNTARGETED, np.random.default_rng(4))
    for ask in (ASK, {"refusals": ["make"], "compliances": ["sure"]}):
        sets = [ns.attribution(llama, rows, **ask).top(k=9) for rows in (UNTARGETED, relabelled(UNTARGETED, labels))]
        both, other = (s[EN] & s[SW] for s in sets)
        assert again(selection_of(llama, both, UNTARGETED), UNTARGETED, labels) == other
        assert selection_of(llama, sets[0][SW], UNTARGETED).again() == sets[0][SW]
    here = [ns.attribution(llama, UNTARGETED, **ask).top(k=9)[EN] for ask in (ASK, {**ASK, "refusals": ["make"]})]
    assert here[0] != here[1]  # the prefixes matter


def test_attribution_and_a_contrast_are_joined(llama: ns.Model):
    labels = shuffled_labels(UNTARGETED, np.random.default_rng(4))
    sets = [
        ns.attribution(llama, rows, **ASK).top(k=20)[EN]
        & ns.contrast(ns.capture(llama, rows, progress=False)).top(k=20)[EN]
        for rows in (UNTARGETED, relabelled(UNTARGETED, labels))
    ]
    assert again(selection_of(llama, sets[0], UNTARGETED), UNTARGETED, labels) == sets[1]


def test_only_discover_rows_are_selected_on(llama: ns.Model):
    rows = tiny.records()
    for row in rows:
        row["split"] = "discover" if row["pair_id"].startswith(("0", "1", "2")) else "confirm"
    split = ns.PromptSet.from_records(rows)
    neurons = ns.contrast(ns.capture(llama, split, progress=False)).top(k=9)[EN]
    selection = selection_of(llama, neurons, split)
    assert selection.again() == neurons
    assert {(p.split, p.cell) for p in selection.prompts} == {("discover", EN)}  # and only rows of the cells it reads


RULES: dict[str, dict[str, Any]] = {
    "safeneuron": {"tau": 0.8}, "ss_neurons": {"p": 0.2}, "one_anchor": {"rho": 0.5, "modalities": ["text", "image"]},
    "precise_shield": {"rho": 0.2}, "set_difference": {"p": 0.3, "q": 0.1, "method": "wanda"},
    "global_difference": {"p": 0.3, "q": 0.1}, "significance": {"q": 0.6}, "mean_difference": {"per_layer": 4},
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_published_rule_is_run_again(llava: ns.Model, rule: str):
    """In Swahili, so that rules which join English or pictures read those requests with the same labels."""
    rows = tiny.prompts(pictures=True)
    rng = np.random.default_rng(6)
    here = ns.select(rule, ns.capture(llava, rows, progress=False), **RULES[rule])[SW]
    selection = selection_of(llava, here, rows)
    assert selection.again() == here
    read = {str(p.cell) for p in selection.prompts}
    joined = {"ss_neurons": {"en/text"}, "one_anchor": {"en/text", "en/image", "sw/image"}}
    assert read == {"sw/text"} | joined.get(rule, set())
    others = []
    for _ in range(3):
        labels = shuffled_labels(rows, rng)
        others.append(ns.select(rule, ns.capture(llava, relabelled(rows, labels), progress=False), **RULES[rule])[SW])
        assert again(selection, rows, labels) == others[-1]
    assert rule in joined or any(other != here for other in others)
    n = max(len(here), 3)
    sizes = {len(selection.again(n=n, leave_out=here)), len(selection.shuffled(rng, n=n))}
    assert sizes == {n} or (rule in joined and max(sizes) <= n)  # few are left by a set difference in every cell
    assert not selection.again(n=n, leave_out=here) & here


# -- as many as asked ---------------------------------------------------------------------------------------------
def scaled(stats: ns.Stats, method: str, cell: ns.Cell) -> np.ndarray:
    value = np.abs(ns.contrast(stats, method=method)[cell])
    return value / value.max()


def best(rank: np.ndarray, n: int, among: set[tuple[int, int]] | None = None) -> set[tuple[int, int]]:
    order = [divmod(int(i), rank.shape[1]) for i in np.argsort(-rank, axis=None, kind="stable")]
    return set([at for at in order if among is None or at in among][:n])


def test_next_ranks_are_the_next_highest_scores(stats: ns.Stats):
    sets = ns.contrast(stats).top(k=9)
    rank = scaled(stats, "contribution", EN)
    assert set(reselect(tree_of(sets[EN]), stats, n=9, leave_out=sets[EN])) == best(rank, 18) - set(sets[EN])
    assert set(reselect(tree_of(sets[EN]), stats, n=4)) == best(rank, 4)
    assert set(reselect(tree_of(sets[EN]), stats, n=14)) == best(rank, 14)


@pytest.mark.parametrize("method", ["precise_shield", "wanda", "sn_tune"])
def test_next_ranks_follow_the_set_difference(stats: ns.Stats, method: str):
    """None of the benign ranking's best is among them."""
    scores = ns.contrast(stats, method=method)
    neurons = scores.top(k=6)[EN]
    harmful, benign = (np.abs(part[scores.cells.index(EN)]) for part in (scores.values, scores.against))
    expected: set[tuple[int, int]] = set()
    for size in (6, 12, 24, 48):  # sizes are doubled until six others are left
        left = set(scores.top(k=size)[EN])
        if len(left - set(neurons)) >= 6:
            expected = best(harmful, 6, left - set(neurons))
            break
    found = reselect(tree_of(neurons), stats, n=6, leave_out=neurons)
    assert set(found) == expected
    assert method == "sn_tune" or expected != best(harmful, 12) - set(neurons)
    place = [(-m).argsort(axis=1, kind="stable").argsort(axis=1, kind="stable") for m in (harmful, benign)]
    assert all(place[0][at] < place[1][at] for at in found)  # higher on harmful prompts than on benign ones


def test_a_combination_that_is_too_small_grows_and_one_that_is_too_large_is_cut_by_the_summed_rank(stats: ns.Stats):
    sets = ns.contrast(stats).top(k=6)
    rank = scaled(stats, "contribution", EN) + scaled(stats, "contribution", SW)
    union = sets[EN] | sets[SW]
    assert set(reselect(tree_of(union), stats, n=5)) == best(rank, 5, set(union))
    both = sets[EN] & sets[SW]
    n = len(both) + 7
    for size in (12, 24, 48, 96):
        wider = ns.contrast(stats).top(k=min(size, 87))
        if len(wider[EN] & wider[SW]) >= n:
            break
    assert set(reselect(tree_of(both), stats, n=n)) == best(rank, n, set(wider[EN] & wider[SW]))


def test_what_is_taken_away_does_not_grow(stats: ns.Stats):
    harm = ns.contrast(stats, method="effect_size").top(k=10)[EN]
    language = ns.contrast(stats, method="lape").top(k=10)[EN]
    apart = harm - language
    found = reselect(tree_of(apart), stats, n=40)
    assert len(found) == 40
    assert not found & language
    assert set(found) == best(
        scaled(stats, "effect_size", EN), 80, set(ns.contrast(stats, method="effect_size").top(k=87)[EN] - language)
    ) & set(found)


def test_a_rule_that_cannot_choose_so_many_gives_all_it_can(stats: ns.Stats):
    scores = ns.contrast(stats)
    positive = int((scores.difference[scores.cells.index(EN)] > 0).sum())
    neurons = scores.top(k=5, sign="harmful")[EN]
    assert len(reselect(tree_of(neurons), stats, n=80)) == positive < 80
    assert len(reselect(tree_of(scores.top(k=5)[EN]), stats, n=1000)) == 87


def test_a_rule_that_chooses_nothing_grows_until_it_chooses_enough(stats: ns.Stats):
    """Doubling once adds no neuron here; doubling on does."""
    for rule, options, rank in (
        ("safeneuron", {"tau": 400.0}, None),
        ("significance", {"q": 1e-12}, "significance"),
    ):
        neurons = ns.select(rule, stats, **options)[EN]
        assert not len(neurons)
        found = reselect(tree_of(neurons), stats, n=6)
        assert len(found) == 6
        wider = next(
            s
            for s in (
                ns.select(rule, stats, **{k: v * 2.0 ** (j if rank else -j) for k, v in options.items()})[EN]
                for j in range(1, 99)
            )
            if len(s) >= 6
        )
        _, magnitude = run_leaf(tree_of(wider), stats)
        assert set(found) == best(magnitude, 6, set(wider))


@pytest.mark.slow
def test_a_rule_grows_on_where_doubling_adds_nothing_by_chance(stats: ns.Stats):
    """For every number of neurons up to the most that any size leaves, as many are found."""
    for rule, options in (
        ("precise_shield", {"rho": 0.1}), ("ss_neurons", {"p": 0.04}), ("global_difference", {"p": 0.03, "q": 0.03}),
        ("set_difference", {"p": 0.1, "q": 0.04}),
    ):  # fmt: skip
        leaf = tree_of(ns.select(rule, stats, **options)[SW])
        most = max(len(run_leaf(grown(leaf, 2.0**j), stats)[0]) for j in range(8))
        assert most > 1
        for n in range(1, most + 1):
            assert len(reselect(leaf, stats, n=n)) == n


def test_growth_ends_where_no_neuron_is_left_to_choose():
    """Each leaf is run until it has chosen all that it can, and no more often."""
    asked: list[float] = []

    def run(leaf: Any) -> tuple[ns.NeuronSet, np.ndarray]:
        asked.append(leaf["size"]["k"])
        k = min(leaf["size"]["k"], 5)
        return ns.NeuronSet([(0, i) for i in range(k)]), np.array([[5.0, 4.0, 3.0, 2.0, 1.0, -np.inf]])

    tree = {"rule": "top", "method": "sas", "cell": "en/text", "size": {"k": 1}, "sign": "harmful"}
    assert len(_select(tree, run, n=6, leave_out=None)) == 5
    assert asked == [1, 2, 4, 8]


def test_a_set_of_another_model_is_refused(llama: ns.Model, prompts: ns.PromptSet, stats: ns.Stats):
    neurons = ns.contrast(stats).top(k=4)[EN]
    other = ns.load(tiny.llama(intermediate_size=31), processor=tiny.tokenizer())
    with pytest.raises(
        ns.InputError, match=r"the set is of 3 layers x 29 neurons, but .* has 3 x 31: select neurons on this model"
    ):
        selection_of(other, neurons, prompts)
    with pytest.raises(ns.InputError, match="prompts must be PromptSet, got list"):
        selection_of(llama, neurons, list(prompts))  # type: ignore[arg-type]
    with pytest.raises(ns.InputError, match="model must be Model, got NoneType"):
        selection_of(None, neurons, prompts)  # type: ignore[arg-type]
    with pytest.raises(ns.InputError, match="stats must be Stats or NoneType, got str"):
        selection_of(llama, neurons, prompts, stats="x")  # type: ignore[arg-type]
    with pytest.raises(ns.InputError, match=r"neuron \(9, 9\) lies outside 3 layers x 29 neurons"):
        reselect(tree_of(neurons), stats, n=3, leave_out=ns.NeuronSet([(9, 9)]))
    with pytest.raises(ns.InputError, match="tree must be Mapping, got NoneType"):
        reselect(None, stats)  # type: ignore[arg-type]
    with pytest.raises(ns.InputError, match="reselect: n=-2: must be a whole number of at least 0"):
        reselect(tree_of(neurons), stats, n=-2)


def test_pooled_takes_the_best_of_all_cells(stats: ns.Stats):
    rank = scaled(stats, "sas", EN) + scaled(stats, "sas", SW)
    union = set().union(*(set(s) for s in ns.contrast(stats, method="sas").top(k=7).values()))
    assert set(reselect(pooled("sas", [EN, SW], 7), stats, n=7)) == best(rank, 7, union)
    assert [leaf["cell"] for leaf in leaves(pooled("sas", [EN, SW], 7))] == ["en/text", "sw/text"]


def test_no_warning_of_a_size_is_logged_while_selecting_again(stats: ns.Stats, caplog: pytest.LogCaptureFixture):
    neurons = ns.contrast(stats, method="precise_shield").top(k=3)[EN]
    caplog.clear()
    reselect(tree_of(neurons), stats, n=60)
    assert not caplog.records


# -- a set selected on shuffled labels is one more draw -----------------------------------------------------------
@pytest.mark.slow
@pytest.mark.parametrize("method", ["contribution", "precise_shield"])
def test_sets_of_shuffled_labels_exceed_their_controls_at_the_nominal_rate(
    llama: ns.Model, prompts: ns.PromptSet, stats: ns.Stats, method: str
):
    """A fixed value of each neuron stands for its effect; the true contrast decides it, so that members matter."""
    effect = scaled(stats, "contribution", EN)
    values = record(llama, prompts)

    def stats_of(labels: Any) -> ns.Stats:
        return ns.Stats.of(values, prompts, like=stats, labels=labels)

    neurons = ns.contrast(stats, method=method).top(k=8)[EN]
    selection = Selection(tree_of(neurons), tuple(prompts), stats, stats_of)
    rng = np.random.default_rng(0)
    drawn = np.array([sum(effect[at] for at in selection.shuffled(rng, n=8)) for _ in range(400)])
    p = np.array([p_value(part[0], part[1:]) for part in drawn.reshape(20, 20)])
    assert (p <= 0.05).mean() <= 0.2  # of 20 sets one is expected to exceed its 19 controls; more than 4 in one of 400
    assert sum(effect[at] for at in neurons) > np.quantile(drawn, 0.95)


def test_shuffled_sets_are_as_large_may_share_members_and_repeat_with_the_seed(llama: ns.Model, prompts: ns.PromptSet):
    neurons = ns.contrast(ns.capture(llama, prompts, progress=False)).top(k=9)[EN]
    sets = shuffled_sets(llama, neurons, prompts, draws=12, seed=3)
    assert {len(s) for s in sets} == {9}
    assert len(set(sets)) > 6
    assert any(s & neurons for s in sets)
    assert (
        sets
        == shuffled_sets(llama, neurons, prompts, draws=12, seed=3)
        != shuffled_sets(llama, neurons, prompts, draws=12)
    )
    part = ns.NeuronSet(list(neurons)[:4], provenance=neurons.provenance)
    assert {len(s) for s in shuffled_sets(llama, part, prompts, draws=3)} == {4}


# -- what cannot be run again -------------------------------------------------------------------------------------
def test_why_a_selection_is_not_run_again_is_said(llama: ns.Model, prompts: ns.PromptSet):
    top = ns.contrast(ns.capture(llama, prompts, progress=False)).top(k=4)
    snip = ns.baselines.snip(llama, prompts[:8], **ASK, progress=False).top(k=4)[EN]
    text = ns.contrast(ns.capture(llama, prompts, tokens="text", progress=False)).top(k=4)[SW]
    attributed = [
        ns.attribution(llama, UNTARGETED, **{**ASK, "refusals": [w]}).top(k=20)[EN] for w in ("sorry", "make")
    ]
    elsewhere = tiny.prompts(languages=["sw"])
    for neurons, rows, said in (
        (ns.NeuronSet(list(top[EN])), prompts, "how the set was selected is not known"),
        (top[EN] - ns.NeuronSet([(0, 1)]), prompts, "how the set was selected is not known"),
        (snip, prompts, "selection by 'snip' is not run again"),
        (snip | top[EN], prompts, "selection by 'snip' is not run again"),
        (top[EN] | text, prompts, "tokens of several roles"),
        (attributed[0] & attributed[1], prompts, "different prefixes"),
        (top[EN] & top[SW], elsewhere, "en/text"),
    ):
        with pytest.raises(ns.InputError, match=said) as caught:
            selection_of(llama, neurons, rows)
        assert "\n" not in str(caught.value)


def test_activations_are_recorded_once_however_many_draws(llama: ns.Model, prompts: ns.PromptSet):
    neurons = ns.contrast(ns.capture(llama, prompts, progress=False)).top(k=9)[EN]
    selection, forwards = selection_of(llama, neurons, prompts), []
    hook = llama.module.register_forward_hook(lambda *_: forwards.append(1))
    try:
        rng = np.random.default_rng(0)
        assert len([selection.shuffled(rng, n=9) for _ in range(5)]) == 5
        assert not forwards
        with torch.no_grad():
            llama.module(torch.tensor([[1, 2]]))
        assert forwards
    finally:
        hook.remove()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["contribution", "effect_size"])
def test_on_the_organism_null_sets_exceed_their_permuted_controls_at_the_nominal_rate_and_the_true_one_does(
    organism_model: ns.Model, method: str
):
    """Effects of mean ablation on requests that no selection saw: of 24 sets on shuffled labels, and of the true set."""
    rows = ns.PromptSet.from_records(
        organism.records(languages=["en"], modalities=["text"], splits=["discover", "confirm"])
    )
    discover, confirm = rows.where(split="discover"), rows.where(split="confirm")
    tokens = opening_tokens(organism_model, openings_of(organism_model, confirm))
    pairs = measure(organism_model, match(confirm, seed=0)[0], tokens)
    true = ns.contrast(ns.capture(organism_model, discover, progress=False), method=method).top(k=64)[EN]
    selection = selection_of(organism_model, true, discover)
    rng = np.random.default_rng(0)
    sets = [true, *(selection.shuffled(rng, n=64) for _ in range(24 * 20))]
    change = pairs.harmful_margins - pairs.on_harmful([pairs.ablate(s) for s in sets])
    true_effect, *effects = pairs.normalised_effects(change)
    p = np.array([p_value(part[0], part[1:]) for part in np.array(effects).reshape(24, 20)])
    assert (p <= 0.05).sum() <= 4  # 1.2 expected; more than 4 in 100 cases once
    assert p_value(true_effect, np.array(effects)) <= 0.05
