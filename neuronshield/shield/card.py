"""The model card of a saved adapter: README.md, which hubs show beside its files.

It says what the files alone do not: the base model and its weights, the neurons and how they were selected, what was proven about
them beside which controls, what was trained on what, how to load the adapter, and what it must not be relied on for. All of it
comes from the update's provenance.
"""

from __future__ import annotations

import json
from typing import Any

from ..core.cards import code, evidence, members, metadata, table, text
from ..core.display import count
from ..core.repositories import is_name
from .stacked import has_experts

__all__ = ["adapter_card"]


def adapter_card(update: Any) -> str:
    """The card as Markdown, with the metadata that hubs read.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> print(adapter_card(update))
    ---
    base_model: "LlamaForCausalLM"
    library_name: "peft"
    ...

    Args:
        update: the update whose adapter is saved.
    """
    about, base, neurons = update.provenance, update.model.id, update.neurons
    named = [f"base_model:adapter:{base}"] if is_name(base) else []
    shape = (update.model.n_layers, update.model.d_mlp)
    parts = [
        metadata(base, library="peft", tags=[*named, "lora", "safety", "interpretability", "neuronshield"]),
        f"# Adapter of {code(base)}: {text(update.form)}\n\n{_summary(update)}",
        "## Base model\n\n"
        + table(
            ["model", "revision", "fingerprint of the weights", "dtype in training"],
            [[about.get("model"), about.get("revision") or "not given", about.get("fingerprint"), about.get("dtype")]],
        )
        + "\n\nThe adapter belongs to these weights. On others it is not the update that was tested.",
        "## Neurons\n\n" + (NO_SET if neurons is None else members(neurons, shape=shape)),
        "## What is known about them\n\n" + (UNTESTED if neurons is None else evidence(neurons)),
        "## Training\n\n" + _training(update),
        "## Loading\n\n" + _loading(update),
        "## Limits\n\n" + LIMITS,
        "## Responsible use\n\n" + USE,
        "## Licence\n\n" + LICENCE,
        "## Made with\n\n" + text(", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _summary(update: Any) -> str:
    which = "in all MLPs" if update.neurons is None else f"for {count(len(update.neurons), 'MLP neuron')}"
    return (
        f"{update.trained:,} numbers ({update.param_fraction:.3%} of the parameters) were trained, {which} of "
        f"{code(update.model.id)}. The purpose is that harmful requests are refused and other requests are answered as before."
    )


def _training(update: Any) -> str:
    about, taught = update.provenance, update.taught
    rows = [
        [key, about[key]]
        for key in ("objective", "steps", "lr", "batch_size", "retention", "seed", "data")
        if key in about
    ]
    if update.losses:
        rows.append(["loss, first and last step", f"{update.losses[0]:.3f}, {update.losses[-1]:.3f}"])
    if update.stopped:
        rows.append(["stopped early", update.stopped])
    told = table(["setting", "value"], rows)
    if cells := about.get("trained_on"):
        told += "\n\n" + table(
            ["cell (language/modality)", "harmful prompts", "benign prompts"],
            [[cell, n["harmful"], n["benign"]] for cell, n in cells.items()],
        )
    if taught is not None:
        told += (
            f"\n\nIn a batch of some step: {taught.refusals} harmful prompts were taught a refusal, {taught.targets} benign ones their "
            f"target, {taught.held} benign ones and {taught.texts} texts were held to the base model's distribution, and of "
            f"{taught.preferred} benign ones the answer was preferred to a refusal."
        )
    return told


def _loading(update: Any) -> str:
    kind = "AutoModelForImageTextToText" if update.model.takes_images else "AutoModelForCausalLM"
    base = json.dumps(update.model.id)
    at = f", revision={json.dumps(update.model.revision)}" if update.model.revision else ""
    served = (
        "Inference servers take no adapter on stacked experts: serve the merged model."
        if has_experts(update.model)
        else 'vLLM: `--enable-lora --lora-modules shield=ADAPTER --max-lora-rank R`, R the "r" of `adapter_config.json`.'
    )
    return f"""```python
from peft import PeftModel
from transformers import {kind}

base = {kind}.from_pretrained({base}{at})
model = PeftModel.from_pretrained(base, "ADAPTER")
```

or, with a check that the weights and the neurons are the right ones,

```python
import neuronshield as ns

model = ns.load({base}{at}, adapter="ADAPTER")
```

{served} `Update.save_merged` writes the whole model for servers without adapters."""


NO_SET = "The update was not confined to a set of neurons."
UNTESTED = "Nothing was tested: there is no set."

LIMITS = """- What is measured on the prompts of one study holds for such prompts. Refusal, over-refusal and utility of the model with this
  adapter are in the report of the run that made it; measure them again in the languages and modalities that you use.
- The update makes some requests more likely to be refused. It can raise the refusal of benign requests too.
- A refusal that was trained can be removed by fine-tuning, by pruning, or by a prompt that was not tried.
- Other requests, languages and modalities than those in the tables above were not trained, and may not have changed."""

USE = """The adapter is for research on the safety of language models, and as one safeguard among others. Do not rely on it alone. The
list of neurons says where refusals can be weakened as well as where they can be strengthened; whoever publishes it for a model in use
should weigh that first."""

LICENCE = """The adapter changes weights of the base model and is of use with it only: the licence and the use policy of the base model
apply. The code that made it, neuronshield, is under the Apache License 2.0."""
