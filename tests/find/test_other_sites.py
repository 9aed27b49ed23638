"""Moments, scores and sets at other sites than neurons, against plain hooks and numpy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.find.moments import Moments
from neuronshield.find.reselection import reselect

NAMES = {"gate": "model.layers.{}.mlp.gate_proj", "up": "model.layers.{}.mlp.up_proj",
         "attention": "model.layers.{}.self_attn.o_proj"}  # fmt: skip
WIDTH = {"gate": 29, "up": 29, "attention": 20}


@pytest.fixture(scope="module")
def stats(llama: ns.Model) -> dict[str, ns.Stats]:
    return {site: ns.capture(llama, tiny.prompts(), site=site, progress=False) for site in NAMES}


def by_hand(model: ns.Model, site: str) -> np.ndarray:
    """[prompt, n_layers, width] at the last token, by plain hooks."""
    out = []
    modules = dict(model.module.named_modules())
    for prompt in tiny.prompts():
        encoding, _ = tiny.encode(model, prompt)
        seen: list[torch.Tensor] = []
        handles = [
            modules[NAMES[site].format(i)].register_forward_hook(lambda *a, seen=seen: seen.append(a[2][0, -1]))  # type: ignore[misc]
            for i in range(3)
        ]
        with torch.no_grad():
            model.module(**encoding)
        for handle in handles:
            handle.remove()
        out.append(torch.stack(seen).double().numpy())
    return np.stack(out)


@pytest.mark.parametrize("site", NAMES)
def test_moments_and_scores_at_a_site_are_those_of_hooks(
    llama: ns.Model, stats: dict[str, ns.Stats], site: str
) -> None:
    mine, h = stats[site], by_hand(llama, site)
    rows = {
        label: [i for i, p in enumerate(tiny.prompts()) if (p.label, p.language) == (label, "sw")]
        for label in ("harmful", "benign")
    }
    assert (mine.site, mine.n_layers, mine.d_mlp) == (site, 3, WIDTH[site])
    for label in rows:
        want, got = Moments.of(h[rows[label]]), mine.moments(label, "sw/text")
        for name in ("mean", "m2", "mean_abs", "positive", "least", "share"):
            np.testing.assert_allclose(getattr(got, name), getattr(want, name), rtol=1e-4, atol=1e-5)
    harmful, benign = (h[rows[label]] for label in ("harmful", "benign"))
    pooled = np.sqrt((harmful.var(0, ddof=1) + benign.var(0, ddof=1)) / 2)
    scores = ns.contrast(mine, method="effect_size")
    np.testing.assert_allclose(scores["sw/text"], (harmful.mean(0) - benign.mean(0)) / pooled, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(ns.record(llama, tiny.prompts(), site=site).numpy(), h, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("site", NAMES)
def test_every_way_to_select_gives_sets_of_the_site(llama: ns.Model, stats: dict[str, ns.Stats], site: str) -> None:
    mine = stats[site]
    found = [
        *ns.contrast(mine, method="sas").top(k=5).values(),
        *ns.select("safeneuron", mine, tau=1.0).values(),
        *ns.select("mean_difference", mine, k=5).values(),
        *ns.select("significance", mine, q=0.5).values(),
        *ns.overlap(mine, method="effect_size", k=5).sets.values(),
    ]
    assert {s.site for s in found} == {site}
    assert {s.d_mlp for s in found} == {WIDTH[site]}
    again = reselect(found[0].provenance["selection"], mine)
    assert again == found[0]
    assert (
        found[0].provenance["neuron_value"]
        != ns.capture(llama, tiny.prompts(), progress=False).provenance["neuron_value"]
    )
    plain = mine["en/text"].harmful.mean - mine["en/text"].benign.mean
    best = np.argsort(-np.abs(plain), axis=None)[:5]
    assert set(ns.select("mean_difference", mine, k=5)["en/text"]) == set(
        zip(*np.unravel_index(best, plain.shape), strict=True)
    )


@pytest.mark.parametrize("method", ["contribution", "cett", "precise_shield", "sn_tune", "wanda"])
def test_scores_that_read_columns_of_w_down_are_refused_at_other_sites(stats: dict[str, ns.Stats], method: str) -> None:
    for mine in stats.values():
        with pytest.raises(
            ns.InputError, match=rf"{method}: reads columns of W_down; numbers at site '{mine.site}' own none; use"
        ):
            ns.contrast(mine, method=method)


@pytest.mark.parametrize(
    ("rule", "options"),
    [("precise_shield", {"rho": 0.2}), ("one_anchor", {"rho": 0.2, "modalities": ["text", "image"]}), ("ss_neurons", {"p": 0.2}),
     ("set_difference", {"p": 0.2, "q": 0.1}), ("global_difference", {"p": 0.2, "q": 0.1})],
)  # fmt: skip
def test_rules_that_read_columns_of_w_down_are_refused_at_other_sites(
    llava: ns.Model, rule: str, options: dict[str, Any]
) -> None:
    mine = ns.capture(llava, tiny.prompts(pictures=True), site="up", progress=False)
    with pytest.raises(ns.InputError, match="reads columns of W_down"):
        ns.select(rule, mine, **options)


def test_a_share_of_parameters_is_no_size_at_another_site(stats: dict[str, ns.Stats]) -> None:
    with pytest.raises(ns.InputError, match="site 'gate', whose numbers own no weights"):
        ns.contrast(stats["gate"], method="sas").top(param_fraction=0.01)


def test_what_neurons_write_is_not_said_of_other_numbers(llama: ns.Model, stats: dict[str, ns.Stats]) -> None:
    directions = ns.signs.directions(llama, tiny.prompts(), refusals=["sorry"], compliances=["sure"])
    with pytest.raises(ns.InputError, match="the scores are of site 'up', which writes nothing by itself"):
        ns.contrast(stats["up"], method="sas").to_frame(directions=directions)


def test_files_keep_the_site_and_say_nothing_of_neurons(
    llama: ns.Model, stats: dict[str, ns.Stats], tmp_path: Path
) -> None:
    for mine in (*stats.values(), ns.capture(llama, tiny.prompts(), progress=False)):
        path = mine.save(tmp_path / "stats.safetensors")
        assert ns.Stats.load(path) == mine
        assert (b'\\"site\\"' in path.read_bytes()) == (mine.site != "neuron")
        scores = ns.contrast(mine, method="sas")
        path = scores.save(tmp_path / "scores.safetensors")
        assert ns.Scores.load(path) == scores
        assert ns.Scores.load(path).site == mine.site
        assert (b'\\"site\\"' in path.read_bytes()) == (mine.site != "neuron")


def test_the_default_is_the_site_of_neurons(llama: ns.Model) -> None:
    prompts = tiny.prompts()
    assert ns.capture(llama, prompts, progress=False) == ns.capture(llama, prompts, site="neuron", progress=False)
    assert torch.equal(ns.record(llama, prompts[:4]), ns.record(llama, prompts[:4], site="neuron"))
    with pytest.raises(ns.InputError, match="capture: site='gat' is unknown; did you mean 'gate'"):
        ns.capture(llama, prompts, site="gat", progress=False)
    with pytest.raises(ns.InputError, match="record: site='residual' is unknown"):
        ns.record(llama, prompts, site="residual")


def test_means_of_another_site_are_not_set(stats: dict[str, ns.Stats]) -> None:
    gates = ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29, site="gate")
    assert ns.Intervention.mean_of(gates, stats["gate"], cell="en/text").neurons.site == "gate"
    with pytest.raises(ns.InputError, match="the set is at site 'gate', the means are of site 'up'"):
        ns.Intervention.mean_of(gates, stats["up"], cell="en/text")
