"""The pictures of README.md and of the organism's results: python benchmarks/readme_picture.py --run neuronshield-out --out assets

Left: overlap of the selected neurons of every two cells, from the run. Right: of the verified neurons that are more active on harmful
prompts, the one with the largest effect: its activation at every token of a matched pair, and at the last prompt token of all
*confirm* pairs.
Writes readme.png and readme-dark.png, and overlap.png: shares of neurons in common by language and by modality. Needs kaleido and a Chromium (`pip install kaleido`; BROWSER_PATH names the browser).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from plotly.subplots import make_subplots

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.encoding import batches

THEMES = {
    "readme": {"ink": "#1b2733", "muted": "#66727f", "paper": "#ffffff", "line": "#d9e0e6",
               "scale": [[0, "#f4f7f9"], [0.5, "#5aa0b8"], [1, "#0a4a63"]], "harmful": "#b3364b", "benign": "#0b6e8a"},
    "readme-dark": {"ink": "#e6edf3", "muted": "#9aa7b3", "paper": "#0d1117", "line": "#2b333c",
                    "scale": [[0, "#131a21"], [0.5, "#2f7f99"], [1, "#a8e4f5"]], "harmful": "#ff8095", "benign": "#58c4e0"},
}  # fmt: skip
LANGUAGES = organism.HIGH_RESOURCE


def activation_by_token(model: ns.Model, prompt: ns.Prompt, layer: int, index: int) -> tuple[list[str], np.ndarray]:
    """The words of a prompt, and the neuron's value at each of them."""
    (batch,) = batches(model, [prompt], batch_size=1)
    down = model.linear(layer, model.site.down)
    kept: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda _, args: kept.append(args[0][0, :, index].float()))
    with torch.no_grad():
        model.module(**batch.encoding)
    handle.remove()
    ids = batch.encoding["input_ids"][0].tolist()
    words = [model.processor.tokenizer.decode([i]).strip() or "␣" for i in ids]
    words = ["⟨user⟩" if "user" in w else "⟨answer⟩" if "assistant" in w else w for w in words]
    return words, kept[0].cpu().numpy()


