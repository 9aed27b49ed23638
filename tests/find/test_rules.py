"""Published rules beside independent restatements; a leaf chooses again what it chose before."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from neuronshield import Cell, InputError
from neuronshield.find.moments import Group, Moments, Stats
from neuronshield.find.rules import RULES, grown, run_leaf, select
from neuronshield.find.scores import METHODS, contrast

L, D = 3, 29
LANGUAGES, MODALITIES = ("en", "sw", "ko"), ("text", "image")


def drawn(seed: int = 0) -> tuple[dict[tuple[str, Cell], np.ndarray], Stats]:
    """Activations [prompt, n_layers, d_mlp] by label and cell, and their moments. Cells share part of their means."""
    rng = np.random.default_rng(seed)
    shared = {label: rng.normal(0, 1, (L, D)) for label in ("harmful", "benign")}
    weights = rng.normal(0, rng.uniform(0.1, 3, (L, 1, D)), (L, 5, D))
    raw, groups = {}, {}
    for language in LANGUAGES:
        for modality in MODALITIES:
            cell = Cell(language, modality)
            for label, n in (("harmful", 13), ("benign", 17)):
                h = rng.normal(shared[label] + rng.normal(0, 0.4, (L, D)), rng.uniform(0.2, 2, (L, D)), (n, L, D))
                raw[label, cell] = h
                out = np.linalg.norm(np.einsum("lmd,pld->plm", weights, h), axis=-1)
                groups[Group(label, language, modality, 0)] = Moments.of(h[:6], out[:6])
                groups[Group(label, language, modality, 1)] = Moments.of(h[6:], out[6:])
    norms, l1 = np.linalg.norm(weights, axis=1), np.abs(weights).sum(axis=1)
    return raw, Stats(groups, norms, l1, "last_prompt", 100_000, 60, {"model": "m", "seen": ["x"]})


@pytest.fixture(scope="module")
def raw() -> dict[tuple[str, Cell], np.ndarray]:
    return drawn()[0]


@pytest.fixture(scope="module")
def stats() -> Stats:
    return drawn()[1]


# -- leaves ----------------------------------------------------------------------------------------------
SIZES: list[dict[str, Any]] = [{"k": 7}, {"per_layer": 5}, {"fraction": 0.1}, {"param_fraction": 0.006}]


@pytest.mark.parametrize("sign", [None, "harmful", "benign"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", [*METHODS, "lape"])
def test_a_leaf_of_top_chooses_again_what_top_chose(stats: Stats, method: str, size: dict[str, Any], sign: str | None):
    for cell, neurons in contrast(stats, method=method).top(**size, sign=sign).items():
        leaf = json.loads(json.dumps(neurons.provenance["selection"]))
        assert leaf == {"rule": "top", "method": method, "cell": str(cell), "size": size, "sign": sign}
        again, rank = run_leaf(leaf, stats)
        assert again == neurons
        assert again.provenance["selection"] == leaf
        assert again.provenance["seen"] == ["x"]
        mask = np.zeros((L, D), bool)
        mask[tuple(np.array(list(neurons)).T)] = True
        assert (rank[mask] > -np.inf).all()
        if method not in ("precise_shield", "sn_tune", "wanda") and "per_layer" not in size:
            assert rank[mask].min() >= rank[~mask].max()  # the rest ranks below


def test_a_leaf_on_other_moments_is_the_selection_on_them(stats: Stats):
    other = drawn(seed=1)[1]
    leaf = contrast(stats, method="precise_shield").top(k=7)["sw/image"].provenance["selection"]
    assert run_leaf(leaf, other)[0] == contrast(other, method="precise_shield").top(k=7)["sw/image"]
    assert run_leaf(leaf, other)[0] != run_leaf(leaf, stats)[0]


def test_a_set_difference_and_a_sign_bar_neurons_from_the_rank(stats: Stats):
    scores = contrast(stats, method="wanda")
    neurons = scores.top(per_layer=9, sign="harmful")["ko/text"]
    _, rank = run_leaf(neurons.provenance["selection"], stats)
    assert scores.against is not None
    assert scores.difference is not None
    at = scores.cells.index(Cell("ko", "text"))
    for layer in range(L):
        taken = set(np.argsort(-scores.against[at, layer])[:9].tolist())
        barred = {i for i in range(D) if i in taken or scores.difference[at, layer, i] <= 0}
        assert set(np.flatnonzero(np.isneginf(rank[layer])).tolist()) == barred


def test_a_grown_leaf_is_larger_and_holds_what_a_plain_ranking_chose(stats: Stats):
    for size, larger in zip(
        SIZES, ({"k": 11}, {"per_layer": 8}, {"fraction": 0.15}, {"param_fraction": 0.009}), strict=True
    ):
        neurons = contrast(stats).top(**size)["en/text"]
        leaf = grown(neurons.provenance["selection"], 1.5)
        assert leaf["size"] == pytest.approx(larger)
        assert set(run_leaf(leaf, stats)[0]) > set(neurons)
        assert neurons.provenance["selection"]["size"] == size  # the leaf itself is as it was


@pytest.mark.parametrize("size", SIZES)
def test_a_leaf_grown_beyond_the_model_takes_every_neuron(stats: Stats, size: dict[str, Any]):
    leaf = grown(contrast(stats).top(**size)["en/text"].provenance["selection"], 1e6)
    assert len(run_leaf(leaf, stats)[0]) == L * D


def test_a_rule_that_is_not_known_is_refused(stats: Stats):
    for leaf in ({}, {"rule": "one_ancor", "cell": "en/text", "options": {}}):
        with pytest.raises(InputError, match=r"run_leaf\(leaf, stats\): rule=.* is unknown"):
            run_leaf(leaf, stats)


@pytest.mark.parametrize("method", ["attribution", "snip", "change_score"])
def test_a_score_that_needs_the_model_is_refused(stats: Stats, method: str):
    with pytest.raises(InputError, match=f"selection by '{method}' needs the model"):
        run_leaf({"rule": "top", "method": method, "cell": "en/text", "size": {"k": 3}, "sign": None}, stats)


# -- rules beside independent restatements --------------------------------------------------------------------
def norms_of(stats: Stats) -> np.ndarray:
    return np.asarray(stats.down_norms)


def members(neurons: Any, layer: int) -> set[int]:
    return {index for la, index in neurons if la == layer}


def largest(values: np.ndarray, k: int) -> set[int]:
    """Indices of the k largest, by sorting pairs."""
    return {i for _, i in sorted(((-v, i) for i, v in enumerate(values.tolist())))[:k]}


def cells(*names: str) -> list[Cell]:
    return [Cell.of(name) for name in names]


ALL = cells("en/text", "en/image", "sw/text", "sw/image", "ko/text", "ko/image")


def test_safeneuron_is_the_union_of_its_two_thresholds(raw: dict, stats: Stats):
    sets = select("safeneuron", stats, tau=1.6, tau_z=0.7)
    assert list(sets) == ALL
    counted = [0, 0]
    for cell, neurons in sets.items():
        h, b = raw["harmful", cell], raw["benign", cell]
        want = set()
        for layer in range(L):
            shift = h[:, layer].mean(0) - b[:, layer].mean(0)
            z = (shift - np.mean(shift)) / np.std(shift)
            for i in range(D):
                x, y = h[:, layer, i], b[:, layer, i]
                spread = np.sqrt((12 * np.var(x, ddof=1) + 16 * np.var(y, ddof=1)) / 28)
                by_effect, by_shift = shift[i] / spread > 1.6, bool(z[i] > 0.7 and shift[i] > 0)
                counted[0] += by_effect and not by_shift
                counted[1] += by_shift and not by_effect
                if by_effect or by_shift:
                    want.add((layer, i))
        assert set(neurons) == want
    assert min(counted) > 0  # each arm adds neurons of its own


def test_safeneuron_never_takes_a_neuron_that_is_larger_on_benign_prompts():
    """Every neuron of the layer is smaller on harmful prompts; the one that is least so has a large z."""
    noise = np.random.default_rng(0).normal(0, 0.1, (9, 1, 10))
    h, b = noise - np.array([1.0] * 9 + [0.1]), noise[::-1]
    groups = {Group("harmful", "en", "text", 0): Moments.of(h), Group("benign", "en", "text", 0): Moments.of(b)}
    stats = Stats(groups, np.ones((1, 10)), np.ones((1, 10)), "last_prompt", 1000, 6)
    assert contrast(stats, method="sas").values[0, 0, 9] > 2
    neurons = select("safeneuron", stats, tau=1.5)["en/text"]
    assert not len(neurons)
    assert np.isneginf(run_leaf(neurons.provenance["selection"], stats)[1]).all()


def test_safeneuron_takes_one_threshold_for_both(stats: Stats):
    assert select("safeneuron", stats, tau=1.1) == select("safeneuron", stats, tau=1.1, tau_z=1.1)


def shield_layer(raw: dict, stats: Stats, cell: Cell, layer: int, k: int) -> set[int]:
    """Precise Shield's neurons of one layer of one cell."""
    tops = []
    for label in ("harmful", "benign"):
        loud = np.abs(raw[label, cell][:, layer].mean(0)) * norms_of(stats)[layer]
        tops.append(largest(loud / loud.sum(), k))
    return tops[0] - tops[1]


