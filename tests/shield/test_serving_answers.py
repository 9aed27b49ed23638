"""A server that is given a shield answers what `generate` answers, for text and for a picture."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from local_server import content, serving, text, with_adapter

import neuronshield as ns
from neuronshield import organism

pytest.importorskip("fastapi", reason='pip install "transformers[serving]"')
pytest.importorskip("openai", reason='pip install "transformers[serving]"')

CELLS = ["en/text", "en/image", "en/typographic", "sw/text"]


class Served(NamedTuple):
    folder: Path
    rows: list[ns.Prompt]
    plain: list[str]
    shielded: list[str]


@pytest.fixture(scope="module")
def shield(organism_model: ns.Model, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A shield in its forms, prompts, and their answers without and with it."""
    folder = tmp_path_factory.mktemp("served")
    prompts = ns.PromptSet.from_records(organism.records(max_pairs=4)).in_cells(CELLS)
    stats = ns.capture(organism_model, prompts.in_cells("en/text"), progress=False)
    neurons = ns.contrast(stats).top(k=64)["en/text"]
    update = ns.masked_update(
        organism_model, neurons, prompts, steps=8, lr=2e-2, batch_size=16, allow_unproven=True, progress=False
    )
    update.save(folder / "adapter")
    update.save_merged(folder / "merged")
    rows = [p for cell in CELLS for p in list(prompts.in_cells(cell))[:5]]
    answers = [ns.generate(m, rows, max_new_tokens=24) for m in (organism_model, update.model)]
    assert answers[0] != answers[1]
    return Served(folder, rows, *answers)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["merged", "adapter"])
def test_a_server_answers_what_generate_answers(shield: Served, form: str):
    served = shield.folder / form
    if form == "adapter":
        served = with_adapter(organism.folder(), shield.folder / "adapter", shield.folder / "both")
    with serving(served, max_tokens=24) as ask:
        got = [ask(row) for row in shield.rows]
    with pytest.raises(OSError, match="refused"):  # it is stopped
        ask(shield.rows[0])
    assert [text(answer) for answer in got] == shield.shielded
    assert [text(answer) for answer in got] != shield.plain
    read = [answer["usage"]["prompt_tokens"] for answer in got]
    assert min(r for r, row in zip(read, shield.rows) if row.images) > max(
        r for r, row in zip(read, shield.rows) if not row.images
    )


@pytest.mark.slow
def test_the_folder_of_an_adapter_alone_is_no_model_to_the_server(shield: Served, tmp_path: Path):
    """What docs/handoff.md says: the server wants a processor, a config and base weights beside the adapter."""
    from transformers.cli.serving.model_manager import ModelManager

    with pytest.raises(ValueError, match="processor"):
        ModelManager(device="cpu", force_model=str(shield.folder / "adapter"))
    partly = shutil.copytree(shield.folder / "adapter", tmp_path / "partly")
    for name in (
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "config.json",
    ):
        shutil.copy(organism.folder() / name, partly)
    with pytest.raises(OSError, match=r"model\.safetensors"):
        ModelManager(device="cpu", force_model=str(partly))


def test_a_prompt_becomes_an_openai_message():
    pictured = next(p for p in ns.PromptSet.from_records(organism.records(max_pairs=1)) if p.images)
    picture, words = content(pictured)
    assert picture["image_url"]["url"].startswith("data:image/png;base64,iVBOR")
    assert words == {"type": "text", "text": pictured.prompt}
