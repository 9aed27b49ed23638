"""Preference training of the same adapter: DPO, by TRL's trainer.

On a harmful prompt the refusal is preferred to the untouched model's answer; on a benign prompt that answer (or the prompt's
`target`) is preferred to the refusal. The reference p0 is the untouched model: the adapter starts at zero, and TRL compares
with a frozen copy of its start.

    loss = -log sigmoid(beta * [(log p(chosen) - log p0(chosen)) - (log p(rejected) - log p0(rejected))])

Text and pictures go through this package's own collation, so that templates, padding and image tokens are those of every
other step. Each forward has prompts with pictures or prompts without, never both. Source: Rafailov et al. (2023), eq. 7; TRL's `DPOTrainer`.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..core.errors import InputError
from ..core.randomness import random_state_kept
from ..data.languages import OpeningsArg
from ..model.answers import Example, refusal_for
from ..model.encoding import collate
from ..model.generation import generate
from ..model.model import Model
from ..model.running import recording
from .adapter import ADAPTER, Adapter, quiet
from .descent import Run
from .objective import deal, taught_in
from .training import TrainingConfig

__all__ = ["BETA", "fit_preference"]


BETA = 0.1


def fit_preference(
    adapter: Adapter, data: Sequence[Example], *, config: TrainingConfig, refusals: OpeningsArg = None
) -> Run:
    """Train the adapter by DPO on `data`; the losses.

    Args:
        adapter: what is trained.
        data: prompts with the preferred answers of harmful prompts, and the answers of benign ones.
        config: the settings; `texts` and `checkpoint` have no use here.
        refusals: refusal prefixes; the refusal of a benign prompt, which is the rejected answer, is the first of them.

    Raises:
        InputError: TRL is not installed, a setting that has no use here, or the model answers no harmful prompt.
    """
    try:
        with random_state_kept():  # importing TRL draws
            from datasets import Dataset
            from transformers import PrinterCallback, TrainerCallback
            from trl import DPOConfig, DPOTrainer
    except ImportError:
        raise InputError("objective='preference' needs TRL: pip install 'neuronshield[preference]'") from None
    for name, used in (("texts", any(e.generic for e in data)), ("checkpoint", config.checkpoint is not None)):
        if used:
            raise InputError(f"{name}= has no use with objective='preference'; leave it out")
    run = Run()
    model = adapter.model
    rejected = _rejected(model, data, refusals=refusals, progress=config.progress)
    rows = _forwards(data, config)

    class Trainer(DPOTrainer):  # type: ignore[misc]
        """The batches as `deal` gave them, in that order."""

        def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
            return dataset

        def _get_train_sampler(self, *_: Any, **__: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    class Keeper(TrainerCallback):
        """Keeps the trained numbers at the snapshots."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            run.keep(adapter.parameters(), config, step=state.global_step)

    with tempfile.TemporaryDirectory() as folder, quiet(), random_state_kept(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = DPOConfig(
            output_dir=folder, beta=BETA, learning_rate=config.lr, max_steps=config.steps, max_grad_norm=1.0,
            per_device_train_batch_size=1, gradient_accumulation_steps=len(rows) // config.steps, seed=config.seed,
            lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_rate": 0.1}, warmup_steps=0,
            weight_decay=0.0, gradient_checkpointing=config.gradient_checkpointing, remove_unused_columns=False,
            save_strategy="no", report_to=[], logging_steps=1, disable_tqdm=not config.progress, max_length=None,
            use_cpu=model.device.type == "cpu", bf16=False, fp16=False, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(
            model=adapter.peft_model, args=settings, train_dataset=Dataset.from_dict({"rows": rows}),
            processing_class=model.processor, data_collator=lambda items: _batch(model, data, rejected=rejected, rows=items[0]["rows"]),
            optimizers=(config.optimiser(adapter.parameters(), lr=config.lr), None),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(Keeper)
        with recording("training"):
            trainer.train()
    run.losses = [float(entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    if "ref" in adapter.peft_model.peft_config:
        adapter.peft_model.delete_adapter("ref")
    adapter.peft_model.set_adapter(ADAPTER)
    if not np.isfinite(run.losses).all():
        raise InputError(f"training: loss is not finite at step {int(np.argmin(np.isfinite(run.losses)))}; lower lr")
    run.taught = taught_in(data, rows, preference=True)
    return run


def _rejected(model: Model, data: Sequence[Example], *, refusals: OpeningsArg, progress: bool) -> list[str]:
    """The answer that each example's response is preferred to."""
    harmful = [e.prompt for e in data if e.prompt.label == "harmful"]
    said = iter(generate(model, harmful, max_new_tokens=24, progress=progress, desc="rejected"))
    out = [next(said) if e.prompt.label == "harmful" else refusal_for(e.prompt, refusals) for e in data]
    if not any(text for text, e in zip(out, data, strict=True) if e.prompt.label == "harmful"):
        raise InputError(
            "objective='preference': the model answers no harmful prompt, so there is no answer to prefer a refusal to"
        )
    return out


def _forwards(data: Sequence[Example], config: TrainingConfig) -> list[list[int]]:
    """Rows of every forward, the same number a step: whole batches where all prompts have as many pictures, else single rows."""
    alike = len({len(e.prompt.images) for e in data}) == 1
    parts = config.accumulate if alike else config.batch_size // 2 * 2
    picks = deal(data, config.batch_size, steps=config.steps, seed=config.seed)
    if any(len(rows) % parts for rows in picks):
        raise InputError(f"accumulate={parts}: must divide a batch of {len(picks[0])} for objective='preference'")
    return [[int(i) for i in part] for rows in picks for part in np.array_split(np.array(rows), parts)]


def _batch(model: Model, data: Sequence[Example], *, rejected: Sequence[str], rows: Sequence[int]) -> dict[str, Any]:
    """Preferred answers first, then the rejected ones, as TRL's loss takes them."""
    prompts = [data[i].prompt for i in rows] * 2
    batch = collate(model, prompts, responses=[data[i].response for i in rows] + [rejected[i] for i in rows])
    return {**batch.encoding, "completion_mask": batch.roles["response"].long()}
