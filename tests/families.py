"""One tiny random model of every family (built in builders.py), and checks of each against plain PyTorch hooks.

`image_tokens` is the number of image tokens a 12 x 12 picture takes, counted by hand from the family's own rule.

    python tests/families.py                    prints the table of docs/models.md
    python tests/families.py "Gemma 3" FOLDER   writes one of them, to load or to examine
"""

from __future__ import annotations

import copy
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import builders
import numpy as np
import pytest
import tiny
import torch
from builders import (
    CLIP,
    D_MLP,
    D_MODEL,
    GEMMA4,
    HYBRID,
    N_LAYERS,
    QWEN,
    SIZE,
    Made,
    clip_pictures,
    paligemma,
    sizes,
    square,
    template,
    text,
    tokenizer,
    transformers,
    without_video,
)
from transformers import PreTrainedTokenizerFast
from unsupported import UNSUPPORTED, Unsupported

import neuronshield as ns
from neuronshield.find.moments import Moments, _trace_moments
from neuronshield.model.encoding import batches
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.intervention import Intervention
from neuronshield.model.prefixes import OpeningTokens
from neuronshield.model.projection import acting_weight

__all__ = [
    "CHECKS", "CLIP", "D_MLP", "D_MODEL", "FAMILIES", "HEAD", "N_LAYERS", "QWEN", "SIZE", "Family", "NotHere", "check_bridge",
    "clip_pictures", "paligemma", "prompts", "sizes", "square", "table", "template", "text", "tokenizer", "without_video",
]  # fmt: skip


#: Of a family whose own image processor needs torchvision: see its builder.
STAND_IN = "its processor, with a relative's image processor"


@dataclass(frozen=True)
class Family:
    """How to make one, the checkpoint people use of it, and how many tokens a 12 x 12 picture takes."""

    name: str
    example: str
    build: Callable[[], Made]
    image_tokens: int = 0
    note: str = ""  # what it is tested with, where that is not its own processor or a tokenizer
    d_mlp: int = D_MLP

    def load(self) -> ns.Model:
        torch.manual_seed(0)
        module, processor = self.build()
        for p in module.parameters():  # the config's own spread is too small for a model this narrow to show anything
            if p.ndim > 1:
                torch.nn.init.normal_(p, std=0.3)
        return ns.load(module, processor=processor)


