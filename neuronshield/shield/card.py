"""The model card of a saved adapter: README.md, which hubs show beside its files.

It says what the files alone do not: the base model and its weights, the neurons and how they were selected, what was proven about
them beside which controls, what was trained on what, how to load the adapter, and what it must not be relied on for. All of it
comes from the update's provenance.
"""

from __future__ import annotations

import json
from typing import Any

from ..core.display import count
from ..core.neurons import NeuronSet
from .stacked import has_experts

__all__ = ["CARD", "adapter_card"]

CARD = "README.md"


def adapter_card(update: Any) -> str:
    """The card as Markdown, with the metadata that hubs read.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> print(adapter_card(update))
    ---
    base_model: "LlamaForCausalLM"
    library_name: peft
    ...

    Args:
        update: the update whose adapter is saved.
    """
    about = update.provenance
    parts = [
        _metadata(update),
        f"# Adapter of {_code(update.model.id)}: {_text(update.form)}\n\n{_summary(update)}",
        "## Base model\n\n"
        + _table(
            ["model", "revision", "fingerprint of the weights", "dtype in training"],
            [[about.get("model"), about.get("revision") or "not given", about.get("fingerprint"), about.get("dtype")]],
        )
        + "\n\nThe adapter belongs to these weights. On others it is not the update that was tested.",
        "## Neurons\n\n" + _neurons(update),
        "## What is known about them\n\n" + _evidence(update.neurons),
        "## Training\n\n" + _training(update),
        "## Loading\n\n" + _loading(update),
        "## Limits\n\n" + LIMITS,
        "## Responsible use\n\n" + USE,
        "## Licence\n\n" + LICENCE,
        "## Made with\n\n" + _text(", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items())) + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(update: Any) -> str:
    base = update.model.id
    tags = [f"base_model:adapter:{base}", "lora", "safety", "interpretability", "neuronshield"]
    listed = "\n".join(f"- {json.dumps(tag)}" for tag in tags)
    return f"---\nbase_model: {json.dumps(base)}\nlibrary_name: peft\ntags:\n{listed}\n---"


def _summary(update: Any) -> str:
    which = "in all MLPs" if update.neurons is None else f"for {count(len(update.neurons), 'MLP neuron')}"
    return (
        f"{update.trained:,} numbers ({update.param_fraction:.3%} of the parameters) were trained, {which} of "
        f"{_code(update.model.id)}. The purpose is that harmful requests are refused and other requests are answered as before."
    )


def _neurons(update: Any) -> str:
    neurons = update.neurons
    if neurons is None:
        return "The update was not confined to a set of neurons."
    about = neurons.provenance
    known = {
        "score": about.get("method"), "cell": about.get("cell"), "size": about.get("size"), "value of a neuron": about.get("neuron_value"),
        "selection": about.get("selection"),
    }  # fmt: skip
    rows = [
        ["how many", f"{len(neurons)} of {update.model.n_layers} x {update.model.d_mlp}"],
        ["by layer", ", ".join(f"layer {layer}: {n}" for layer, n in neurons.per_layer().items())],
        *([name, value if isinstance(value, str) else json.dumps(value)] for name, value in known.items() if value),
    ]
    told = "" if known["selection"] else " How they were selected is not known."
    return f"{_table(['', ''], rows)}\n\nAll members, as (layer, index), and their provenance are in `neurons.safetensors`.{told}"


def _evidence(neurons: NeuronSet | None) -> str:
    if neurons is None:
        return "Nothing was tested: there is no set."
    about = neurons.provenance
    verdict = _text(about.get("verdict", ""))
    if "verified_on" in about:
        text = f"**Verified** on requests that had not selected them: {verdict}."
    elif verdict:
        text = f"**Not verified** when tested on requests that had not selected them: {verdict}."
    else:
        text = "**Not verified.** It was not tested whether refusals depend on these neurons."
    if claims := about.get("claims"):
        rows = [[c["name"], _interval(c["effect"]), c["control"], c["verdict"]] for c in claims]
        head = ["claim", "effect [95 %]", "strongest control", "verdict"]
        text += f"\n\nClaims about the set that was tested, beside {about.get('draws')} control sets of each kind that is drawn:\n\n"
        text += _table(head, rows)
    return text


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
    text = _table(["setting", "value"], rows)
    if cells := about.get("trained_on"):
        text += "\n\n" + _table(
            ["cell (language/modality)", "harmful prompts", "benign prompts"],
            [[cell, n["harmful"], n["benign"]] for cell, n in cells.items()],
        )
    if taught is not None:
        text += (
            f"\n\nIn a batch of some step: {taught.refusals} harmful prompts were taught a refusal, {taught.targets} benign ones their "
            f"target, {taught.held} benign ones and {taught.texts} texts were held to the base model's distribution, and of "
            f"{taught.preferred} benign ones the answer was preferred to a refusal."
        )
    return text


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


# -- Markdown ---------------------------------------------------------------------------------------------
def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(_text(cell) if row is not lines[1] else cell for cell in row) + " |" for row in lines
    )


def _text(value: Any) -> str:
    """A value on one line, with nothing in it that Markdown or HTML would act on."""
    line = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\`*_[]|" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in line)


def _code(value: Any) -> str:
    """A name in the type of code."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def _interval(values: list[float | None]) -> str:
    value, low, high = ("n/a" if v is None else f"{v:.2f}" for v in values)
    return f"{value} [{low}, {high}]"
