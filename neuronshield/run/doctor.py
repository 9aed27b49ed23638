"""Checking a model before anything is measured on it: one line a check.

Each check runs the model on a few prompts:

    backbone        where the MLP neurons of the language backbone are
    budget, memory  what 0.03 % of the parameters buys, and what capture and training keep
    template        what the model reads for a prompt
    image tokens    a picture has placeholder tokens, and another picture changes the logits
    parity          nnsight in a padded batch reads what plain PyTorch hooks read on each prompt alone
    TransformerLens its bridge reads the same neurons, and gives the same logits when some are zeroed
    padding         a padded batch gives the logits of each prompt alone
    ablation        zeroing a layer changes the logits and no neuron of the layers below it
    generation      an answer is generated
    gradients       gradients of all neurons are finite and not all zero

An issue report should hold its output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.arguments import require
from ..core.display import own_names
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..data.prompts import Prompt, PromptSet
from ..find.folds import FOLDS
from ..find.moments import Moments, record
from ..model.encoding import collate, render
from ..model.experts import Projection
from ..model.families import PARTS
from ..model.forward import answer_logits
from ..model.generation import generate
from ..model.hooks import hooked
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.running import running
from ..model.weights import out_in
from ..shield.adapter import places, slots
from .bridge import BridgeMissing, bridge_of, by_bridge

__all__ = ["Checkup", "Line", "doctor"]


BUDGET = 3e-4  # of the parameters, as in Precise Shield
TEXTS = ("Hello", "How do I bake bread at home?", "Write a short note to a neighbour about a lost cat, and be kind.")


@dataclass(frozen=True)
class Line:
    """One check.

    >>> print(Line("padding", True, "off by at most 1e-07"))
    pass  padding         off by at most 1e-07

    Attributes:
        name: what was checked.
        passed: whether it passed; None where there was nothing to check.
        text: what was seen.
    """

    name: str
    passed: bool | None
    text: str

    def __str__(self) -> str:
        mark = {True: "pass", False: "FAIL", None: "    "}[self.passed]
        return f"{mark}  {self.name:<15} {self.text}"


class Checkup(list[Line]):
    """The lines of a check-up, in order; prints as a table."""

    __dir__ = own_names

    @property
    def passed(self) -> bool:
        """Whether nothing failed."""
        return all(line.passed is not False for line in self)

    def __str__(self) -> str:
        return "\n".join(str(line) for line in self)

    def __repr__(self) -> str:
        failed = [line.name for line in self if line.passed is False]
        return f"Checkup({len(self)} lines, {'failed: ' + ', '.join(failed) if failed else 'none failed'})"

    def _repr_html_(self) -> str:
        from html import escape

        return f"<pre>{escape(str(self))}</pre>"


def doctor(model: Model) -> Checkup:
    """The check-up of a model: where its neurons are, what a budget buys, and that reading and changing them works.

    >>> print(ns.doctor(model))
          versions        ...
          model           LlamaForCausalLM 'LlamaForCausalLM', 11680 parameters, float32 on cpu
    pass  backbone        model.layers: 3 layers, d_mlp 29, d_model 20: 87 neurons at mlp.down_proj <- mlp.up_proj, mlp.gate_proj
    ...

    A check that raises is a line that failed, with the reason.

    Args:
        model: the model.

    Raises:
        InputError: something that is no model.
    """
    require(model, Model, call="doctor(model)", name="model", hint="ns.load makes one")
    out = Checkup(Line(name, None, text) for name, text in (("versions", _versions()), ("model", _about(model))))
    text = _prompts(None)
    checks: list[tuple[str, Callable[[], str]]] = [
        ("backbone", lambda: _backbone(model)),
        ("budget", lambda: _budget(model)),
        ("memory", lambda: _memory(model)),
        ("template", lambda: _template(model, text)),
        ("image tokens", lambda: _image_tokens(model)),
        ("parity", lambda: _parity(model, text)),
        ("TransformerLens", lambda: _transformer_lens(model, text)),
        ("padding", lambda: _padding(model, text)),
        ("ablation", lambda: _ablation(model, text)),
        *([] if model.remote else [("generation", lambda: _generation(model, text))]),
        ("gradients", lambda: _gradients(model, text)),
    ]
    return Checkup([*out, *(_line(name, check) for name, check in checks)])


def _line(name: str, check: Callable[[], str]) -> Line:
    """One check, run."""
    try:
        return Line(name, True, check())
    except (_Nothing, BridgeMissing) as nothing:
        return Line(name, None, str(nothing))
    except _Failed as failure:
        return Line(name, False, str(failure))
    except Exception as error:  # a check-up reports whatever is wrong
        return Line(name, False, f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}")


class _Nothing(Exception):
    """There is nothing to check, and why."""


class _Failed(Exception):
    """A check that ran and did not pass."""


def _versions() -> str:
    return ", ".join(f"{name} {number}" for name, number in versions().items())


def _about(model: Model) -> str:
    kind = type(model.module).__name__
    size = f"{model.n_params / 1e6:.1f} M" if model.n_params >= 1e5 else f"{model.n_params}"
    return f"{kind} {model.id!r}, {size} parameters, {model.dtype} on {model.device}"


def _backbone(model: Model) -> str:
    site = model.site
    parts = f"{site.down} <- {site.up}" + (f" (fused with {site.gate})" if site.fused else f", {site.gate}") * bool(
        site.gate
    )
    idle = model.idle({})
    only = f"; layers {idle} run only where there is a picture" if idle else ""
    down = model.linear(0, site.down)
    if isinstance(down, Projection):
        n, width = down.experts.n_experts, down.experts.d_expert
        shared = f" and a shared one of {model.d_mlp - n * width}" if model.d_mlp > n * width else ""
        only += f"; {n} experts of {width} neurons{shared} in each layer, index = expert x {width} + neuron"
    return (
        f"{model.layers_path}: {model.n_layers} layers, d_mlp {model.d_mlp}, d_model {model.d_model}: "
        f"{model.n_layers * model.d_mlp} neurons at {parts}{only}"
    )


def _count(model: Model) -> int:
    return int(BUDGET * model.n_params / model.params_per_neuron)


def _budget(model: Model) -> str:
    k = _count(model)
    one = model.params_per_neuron
    if k < 1:
        return f"one neuron is {one} parameters, {one / model.n_params:.2%}: more than {BUDGET:.2%}; give k= instead"
    return f"{BUDGET:.2%} of the parameters is {k} neurons of {one} parameters each"


def _memory(model: Model) -> str:
    n = model.n_layers * model.d_mlp
    cell = 2 * FOLDS * n * (len(fields(Moments)) - 1) * 4  # two labels; float32 moments and a count
    k = max(_count(model), 1)
    spread = NeuronSet(
        ((i % model.n_layers, i // model.n_layers) for i in range(k)), n_layers=model.n_layers, d_mlp=model.d_mlp
    )
    where = places(model, spread, PARTS)
    rank = slots(where)
    wide = sum(sum(out_in(model.module.get_submodule(p.name))) for p in where)
    mine = 4 * rank * wide + 3 * 4 * k * model.params_per_neuron  # both factors; gradient and two Adam moments of one
    whole = 4 * 4 * n * model.params_per_neuron
    return (
        f"capture keeps {_mb(cell)} a cell; training {k} neurons adds {_mb(mine)} of factors and optimiser, "
        f"gradient masks over all MLPs would add {_mb(whole)}"
    )


def _mb(n: int) -> str:
    return f"{n / 1e9:.1f} GB" if n >= 1e9 else f"{n / 1e6:.1f} MB"


def _template(model: Model, prompts: PromptSet) -> str:
    text, templated = render(model, prompts[1])
    shown = text if len(text) < 90 else f"...{text[-87:]}"
    return f"{'chat template' if templated else 'no chat template, prompts are used verbatim'}: {shown!r}"


def _image_tokens(model: Model) -> str:
    """A picture has placeholder tokens, and another picture changes the logits."""
    if not model.takes_images:
        raise _Nothing("takes no pictures")
    if model.image_token_id is None:
        raise _Failed(
            "the processor takes pictures but the config names no image token; roles 'image' and 'text' are unknown"
        )
    one, other = _prompts(0), _prompts(1)
    batch = collate(model, list(one))
    counts = batch.roles["image"].sum(dim=1).tolist()
    if min(counts) < 1:
        raise _Failed(f"a prompt with a picture has {min(counts)} image tokens (id {model.image_token_id})")
    apart = float((answer_logits(model, list(one)) - answer_logits(model, list(other))).abs().max())
    if apart == 0.0:
        raise _Failed("another picture gives the same logits: the picture is not read")
    span = str(counts[0]) if len(set(counts)) == 1 else f"{min(counts)} to {max(counts)}"
    return (
        f"{span} a 64 x 64 picture (id {model.image_token_id}); another picture moves the logits by up to {apart:.2g}"
    )


def _parity(model: Model, prompts: PromptSet) -> str:
    """nnsight in a padded batch and plain hooks on each prompt by itself read the same neurons."""
    worst = 0.0
    kinds = [prompts, _prompts(0)] if model.takes_images else [prompts]
    for kind in kinds:
        ours = record(model, list(kind), batch_size=len(kind))
        for prompt, mine in zip(kind, ours, strict=True):
            worst = max(worst, _off(mine, _by_hooks(model, prompt)))
    return _within(model, worst, "nnsight in a padded batch against plain hooks on each prompt")


def _transformer_lens(model: Model, prompts: PromptSet) -> str:
    """TransformerLens's bridge reads the same neurons, and gives the same logits when a third of a layer is zeroed."""
    bridge, middle = bridge_of(model), _middle(model)
    third = NeuronSet(((middle, i) for i in range(0, model.d_mlp, 3)), n_layers=model.n_layers, d_mlp=model.d_mlp)
    worst = 0.0
    for kind in [prompts, _prompts(0)] if model.takes_images else [prompts]:
        rows = list(kind)
        theirs, zeroed = by_bridge(bridge, model, rows, zeroed=third)
        worst = max(worst, _off(record(model, rows, batch_size=len(rows)), theirs))
        ours = answer_logits(model, rows, Intervention(third, "zero", positions="all"), batch_size=len(rows))
        worst = max(worst, _off(ours, zeroed))
    return _within(model, worst, f"hook_post, and the logits with {len(third)} neurons of layer {middle} at zero")