def test_precise_shield_is_per_layer_harmful_minus_benign(raw: dict, stats: Stats):
    sets = select("precise_shield", stats, rho=0.31)  # 8.99 of 29 neurons: 8
    assert list(sets) == ALL
    for cell, neurons in sets.items():
        for layer in range(L):
            assert members(neurons, layer) == shield_layer(raw, stats, cell, layer, 8)
    assert sets == contrast(stats, method="precise_shield").top(per_layer=8)


def test_one_anchor_intersects_modalities_then_english(raw: dict, stats: Stats):
    sets = select("one_anchor", stats, rho=0.5)
    assert list(sets) == ALL
    sizes = []
    for cell, neurons in sets.items():
        for layer in range(L):
            own = shield_layer(raw, stats, Cell(cell.language, "text"), layer, 14)
            own &= shield_layer(raw, stats, Cell(cell.language, "image"), layer, 14)
            english = shield_layer(raw, stats, Cell("en", "text"), layer, 14)
            english &= shield_layer(raw, stats, Cell("en", "image"), layer, 14)
            assert members(neurons, layer) == own & english
            sizes.append((len(own & english), len(own)))
        assert neurons == sets[Cell(cell.language, "text")]  # one set a language
    assert 0 < sum(both for both, _ in sizes) < sum(own for _, own in sizes)


