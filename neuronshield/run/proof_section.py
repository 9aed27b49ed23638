"""The report's section on the proof, from `Proof.to_dict` as `results.json` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..figures import proof_figure
from .page import drawing, interval, note, num, p_text, sentence, spread, table

EFFECT = "normalised effect [95 %]"


def proof_section(p: dict[str, Any]) -> str:
    """The section as HTML: verdict, claims, cells, answers, members, experiments.

    Args:
        p: `Proof.to_dict()`.
    """
    controls = p["controls"]
    pairing = (
        "matched pairs" if p["paired"] else "each with a random benign prompt of its cell, as none has a matched one"
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in controls["sets"].items())
    cells = ", ".join(p["cells"])
    text = (
        f'<p><b class="{"passed" if p["passed"] else "failed"}">{escape(sentence(p["word"]))}.</b> {escape(sentence(p["reason"]))}. '
        f"Tested on {escape(str(p['n_pairs']))} harmful prompts ({pairing}) that were not used to select the neurons"
        f"{f', in the cells where the model refuses: {escape(cells)}' if cells else ''}. A normalised effect is a change of "
        "the refusal margin divided by the clean logit difference (mean margin of harmful minus benign prompts). Matched "
        f"control sets, with as many neurons per layer: {escape(kinds) or 'none'}.</p>"
    )
    text += _claims(p["claims"]) + drawing(proof_figure(p, "claims"))
    text += "".join(note(f"A control is missing or smaller: {why}.") for why in controls["missing"].values())
    if p["retest"]:
        text += "<h3>Verified members by themselves, on the half of the requests that did not select them</h3>"
        text += _claims(p["retest"]["claims"])
    if p["cells"]:
        rows = [
            [c, v["n_pairs"], num(v["clean_logit_difference"]), interval(v["effect"]), num(v["strongest_control"]),
             p_text(v["p"]), p_text(v["p_holm"]), v["verdict"]]
            for c, v in p["cells"].items()
        ]  # fmt: skip
        head = ["cell", "pairs", "clean logit difference", EFFECT, "strongest control", "p", "p (Holm)", "verdict"]
        text += "<h3>Mean ablation, cell by cell</h3>" + table(head, rows)
    answers = [
        [f"{a['label']}, {a['condition']}", a["n"], interval(a["refused"]), interval(a["incoherent"]), a["n_unknown"]]
        for a in p["answers"]
    ]
    head = ["prompts, condition", "n", "refused [95 %]", "incoherent [95 %]", "unknown"]
    text += "<h3>Refusals in generated answers</h3>" + table(head, answers)
    text += _members(p) + _experiments(p)
    return f"<section><h2>Prove: do refusals depend on these neurons?</h2>{text}</section>"


def _claims(claims: Sequence[dict[str, Any]]) -> str:
    rows = []
    for c in claims:
        best = max(((max(v), k) for k, v in c["controls"].items() if v), default=None)
        rows.append([
            c["name"], interval(c["effect"]), f"{best[0]:.2f} ({best[1]})" if best else "n/a",
            p_text(max(c["p"].values(), default=None)), c["verdict"], c["note"],
        ])  # fmt: skip
    return table(["claim", EFFECT, "strongest control", "p", "verdict", "note"], rows)


def _members(p: dict[str, Any]) -> str:
    if not p["members"]:
        return ""
    roles = [m["role"] for m in p["members"]]
    rule = p["rule"]
    text = (
        f"<p>Of {len(roles)} neurons, {roles.count('alone')} lower the refusal margin when ablated alone, "
        f"{roles.count('in a group')} only (or more than twice as much) when others are ablated too, "
        f"{roles.count('anti-refusal')} <i>raise</i> it (anti-refusal neurons), and {roles.count('')} have no effect that "
        f"counts (Benjamini–Hochberg, q ≤ {rule['alpha']:g}, at least {rule['material']:.0%} of the strongest of its layer, "
        f"norms frozen). {len(p['verified']['members'])} are verified. Backup neurons (self-repair: outside the set, "
        f"with an effect once it is ablated): {len(p['backups']['members'])}.</p>"
    )
    rows = [
        [f"({m['layer']}, {m['index']})", interval(m["alone"], ".3f"), interval(m["last"], ".3f"), m["role"] or "none"]
        for m in sorted(p["members"], key=lambda m: -(m["alone"][0] or 0))
    ]
    members = table(["neuron (layer, index)", "ablated alone [95 %]", "ablated last [95 %]", "role"], rows)
    return f"<h3>Members</h3>{text}<details><summary>Every member</summary>{members}</details>"


def _experiments(p: dict[str, Any]) -> str:
    e = p["experiments"]
    if not e["dose_response"]:
        return ""
    text = "<h3>Dose-response and size</h3>"
    text += "".join(drawing(proof_figure(p, what)) for what in ("dose_response", "size"))
    if m := e["minimal"]:
        text += note(
            f"The strongest {m['size']} of {m['of']} members have {m['share']:.0%} of the whole set's effect. They are ranked on "
            "the same prompts, so this is slightly optimistic."
        )
    if e["groups"]:
        rows = [[g["group"], g["n"], interval(g["without"]), interval(g["lost"])] for g in e["groups"]]
        text += "<h3>Leaving one group out</h3>" + table(
            ["left out", "neurons", "effect of the others", "effect lost"], rows
        )
    return text + _completeness(e) + _backups(e) + _recognition(e) + _cross_cell(p)


def _completeness(e: dict[str, Any]) -> str:
    rows = [
        [c["frame"], interval(c["share"]), spread(c["random"]), interval(c["without_set"])] for c in e["completeness"]
    ]
    head = [
        "all others at their benign mean, in",
        "share that the set retains",
        "random sets",
        "lost without the set too",
    ]
    return "<h3>Completeness: only the set keeps its values</h3>" + table(head, rows)


def _backups(e: dict[str, Any]) -> str:
    if not e["backups"]:
        return ""
    rows = [[b["ablated"], b["n"], interval(b["effect"]), spread(b["random"])] for b in e["backups"]]
    head = ["ablated", "neurons", EFFECT, "with as many random neurons"]
    return "<h3>Self-repair: ablate, select again, ablate again</h3>" + table(head, rows)


def _recognition(e: dict[str, Any]) -> str:
    if not e["recognition"]:
        return ""
    rows = [
        [f"{a['label']}, {a['outcome']}", a["n"], interval(a["activity"]), spread(a["random"]), interval(a["effect"])]
        for a in e["recognition"]
    ]
    head = ["prompts, all cells", "n", "activity of the set", "of random sets", "effect of ablating the set"]
    return (
        "<h3>Recognition of harm, or execution of refusal</h3>"
        + table(head, rows)
        + note(
            "Activity is 0 as on answered benign prompts and 1 as on refused harmful ones. On harmful prompts that were answered, "
            "activity near 1 means that the set responds to harm; near 0, that it is active only where the model refuses."
        )
    )


def _cross_cell(p: dict[str, Any]) -> str:
    if len({row["target"] for row in p["experiments"]["cross_cell"]}) < 2:
        return ""
    return "<h3>Cross-cell patching</h3>" + drawing(proof_figure(p, "cross_cell"))
