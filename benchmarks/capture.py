"""What capture costs over the forwards it rides on: python benchmarks/capture.py [--model smollm2] [--rounds 5]

Both sides run the same batches in the same process, in turn, so that a noisy machine slows both; the figure to quote is
the ratio, with its smallest and largest value over the rounds.
"""

from __future__ import annotations

import argparse
import time

import torch

import neuronshield as ns
from neuronshield import organism
from neuronshield.collate import batches


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="organism")
    parser.add_argument("--prompts", help="JSONL; the organism brings its own")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    model = ns.load(args.model)
    if args.prompts:
        prompts = ns.PromptSet.from_jsonl(args.prompts)
    else:
        prompts = ns.PromptSet.from_records(organism.records(splits=["discover"], max_pairs=12))

    def forwards() -> None:
        with torch.inference_mode():
            for batch in batches(model, list(prompts), batch_size=32):
                model.module(**batch.encoding, use_cache=False)

    def captured() -> None:
        ns.capture(model, prompts, tokens="last_prompt", batch_size=32, progress=False)

    ratios = []
    for _ in range(args.rounds + 1):  # the first warms up
        seconds = []
        for work in (forwards, captured):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        ratios.append(seconds[1] / seconds[0])
    kept = sorted(ratios[1:])
    print(f"{args.model}, {len(prompts)} prompts: capture takes {kept[len(kept) // 2]:.2f} "
          f"({kept[0]:.2f} to {kept[-1]:.2f}) times its forwards alone, {args.rounds} rounds")  # fmt: skip


if __name__ == "__main__":
    main()
