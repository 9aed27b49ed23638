"""Loading a model together with a saved adapter: what `ns.load` is.

It stands here because merging an adapter belongs to this part; `model.load` knows nothing of updates.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ..model import load as loading
from ..model.families import Site
from ..model.model import Model
from .update import load_adapter

__all__ = ["load"]


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    processor: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantize: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    layers: str | None = None,
    site: Site | tuple[str, str, str | None] | None = None,
    remote: bool | str = False,
    trust_remote_code: bool = False,
) -> Model:
    """A model with its MLP neurons addressed.

    >>> organism = ns.load("organism")
    >>> organism.n_layers, organism.d_mlp
    (6, 512)

    Args:
        model: "organism" (the embedded VLLM), "smollm2" (SmolLM2-135M-Instruct), a folder, a hub id,
            or a transformers model that is already built.
        processor: for a built model: its processor, or a bare tokenizer for a text model.
        revision: commit, tag or branch on the hub.
        dtype: torch dtype or its name; default float32 on a CPU, the checkpoint's own on a GPU.
        device: where to put a model loaded from a name; default a GPU if there is one.
        device_map: instead of `device`: "auto" or a map, to spread a model over GPUs (accelerate's).
        quantize: "4bit" (NF4) or "8bit", through bitsandbytes: to find and prove in, not to train. Statistics stay
            float32, and artefacts record it as their dtype.
        adapter: a folder that `Update.save` wrote; the result is `load_adapter` of the model and this folder.
        layers: for a family that is not known: address of its decoder layers, e.g. "model.layers".
        site: and of the MLP in each: (down, up, gate), gate None if there is none, e.g. ("ffn.w2", "ffn.w3", "ffn.w1").
        remote: True: a hub id's weights stay on NDIF and traces run there; "local": they run here, sent the same way, as a
            trial (see `neuronshield.model.remote`).
        trust_remote_code: run code that the checkpoint brings. Off unless turned on.

    Raises:
        InputError: unknown id, no processor, no decoder layers with an MLP that is known, mixture-of-experts layers, or an
            adapter that does not fit.
    """
    base = loading.load(
        model, processor=processor, revision=revision, dtype=dtype, device=device, device_map=device_map,
        quantize=quantize, layers=layers, site=site, remote=remote, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return base if adapter is None else load_adapter(base, adapter)