def test_an_intersection_bars_what_any_of_its_cells_takes_away(raw: dict, stats: Stats):
    leaf = select("one_anchor", stats, rho=0.3)["ko/text"].provenance["selection"]
    _, rank = run_leaf(leaf, stats)
    for layer in range(L):
        taken = set()
        for cell in cells("ko/text", "ko/image", "en/text", "en/image"):
            loud = np.abs(raw["benign", cell][:, layer].mean(0)) * norms_of(stats)[layer]
            taken |= largest(loud, 8)
        assert set(np.flatnonzero(np.isneginf(rank[layer])).tolist()) == taken
        assert ((rank[layer] > 0) | np.isneginf(rank[layer])).all()


def test_ss_neurons_are_three_percent_minus_three_percent_and_english(raw: dict, stats: Stats):
    def layer_set(cell: Cell, layer: int, k: int) -> set[int]:
        tops = []
        for label in ("harmful", "benign"):
            h = raw[label, cell][:, layer]
            change = np.array([np.mean((h[:, i] * norms_of(stats)[layer, i]) ** 2) for i in range(D)])
            tops.append(largest(change, k))
        return tops[0] - tops[1]

    for p, k in ((0.5, 14), (0.1, 2)):
        for cell, neurons in select("ss_neurons", stats, p=p).items():
            for layer in range(L):
                assert members(neurons, layer) == layer_set(cell, layer, k) & layer_set(
                    Cell("en", cell.modality), layer, k
                )
    wide = Stats(
        {g: wider(m) for g, m in stats.groups.items()}, np.ones((1, 200)), np.ones((1, 200)), "last_prompt", 9, 1
    )
    assert select("ss_neurons", wide) == select("ss_neurons", wide, p=0.03)


