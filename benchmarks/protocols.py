"""Published protocols beside each other on one model: benchmarks/results/protocol-NAME.json.

    python benchmarks/protocols.py organism --cells en/text --cells en/image
    python benchmarks/protocols.py organism-shared --cells en/text --cells en/image

One thread. The result of `ns.protocols.modality` is kept whole in --out; the table of the docs has one row a protocol.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from pathlib import Path
from typing import Any

import torch
from result_files import TRIPLE, write_result

import neuronshield as ns
from neuronshield.core.statistics import Interval
from neuronshield.protocols.comparison import ModalityProtocol
from neuronshield.protocols.pages import write_folder
from neuronshield.protocols.tables import Outcome, Overlapped
from neuronshield.run.own_prompts import own_records
from neuronshield.run.plan import read_prompts

#: Falls of the margin: where a set is from, and where it is ablated ("picture" is the other modality).
WAYS = ("text_text", "text_picture", "picture_text", "picture_picture")
OVERLAP = "{} (across {}, reliability {}, benign null {})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="organism, a folder, or a name that ns.load takes")
    parser.add_argument("--name", help="of the result; that of the model without it")
    parser.add_argument(
        "--folder", help="of a control organism that was built again; its prompts are those of the name"
    )
    parser.add_argument("--prompts", help="a file; the organisms have their own")
    parser.add_argument("--cells", action="append", default=[], help="cells that are compared")
    parser.add_argument("--queries", type=int, default=64)
    parser.add_argument("--controls", type=int, default=300)
    parser.add_argument("--draws", type=int, default=99)
    parser.add_argument("--rho", type=float, default=0.03)
    parser.add_argument("--out", type=Path, help="folder for the whole result")
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = ns.load(args.folder or args.model)
    if args.folder:
        prompts = ns.PromptSet.from_records(own_records(args.model, max_pairs=32)).in_cells(args.cells)
    else:
        prompts = read_prompts(args.model, args.prompts, seed=0, cells=args.cells)
    options = {name: getattr(args, name) for name in ("queries", "controls", "draws", "rho")}
    started, cpu = time.perf_counter(), time.process_time()
    found = ns.protocols.modality(model, prompts, progress=False, **options)
    spent = time.perf_counter() - started, time.process_time() - cpu
    print(found)
    if args.out:
        write_folder(found, args.out)
    write_result(
        f"protocol-{args.name or args.model}", f"Protocols on {args.model}, {' and '.join(found.modalities)}", columns=columns(found),
        rows=[*(row_of(found, o) for o in found.outcomes), directions(found)], numbers=numbers(found, *spent),
        settings=f"seed 0, {args.queries} prompts of a label, modality and split at most, {args.controls} control neurons a round, "
        f"{args.draws} control sets of a kind, rho {args.rho:g}, one thread",
    )  # fmt: skip


def columns(found: ModalityProtocol) -> dict[str, tuple[str, str | None]]:
    """Titles and formats."""
    picture = found.modalities[1]
    said = {"text": "text", "picture": picture}
    return {
        "protocol": ("protocol", None), "n_text": ("neurons, text", None), "n_picture": (f"neurons, {picture}", None),
        "overlap": ("Jaccard index", None),
        **{way: (" in ".join(said[part] for part in way.split("_")), TRIPLE) for way in WAYS},
        "judged": (f"refusals in text, {picture}: judged / keyword", None), "verdict": ("verdict", None),
    }  # fmt: skip


def row_of(found: ModalityProtocol, outcome: Outcome) -> dict[str, Any]:
    """The row of one protocol."""
    row: dict[str, Any] = {
        "protocol": outcome.protocol,
        "verdict": outcome.verdict,
        "overlap": overlap(outcome.overlap),
    }
    sizes = {s.modality: s for s in outcome.sets}
    told = []
    for place, modality in zip(("text", "picture"), found.modalities, strict=True):
        rounds = [str(r.confirmed) for r in outcome.rounds if r.modality == modality]
        by_round = f" (rounds {', '.join(rounds)})" if len(rounds) > 1 else ""
        row[f"n_{place}"] = f"{sizes[modality].n}{by_round}" if modality in sizes else "n/a"
        for target_place, target in zip(("text", "picture"), found.modalities, strict=True):
            effect = outcome.effect(modality, target)
            row[f"{place}_{target_place}"] = None if effect is None else list(effect.margin)
            if effect is not None and effect.answers is not None and modality == target:
                told.append(f"{effect.answers.judged.value:+.2f} / {effect.answers.keyword.value:+.2f}")
            elif modality == target:
                told.append("n/a")
    return {**row, "judged": ", ".join(told)}


def overlap(measured: Overlapped | None) -> str | None:
    """Jaccard index and its references as text; None where there is none."""
    if measured is None or math.isnan(measured.jaccard):
        return None
    values = [measured.jaccard, measured.across, measured.reliability, measured.benign_null]
    return OVERLAP.format(*("n/a" if math.isnan(v) else f"{v:.2f}" for v in values))


def directions(found: ModalityProtocol) -> dict[str, Any]:
    """The row of the directions: how many are needed, and their falls."""
    told, row = found.directions, dict.fromkeys(WAYS)
    out: dict[str, Any] = {"protocol": "directions", "verdict": told.verdict, "overlap": None, "judged": "n/a", **row}
    for place, modality in zip(("text", "picture"), found.modalities, strict=True):
        needed = told.needed[modality]
        out[f"n_{place}"] = "none" if needed is None else f"{needed} of {max(p.k for p in told.points)} tried"
        for target_place, target in zip(("text", "picture"), found.modalities, strict=True):
            falls = {p.k: p.margin for p in told.curve(modality, target)}
            if needed is not None:
                out[f"{place}_{target_place}"] = list(falls[needed])
    return out


def numbers(found: ModalityProtocol, seconds: float, cpu: float) -> dict[str, tuple[Any, str | None]]:
    """What there was of each modality, and the cost."""
    out: dict[str, tuple[Any, str | None]] = {}
    for place, side in zip(("text", "picture"), found.sides, strict=True):
        out[f"{place}_refused"] = (finite(side.refused), TRIPLE)
        out[f"{place}_difference"] = (finite(side.difference), TRIPLE)
        out[f"{place}_requests"] = (side.n_requests, None)
        out[f"{place}_labelled"] = (f"{side.n_refused} and {side.n_answered}", None)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    out |= {"minutes": (seconds / 60, "{:.1f}"), "cpu_minutes": (cpu / 60, "{:.1f}"), "gigabytes": (peak, "{:.1f}")}
    return {**out, "margins": (found.margins, "{:,}"), "answers": (found.answers, "{:,}")}


def finite(interval: Interval) -> list[float]:
    """An interval as JSON can hold it."""
    return [float(v) for v in interval]


if __name__ == "__main__":
    main()
