"""vLLM's own checks take a saved adapter; they are run where vLLM is installed, and restated in test_serving.py where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import tiny
from masking import neurons
from safetensors import safe_open

import neuronshield as ns
from neuronshield.shield.serving import SERVED_RANKS

peft_helper = pytest.importorskip("vllm.lora.peft_helper", reason="vLLM is not installed")

LLAVA = {"model.language_model.": "language_model.model.", "model.vision_tower.": "vision_tower."}


@pytest.fixture(scope="module", params=["llama", "llava"])
def adapter(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: ns.Model = request.getfixturevalue(request.param)
    update = ns.masked_update(model, neurons(), tiny.prompts(), steps=1, allow_unproven=True, progress=False)
    return update.save(tmp_path_factory.mktemp("vllm") / request.param)


def test_the_ranks_are_those_that_vllm_has():
    from vllm.config.lora import MaxLoRARanks

    assert get_args(MaxLoRARanks) == SERVED_RANKS


def test_vllm_takes_the_settings(adapter: Path):
    from vllm.config.lora import LoRAConfig

    helper: Any = peft_helper.PEFTHelper.from_local_dir(str(adapter), 64)
    helper.validate_legal(LoRAConfig(max_lora_rank=helper.r))
    assert helper.vllm_lora_scaling_factor == 1.0
    smaller = max(r for r in SERVED_RANKS if r < helper.r)
    with pytest.raises(ValueError, match="greater than max_lora_rank"):
        helper.validate_legal(LoRAConfig(max_lora_rank=smaller))


def test_vllm_finds_the_module_of_every_tensor(adapter: Path):
    from vllm.lora.utils import parse_fine_tuned_lora_name
    from vllm.model_executor.models.utils import WeightsMapper

    mapper = WeightsMapper(orig_to_new_prefix=LLAVA) if adapter.name == "llava" else None
    with safe_open(adapter / "adapter_model.safetensors", framework="pt") as file:
        found = {parse_fine_tuned_lora_name(name, mapper) for name in file.keys()}  # noqa: SIM118
    start = "language_model.model" if adapter.name == "llava" else "model"
    wanted = {f"{start}.layers.{i}.mlp.{p}_proj" for i in range(3) for p in ("gate", "up", "down")}
    assert found == {(name, first) for name in wanted for first in (True, False)}
