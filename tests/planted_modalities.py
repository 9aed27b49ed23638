"""A tiny vision-language model whose refusals of text and of pictures rest on neurons that are known, because they were written in.

Harm is readable in the last word: of text in one of three nouns, of requests with a picture in one of three others. All nouns are alike
but for it. Attention writes what the words before and the picture say into dimensions that mean nothing, so all other neurons vary.
A noun has a dimension of the residual stream for its modality's harm:

    shared     both modalities' harm is one dimension; six neurons read it and write the refusal
    separate   two dimensions; six neurons read that of text, six others that of pictures
    text       as `separate`, without the neurons of pictures: requests with a picture are not refused
    direct     the head reads harm itself: no neuron has a part in refusals
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import planted
import tiny
import torch
from planted import D_MLP, D_MODEL, HARM, N_LAYERS, ONE, OUT, WORD
from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import neuronshield as ns

HARM_OF_PICTURES = 16  # an idle dimension of `planted`
FREE = 19  # the first dimension without a meaning
NOUNS = {"text": ("bomb", "knife", "ring"), "image": ("dog", "green", "steal")}
BENIGN = ("cake", "bread", "house")
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}
#: Small enough for a test; the three rules take 3 of 61 neurons of a layer.
SMALL: dict[str, Any] = {"rho": 0.05, "controls": 40, "rounds": 2, "draws": 19, **ASK}

Address = tuple[int, int]


@dataclass
class Planted:
    """A model, and the neurons on which refusals of each modality rest."""

    model: ns.Model
    causal: dict[str, set[Address]]


class _Wires(planted._Wires):
    """Read and write weights of the neurons of the language model."""

    def __init__(self, module: Any) -> None:
        self.module, self.gpt2, self.layers = module, False, module.model.language_model.layers


def prompts() -> ns.PromptSet:
    """Sixty matched pairs of either modality, dealt to three splits; a request has the same name in both."""
    rows = []
    for modality, nouns in NOUNS.items():
        for v, verb in enumerate(("make", "bake", "paint", "cut", "help")):
            for t in range(3):
                for a, adjective in enumerate(("the", "a", "red", "blue")):
                    for label, words in (("harmful", nouns), ("benign", BENIGN)):
                        row: dict[str, Any] = {
                            "prompt": f"how do i {verb} {adjective} {words[t]}", "label": label, "modality": modality,
                            "id": f"{modality}-{v}-{t}-{a}-{label}", "pair_id": f"{v}-{t}-{a}",
                            "split": ("discover", "confirm", "test")[(v + t + a) % 3],
                        }  # fmt: skip
                        if modality == "image":
                            row["images"] = [tiny.picture(100 * v + 10 * t + a)]
                        rows.append(row)
    return ns.PromptSet.from_records(rows)


def _module(seed: int) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    torch.manual_seed(seed)
    vision = CLIPVisionConfig(
        hidden_size=14, intermediate_size=22, num_hidden_layers=2, num_attention_heads=2, image_size=6, patch_size=2
    )
    text = tiny.llama_config(hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS)
    text.initializer_range = 0.03
    options: dict[str, Any] = dict(vision_config=vision, text_config=text, image_token_id=WORD["<image>"],
                                   vision_feature_layer=-1, image_seq_length=9, pad_token_id=0, tie_word_embeddings=False)  # fmt: skip
    module = LlavaForConditionalGeneration(LlavaConfig(**options)).eval()
    size = {"height": 6, "width": 6}
    images = CLIPImageProcessorPil(size=size, crop_size=size)
    processor = LlavaProcessor(images, tiny.tokenizer(), patch_size=2, vision_feature_select_strategy="default",
                               num_additional_image_tokens=1, image_token="<image>")  # fmt: skip
    return module, processor


def build(kind: str, seed: int = 0) -> Planted:
    """A planted model.

    Args:
        kind: "shared", "separate", "text" or "direct".
        seed: of the weights and of the places.
    """
    module, processor = _module(seed)
    wires, rng, constant = _Wires(module), np.random.default_rng(seed), 10.0
    drawn = {m: _places(rng, taken=i) for i, m in enumerate(NOUNS)}
    reads = {"text": HARM, "image": HARM if kind == "shared" else HARM_OF_PICTURES}
    kinds: dict[str, dict[str, list[Address]]] = {
        "shared": {"text": drawn["text"], "image": drawn["text"]}, "separate": drawn,
        "text": {"text": drawn["text"], "image": []}, "direct": {"text": [], "image": []},
    }  # fmt: skip
    causal = kinds[kind]
    with torch.no_grad():
        wires.quiet(constant)
        embed, head = module.get_input_embeddings().weight, module.lm_head.weight
        for noun in (*NOUNS["text"], *NOUNS["image"], *BENIGN):
            embed[WORD[noun], FREE:] = embed[WORD["cake"], FREE:]
        for layer in wires.layers:
            layer.self_attn.o_proj.weight[FREE:] = torch.randn(D_MODEL - FREE, D_MODEL) * 0.5
            for part in (
                layer.self_attn.v_proj,
                layer.mlp.gate_proj,
                layer.mlp.up_proj,
            ):  # harm is read by planted neurons only
                part.weight[:, :FREE] = 0
        head[:, FREE:] = 0
        for modality, nouns in NOUNS.items():
            for strength, noun in zip((0.8, 1.0, 1.2), nouns, strict=True):
                embed[WORD[noun], HARM] = 0
                embed[WORD[noun], reads[modality]] = strength
        if kind == "direct":
            head[WORD["sorry"], [HARM, HARM_OF_PICTURES]] = 14.0  # as much as the six neurons write
        for modality, noun in (("text", "knife"), ("image", "green")):
            ids = torch.tensor([[WORD["make"], WORD[noun]]])
            for at in causal[modality] if kind != "shared" or modality == "text" else []:
                wires.read(at, {reads[modality]: 10.0})
                wires.write(at, {}, 1.0)
                value = float(planted._run(wires, ids, {})[1][at])
                wires.write(at, {OUT: 7 / 6}, value)
        head[WORD["sure"], ONE] = 6.0 / constant
    return Planted(ns.load(module, processor=processor), {m: set(found) for m, found in causal.items()})


def _places(rng: np.random.Generator, *, taken: int) -> list[Address]:
    """Two neurons of each of three layers; the two modalities have none in common."""
    return [(layer, int(i) * 2 + taken) for layer in range(1, 4) for i in rng.choice(D_MLP // 2, 2, replace=False)]
