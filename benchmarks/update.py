"""Time and memory of a masked update: python benchmarks/update.py [--rounds 5]

One training step (forward, backward, optimiser) of the same batch, in turn, in one process: the masked update against a full
fine-tune of the MLPs under gradient masks, PEFT's SHiRA and a plain LoRA of rank 8, each as a ratio. Then the memory that
training adds, each condition in a process of its own: the peak of ten steps minus what the loaded model takes.

The set is 0.03 % of the parameters, spread over all layers at random (so that nothing is gained by a shallow backward
pass), and, as a second case, from the last third of the layers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from result_files import write_result
from torch import nn

import neuronshield as ns
from neuronshield.data.shipped import retention_prompts
from neuronshield.model.answers import Example
from neuronshield.model.families import PARTS
from neuronshield.shield.adapter import attach, places, quiet, shared_copy
from neuronshield.shield.objective import step_loss

MODEL = "smollm2"
CONDITIONS = ("masked update", "masked update, last third", "gradient masks", "SHiRA", "plain LoRA r=8")


def spread(model: ns.Model, first: int) -> ns.NeuronSet:
    """As many neurons as 0.03 % of the parameters are, from layer `first` on."""
    k = max(8, int(3e-4 * model.n_params / model.params_per_neuron))
    picks = np.random.default_rng(0).choice((model.n_layers - first) * model.d_mlp, k, replace=False)
    return ns.NeuronSet([(first + int(i) // model.d_mlp, int(i) % model.d_mlp) for i in picks])


def batch(model: ns.Model) -> list[Example]:
    """Eight English requests with an answer of twelve words."""
    answer = "Sorry, I cannot help with that, but here is something else instead."
    return [Example(p, answer) for p in retention_prompts(["en"])[:8]]


def stepper(model: ns.Model, name: str) -> Callable[[], None]:
    """One training step of a condition."""
    data = batch(model)
    masks: dict[int, torch.Tensor] = {}
    trained: Any
    if name.startswith("masked update"):
        neurons = spread(model, 2 * model.n_layers // 3 if "third" in name else 0)
        adapter = attach(model, places(model, neurons, PARTS), max(neurons.per_layer().values()), hot=True, seed=0)
        trained, parameters = adapter.peft_model, adapter.parameters()
    elif name == "gradient masks":
        trained, parameters, masks = masked_dense(model, spread(model, 0))
    elif name == "SHiRA":
        from peft import ShiraConfig, get_peft_model

        where = [p.name for p in places(model, spread(model, 0), PARTS)]
        with quiet():
            trained = get_peft_model(shared_copy(model.module), ShiraConfig(r=1, target_modules=where))  # type: ignore[arg-type]
        parameters = [p for p in trained.parameters() if p.requires_grad]
    else:
        adapter = attach(model, places(model, None, PARTS), 8, hot=False, seed=0)
        trained, parameters = adapter.peft_model, adapter.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.0)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        for loss in step_loss(model, trained, data, retention=1.0):
            loss.backward()
        for p in parameters:
            if id(p) in masks and p.grad is not None:
                p.grad *= masks[id(p)]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()

    return step


def masked_dense(
    model: ns.Model, neurons: ns.NeuronSet
) -> tuple[nn.Module, list[nn.Parameter], dict[int, torch.Tensor]]:
    """Every MLP weight as a dense parameter, with the mask of each."""
    module, parameters, masks = shared_copy(model.module), [], {}
    own = {place.name: place.own for place in places(model, neurons, PARTS)}
    for place in places(model, None, PARTS):
        linear: Any = module.get_submodule(place.name)
        linear.weight = nn.Parameter(linear.weight.detach().clone())
        mask = torch.zeros_like(linear.weight)
        members = own.get(place.name, torch.tensor([], dtype=torch.long))
        mask[(slice(None), members) if place.down else members] = 1.0
        parameters.append(linear.weight)
        masks[id(linear.weight)] = mask
    return module, parameters, masks


def peak(reset: bool = False) -> float:
    """MB of the process's peak (reset: of what it takes now), Linux only."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def memory(name: str, model_id: str) -> None:
    model = ns.load(model_id)
    data = batch(model)
    with torch.no_grad():  # memory of the forward alone is not counted
        for loss in step_loss(model, model.module, data, retention=1.0):
            float(loss)
    before = peak(reset=True)
    step = stepper(model, name)
    for _ in range(10):
        step()
    print(json.dumps(peak() - before))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    if args.memory:
        memory(args.memory, MODEL)
        return
    extra = {}
    for name in CONDITIONS:
        command = [sys.executable, __file__, "--memory", name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
        extra[name] = float(said.stdout.strip().splitlines()[-1])
    model = ns.load(MODEL)
    steps = {name: stepper(model, name) for name in CONDITIONS}
    seconds: dict[str, list[float]] = {name: [] for name in CONDITIONS}
    for _ in range(args.rounds + 1):  # the first warms up
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    rows = []
    for mine in CONDITIONS[:2]:
        for name in CONDITIONS[2:]:
            ratios = sorted(a / b for a, b in zip(seconds[mine][1:], seconds[name][1:], strict=True))
            time_over = [ratios[len(ratios) // 2], ratios[0], ratios[-1]]
            memory_over = [extra[mine] / extra[name], round(extra[mine]), round(extra[name])]
            where = ", set in the last third of the layers" if mine != CONDITIONS[0] else ""
            rows.append({"pair": name + where, "time": time_over, "memory": memory_over})
    path = write_result(
        "update-speed", "One training step and extra memory of a masked update of SmolLM2, over those of three others",
        columns={"pair": ("masked update over", None), "time": ("step time", "{:.2f} ({:.2f} to {:.2f})"),
                 "memory": ("extra memory", "{:.2f} ({:d} MB of {:d} MB)")},
        rows=rows, settings=f"{args.rounds} rounds, one thread",
        numbers={"neurons": (len(spread(model, 0)), None), "batch": (len(batch(model)), None), "target_time": (0.6, "{:.1f}"),
                 "target_memory": (0.35, "{:.2f}")},
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
