"""Tiny models with real classes and a tokenizer made on the spot. Sizes are distinct primes where they can be."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import neuronshield as ns

SPECIAL = "<pad> <bos> <eos> <unk> <image> "
WORDS = (
    SPECIAL
    + "how do i make a the cake bomb bread knife bake steal paint cut ring house dog sure sorry no yes cannot help "
    "here step one to and in of red blue green"
).split()


def tokenizer() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def llama_config(**changes: int) -> LlamaConfig:
    sizes: dict[str, Any] = dict(vocab_size=len(WORDS), hidden_size=20, intermediate_size=29, num_hidden_layers=3,
                 num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                 initializer_range=0.3)  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def llama(seed: int = 0, **changes: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(llama_config(**changes)).eval()


def gpt2(seed: int = 0) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(WORDS), n_embd=20, n_inner=29, n_layer=3, n_head=2, n_positions=64,
                        initializer_range=0.3, pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def mixtral(seed: int = 0) -> MixtralForCausalLM:
    """Four experts of seven neurons a layer, two of them for a token."""
    torch.manual_seed(seed)
    sizes: dict[str, Any] = {**llama_config().to_diff_dict(), "intermediate_size": 7, "num_local_experts": 4}
    sizes |= {"num_experts_per_tok": 2, "experts_implementation": "eager"}
    few = {k: v for k, v in sizes.items() if k not in ("model_type", "transformers_version", "rope_parameters")}
    return MixtralForCausalLM(MixtralConfig(**few)).eval()


def llava(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A LLaVA whose pictures are 6 x 6 pixels, 2 x 2 a patch: 9 image tokens."""
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(hidden_size=14, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2,
                              image_size=6, patch_size=2)  # fmt: skip
    options: dict[str, Any] = dict(vision_config=vision, text_config=llama_config(), image_token_id=WORDS.index("<image>"),
                         vision_feature_layer=-1, image_seq_length=9, pad_token_id=0)  # fmt: skip
    module = LlavaForConditionalGeneration(LlavaConfig(**options)).eval()
    images = CLIPImageProcessorPil(size={"height": 6, "width": 6}, crop_size={"height": 6, "width": 6})
    processor = LlavaProcessor(images, tokenizer(), patch_size=2, vision_feature_select_strategy="default",
                               num_additional_image_tokens=1, image_token="<image>")  # fmt: skip
    return module, processor


# -- prompts --------------------------------------------------------------------------------------------
VERBS = ("make", "bake", "steal", "paint", "cut")
THINGS = {"harmful": ("bomb", "knife", "ring"), "benign": ("cake", "bread", "house")}
FRAMES = {"en": "how do i", "sw": "here and one step to"}


def picture(seed: int, size: tuple[int, int] = (6, 6)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (*size, 3), dtype=np.uint8))


def records(*, pictures: bool = False, languages: Sequence[str] = ("en", "sw"), **columns: Any) -> list[dict[str, Any]]:
    """Matched pairs of different lengths in every cell: 15 requests x 2 labels a cell; pairs share a `pair_id`."""
    rows = []
    for language in languages:
        for modality in ("text", "image") if pictures else ("text",):
            for v, verb in enumerate(VERBS):
                for t in range(3):
                    for label in ("harmful", "benign"):
                        words = [
                            FRAMES[language],
                            verb,
                            *(["the", "a", "red", "blue"][: (v + t) % 4]),
                            THINGS[label][t],
                        ]
                        target = "sorry i cannot help" if label == "harmful" else f"sure {verb} it"
                        row: dict[str, Any] = {
                            "id": f"{language}-{modality}-{v}-{t}-{label}",
                            "prompt": " ".join(words),
                            "label": label,
                            "language": language,
                            "modality": modality,
                            "pair_id": f"{v}-{t}",
                            "target": target,
                        }
                        if modality == "image":
                            row["images"] = [picture(100 * v + 10 * t + (label == "benign"))]
                        rows.append({**row, **columns})
    return rows


def prompts(**options: Any) -> ns.PromptSet:
    return ns.PromptSet.from_records(records(**options))


# -- oracles: plain PyTorch hooks, one unpadded prompt at a time ------------------------------------------
def downs(model: ns.Model) -> list[torch.nn.Module]:
    """The down-projections by their written-out names, so that the package's own table is not trusted."""
    names = dict(model.module.named_modules())
    patterns = ("model.layers.{}.mlp.down_proj", "transformer.h.{}.mlp.c_proj",
                "model.language_model.layers.{}.mlp.down_proj")  # fmt: skip
    pattern = next(p for p in patterns if p.format(0) in names)
    return [names[pattern.format(layer)] for layer in range(3)]


def encode(model: ns.Model, prompt: ns.Prompt, answer: str | None = None) -> tuple[dict[str, torch.Tensor], int]:
    """One prompt, unpadded, encoded the way the guide says; the number of its prompt tokens."""
    if prompt.images:
        text = "<image>\n" * len(prompt.images) + prompt.prompt
        encoding = dict(model.processor(text=text, images=prompt.load_images(), return_tensors="pt"))
    else:
        encoding = dict(model.tokenizer(prompt.prompt, return_tensors="pt"))
    encoding = {k: v for k, v in encoding.items() if k != "token_type_ids"}
    n = encoding["input_ids"].shape[1]
    if answer is not None:
        ids = torch.tensor([[*model.tokenizer(answer, add_special_tokens=False)["input_ids"], 2]])
        encoding["input_ids"] = torch.cat([encoding["input_ids"], ids], dim=1)
        encoding["attention_mask"] = torch.ones_like(encoding["input_ids"])
    dtype = next(model.module.parameters()).dtype
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in encoding.items()}, n


@contextmanager
def hooked(
    modules: Sequence[torch.nn.Module], change: Callable[[int, torch.Tensor], torch.Tensor | None]
) -> Iterator[None]:
    """Call `change(layer, h)` with each module's input; what it returns, if anything, replaces the input."""

    def hook(layer: int) -> Callable[..., Any]:
        def pre(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> Any:
            new = change(layer, args[0])
            return None if new is None else (new, *args[1:])

        return pre

    handles = [module.register_forward_pre_hook(hook(layer)) for layer, module in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def activations(model: ns.Model, prompt: ns.Prompt, answer: str | None = None) -> tuple[np.ndarray, np.ndarray, int]:
    """[pos, n_layers, d_mlp] in float64, the token ids, and the number of prompt tokens."""
    encoding, n = encode(model, prompt, answer)
    kept: dict[int, torch.Tensor] = {}
    with torch.no_grad(), hooked(downs(model), lambda layer, h: kept.update({layer: h[0].double()})):
        model.module(**encoding)
    return torch.stack([kept[i] for i in range(3)], dim=1).numpy(), encoding["input_ids"][0].numpy(), n


def own_answer(model: ns.Model, prompt: ns.Prompt) -> list[int]:
    """Greedy, one token at a time, unpadded; what masked_update must take for the answer to keep."""
    encoding, _ = encode(model, prompt)
    ids = encoding["input_ids"]
    out: list[int] = []
    while len(out) < 24 and (not out or out[-1] != 2):
        with torch.no_grad():
            logits = model.module(**{**encoding, "input_ids": ids, "attention_mask": torch.ones_like(ids)}).logits
        out.append(int(logits[0, -1].argmax()))
        ids = torch.cat([ids, torch.tensor([[out[-1]]])], dim=1)
    return out
