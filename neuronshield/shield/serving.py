"""Padding a saved adapter to a rank that inference servers accept.

vLLM's rules for LoRA adapters (version 0.33.0, `vllm/lora/peft_helper.py`): the rank is at most `max_lora_rank`, which is one of
`SERVED_RANKS`; no bias, no DoRA, no modules saved whole. Older versions take one rank and one alpha for all modules. A factor
padded with zeros gives the same weights and meets the rules. An adapter of a larger rank has to be merged into the weights
(`Update.save_merged`).
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

import torch

__all__ = ["SERVED_RANKS", "pad_to_served_rank"]


logger = logging.getLogger("neuronshield")


#: Values that vLLM's `max_lora_rank` can have.
SERVED_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def pad_to_served_rank(folder: Path) -> None:
    """Pad the factors of a saved PEFT adapter with zeros to the next rank of `SERVED_RANKS`; alpha too, so the scale stays 1.

    Args:
        folder: a folder that PEFT wrote; it is changed in place. Above the largest rank it is left as it is, with a warning.
    """
    from safetensors.torch import load_file, save_file

    about = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    rank = about["r"]
    wanted = next((r for r in SERVED_RANKS if r >= rank), None)
    if wanted is None:
        logger.warning("rank %d is above what servers take (%d): serve save_merged() instead", rank, SERVED_RANKS[-1])
        return
    if wanted == rank:
        return
    file = folder / "adapter_model.safetensors"
    tensors = {}
    for name, factor in load_file(file).items():
        rows, columns = factor.shape
        shape = (wanted, columns) if "lora_A" in name else (rows, wanted)
        tensors[name] = torch.zeros(shape, dtype=factor.dtype)
        tensors[name][:rows, :columns] = factor
    save_file(tensors, file, metadata={"format": "pt"})
    about["r"] = about["lora_alpha"] = wanted
    (folder / "adapter_config.json").write_text(json.dumps(about, indent=2, sort_keys=True), encoding="utf-8")