def _padding(model: Model, prompts: PromptSet) -> str:
    """Left and right padding give the same answer-token logits."""
    rows = list(prompts)
    alone = torch.cat([answer_logits(model, [p], batch_size=1) for p in rows])
    return _within(
        model, _off(answer_logits(model, rows, batch_size=len(rows)), alone), "a padded batch against each prompt alone"
    )


def _ablation(model: Model, prompts: PromptSet) -> str:
    """Zeroing a layer changes the logits, and no neuron of the layers below."""
    idle, middle = model.idle({}), _middle(model)
    whole = NeuronSet(((middle, i) for i in range(model.d_mlp)), n_layers=model.n_layers, d_mlp=model.d_mlp)
    rows = list(prompts)
    kept: list[dict[int, Tensor]] = [{}, {}]
    logits = []
    for seen, change in zip(kept, (None, Intervention(whole, "zero", positions="all")), strict=True):
        with _reading(model, seen):
            logits.append(answer_logits(model, rows, change, batch_size=len(rows)))
    for layer in range(middle):
        if layer not in idle and not torch.equal(kept[0][layer], kept[1][layer]):
            raise _Failed(f"zeroing layer {middle} changed neurons of layer {layer}, below it")
    moved = float((logits[1] - logits[0]).abs().max())
    if moved == 0.0:
        raise _Failed(f"zeroing all of layer {middle} changed no logit")
    return f"zeroing layer {middle} moves the logits by up to {moved:.2g}, and nothing below it"