def wider(moments: Moments) -> Moments:
    """Moments of one layer of 200 neurons."""
    rng = np.random.default_rng(int(abs(moments.mean[0, 0]) * 1e6))
    return Moments.of(rng.normal(0, rng.uniform(0.1, 3, (1, 200)), (moments.n, 1, 200)))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("p", "q"), [(0.3, 0.1), (0.1, 0.6), (0.25, 0.0)])
def test_a_set_difference_takes_p_and_q_apart(raw: dict, stats: Stats, p: float, q: float, whole: bool):
    rule = "global_difference" if whole else "set_difference"
    for cell, neurons in select(rule, stats, p=p, q=q, method="wanda").items():
        scores = {
            label: stats.down_l1 * np.sqrt((raw[label, cell] ** 2).mean(axis=0)) for label in ("harmful", "benign")
        }
        if whole:
            tops = [largest(scores[s].ravel(), int(x * L * D)) for s, x in (("harmful", p), ("benign", q))]
            assert {layer * D + i for layer, i in neurons} == tops[0] - tops[1]
        else:
            for layer in range(L):
                tops = [largest(scores[s][layer], int(x * D)) for s, x in (("harmful", p), ("benign", q))]
                assert members(neurons, layer) == tops[0] - tops[1]


def test_a_set_difference_is_of_precise_shield_by_default(stats: Stats):
    assert select("set_difference", stats, p=0.31, q=0.31) == select("precise_shield", stats, rho=0.31)
    assert select("set_difference", stats, p=0.3, q=0.2) == select(
        "set_difference", stats, p=0.3, q=0.2, method="precise_shield"
    )
    assert select("set_difference", stats, p=0.3, q=0.2) != select(
        "set_difference", stats, p=0.3, q=0.2, method="wanda"
    )


def test_significance_is_welch_with_benjamini_and_hochberg(raw: dict, stats: Stats):
    for cell, neurons in select("significance", stats, q=0.1).items():
        h, b = (raw[label, cell].reshape(-1, L * D) for label in ("harmful", "benign"))
        p = np.sort(ttest_ind(h, b, equal_var=False).pvalue)
        order = np.argsort(ttest_ind(h, b, equal_var=False).pvalue)
        passing = [rank for rank in range(1, L * D + 1) if p[rank - 1] <= 0.1 * rank / (L * D)]
        want = {divmod(int(i), D) for i in order[: max(passing, default=0)]}
        assert set(neurons) == want
        assert 0 < len(neurons) < L * D


@pytest.mark.slow
def test_significance_keeps_its_false_discovery_rate_on_noise():
    """No neuron differs: over 200 draws the rule chooses any at all in at most 10 % of them, but for chance."""
    found = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        groups = {
            Group(s, "en", "text", 0): Moments.of(rng.normal(0, 1, (n, L, D)))
            for s, n in (("harmful", 7), ("benign", 9))
        }
        stats = Stats(groups, np.ones((L, D)), np.ones((L, D)), "last_prompt", 1000, 6)
        found += len(select("significance", stats, q=0.1)["en/text"]) > 0
    assert found <= 30  # 20 expected at most; 30 is 2.4 standard deviations above


def test_significance_over_several_tokens_a_prompt_is_warned_of(stats: Stats, caplog: pytest.LogCaptureFixture):
    select("significance", stats, q=0.1)
    assert not caplog.text
    with caplog.at_level("WARNING", logger="neuronshield"):
        found = select("significance", replace(stats, tokens="prompt"), q=0.1)
    assert found == select("significance", stats, q=0.1)
    assert caplog.text.count("tokens='prompt' counts several tokens of a prompt as independent") == 1