def figure(results: dict[str, Any], view: dict[str, Any], theme: dict[str, Any]) -> go.Figure:
    """Overlap heatmap and neuron view."""
    found = make_subplots(
        2, 2, column_widths=[0.44, 0.56], row_heights=[0.36, 0.64], horizontal_spacing=0.13, vertical_spacing=0.17,
        specs=[[{"rowspan": 2}, {}], [None, {}]],
        subplot_titles=[
            "Share of selected neurons in common, by language",
            f"Neuron ({view['layer']}, {view['index']}): activation by token, en/text",
            "Mean activation at the last prompt token, by language",
        ],
    )  # fmt: skip
    along = results["find"]["overlap"]["along"]["language"]
    shared = np.array(along["shared"], dtype=float)
    np.fill_diagonal(shared, np.nan)
    order = np.argsort([-np.nanmean(row) if np.isfinite(row).any() else 0.0 for row in shared], kind="stable")
    told = [i for i in order if np.isfinite(shared[i]).any()]
    rest = [along["cells"][i] for i in order if i not in told]
    shared, languages = shared[np.ix_(told, told)], [along["cells"][i] for i in told]
    text = [["" if np.isnan(value) else f"{value:.2f}" for value in row] for row in shared]
    found.add_trace(
        go.Heatmap(z=shared, x=languages, y=languages, text=text, texttemplate="%{text}", textfont={"size": 11}, colorscale=theme["scale"], zmin=0,
                   zmax=1, xgap=2, ygap=2, colorbar={"thickness": 9, "x": 0.405, "len": 0.9, "outlinewidth": 0, "tickfont": {"color": theme["muted"]}}),
        1, 1,
    )  # fmt: skip
    few = f"{', '.join(rest)}: too few requests to tell" if rest else ""
    found.update_xaxes(showgrid=False, zeroline=False, title=few, row=1, col=1)
    found.update_yaxes(autorange="reversed", showgrid=False, zeroline=False, row=1, col=1)
    top = float(np.abs(np.concatenate([view["tokens"][s][1] for s in ("benign", "harmful")])).max())
    for row, side in enumerate(("benign", "harmful")):
        words, values = view["tokens"][side]
        found.add_trace(
            go.Heatmap(
                z=[np.abs(values)], x=list(range(len(words))), y=[row], text=[[f"{w}<br>{round(float(v))}" for w, v in zip(words, values)]], texttemplate="%{text}", showscale=False,
                colorscale=[[0, theme["paper"]], [1, theme[side]]], zmin=0, zmax=1.4 * top, xgap=2, ygap=6,
                textfont={"size": 12, "color": theme["ink"]},
            ),
            1, 2,
        )  # fmt: skip
    found.update_xaxes(visible=False, row=1, col=2)
    found.update_yaxes(
        tickvals=[0, 1],
        ticktext=["benign", "harmful"],
        showgrid=False,
        zeroline=False,
        range=[-0.55, 1.55],
        row=1,
        col=2,
    )
    for side in ("harmful", "benign"):
        found.add_trace(
            go.Bar(x=list(LANGUAGES), y=view["means"][side], name=side, marker={"color": theme[side]}, width=0.34), 2, 2
        )
    found.update_yaxes(
        title="activation", zeroline=True, zerolinecolor=theme["muted"], gridcolor=theme["line"], row=2, col=2
    )
    value, low, high = view["effect"]
    found.add_annotation(
        text=f"Ablating this neuron alone removes {value:.3f} [{low:.3f}, {high:.3f}] of the clean logit difference.",
        xref="paper", yref="paper", x=1, y=-0.21, xanchor="right", showarrow=False, font={"size": 13, "color": theme["ink"]},
    )  # fmt: skip
    return found.update_layout(
        width=1180, height=520, margin={"l": 40, "r": 20, "t": 50, "b": 85}, barmode="group", bargap=0.3,
        paper_bgcolor=theme["paper"], plot_bgcolor=theme["paper"], font={"family": "system-ui, sans-serif", "color": theme["ink"]},
        legend={"orientation": "h", "x": 0.535, "xanchor": "left", "y": -0.07, "yanchor": "top"},
    ).update_annotations(font={"color": theme["ink"]})  # fmt: skip


def neuron_view(results: dict[str, Any], model: ns.Model) -> dict[str, Any]:
    """What the right half shows."""
    rows = organism.records(languages=list(LANGUAGES), modalities=["text"], splits=["confirm"], max_pairs=32)
    prompts = ns.PromptSet.from_records(rows)
    values = ns.record(model, list(prompts)).numpy()
    harmful = np.array([p.label == "harmful" for p in prompts])
    rise = np.abs(values[harmful].mean(axis=0)) - np.abs(values[~harmful].mean(axis=0))
    members = [m for m in results["prove"]["members"] if m["verified"] and rise[m["layer"], m["index"]] > 0]
    member = max(members, key=lambda m: m["alone"][0])
    layer, index = member["layer"], member["index"]
    english = [pair for pair in prompts.pairs() if pair[0].language == "en"]
    pair = min(english, key=lambda pair: len(pair[0].prompt) + len(pair[1].prompt))

    def mean(language: str, label: str) -> float:
        return float(values[[p.language == language and p.label == label for p in prompts], layer, index].mean())

    return {
        "layer": layer, "index": index, "effect": member["alone"],
        "tokens": {p.label: activation_by_token(model, p, layer, index) for p in pair},
        "means": {side: [mean(language, side) for language in LANGUAGES] for side in ("harmful", "benign")},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("neuronshield-out"))
    parser.add_argument("--out", type=Path, default=Path("assets"))
    args = parser.parse_args()
    results = json.loads((args.run / "results.json").read_text(encoding="utf-8"))
    view = neuron_view(results, ns.load("organism"))
    ns.figures.overlap_heatmap(results["find"]["overlap"]).write_image(args.out / "overlap.png", width=900, scale=1.5)
    for name, theme in THEMES.items():
        figure(results, view, theme).write_image(args.out / f"{name}.png", scale=2)


if __name__ == "__main__":
    main()
