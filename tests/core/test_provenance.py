"""Provenance: one form for every artefact."""

from __future__ import annotations

import json

import tiny

import neuronshield as ns
from neuronshield.core.provenance import provenance, versions


def test_provenance_names_model_data_versions_and_the_requests_seen(llama: ns.Model):
    prompts = tiny.prompts()
    facts = provenance(llama, prompts, seen=prompts[:4], seed=3, tokens="prompt")
    assert facts | llama.provenance() == facts
    assert (facts["data"], facts["seed"], facts["tokens"]) == (prompts.hash(), 3, "prompt")
    assert facts["seen"] == sorted({p.cluster for p in prompts[:4]})
    assert facts["versions"] == versions()
    assert json.loads(json.dumps(facts)) == facts


def test_nothing_is_said_to_be_seen_unless_it_is_given(llama: ns.Model):
    assert "seen" not in provenance(llama, tiny.prompts())
    assert provenance(llama, tiny.prompts(), seen=[])["seen"] == []


def test_versions_are_those_installed():
    import torch

    assert versions()["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions()["neuronshield"] == ns.__version__


def test_every_artefact_of_find_has_the_same_form(llama: ns.Model):
    prompts = tiny.prompts()
    found: list[ns.Stats | ns.Scores] = [
        ns.capture(llama, prompts, progress=False),
        ns.attribution(llama, prompts, refusals=["sorry"], compliances=["sure"]),
        ns.baselines.snip(llama, prompts[:8], refusals=["sorry"], compliances=["sure"], progress=False),
        ns.baselines.change_score(llama, llama, prompts[:4], max_new_tokens=2, progress=False),
    ]
    wanted = {*provenance(llama, prompts, seen=prompts), "tokens", "neuron_value"}
    for result in found:
        assert wanted <= set(result.provenance)
        assert set(result.provenance) - wanted <= {"seed", "against", "prefixes"}
