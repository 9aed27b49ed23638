"""What capture costs over the forwards it rides on: python benchmarks/capture.py [--model smollm2 --prompts FILE]

In turn in one process, on the same prompts, so that a noisy machine slows all alike:

    decoder     the language backbone alone, without the output head: what a forward costs that stops where capture stops
    forward     the whole model
    capture     neuronshield: moments of every neuron
    hooks       plain hooks that keep every activation of every token, as scripts do
    TransformerLens   run_with_cache of every hook_post (float32 only, where it has an adapter)

Writes benchmarks/results/capture-MODEL.json: the ratios over "decoder", with their smallest and largest value over the rounds, and what
is kept at the end; on a GPU also the peak of memory above the model's own.
`--model random-7b` is LLaVA-1.5-7B's shape with random weights (bfloat16; --layers for fewer of its 32).
"""

from __future__ import annotations

import argparse
import copy
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from result_files import write_result

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.encoding import Batch, batches

BATCH = 32
RATIO = "{:.2f} ({:.2f} to {:.2f})"
NAMES = {
    "decoder": "the language backbone alone",
    "forward": "the whole model, nothing captured",
    "capture": "capture: moments of every neuron",
    "hooks": "plain hooks that keep every activation",
    "TransformerLens": "TransformerLens, `run_with_cache` of every `hook_post`",
}


def random_7b(n_layers: int) -> ns.Model:
    """LLaVA-1.5-7B by its published sizes, untrained; it reads the organism's tokens."""
    import transformers

    text = transformers.LlamaConfig(
        vocab_size=32064, hidden_size=4096, intermediate_size=11008, num_hidden_layers=n_layers,
        num_attention_heads=32, num_key_value_heads=32, max_position_embeddings=4096,
    )  # fmt: skip
    vision = transformers.CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            module = transformers.LlavaForConditionalGeneration(
                transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=32000)
            )
    finally:
        torch.set_default_dtype(before)
    return ns.load(module, processor=ns.load("organism").tokenizer)


def bridge_of(model: ns.Model) -> Any | None:
    """TransformerLens over a second copy of the weights; None where it has no adapter or the dtype is not its own."""
    if model.dtype != "float32" or model.takes_images:
        return None
    from transformer_lens.model_bridge import TransformerBridge

    with tempfile.TemporaryDirectory() as folder:
        model.tokenizer.save_pretrained(folder)
        tokenizer = type(model.tokenizer).from_pretrained(folder)
        installs = subprocess.check_call

        def refuse(*_: Any, **__: Any) -> None:
            raise OSError("nothing is installed by a benchmark")

        subprocess.check_call = refuse  # type: ignore[assignment]
        try:
            module = copy.deepcopy(model.module)
            return TransformerBridge.boot_transformers(folder, hf_model=module, tokenizer=tokenizer)
        finally:
            subprocess.check_call = installs


def ways(model: ns.Model, prompts: ns.PromptSet) -> dict[str, Callable[[], list[torch.Tensor]]]:
    """What is timed; each gives back the activations it keeps."""

    def ready() -> Iterator[Batch]:  # every way turns its prompts into tensors, as capture does
        return batches(model, list(prompts), batch_size=BATCH)

    inner: Any = model.module.model  # type: ignore[union-attr]
    names = [f"blocks.{i}.mlp.hook_post" for i in range(model.n_layers)]

    def decoder() -> list[torch.Tensor]:
        for batch in ready():
            inner(**batch.encoding, use_cache=False)
        return []

    def forward() -> list[torch.Tensor]:
        for batch in ready():
            model.module(**batch.encoding, use_cache=False)
        return []

    def captured() -> list[torch.Tensor]:
        stats = ns.capture(model, prompts, tokens="last_prompt", batch_size=BATCH, progress=False)
        return [torch.as_tensor(v) for m in stats.groups.values() for v in vars(m).values() if not isinstance(v, int)]

    def hooks() -> list[torch.Tensor]:
        kept: list[torch.Tensor] = []
        handles = [
            model.linear(i, model.site.down).register_forward_pre_hook(
                lambda _, args: kept.append(args[0].detach().clone())
            )
            for i in range(model.n_layers)
        ]
        forward()
        for handle in handles:
            handle.remove()
        return kept

    out = {"decoder": decoder, "forward": forward, "capture": captured, "hooks": hooks}
    bridge = bridge_of(model)
    if bridge is not None:

        def lens() -> list[torch.Tensor]:
            kept: list[torch.Tensor] = []
            for batch in ready():
                ids, mask = batch.encoding["input_ids"], batch.encoding["attention_mask"]
                _, cache = bridge.run_with_cache(ids, attention_mask=mask, names_filter=lambda n: n in names)
                kept += [cache[n] for n in names]
            return kept

        out["TransformerLens"] = lens
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="organism")
    parser.add_argument("--layers", type=int, default=32, help="of random-7b")
    parser.add_argument("--prompts", help="JSONL; the organism's own without it")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = random_7b(args.layers) if args.model == "random-7b" else ns.load(args.model)
    if args.prompts:
        prompts = ns.PromptSet.from_jsonl(args.prompts)
    else:
        modalities = ["text", "image", "typographic"] if model.takes_images else ["text"]
        rows = organism.records(splits=["discover"], max_pairs=12, modalities=modalities)
        prompts = ns.PromptSet.from_records(rows)
    gpu = model.device.type == "cuda"
    seconds: dict[str, list[float]] = {}
    kept: dict[str, float] = {}
    peak: dict[str, float] = {}
    with torch.no_grad():
        todo = ways(model, prompts)
        for _ in range(args.rounds + 1):  # the first warms up
            for name, work in todo.items():
                if gpu:
                    torch.cuda.synchronize()
                    torch.cuda.reset_peak_memory_stats()
                    own = torch.cuda.memory_allocated()
                start = time.perf_counter()
                held = work()
                if gpu:
                    torch.cuda.synchronize()
                    peak[name] = (torch.cuda.max_memory_allocated() - own) / 1e6
                seconds.setdefault(name, []).append(time.perf_counter() - start)
                kept[name] = sum(t.numel() * t.element_size() for t in held) / 1e6
    over: list[dict[str, Any]] = []
    for name in todo:
        ratios = sorted(a / b for a, b in zip(seconds[name][1:], seconds["decoder"][1:], strict=True))
        over.append({"way": NAMES[name], "time": [ratios[len(ratios) // 2], ratios[0], ratios[-1]], "kept": kept[name]})
        over[-1] |= {"emphasis": True} if name == "capture" else {}
        over[-1] |= {"peak": peak[name]} if gpu else {}
    columns: dict[str, tuple[str, str | None]] = {"way": ("", None), "time": ("time over the decoder alone", RATIO)}
    columns |= {"kept": ("kept", "{:.1f} MB")} | ({"peak": ("peak above the model", "{:.0f} MB")} if gpu else {})
    path = write_result(
        f"capture-{args.model}", f"Time of {len(prompts)} prompts of {args.model} over the language backbone alone, and what is kept",
        columns=columns, rows=over, settings=f"{model.dtype}, {args.rounds} rounds, one thread" if not gpu else model.dtype,
        device=str(model.device),
    )  # fmt: skip
    print(path.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
