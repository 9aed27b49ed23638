"""Tiny mixture-of-experts models, and their forward written from the definition: the oracle of the tests of experts.

`Spec` says how a family stores its experts; nothing here looks at the package's own structure.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
import transformers

import neuronshield as ns

E, D_E, SHARED, K = 4, 7, 11, 2
Change = Callable[[int, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Spec:
    """A family: how it is made, whether the chosen weights are normalised, and how gates and ups are stored."""

    name: str
    stem: str
    normalised: bool = True
    shared: bool = False
    oss: bool = False

    @property
    def d_mlp(self) -> int:
        return E * D_E + SHARED * self.shared

    def build(self, **changes: Any) -> transformers.PreTrainedModel:
        torch.manual_seed(0)
        few = dict(
            vocab_size=len(tiny.WORDS), hidden_size=20, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1,
            head_dim=10, pad_token_id=0, bos_token_id=1, eos_token_id=2, num_experts=E, num_local_experts=E,
            num_experts_per_tok=K, moe_intermediate_size=D_E, intermediate_size=D_E, decoder_sparse_step=1,
            shared_expert_intermediate_size=SHARED, experts_implementation="eager",
        )  # fmt: skip
        config = getattr(transformers, f"{self.stem}Config")(**{**few, **changes})
        module = getattr(transformers, f"{self.stem}ForCausalLM")(config).eval()
        for p in module.parameters():
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
        return module  # type: ignore[no-any-return]

    def load(self, dtype: torch.dtype = torch.float32) -> ns.Model:
        module: torch.nn.Module = self.build()
        return ns.load(module.to(dtype), processor=tiny.tokenizer())


SPECS = (
    Spec("Mixtral", "Mixtral"),
    Spec("Qwen3-MoE", "Qwen3Moe", normalised=False),
    Spec("Qwen2-MoE", "Qwen2Moe", normalised=False, shared=True),
    Spec("gpt-oss", "GptOss", oss=True),
)


def by_definition(spec: Spec, module: torch.nn.Module, change: Change | None = None) -> Any:
    """A copy of a family's own model whose mixtures compute token by token, with `change(layer, h)` in between."""
    new: Any = copy.deepcopy(module)
    for layer, owner in enumerate(new.model.layers):
        block = owner.mlp

        def forward(hidden_states: torch.Tensor, layer: int = layer, block: Any = block) -> Any:
            x = hidden_states.reshape(-1, hidden_states.shape[-1])
            h = torch.stack([neurons(spec, block, token) for token in x])
            if change is not None:
                edited = change(layer, h)
                h = h if edited is None else edited
            out = torch.stack([written(spec, block, token, h_t) for token, h_t in zip(x, h, strict=True)])
            return (out.view_as(hidden_states), None) if spec.oss else out.view_as(hidden_states)

        block.forward = forward
    return new


def routing(spec: Spec, block: Any, x: torch.Tensor) -> dict[int, torch.Tensor]:
    """Routing weights of the chosen experts of one token."""
    router = block.router if spec.oss else block.gate
    logits = router.weight @ x
    if spec.oss:
        best = (logits + router.bias).topk(K)
        return dict(zip(best.indices.tolist(), best.values.softmax(0), strict=True))
    best = logits.softmax(0).topk(K)
    values = best.values / best.values.sum() if spec.normalised else best.values
    return dict(zip(best.indices.tolist(), values, strict=True))


def neurons(spec: Spec, block: Any, x: torch.Tensor) -> torch.Tensor:
    """h of one token, [d_mlp]: the routed experts one after the other, then the shared one."""
    experts, silu = block.experts, torch.nn.functional.silu
    chosen, parts = routing(spec, block, x), []
    for e in range(E):
        if e not in chosen:
            parts.append(torch.zeros(D_E, dtype=x.dtype))
        elif spec.oss:
            both = experts.gate_up_proj[e].T @ x + experts.gate_up_proj_bias[e]
            gate, up = both[0::2].clamp(max=7.0), both[1::2].clamp(-7.0, 7.0)
            parts.append(chosen[e] * (up + 1) * gate * torch.sigmoid(1.702 * gate))
        else:
            both = experts.gate_up_proj[e] @ x
            parts.append(chosen[e] * silu(both[:D_E]) * both[D_E:])
    if spec.shared:
        s = block.shared_expert
        factor = torch.sigmoid(block.shared_expert_gate.weight @ x)
        parts.append(factor * silu(s.gate_proj.weight @ x) * (s.up_proj.weight @ x))
    return torch.cat(parts)


def written(spec: Spec, block: Any, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
    """What the layer adds to the residual stream for the neurons h of one token."""
    down = block.experts.down_proj
    out = sum((down[e].T if spec.oss else down[e]) @ h[e * D_E : (e + 1) * D_E] for e in range(E))
    if spec.oss:
        out = out + sum(r * block.experts.down_proj_bias[e] for e, r in routing(spec, block, x).items())
    if spec.shared:
        out = out + block.shared_expert.down_proj.weight @ h[E * D_E :]
    return out  # type: ignore[return-value]


# -- what the tests of experts share ----------------------------------------------------------------------
PAIRS = [(0, 3), (0, 8), (0, 15), (0, 27), (1, 0), (1, 20), (2, 10), (2, 26)]


def rows() -> list[ns.Prompt]:
    return list(tiny.prompts())[::11]


def neuron_set(spec: Spec, pairs: list[tuple[int, int]] = PAIRS) -> ns.NeuronSet:
    more = [(1, spec.d_mlp - 1)] if spec.shared and pairs is PAIRS else []
    return ns.NeuronSet([*pairs, *more], n_layers=3, d_mlp=spec.d_mlp)


def one_batch() -> ns.PromptSet:
    few = [r for r in tiny.records(languages=("en",)) if r["pair_id"] == "1-2"]
    return ns.PromptSet.from_records(few)  # one harmful and one benign prompt, both with a target


#: One family is enough for the quick loop.
FIRST, *REST = SPECS
by_family = pytest.mark.parametrize(
    "spec", [FIRST, *(pytest.param(spec, marks=pytest.mark.slow) for spec in REST)], ids=lambda s: s.name
)