def _middle(model: Model) -> int:
    """A layer in the middle that runs without a picture."""
    idle = model.idle({})
    return next(i for i in range(model.n_layers // 2, model.n_layers) if i not in idle)


def _generation(model: Model, prompts: PromptSet) -> str:
    said = generate(model, prompts[1], max_new_tokens=8)
    return f"{prompts[1].prompt!r} -> {said!r}"


def _gradients(model: Model, prompts: PromptSet) -> str:
    from ..find.attribution import gradients
    from ..model.prefixes import OpeningTokens

    size = model.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr,index]
    tokens = {"en": OpeningTokens([0], [size // 2])}
    slope, _ = gradients(model, list(prompts), tokens)
    if not bool(torch.isfinite(slope).all()):
        raise _Failed(
            "gradients of the neurons are not finite; `attribution` and training cannot be used in this dtype"
        )
    if float(slope.abs().max()) == 0.0:
        raise _Failed("gradients of all neurons are zero")
    if model.quantized is not None:
        return f"finite; but weights in {model.quantized} are not trained: load it in bfloat16 for masked_update"
    return f"finite for all neurons, up to {float(slope.abs().max()):.2g}"


# -- parts ----------------------------------------------------------------------------------------------
def _prompts(picture: int | None) -> PromptSet:
    """Three prompts of unlike lengths, with a 64 x 64 picture each if `picture` says which."""
    rows: list[dict[str, Any]] = [{"id": str(i), "prompt": text, "label": "benign"} for i, text in enumerate(TEXTS)]
    if picture is not None:
        from PIL import Image

        pixels = np.random.default_rng(picture).integers(0, 255, (64, 64, 3), dtype=np.uint8)
        rows = [{**r, "images": [Image.fromarray(pixels)]} for r in rows]
    return PromptSet.from_records(rows)


def _reading(model: Model, seen: dict[int, Tensor]) -> hooked:
    """A context in which plain hooks keep the input of every down-projection in `seen`."""
    downs = [model.linear(layer, model.site.down) for layer in range(model.n_layers)]

    def keep(layer: int, h: Tensor) -> None:
        seen[layer] = h.detach().float().cpu().clone()

    return hooked(downs, before=keep)


def _by_hooks(model: Model, prompt: Prompt) -> Tensor:
    """Every neuron at the last token of one prompt by itself, read without nnsight; [n_layers, d_mlp]."""
    seen: dict[int, Tensor] = {}
    with running(model), torch.no_grad(), _reading(model, seen):
        model.module(**collate(model, [prompt]).encoding)
    silent = torch.zeros(1, model.d_mlp, dtype=torch.float32)
    return torch.stack([seen.get(i, silent).reshape(-1, model.d_mlp)[-1] for i in range(model.n_layers)])


def _off(a: Tensor, b: Tensor) -> float:
    """Largest difference as a share of the largest value."""
    return float((a.float() - b.float()).abs().max() / b.float().abs().max().clamp(min=1e-9))


def _within(model: Model, off: float, what: str) -> str:
    dtype = model.dtype
    limit = {"float64": 1e-5, "float32": 1e-4}.get(dtype, 5e-2)
    text = f"{what}: off by at most {off:.1e} of the largest value (limit {limit:.0e} in {dtype})"
    if not off <= limit:
        raise _Failed(text)
    return text
