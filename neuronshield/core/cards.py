"""Model cards: README.md of a repository, which hubs show beside its files.

What a card says about a set of neurons comes from the set's provenance: how they were selected, and what was proven about them
beside which controls. Whatever came from a file or a model is written with nothing in it that Markdown or HTML would act on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .display import count
from .repositories import is_name

__all__ = ["CARD", "code", "evidence", "members", "metadata", "set_card", "table", "text"]

CARD = "README.md"


def set_card(neurons: Any) -> str:
    """The card of a set of neurons as Markdown, with the metadata that hubs read.

    >>> print(set_card(neurons))
    ---
    library_name: "neuronshield"
    tags:
    - "safety"
    ...

    Args:
        neurons: the `NeuronSet`.
    """
    about = neurons.provenance
    model = about.get("model")
    made = ", ".join(f"{k} {v}" for k, v in about.get("versions", {}).items()) or "not known"
    parts = [
        metadata(model, library="neuronshield", tags=["safety", "interpretability", "neurons", "neuronshield"]),
        f"# {count(len(neurons), 'neuron')} of {code(model or 'a model that is not named')}",
        "## Model\n\n"
        + table(
            ["model", "revision", "fingerprint of the weights"],
            [[model or "not known", about.get("revision") or "not given", about.get("fingerprint") or "not known"]],
        ),
        "## Neurons\n\n" + members(neurons, shape=(neurons.n_layers, neurons.d_mlp)),
        "## What is known about them\n\n" + evidence(neurons),
        "## Loading\n\n" + LOADING,
        "## Responsible use\n\n" + USE,
        "## Made with\n\n" + text(made) + ".",
    ]
    return "\n\n".join(parts) + "\n"


LOADING = """```python
import neuronshield as ns

neurons = ns.NeuronSet.from_hub("USER/REPOSITORY")
neurons.check_model(model)  # an error if they are of other weights
```"""

USE = """A list of neurons that refusals depend on says where refusals can be weakened as well as where they can be strengthened. Whoever
publishes it for a model in use should weigh that first."""


def metadata(model: str | None, *, library: str, tags: Sequence[str]) -> str:
    """The lines at the top of a card that hubs read.

    >>> print(metadata("Qwen/Qwen3-0.6B", library="peft", tags=["lora"]))
    ---
    base_model: "Qwen/Qwen3-0.6B"
    library_name: "peft"
    tags:
    - "lora"
    ---

    Args:
        model: the base model; a name that no hub can have is left out, because hubs refuse it.
        library: what loads the files.
        tags: by which they are found.
    """
    base = [f"base_model: {json.dumps(model)}"] if is_name(model) else []
    listed = [f"- {json.dumps(tag)}" for tag in tags]
    return "\n".join(["---", *base, f"library_name: {json.dumps(library)}", "tags:", *listed, "---"])


def members(neurons: Any, *, shape: tuple[int | None, int | None]) -> str:
    """How many neurons a set has, where they are, and how they were selected.

    >>> print(members(neurons, shape=(3, 29)).splitlines()[2])
    | how many | 3 of 3 x 29 |

    Args:
        neurons: the `NeuronSet`.
        shape: layers of the model and neurons a layer; None where it is not known.
    """
    about = neurons.provenance
    known = {
        "score": about.get("method"), "cell": about.get("cell"), "size": about.get("size"), "value of a neuron": about.get("neuron_value"),
        "selection": about.get("selection"),
    }  # fmt: skip
    rows = [
        ["how many", str(len(neurons)) if None in shape else f"{len(neurons)} of {shape[0]} x {shape[1]}"],
        ["by layer", ", ".join(f"layer {layer}: {n}" for layer, n in neurons.per_layer().items())],
        *([name, value if isinstance(value, str) else json.dumps(value)] for name, value in known.items() if value),
    ]
    told = "" if known["selection"] else " How they were selected is not known."
    return f"{table(['', ''], rows)}\n\nAll members, as (layer, index), and their provenance are in `neurons.safetensors`.{told}"


def evidence(neurons: Any) -> str:
    """What was proven about a set, beside which controls.

    >>> evidence(neurons)
    '**Not verified.** It was not tested whether refusals depend on these neurons.'

    Args:
        neurons: the `NeuronSet`.
    """
    about = neurons.provenance
    verdict = text(about.get("verdict", ""))
    if "verified_on" in about:
        told = f"**Verified** on requests that had not selected them: {verdict}."
    elif verdict:
        told = f"**Not verified** when tested on requests that had not selected them: {verdict}."
    else:
        told = "**Not verified.** It was not tested whether refusals depend on these neurons."
    if claims := about.get("claims"):
        rows = [[c["name"], _interval(c["effect"]), c["control"], c["verdict"]] for c in claims]
        head = ["claim", "effect [95 %]", "strongest control", "verdict"]
        told += f"\n\nClaims about the set that was tested, beside {about.get('draws')} control sets of each kind that is drawn:\n\n"
        told += table(head, rows)
    return told


# -- Markdown ---------------------------------------------------------------------------------------------
def table(head: list[str], rows: list[list[Any]]) -> str:
    """A table.

    >>> print(table(["a", "b"], [[1, "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |

    Args:
        head: titles of the columns.
        rows: values.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(text(cell) if row is not lines[1] else cell for cell in row) + " |" for row in lines
    )


def text(value: Any) -> str:
    """A value on one line, with nothing in it that Markdown or HTML would act on.

    >>> text("a <b>")
    'a &lt;b&gt;'

    Args:
        value: anything.
    """
    line = " ".join(str(value).split())
    return "".join(f"\\{c}" if c in "\\`*_[]|" else {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(c, c) for c in line)


def code(value: Any) -> str:
    """A name in the type of code.

    >>> code("organism")
    '`organism`'

    Args:
        value: the name.
    """
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def _interval(values: list[float | None]) -> str:
    value, low, high = ("n/a" if v is None else f"{v:.2f}" for v in values)
    return f"{value} [{low}, {high}]"