MAMBA: dict[str, Any] = dict(mamba_n_heads=4, mamba_d_head=10, mamba_d_state=8, mamba_n_groups=1, head_dim=None)
PER_LAYER: dict[str, Any] = dict(vocab_size_per_layer_input=64, hidden_size_per_layer_input=4)
PARTLY: dict[str, Any] = dict(
    num_key_value_heads=2, rope_parameters={"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}
)


def words(name: str, example: str, stem: str, config: str | None = None, **changes: Any) -> Family:
    """A family of text models; its config's class is named after it unless `config` says."""
    return Family(name, example, text(f"{stem}ForCausalLM", config or f"{stem}Config", **changes))


PICTURED = (
    Family("LLaVA-1.5", "llava-hf/llava-1.5-7b-hf", builders.llava, 9),
    Family("LLaVA-NeXT", "llava-hf/llava-v1.6-mistral-7b-hf", builders.llava_next, 24),
    Family("LLaVA-OneVision", "llava-hf/llava-onevision-qwen2-7b-ov-hf", builders.llava_onevision, 21),
    Family("ViP-LLaVA", "llava-hf/vip-llava-7b-hf", builders.vip_llava, 9),
    Family("Qwen2-VL", "Qwen/Qwen2-VL-7B-Instruct", builders.qwen("2"), 4),
    Family("Qwen2.5-VL", "Qwen/Qwen2.5-VL-7B-Instruct", builders.qwen("2.5"), 4),
    Family("Qwen3-VL", "Qwen/Qwen3-VL-8B-Instruct", builders.qwen("3"), 4),
    Family("Qwen3.5", "Qwen/Qwen3.5-9B", builders.qwen("3.5"), 4),
    Family("InternVL3", "OpenGVLab/InternVL3-8B-hf", builders.internvl("Qwen2Config"), 4),
    Family("InternVL3.5", "OpenGVLab/InternVL3_5-8B-HF", builders.internvl("Qwen3Config"), 4),
    Family("GLM-4.1V", "zai-org/GLM-4.1V-9B-Thinking", builders.glm("4v"), 4),
    Family("GLM-4.6V", "zai-org/GLM-4.6V-Flash", builders.glm("46V"), 4),
    Family("Idefics2", "HuggingFaceM4/idefics2-8b", builders.idefics2, 3),
    Family("Idefics3", "HuggingFaceM4/Idefics3-8B-Llama3", builders.idefics3, 4),
    Family("SmolVLM", "HuggingFaceTB/SmolVLM2-2.2B-Instruct", builders.smolvlm, 4),
    Family("Gemma 3", "google/gemma-3-4b-it", builders.gemma3, 4),
    Family("Gemma 4", "google/gemma-4-31B-it", builders.gemma4, 64),
    Family("PaliGemma", "google/paligemma2-3b-mix-448", builders.paligemma, 9),
    Family("Llama 3.2 Vision", "meta-llama/Llama-3.2-11B-Vision-Instruct", builders.mllama, 1),
    Family("Mistral 3 / Pixtral", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", builders.mistral3, 4),
    Family("Aya Vision", "CohereLabs/aya-vision-8b", builders.aya, 4),
    Family("Cohere 2 Vision", "CohereLabs/command-a-vision-07-2025", builders.cohere2_vision, 4, STAND_IN),
    Family("LFM2-VL", "LiquidAI/LFM2-VL-1.6B", builders.lfm2_vl, 4, STAND_IN),
    Family("DeepSeek-VL", "deepseek-community/deepseek-vl-7b-chat", builders.deepseek_vl, 9),
    Family("Janus-Pro", "deepseek-community/Janus-Pro-7B", builders.janus, 9),
    Family("Ovis2", "thisisiron/Ovis2-8B-hf", builders.ovis2, 4),
)

TEXT = (
    words("Llama", "meta-llama/Llama-3.1-8B-Instruct", "Llama"),
    words("Qwen2", "Qwen/Qwen2.5-7B-Instruct", "Qwen2"),
    words("Qwen3", "Qwen/Qwen3-8B", "Qwen3"),
    words("Qwen3.5 (text)", "Qwen/Qwen3.5-9B", "Qwen3_5", "Qwen3_5TextConfig", **HYBRID),
    words("Mistral", "mistralai/Mistral-7B-Instruct-v0.3", "Mistral"),
    words("Ministral", "mistralai/Ministral-8B-Instruct-2410", "Ministral", sliding_window=8),
    words("Ministral 3", "mistralai/Ministral-3-8B-Instruct-2512", "Ministral3"),
    words("Gemma", "google/gemma-7b-it", "Gemma"),
    words("Gemma 2", "google/gemma-2-9b-it", "Gemma2"),
    words("Gemma 3 (text)", "google/gemma-3-1b-it", "Gemma3", "Gemma3TextConfig"),
    words(
        "Gemma 3n (text)", "google/gemma-3n-E4B-it", "Gemma3n", "Gemma3nTextConfig", **PER_LAYER, laurel_rank=4,
        num_kv_shared_layers=1, layer_types=["sliding_attention", "full_attention", "full_attention"],
        activation_sparsity_pattern=[0.5, 0.0, 0.0],
    ),
    words("Gemma 4 (text)", "google/gemma-4-31B-it", "Gemma4", "Gemma4TextConfig", **GEMMA4),
    words(
        "Gemma 4 E (text)", "google/gemma-4-E4B-it", "Gemma4", "Gemma4TextConfig",
        **{**GEMMA4, **PER_LAYER, "num_kv_shared_layers": 1, "layer_types": ["full_attention"] * 3},
    ),
    words("Phi-2", "microsoft/phi-2", "Phi", head_dim=None, **PARTLY),
    words("Phi-3", "microsoft/Phi-3.5-mini-instruct", "Phi3", head_dim=None),
    Family("Phi-4 multimodal (text)", "microsoft/Phi-4-multimodal-instruct", builders.phi4_multimodal),
    words("OLMo", "allenai/OLMo-7B-hf", "Olmo", head_dim=None),
    words("OLMo 2", "allenai/OLMo-2-1124-7B-Instruct", "Olmo2", head_dim=None),
    words("OLMo 3", "allenai/Olmo-3-7B-Instruct", "Olmo3", head_dim=None),
    words("OLMo-Hybrid", "allenai/Olmo-Hybrid-7B", "OlmoHybrid", **HYBRID),
    words("SmolLM3", "HuggingFaceTB/SmolLM3-3B", "SmolLM3"),
    words("Granite", "ibm-granite/granite-3.3-8b-instruct", "Granite", head_dim=None),
    words(
        "Granite 4 hybrid", "ibm-granite/granite-4.0-h-1b", "GraniteMoeHybrid", num_local_experts=0,
        shared_intermediate_size=D_MLP, layer_types=["mamba", "attention", "mamba"], **MAMBA,
    ),
    words("Cohere", "CohereLabs/c4ai-command-r-v01", "Cohere", head_dim=None),
    words("Cohere 2", "CohereLabs/aya-expanse-8b", "Cohere2", head_dim=None, sliding_window=8),
    words(
        "LFM2", "LiquidAI/LFM2-1.2B", "Lfm2", layer_types=["conv", "full_attention", "conv"],
        block_auto_adjust_ff_dim=False,
    ),
    words("Falcon", "tiiuae/falcon-7b-instruct", "Falcon", head_dim=None, new_decoder_architecture=False,
          ffn_hidden_size=D_MLP),
    words("Falcon-H1", "tiiuae/Falcon-H1-7B-Instruct", "FalconH1",
          **{**MAMBA, "mamba_d_ssm": 32, "mamba_d_head": 8, "head_dim": 10}),
    words(
        "RecurrentGemma", "google/recurrentgemma-2b-it", "RecurrentGemma", intermediate_size=2 * D_MLP, lru_width=D_MODEL,
        attention_window_size=8, block_types=("recurrent", "recurrent", "attention"),
    ),
    words("Bamba", "ibm-ai-platform/Bamba-9B-v2", "Bamba", attn_layer_indices=[1], **MAMBA),
    words("GLM-4", "zai-org/GLM-4-9B-0414", "Glm4"),
    words("EXAONE 4", "LGAI-EXAONE/EXAONE-4.0-32B", "Exaone4"),
    words("Seed-OSS", "ByteDance-Seed/Seed-OSS-36B-Instruct", "SeedOss"),
    words("Hunyuan dense", "tencent/Hunyuan-7B-Instruct", "HunYuanDenseV1"),
    words("ERNIE 4.5 dense", "baidu/ERNIE-4.5-0.3B-PT", "Ernie4_5"),
    words("MiniCPM3", "openbmb/MiniCPM3-4B", "MiniCPM3", kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4,
          qk_nope_head_dim=6, v_head_dim=10, num_key_value_heads=2),
    words("Nemotron", "nvidia/Nemotron-Mini-4B-Instruct", "Nemotron"),
    words("Apertus", "swiss-ai/Apertus-8B-Instruct-2509", "Apertus"),
    words("Arcee", "arcee-ai/AFM-4.5B", "Arcee"),
    words("BitNet", "microsoft/bitnet-b1.58-2B-4T", "BitNet"),
    words("Helium", "kyutai/helium-1-2b", "Helium"),
    words("StableLM", "stabilityai/stablelm-2-1_6b-chat", "StableLm"),
    words("StarCoder2", "bigcode/starcoder2-7b", "Starcoder2"),
    Family("GPT-2", "openai-community/gpt2", lambda: (tiny.gpt2(), tokenizer())),
    words("GPT-Neo", "EleutherAI/gpt-neo-1.3B", "GPTNeo", num_layers=N_LAYERS, num_heads=2, num_hidden_layers=None,
          num_attention_heads=None, head_dim=None, attention_types=[[["global", "local", "global"], 1]]),
    words("GPT-J", "EleutherAI/gpt-j-6b", "GPTJ", n_embd=D_MODEL, n_layer=N_LAYERS, n_head=2, n_inner=D_MLP, rotary_dim=4,
          n_positions=512, head_dim=None),
    words("GPT-NeoX", "EleutherAI/pythia-1.4b", "GPTNeoX", num_key_value_heads=None, head_dim=None),
    words("XGLM", "facebook/xglm-1.7B", "XGLM", d_model=D_MODEL, ffn_dim=D_MLP, num_layers=N_LAYERS, attention_heads=2),
    words("OPT", "facebook/opt-1.3b", "OPT", ffn_dim=D_MLP, word_embed_proj_dim=D_MODEL, intermediate_size=None,
          num_key_value_heads=None, head_dim=None),
)  # fmt: skip


def mixture(name: str, example: str, stem: str, d_mlp: int = 32, **changes: Any) -> Family:
    """A family of mixtures of experts: four experts of eight neurons, two for a token."""
    few: dict[str, Any] = dict(
        num_experts=4, num_local_experts=4, n_routed_experts=4, num_experts_per_tok=2, intermediate_size=8,
        moe_intermediate_size=8,
    )  # fmt: skip
    build = text(f"{stem}ForCausalLM", f"{stem}Config", **{**few, **changes})
    return Family(name, example, build, d_mlp=d_mlp)


MIXTURES = (
    Family("Qwen3-VL-MoE", "Qwen/Qwen3-VL-30B-A3B-Instruct", builders.qwen("3-moe"), 4, d_mlp=32),
    mixture("Mixtral", "mistralai/Mixtral-8x7B-Instruct-v0.1", "Mixtral"),
    mixture("Qwen2-MoE", "Qwen/Qwen1.5-MoE-A2.7B-Chat", "Qwen2Moe", 43, shared_expert_intermediate_size=11),
    mixture("Qwen3-MoE", "Qwen/Qwen3-30B-A3B-Instruct-2507", "Qwen3Moe"),
    mixture("OLMoE", "allenai/OLMoE-1B-7B-0125-Instruct", "Olmoe", head_dim=None),
    mixture("FlexOLMo", "allenai/FlexOlmo-7x7B-1T", "FlexOlmo", head_dim=None),
    mixture("gpt-oss", "openai/gpt-oss-20b", "GptOss"),
    mixture("Granite MoE", "ibm-granite/granite-3.1-3b-a800m-instruct", "GraniteMoe", head_dim=None),
    mixture("Phi-3.5-MoE", "microsoft/Phi-3.5-MoE-instruct", "Phimoe", head_dim=None),
    mixture("MiniMax-M2", "MiniMaxAI/MiniMax-M2", "MiniMaxM2", rotary_dim=4),
    mixture("Hunyuan MoE", "tencent/Hunyuan-A13B-Instruct", "HunYuanMoEV1", 40, moe_topk=2),
)

FAMILIES = (*PICTURED, *TEXT, *MIXTURES)


# -- checks: each raises AssertionError, all against plain PyTorch hooks on one unpadded prompt at a time ---------------
VISION = ("vision", "visual", "connector", "projector", "embed_tokens_extend")


def downs(model: ns.Model) -> list[torch.nn.Module]:
    """The down-projections, by the ends of their names, in order: the package's own table is not trusted."""
    ends: tuple[str, ...] = (
        ".down_proj",
        ".mlp.c_proj",
        ".dense_4h_to_h",
        ".fc2",
        ".fc_out",
        ".feed_forward.w2",
        ".shared_mlp.output_linear",
    )
    every = list(model.module.named_modules())
    if any("expert" in n for n, _ in every):
        ends = (".experts.all_down",)  # tests/model/test_experts.py compares these with a forward from the definition
    named = [(n, m) for n, m in every if n.endswith(ends) and not any(word in n for word in VISION)]
    assert len(named) == N_LAYERS, [n for n, _ in named]
    return [m for _, m in named]


def prompts(pictures: bool) -> ns.PromptSet:
    """Eight prompts of unlike lengths, four of each label, with answers of one word."""
    rows = [r for r in tiny.records(pictures=pictures) if (r["modality"] == "image") == pictures][::7][:8]
    out = []
    for i, row in enumerate(rows):
        if pictures:
            row["images"] = [tiny.picture(i, (SIZE, SIZE))]
        out.append({**row, "label": ("harmful", "benign")[i % 2], "target": ("sorry", "sure")[i % 2], "split": None})
    return ns.PromptSet.from_records([{k: v for k, v in r.items() if v is not None} for r in out])


def encode(model: ns.Model, prompt: ns.Prompt) -> dict[str, torch.Tensor]:
    """One prompt through the processor's own chat template, or its own call without one; no padding, no roles."""
    words = {"type": "text", "text": prompt.prompt}
    if getattr(model.processor, "chat_template", None):
        pictures = [{"type": "image", "image": picture} for picture in prompt.load_images()]
        encoding = model.processor.apply_chat_template(
            [{"role": "user", "content": [*pictures, words]}], tokenize=True, return_dict=True, add_generation_prompt=True,
            return_tensors="pt",
        )  # fmt: skip
    elif prompt.images:
        text = f"{model.processor.image_token}\n" * len(prompt.images) + prompt.prompt
        encoding = model.processor(text=[text], images=[prompt.load_images()], return_tensors="pt")
    else:
        encoding = model.tokenizer([prompt.prompt], return_tensors="pt")
    encoding = {k: v for k, v in encoding.items() if isinstance(v, torch.Tensor) and k != "labels"}
    if not prompt.images:
        encoding.pop("token_type_ids", None)
        if "PaliGemma" in type(model.module).__name__:
            encoding["token_type_ids"] = torch.zeros_like(encoding["input_ids"])
    return encoding


Change = Callable[[int, torch.Tensor], torch.Tensor | None]


def by_hand(model: ns.Model, prompt: ns.Prompt, change: Change) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, logits at the last token) with `change(layer, h [pos, d_mlp])` written in by hooks."""
    encoding = encode(model, prompt)

    def flat(layer: int, h: torch.Tensor) -> torch.Tensor | None:
        new = change(layer, h.reshape(-1, h.shape[-1]))
        return None if new is None else new.reshape(h.shape)

    with torch.no_grad(), tiny.hooked(downs(model), flat):
        return encoding["input_ids"][0], model.module(**encoding).logits[0, -1]


def kinds(family: Family) -> tuple[bool, ...]:
    return (False, True) if family.image_tokens else (False,)


def check_capture(family: Family) -> None:
    """Moments of every role, in batches of 1 and of 7, padded right and left, are those of hooks on each prompt alone."""
    model = family.load()
    for pictures in kinds(family):
        rows = prompts(pictures)
        seen = []
        for prompt in rows:
            kept: dict[int, torch.Tensor] = {}
            ids, _ = by_hand(model, prompt, lambda layer, h, kept=kept: kept.update({layer: h.clone()}))  # type: ignore[misc]
            image = ids == model.image_token_id if model.image_token_id is not None else torch.zeros_like(ids).bool()
            assert int(image.sum()) == (family.image_tokens if pictures else 0)
            silent = torch.zeros(
                len(ids), family.d_mlp
            )  # Llama 3.2 Vision skips its cross-attention layers where there is no picture
            seen.append((torch.stack([kept.get(i, silent) for i in range(N_LAYERS)], dim=1), image))
        for role in ("last_prompt", "prompt", "text", "image") if pictures else ("last_prompt", "prompt"):
            where = {
                "last_prompt": lambda im: torch.arange(len(im)) == len(im) - 1,
                "prompt": torch.ones_like, "text": lambda im: ~im, "image": lambda im: im,
            }[role]  # fmt: skip
            every = torch.cat([h[where(image)] for h, image in seen])
            wanted, loudest = Moments.of(every.numpy()), float(every.abs().max())
            for size in (1, 7):
                for side in ("right", "left"):
                    got = None
                    for batch in batches(model, list(rows), batch_size=size, side=side):
                        member = torch.zeros(len(batch.rows), dtype=torch.long)
                        counts, values = _trace_moments(model, batch, role, member=member, n_groups=1)
                        part = Moments(int(counts[0]), *(v[0].numpy() for v in values))
                        got = part if got is None else got.merge(part)
                    assert got is not None
                    assert got.n == wanted.n, (role, got.n, wanted.n)
                    for name in ("mean", "mean_abs", "var", "positive", "least"):
                        a, b = getattr(got, name), getattr(wanted, name)
                        scale = max(1.0, np.abs(b).max(), loudest)  # what float32 rounds is h; `least` may be tiny
                        np.testing.assert_allclose(
                            a, b, rtol=1e-4, atol=1e-5 * scale, err_msg=f"{role} {name} {size} {side}"
                        )


PAIRS = ((1, 3), (1, 28), (2, 7))


def zero(layer: int, h: torch.Tensor, last_only: bool) -> torch.Tensor:
    h = h.clone()
    for at, index in PAIRS:
        if at == layer:
            h[-1 if last_only else slice(None), index] = 0
    return h


def check_ablate(family: Family) -> None:
    """Zeroing neurons of layers 1 and 2, at the last token and at all, gives the logits of hooks; layer 0 keeps its own."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=family.d_mlp)
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        clean = answer_logits(model, rows, batch_size=3)
        for positions in ("last_prompt", "all"):
            below: list[torch.Tensor] = []
            with tiny.hooked(downs(model)[:1], lambda _, h, below=below: below.append(h.detach().clone())):  # type: ignore[misc]
                got = answer_logits(model, rows, Intervention(neurons, "zero", positions=positions), batch_size=3)
            with tiny.hooked(downs(model)[:1], lambda _, h, below=below: below.append(h.detach().clone())):  # type: ignore[misc]
                answer_logits(model, rows, batch_size=3)
            first, second = below[: len(below) // 2], below[len(below) // 2 :]
            assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
            wanted = [by_hand(model, p, lambda i, h, o=positions == "last_prompt": zero(i, h, o))[1] for p in rows]  # type: ignore[misc]
            close(got, torch.stack(wanted))
            assert float((got - clean).abs().max()) > 1e-2


def check_patch(family: Family) -> None:
    """Values of a prompt's neighbour written into it give the logits of hooks; its own values change nothing."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=family.d_mlp)
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        own = ns.record(model, rows, batch_size=3)
        close(
            answer_logits(model, rows, Intervention(neurons, "patch", own), batch_size=3),
            answer_logits(model, rows, batch_size=3),
        )
        donor = own.roll(1, 0)
        got = answer_logits(model, rows, Intervention(neurons, "patch", donor), batch_size=3)
        wanted = []
        for prompt, new in zip(rows, donor, strict=True):

            def write(layer: int, h: torch.Tensor, new: torch.Tensor = new) -> torch.Tensor:
                h = h.clone()
                for at, index in PAIRS:
                    if at == layer:
                        h[-1, index] = new[layer, index]
                return h

            wanted.append(by_hand(model, prompt, write)[1])
        close(got, torch.stack(wanted))


def check_generate(family: Family) -> None:
    """Greedy answers with neurons clamped at every token, padded, are those of hooks under the model's own `generate`."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=family.d_mlp)
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        got = ns.generate(
            model, ns.PromptSet(rows), intervention=Intervention(neurons, "clamp", 2.0, "all"), max_new_tokens=4
        )

        def clamp(layer: int, h: torch.Tensor) -> torch.Tensor:
            h = h.clone()
            for at, index in PAIRS:
                if at == layer:
                    h[..., index] = 2.0
            return h

        for prompt, answer in zip(rows, got, strict=True):
            encoding = encode(model, prompt)
            with torch.no_grad(), tiny.hooked(downs(model), clamp):
                ids = model.module.generate(**encoding, max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
            alone = model.tokenizer.decode(ids[0, encoding["input_ids"].shape[1] :], skip_special_tokens=True).strip()
            assert answer == alone


def moved(model: ns.Model, other: ns.Model, changed: set[str]) -> int:
    """How many numbers of the parameters that changed are different; all must be in rows and columns of `PAIRS`."""
    before, after = dict(model.module.named_parameters()), dict(other.module.named_parameters())
    names = {n for n, m in model.module.named_modules() if m in downs(model)[1:]}
    stems = {n.rsplit(".", 1)[0] for n in names}
    assert all(any(c.startswith(stem) for stem in stems) for c in changed), changed
    count = 0
    for name in changed:
        where = (before[name] != after[name]).nonzero()
        layer = next(
            i
            for i, m in enumerate(downs(model))
            if name.startswith(next(n for n, x in model.module.named_modules() if x is m).rsplit(".", 1)[0])
        )
        own = {index for at, index in PAIRS if at == layer}
        axes = [a for a, n in enumerate(before[name].shape) if n in (D_MLP, 2 * D_MLP)]
        assert {int(i) % D_MLP for i in where[:, axes[0]].unique()} <= own, name
        count += len(where)
    return count


def moved_in_experts(model: ns.Model, other: ns.Model, changed: set[str]) -> int:
    """The same for mixtures of experts, whose parameters are stacked."""
    assert all(".experts." in name or ".shared_" in name for name in changed), changed
    count = 0
    for layer in range(N_LAYERS):
        for part in ("up", "gate", "down"):
            name = getattr(model.site, part)
            before, after = (acting_weight(m.linear(layer, name)) for m in (model, other))
            where = (before != after).nonzero()
            own = {index for at, index in PAIRS if at == layer}
            assert {int(i) for i in where[:, int(part == "down")].unique()} <= own, (layer, part)
            count += len(where)
    return count


def check_update(family: Family) -> None:
    """Three steps lower the loss's own gradient path only into the set; the saved adapter gives the same logits back."""
    model = family.load()
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=family.d_mlp)
    rows = prompts(bool(family.image_tokens))
    update = ns.masked_update(model, neurons, rows, steps=3, batch_size=4, lr=0.05, allow_unproven=True, progress=False)
    before, after = dict(model.module.named_parameters()), dict(update.model.module.named_parameters())
    changed = {n for n in before if not torch.equal(before[n], after[n])}
    assert changed, "nothing was trained"
    count = (moved_in_experts if "expert" in model.site.down else moved)(model, update.model, changed)
    assert count > 0.5 * update.trained  # a rectified neuron that is off learns nothing
    with tempfile.TemporaryDirectory() as folder:
        update.save(Path(folder) / "adapter")
        back = ns.load_adapter(ns.load(model.module, processor=model.processor), Path(folder) / "adapter")
        close(answer_logits(back, list(rows), batch_size=3), answer_logits(update.model, list(rows), batch_size=3))
    assert float((answer_logits(update.model, list(rows)) - answer_logits(model, list(rows))).abs().max()) > 1e-3


def check_margins(family: Family) -> None:
    """Refusal margins under several conditions at once, by whatever shortcut, are those of single forwards with hooks."""
    model = family.load()
    conditions = [
        None,
        *(Intervention(ns.NeuronSet([pair], n_layers=N_LAYERS, d_mlp=family.d_mlp), "zero") for pair in PAIRS),
    ]
    refuse, comply = (tiny.WORDS.index(word) for word in ("sorry", "sure"))
    for pictures in kinds(family):
        rows = list(prompts(pictures))
        tokens = {p.language: OpeningTokens([refuse], [comply]) for p in rows}
        got = margins(model, rows, conditions, tokens, batch_size=3)
        for condition, line in zip(conditions, got, strict=True):
            at = dict(cast(ns.NeuronSet, condition.neurons)) if condition is not None else {}

            def zeroed(layer: int, h: torch.Tensor, at: dict[int, int] = at) -> torch.Tensor:
                h = h.clone()
                if layer in at:
                    h[-1, at[layer]] = 0
                return h

            logits = torch.stack([by_hand(model, p, zeroed)[1] for p in rows])
            close(torch.from_numpy(line), (logits[:, refuse] - logits[:, comply]).double())


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    scale = float(b.abs().max())
    torch.testing.assert_close(a.float(), b.float(), rtol=1e-4, atol=1e-4 * max(1.0, scale))


CHECKS: dict[str, Callable[[Family], None]] = {
    "capture": check_capture, "ablate": check_ablate, "patch": check_patch, "margins": check_margins,
    "generate": check_generate, "update": check_update,
}  # fmt: skip


class NotHere(Exception):
    """The other implementation cannot be had for this family, and why."""


def check_bridge(family: Family) -> None:
    """TransformerLens's bridge reads the same neurons (`hook_post`) and, when they are zeroed there, gives the same logits.

    Raises:
        NotHere: it has no adapter for the family, or cannot load it here.
    """
    from transformer_lens.model_bridge import TransformerBridge

    model = family.load()
    if "expert" in model.site.down:
        raise NotHere("it has no hook at the neurons of experts")
    second = copy.deepcopy(model.module)
    second.config.architectures = [type(second).__name__]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        PreTrainedTokenizerFast.save_pretrained(tokenizer(), folder)

        def refuse(*args: Any, **_: Any) -> None:  # it would install torchvision, and with it another torch
            raise OSError("needs torchvision")

        patch.setattr(subprocess, "check_call", refuse)
        try:
            bridge = TransformerBridge.boot_transformers(
                folder, hf_model=second, tokenizer=transformers.AutoTokenizer.from_pretrained(folder)
            )
        except Exception as error:  # whatever it says is the reason
            raise NotHere(" ".join(str(error).split())[:100]) from error
    neurons = ns.NeuronSet(PAIRS, n_layers=N_LAYERS, d_mlp=family.d_mlp)
    for pictures in kinds(family):
        rows = list(prompts(pictures))[:3]
        mine = ns.record(model, rows, batch_size=3)
        zeroed = answer_logits(model, rows, Intervention(neurons, "zero", positions="all"), batch_size=3)
        for prompt, h, logits in zip(rows, mine, zeroed, strict=True):
            encoding = encode(model, prompt)
            ids = encoding.pop("input_ids")
            kept: dict[int, torch.Tensor] = {}

            def keep(act: torch.Tensor, hook: Any, kept: dict[int, torch.Tensor] = kept) -> None:
                kept[int(hook.name.split(".")[1])] = act.reshape(-1, act.shape[-1])[-1].clone()

            names = [f"blocks.{i}.mlp.hook_post" for i in range(N_LAYERS)]
            try:
                with torch.no_grad(), bridge.hooks(fwd_hooks=[(name, keep) for name in names]):
                    bridge(ids, **encoding)
                with torch.no_grad(), bridge.hooks(fwd_hooks=neurons.to_transformer_lens()):
                    theirs = bridge(ids, **encoding)[0, -1]
            except Exception as error:
                raise NotHere(" ".join(str(error).split())[:100]) from error
            if len(kept) < N_LAYERS:
                raise NotHere("its hook_post did not fire")
            close(h, torch.stack([kept[i] for i in range(N_LAYERS)]))
            close(logits, theirs)


# -- the table of docs/models.md ---------------------------------------------------------------------------------------
HEAD = ("family", "checkpoint", "neurons are the input of", "image tokens", "tested with", *CHECKS, "TransformerLens")


def outcome(check: Callable[[], None]) -> str:
    try:
        check()
    except NotHere as error:
        known = {"torchvision": "needs torchvision", "experts": "no hook"}
        return next((said for word, said in known.items() if word in str(error)), "no adapter")
    except AssertionError as error:
        return f"no: {' '.join(str(error).split())[:60]}"
    return "yes"


def site(model: ns.Model) -> str:
    return f"`{model.layers_path}.{{l}}.{model.site.down}`"


def row(family: Family) -> list[str]:
    own = "its processor" if family.image_tokens else "a tokenizer"
    cells = [outcome(lambda check=check: check(family)) for check in (*CHECKS.values(), check_bridge)]  # type: ignore[misc]
    tokens = str(family.image_tokens or "")
    return [family.name, family.example, site(family.load()), tokens, family.note or own, *cells]


def unsupported_row(kind: Unsupported) -> list[str]:
    module, processor = kind.build()
    try:
        ns.load(module, processor=processor)
        said = "NOT REFUSED"
    except ns.InputError as error:
        said = "refused: " + re.split(r"[:;,]| \(", str(error).removeprefix(f"{type(module).__name__}: "))[0]
    return [kind.name, kind.example, said, *[""] * (len(HEAD) - 3)]


def table() -> list[list[str]]:
    """A row for each family: what it is tested with and what each check said; then what is refused, and why."""
    return [*map(row, FAMILIES), *map(unsupported_row, UNSUPPORTED)]


if __name__ == "__main__":
    import logging
    import warnings

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    if len(sys.argv) == 1:
        for line in ([*HEAD], ["---"] * len(HEAD), *table()):
            print(f"| {' | '.join(line)} |")
    else:
        family, folder = sys.argv[1:]
        model = next(f for f in FAMILIES if f.name == family).load()
        model.module.save_pretrained(folder)
        model.processor.save_pretrained(folder)