def test_a_neuron_that_never_varies_is_significant_only_if_it_differs():
    h, b = np.zeros((5, 1, 3)), np.zeros((6, 1, 3))
    h[:, 0, 1] = 1.0
    h[:, 0, 2], b[:, 0, 2] = np.arange(5), np.arange(6)
    groups = {Group("harmful", "en", "text", 0): Moments.of(h), Group("benign", "en", "text", 0): Moments.of(b)}
    stats = Stats(groups, np.ones((1, 3)), np.ones((1, 3)), "last_prompt", 1000, 6)
    neurons = select("significance", stats, q=0.05)["en/text"]
    assert list(neurons) == [(0, 1)]
    assert np.isfinite(run_leaf(neurons.provenance["selection"], stats)[1]).all()


@pytest.mark.parametrize("size", SIZES)
def test_mean_difference_is_the_largest_shift(raw: dict, stats: Stats, size: dict[str, Any]):
    for cell, neurons in select("mean_difference", stats, **size).items():
        shift = np.abs(raw["harmful", cell].mean(0) - raw["benign", cell].mean(0))
        if "per_layer" in size:
            assert all(members(neurons, layer) == largest(shift[layer], 5) for layer in range(L))
        else:
            k = {"k": 7, "fraction": 8, "param_fraction": 10}[next(iter(size))]
            assert set(neurons) == {divmod(i, D) for i in largest(shift.ravel(), k)}


# -- every rule, run again --------------------------------------------------------------------------------------
ASKED: dict[str, dict[str, Any]] = {
    "safeneuron": {"tau": 1.0}, "precise_shield": {"rho": 0.3}, "one_anchor": {"rho": 0.5}, "ss_neurons": {"p": 0.4},
    "set_difference": {"p": 0.3, "q": 0.2}, "global_difference": {"p": 0.3, "q": 0.2}, "significance": {"q": 0.05},
    "mean_difference": {"k": 9},
}  # fmt: skip
READS = {"one_anchor": ["sw/text", "sw/image", "en/text", "en/image"], "ss_neurons": ["sw/image", "en/image"]}


def test_every_rule_is_tested():
    assert set(ASKED) == set(RULES)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_a_leaf_of_a_rule_chooses_again_what_it_chose(stats: Stats, rule: str):
    other = drawn(seed=1)[1]
    for cell, neurons in select(rule, stats, **ASKED[rule]).items():
        leaf = json.loads(json.dumps(neurons.provenance["selection"]))
        assert (leaf["rule"], leaf["cell"]) == (rule, str(cell))
        again, rank = run_leaf(leaf, stats)
        assert again == neurons
        assert again.provenance == neurons.provenance
        assert neurons.provenance["method"] == rule
        assert neurons.provenance["seen"] == ["x"]
        mask = np.zeros((L, D), bool)
        mask[tuple(np.array(list(neurons)).reshape(-1, 2).T)] = True
        assert (rank[mask] > -np.inf).all()
        assert run_leaf(leaf, other)[0] == select(rule, other, **ASKED[rule])[cell]
    assert select(rule, stats, **ASKED[rule])["sw/image"].provenance["cell"] in (READS.get(rule), "sw/image")


@pytest.mark.parametrize("rule", RULES)
def test_a_grown_leaf_of_a_rule_offers_next_ranks(stats: Stats, rule: str):
    """Larger sizes give neurons that were not chosen before; growing without end is no error."""
    neurons = select(rule, stats, **ASKED[rule])["sw/text"]
    leaf = neurons.provenance["selection"]
    more = [run_leaf(grown(leaf, factor), stats)[0] - neurons for factor in (1.1, 1.2, 1.5, 2)]
    assert max(map(len, more)) > 0
    assert grown(leaf, 1) == leaf
    run_leaf(grown(leaf, 1e6), stats)


