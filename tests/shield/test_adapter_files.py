"""The files of an adapter are those of PEFT, in one order."""

from __future__ import annotations

import json
from pathlib import Path

import tiny
from masking import neurons

import neuronshield as ns
from neuronshield.shield.adapter_files import CONFIG, FACTORS, read_adapter, write_adapter
from neuronshield.shield.update import masked_update


def test_the_projections_are_listed_in_the_same_order_in_every_process(llama: ns.Model, tmp_path: Path):
    """PEFT holds them as a set, and the order of a set of names is drawn anew in each process."""
    update = masked_update(llama, neurons(), tiny.prompts(), steps=1, progress=False)
    written = []
    for name, backwards in (("a", False), ("b", True)):
        config = update.peft_model.peft_config["default"]
        config.target_modules = sorted(config.target_modules, reverse=backwards)
        (tmp_path / name).mkdir()
        write_adapter(update.peft_model, tmp_path / name)
        written.append((tmp_path / name / CONFIG).read_bytes())
        assert sorted(p.name for p in (tmp_path / name).iterdir()) == [CONFIG, FACTORS]
    assert written[0] == written[1]
    wanted = update.peft_model.peft_config["default"].target_modules
    assert json.loads(written[0])["target_modules"] == sorted(wanted)
    assert read_adapter(tmp_path / "a").config["peft_type"] == "LORA"
