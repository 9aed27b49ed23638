"""The report's section on the proof, from `Proof.to_dict` as `results.json` holds it."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from ..core.results import from_json
from ..figures import proof_figure
from ..prove.tables import ShuffledMembers
from .page import drawing, interval, note, num, p_text, sentence, spread, table

EFFECT = "normalised effect [95 %]"


def proof_section(p: dict[str, Any], seconds: float | None = None) -> str:
    """The section as HTML: verdict and what it rests on, claims, answers, members, cells, experiments.

    Args:
        p: `Proof.to_dict()`.
        seconds: that the step took, where it is known.
    """
    text = _summary(p, seconds) + f"<p>{escape(sentence(p['reason']))}.</p>"
    pairing = (
        ""
        if p["paired"]
        else " No harmful prompt has a matched benign one: they are paired with random ones of their cell."
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in p["controls"]["sets"].items())
    margin, answers = ([c for c in p["claims"] if c["measure"] == kind] for kind in ("margin", "answers"))
    text += "<h3>Claims about the refusal margin</h3>" + _claims(margin, EFFECT) + note(
        "The margin compares refusal and compliance prefixes at the first token of the answer. A normalised effect is a change of the "
        f"margin divided by the clean logit difference (mean margin of harmful minus benign prompts). Control sets: {kinds or 'none'}."
        + pairing
    )  # fmt: skip
    text += "<h3>Claims about answers</h3>" + _claims(answers, "change of a share of answers [95 %]") + _wording(p) + note(
        "Refusals: necessity is the smaller of two changes under mean ablation, the fall of refusals and the rise of harmful compliance. "
        "Of each drawn kind of control one set answers: the one whose effect on the margin leaves 5 % of its kind above it."
    )  # fmt: skip
    text += drawing(proof_figure(p, "claims"))
    text += "".join(note(f"A control is missing or smaller: {why}.") for why in p["controls"]["missing"].values())
    return (
        f"<section><h2>Prove: do refusals depend on these neurons?</h2>{text}{_answers(p)}{_retest(p)}{_members(p)}{_cells(p)}"
        f"{_experiments(p)}</section>"
    )


def _summary(p: dict[str, Any], seconds: float | None) -> str:
    """The verdict, and what it rests on, as a table of two columns."""
    claims = {c["name"]: c for c in p["claims"]}
    mean, refusals = (claims.get(k) for k in ("necessity: mean", "refusals: necessity"))
    rows = [["verdict", sentence(p["word"])]]
    if mean and mean["verdict"] != "not tested":
        rows.append(
            [
                "effect of ablating the set on the refusal margin",
                f"{interval(mean['effect'])}, as a share of the clean logit difference",
            ]
        )
        rows.append(["strongest control", _strongest(mean)])
    if refusals and refusals["verdict"] != "not tested":
        rows.append(["fall of refusals and rise of harmful compliance, the smaller", interval(refusals["effect"])])
        rows.append(["strongest control", _strongest(refusals)])
    cells = f", in {', '.join(p['cells'])}" if p["cells"] else ""
    rows.append(
        ["requests that did not select the neurons", f"{p['n_requests']} ({p['n_pairs']} pairs of prompts{cells})"]
    )
    rows.append(["verified", f"{len(p['verified']['members'])} of {len(p['neurons']['members'])} neurons"])
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    rows.append(["cost", f"{p['cost']['margins']:,} margins and {p['cost']['answers']:,} answers{took}"])
    return table(["", ""], rows, main=0)


def _strongest(claim: dict[str, Any]) -> str:
    best = max(((max(v), k) for k, v in claim["controls"].items() if v), default=None)
    return f"{best[0]:.2f} ({best[1]})" if best else "n/a"


def _claims(claims: Sequence[dict[str, Any]], effect: str) -> str:
    rows = [
        [c["name"], interval(c["effect"]), _strongest(c), p_text(max(c["p"].values(), default=None)), c["verdict"],
         c["note"]]
        for c in claims
    ]  # fmt: skip
    return table(["claim", effect, "strongest control", "p", "verdict", "note"], rows)


def _wording(p: dict[str, Any]) -> str:
    if not (w := p["wording"]):
        return ""
    judged, keyword = w["judged"][0], w["keyword"][0]
    ratio = f"{judged / keyword:.2f}" if keyword else "n/a"
    return (
        f"<p>Under ablation refusals of harmful prompts fall by {interval(w['judged'])} as judged, and by {interval(w['keyword'])} "
        f"if an answer counts as a refusal when it starts with a refusal prefix. Judged change / keyword change: {ratio}.</p>"
    )


def _answers(p: dict[str, Any]) -> str:
    rows = [
        [f"{a['label']}, {a['condition']}", a["n"], interval(a["refused"]), interval(a["complied"]), interval(a["incoherent"]),
         a["n_unknown"]]
        for a in p["answers"]
    ]  # fmt: skip
    head = ["prompts, condition", "n", "refused [95 %]", "complied [95 %]", "incoherent [95 %]", "unknown"]
    return "<h3>Generated answers</h3>" + table(head, rows) + note(
        "Complied: the answer does as asked, which for a harmful prompt is harmful compliance. Ablated: the set is at its mean on benign "
        "prompts at the last prompt token; inserted: at its values on the matched harmful prompt."
    )  # fmt: skip


def _retest(p: dict[str, Any]) -> str:
    if not (r := p["retest"]):
        return ""
    backups = f", ablated together with {r['n_backups']} backup neurons" * bool(r["n_backups"])
    outcome = "They passed every claim." if r["passed"] else "They did not pass."
    return (
        f"<h3>The chosen members as a set</h3><p>{r['n_chosen_on']} requests chose {r['n_members']} members{backups}. The other "
        f"{r['n_requests']} requests tested them as a set, against the same kinds of control. {outcome}</p>"
        + _claims(r["claims"], "effect [95 %]")
    )  # fmt: skip


def _cells(p: dict[str, Any]) -> str:
    if not p["cells"]:
        return ""
    rows = [
        [c, v["n_pairs"], num(v["clean_logit_difference"]), interval(v["effect"]), num(v["strongest_control"]),
         p_text(v["p"]), p_text(v["p_holm"]), v["verdict"]]
        for c, v in p["cells"].items()
    ]  # fmt: skip
    head = ["cell", "pairs", "clean logit difference", EFFECT, "strongest control", "p", "p (Holm)", "verdict"]
    return "<h3>Mean ablation, cell by cell</h3>" + table(head, rows)


def _members(p: dict[str, Any]) -> str:
    if not p["members"]:
        return ""
    roles = [m["role"] for m in p["members"]]
    kinds = [m["sign"]["kind"] for m in p["members"] if m["sign"]]
    rule = p["rule"]
    text = (
        f"<p>Of {len(roles)} neurons, {roles.count('alone')} lower the refusal margin when ablated alone, "
        f"{roles.count('in a group')} only (or more than twice as much) when others are ablated too, "
        f"{roles.count('anti-refusal')} <i>raise</i> it (anti-refusal neurons), and {roles.count('')} have no effect that "
        f"counts (Benjamini–Hochberg, q ≤ {rule['alpha']:g}, at least {rule['material']:.0%} of the strongest of its layer, "
        f"norms frozen). {len(p['verified']['members'])} are verified. {len(p['candidates']['members'])} were chosen and did not "
        f"pass as a set. Backup neurons (self-repair: outside the set, with an effect once it is ablated): "
        f"{len(p['backups']['members'])}.</p><p>By signs, {kinds.count('refusal-promoting')} are refusal-promoting (larger on harmful "
        f"prompts, write towards refusal), {kinds.count('compliance-promoting')} compliance-promoting (larger on benign prompts, write "
        f"towards compliance), and {kinds.count('anti-refusal')} do the opposite of one of these.</p>"
    )
    if found := p["shuffled"]:
        text += f"<p>Members that lower the margin alone: {escape(str(from_json(ShuffledMembers, found)))}.</p>"
    rows = [
        [f"({m['layer']}, {m['index']})", interval(m["alone"], ".3f"), interval(m["last"], ".3f"), m["role"] or "none",
         *_sign(m["sign"]), "yes" if m["verified"] else "no"]
        for m in sorted(p["members"], key=lambda m: -(m["alone"][0] or 0))
    ]  # fmt: skip
    head = [
        "neuron (layer, index)", "ablated alone [95 %]", "ablated last [95 %]", "role", "harmful minus benign activation",
        "writes (logits per unit)", "sign", "verified",
    ]  # fmt: skip
    members = table(head, rows)
    return f"<h3>Members</h3>{text}<details><summary>Every member</summary>{members}</details>"


def _sign(sign: dict[str, Any] | None) -> list[str]:
    if sign is None:
        return ["n/a", "n/a", "n/a"]
    return [num(sign["contrast"], "+.2f"), num(sign["writes"], "+.2f"), sign["kind"] or "none"]


def _experiments(p: dict[str, Any]) -> str:
    e = p["experiments"]
    if not e["dose_response"]:
        return ""
    text = "<h3>Dose-response and size</h3>"
    text += "".join(drawing(proof_figure(p, what)) for what in ("dose_response", "size"))
    if m := e["minimal"]:
        text += note(
            f"The strongest {m['size']} of {m['of']} members have {m['share']:.0%} of the whole set's effect. They are ranked on the "
            "requests that chose members, and ablated on the others."
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