def test_a_rule_that_joins_english_needs_english(stats: Stats):
    without = Stats(
        {g: m for g, m in stats.groups.items() if g.language != "en"},
        stats.down_norms,
        stats.down_l1,
        "last_prompt",
        100,
        6,
    )
    for rule in ("one_anchor", "ss_neurons"):
        with pytest.raises(
            InputError, match=rf"select\('{rule}'\): intersects with English: needs en/.* there are sw/text"
        ):
            select(rule, without, **ASKED[rule])


def test_one_anchor_leaves_out_a_language_without_a_modality(stats: Stats):
    groups = {g: m for g, m in stats.groups.items() if (g.language, g.modality) != ("sw", "image")}
    some = Stats(groups, stats.down_norms, stats.down_l1, "last_prompt", 100, 6)
    assert list(select("one_anchor", some, rho=0.5)) == cells("en/text", "en/image", "ko/text", "ko/image")
    with pytest.raises(InputError, match="needs en/text, en/typographic with both labels"):
        select("one_anchor", some, rho=0.5, modalities=["text", "typographic"])


@pytest.mark.parametrize(
    ("rule", "options", "said"),
    [
        ("one_ancor", {}, "select: rule='one_ancor' is unknown; did you mean 'one_anchor'?"),
        ("precise_shield", {}, r"select\('precise_shield'\): give rho=, a part of the neurons.* its options are rho"),
        ("precise_shield", {"rho": 0.2, "k": 3}, r"select\('precise_shield'\): k= is unknown; use one of rho"),
        ("precise_shield", {"rho": 0}, "rho=0: a part of the neurons, above 0 and at most 1"),
        ("precise_shield", {"rho": 1.5}, "rho=1.5: a part of the neurons, above 0 and at most 1"),
        ("precise_shield", {"rho": "3%"}, "rho='3%': a part of the neurons"),
        ("precise_shield", {"rho": True}, "rho=True: a part of the neurons"),
        ("precise_shield", {"rho": float("nan")}, "rho=nan: a part of the neurons"),
        ("precise_shield", {"rho": 0.01}, r"select\('precise_shield'\): rho=0.01 of 29 neurons is less than one neuron"),
        ("safeneuron", {"tau": -1.0}, "tau=-1.0: a threshold above 0"),
        ("safeneuron", {"tau": float("inf")}, "tau=inf: a threshold above 0"),
        ("safeneuron", {"tau_z": 1.0}, "give tau=, a threshold above 0; its options are tau, tau_z"),
        ("set_difference", {"p": 0.1}, "give q=, a part of the neurons, 0 to 1; its options are p, q, method"),
        ("set_difference", {"p": 0.1, "q": 0.1, "method": "sas"}, "method='sas' is unknown; use one of precise_shield, sn_tune, wanda"),
        ("significance", {"q": 0}, "q=0: a false discovery rate, above 0 and at most 1"),
        ("one_anchor", {"rho": 0.2, "modalities": "text"}, "modalities='text': give at least two"),
        ("one_anchor", {"rho": 0.2, "modalities": ["text"]}, r"modalities=\['text'\]: give at least two"),
        ("mean_difference", {}, r"select\('mean_difference'\): give exactly one of k, fraction, per_layer, param_fraction \(got 0\)"),
        ("mean_difference", {"k": 3, "per_layer": 2}, r"\(got 2\)"),
        ("mean_difference", {"k": 1000}, "that is 1000 neurons, must be 1 to 87"),
        ("mean_difference", {"k": "many"}, r"select\('mean_difference'\): top\(k='many'\): give a whole number of neurons"),
        ("mean_difference", {"k": True}, r"top\(k=True\): give a whole number of neurons"),
        ("mean_difference", {"fraction": True}, r"top\(fraction=True\): give a number"),
        ("one_anchor", {"rho": 0.2, "modalities": ["text", "text"]}, r"modalities=\['text', 'text'\]: give at least two"),
        ("one_anchor", {"rho": 0.2, "modalities": ["text", "Image"]}, r"select\('one_anchor'\): modalities='Image' is unknown; did you mean 'image'"),
        ("set_difference", {"p": 0.1, "q": 0.01}, r"select\('set_difference'\): q=0.01 of 29 neurons is less than one neuron"),
        ("global_difference", {"p": 0.1, "q": 0.01}, r"select\('global_difference'\): q=0.01 of 87 neurons is less than one neuron"),
    ],
)  # fmt: skip
def test_wrong_options_are_refused_in_one_line(stats: Stats, rule: str, options: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        select(rule, stats, **options)


def test_the_order_of_modalities_changes_nothing(stats: Stats):
    sets = [
        select("one_anchor", stats, rho=0.5, modalities=order)
        for order in (["text", "image"], ("image", "text"), {"image", "text"})
    ]
    assert sets[0] == sets[1] == sets[2]
    assert len({json.dumps(s["sw/text"].provenance) for s in sets}) == 1
    assert (sets[0]["sw/text"] | sets[1]["sw/text"]).provenance["selection"] == sets[0]["sw/text"].provenance[
        "selection"
    ]


def test_swapped_arguments_are_refused(stats: Stats):
    with pytest.raises(InputError, match=r"select\(rule, stats\): rule must be str, got Stats; one of safeneuron"):
        select(stats, "one_anchor", rho=0.1)  # type: ignore[arg-type]


def test_what_is_no_stats_is_refused():
    with pytest.raises(InputError, match=r"select\(rule, stats\): stats must be Stats, got dict"):
        select("precise_shield", {}, rho=0.1)  # type: ignore[arg-type]


def test_numpy_numbers_are_numbers(stats: Stats):
    neurons = select("mean_difference", stats, k=np.int64(5))["en/text"]
    assert json.dumps(neurons.provenance["selection"]["options"]) == '{"k": 5}'
    assert select("precise_shield", stats, rho=np.float64(0.25)) == select("precise_shield", stats, rho=0.25)


def test_neurons_chosen_at_a_score_of_zero_are_warned_of(caplog: pytest.LogCaptureFixture):
    h, b = np.zeros((5, 1, 10)), np.zeros((5, 1, 10))
    h[:, 0, 7], b[:, 0, 8] = 1.0, 1.0
    groups = {Group("harmful", "en", "text", 0): Moments.of(h), Group("benign", "en", "text", 0): Moments.of(b)}
    stats = Stats(groups, np.ones((1, 10)), np.ones((1, 10)), "last_prompt", 1000, 6)
    with caplog.at_level("WARNING", logger="neuronshield"):
        select("precise_shield", stats, rho=0.1)
    assert not caplog.text
    with caplog.at_level("WARNING", logger="neuronshield"):
        select("set_difference", stats, p=0.3, q=0.1)
    assert "en/text: 2 of 3 chosen neurons have a score of zero" in caplog.text


def test_an_intersection_warns_of_neurons_at_a_score_of_zero_too(caplog: pytest.LogCaptureFixture):
    """In English neuron 7 alone is active, in Swahili 7 and 3: English takes 0 and 1 by their index, and Swahili 0."""
    h = {"en": np.zeros((5, 1, 10)), "sw": np.zeros((5, 1, 10))}
    h["en"][:, 0, 7] = h["sw"][:, 0, 7] = h["sw"][:, 0, 3] = 1.0
    groups = {Group("harmful", la, "text", 0): Moments.of(x) for la, x in h.items()}
    for language in h:
        b = np.zeros((5, 1, 10))
        b[:, 0, 7:] = [3.0, 2.0, 1.0]
        groups[Group("benign", language, "text", 0)] = Moments.of(b)
    stats = Stats(groups, np.ones((1, 10)), np.ones((1, 10)), "last_prompt", 1000, 6)
    with caplog.at_level("WARNING", logger="neuronshield"):
        neurons = select("ss_neurons", stats, p=0.3)["sw/text"]
    assert list(neurons) == [(0, 0)]
    assert "sw/text: 1 of 1 chosen neurons have a score of zero" in caplog.text
    _, rank = run_leaf(neurons.provenance["selection"], stats)
    assert rank[0, :7].tolist() == [0.0] * 7
