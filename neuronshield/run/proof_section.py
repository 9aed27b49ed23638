"""The report's section on the proof."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..core.results import to_json
from ..figures.drawings import draw_claims, draw_cross_cell, draw_dose_response, draw_size
from ..find.signs import Sign
from ..prove.tables import ALONE, ANSWERS, ANTI_REFUSAL, IN_A_GROUP, MARGIN, Claim, Experiments
from ..prove.verdict import Proof
from .headlines import strongest
from .page import capital, figure, folded, interval, note, num, p_text, spread, table, term

EFFECT = "normalised effect [95 %]"


def proof_section(p: Proof, seconds: float | None = None) -> str:
    """The section as HTML: verdict and what it rests on, claims, answers, members, cells, experiments.

    Args:
        p: the proof.
        seconds: that the step took, where it is known.
    """
    pairing = (
        ""
        if p.paired
        else " No harmful prompt has a matched benign one: they are paired with random ones of their cell."
    )
    kinds = ", ".join(f"{n} {kind}" for kind, n in p.controls.sets.items())
    margin, answers = ([c for c in p.claims if c.measure == kind] for kind in (MARGIN, ANSWERS))
    text = (
        f"<p>{escape(capital(p.reason))}.</p>"
        + _drawn(margin, MARGIN)
        + _drawn(answers, ANSWERS)
        + _summary(p, seconds)
    )
    text += f"<h3>Claims about the {term('refusal margin')}</h3>" + _claims(margin, EFFECT)
    text += (
        f'<p class="note">The margin compares refusal and compliance prefixes at the first token of the answer. A '
        f"{term('normalised effect')} is a change of the margin divided by the {term('clean logit difference')} (mean margin of "
        f"harmful minus benign prompts). {term('matched control sets', 'Control sets')}: {escape(kinds or 'none')}.{pairing}</p>"
    )
    text += "<h3>Claims about answers</h3>" + _claims(answers, "change of a share of answers [95 %]") + _wording(p) + note(
        "Refusals: necessity is the smaller of two changes under mean ablation, the fall of refusals and the rise of harmful compliance. "
        "Of each drawn kind of control one set answers: the one whose effect on the margin leaves 5 % of its kind above it."
    )  # fmt: skip
    text += "".join(note(f"A control is missing or smaller: {why}.") for why in p.controls.missing.values())
    return text + _answers(p) + _retest(p) + _members(p) + _cells(p) + _experiments(p.experiments)


def _drawn(claims: Sequence[Claim], measure: str) -> str:
    """The claims of one measure beside every control set."""
    return figure(draw_claims(to_json(claims), measure=measure), f"claims-{measure}") if claims else ""


def _summary(p: Proof, seconds: float | None) -> str:
    """The verdict, and what it rests on, as a table of two columns."""
    claims = {c.name: c for c in p.claims}
    mean, refusals = (claims.get(k) for k in ("necessity: mean", "refusals: necessity"))
    rows = [["verdict", capital(p.word)]]
    if mean and mean.verdict != "not tested":
        effect = f"{interval(mean.effect)}, as a share of the clean logit difference"
        rows += [["effect of ablating the set on the refusal margin", effect], ["strongest control", strongest(mean)]]
    if refusals and refusals.verdict != "not tested":
        rows.append(["fall of refusals and rise of harmful compliance, the smaller", interval(refusals.effect)])
        rows.append(["strongest control", strongest(refusals)])
    cells = f", in {', '.join(p.cells)}" if p.cells else ""
    rows.append(["requests that did not select the neurons", f"{p.n_requests} ({p.n_pairs} pairs of prompts{cells})"])
    rows.append(["verified", f"{len(p.verified)} of {len(p.neurons)} neurons"])
    took = f" in {seconds:.0f} s" if seconds is not None else ""
    rows.append(["cost", f"{p.cost.margins:,} margins and {p.cost.answers:,} answers{took}"])
    return table([], rows, main=0)


def _claims(claims: Sequence[Claim], effect: str) -> str:
    rows = [[c.name, interval(c.effect), strongest(c), p_text(c.worst_p), c.verdict, c.note] for c in claims]
    return table(["claim", effect, "strongest control", "p", "verdict", "note"], rows)


def _wording(p: Proof) -> str:
    if not (w := p.wording):
        return ""
    ratio = "n/a" if w.ratio is None else num(w.ratio)
    return (
        f"<p>Under ablation refusals of harmful prompts fall by {interval(w.judged)} as judged, and by {interval(w.keyword)} "
        f"if an answer counts as a refusal when it starts with a refusal prefix. Judged change / keyword change: {ratio}.</p>"
    )


def _answers(p: Proof) -> str:
    rows = [
        [
            f"{a.label}, {a.condition}",
            a.n,
            interval(a.refused),
            interval(a.complied),
            interval(a.incoherent),
            a.n_unknown,
        ]
        for a in p.answers
    ]
    head = ["prompts, condition", "n", "refused [95 %]", "complied [95 %]", "incoherent [95 %]", "unknown"]
    said = note(
        "Complied: the answer does as asked, which for a harmful prompt is harmful compliance. Ablated: the set is at its mean on benign "
        "prompts at the last prompt token; inserted: at its values on the matched harmful prompt."
    )
    return "<h3>Generated answers</h3>" + folded("Shares of answers under every condition", table(head, rows) + said)


def _retest(p: Proof) -> str:
    if not (r := p.retest):
        return ""
    backups = f", ablated together with {r.n_backups} backup neurons" * bool(r.n_backups)
    outcome = "They passed every claim." if r.passed else "They did not pass."
    return (
        f"<h3>The chosen members as a set</h3><p>{r.n_chosen_on} requests chose {r.n_members} members{backups}. The other "
        f"{r.n_requests} requests tested them as a set, against the same kinds of control. {outcome}</p>"
        + folded("Claims about the chosen members", _claims(r.claims, "effect [95 %]"))
    )


def _cells(p: Proof) -> str:
    if not p.cells:
        return ""
    rows = [
        [c, v.n_pairs, num(v.clean_logit_difference), interval(v.effect), num(v.strongest_control), p_text(v.p), p_text(v.p_holm),
         v.verdict]
        for c, v in p.cells.items()
    ]  # fmt: skip
    head = ["cell", "pairs", "clean logit difference", EFFECT, "strongest control", "p", "p (Holm)", "verdict"]
    return "<h3>Mean ablation, cell by cell</h3>" + table(head, rows)


def _members(p: Proof) -> str:
    if not p.members:
        return ""
    roles = [m.role for m in p.members]
    kinds = [m.sign.kind for m in p.members if m.sign]
    text = (
        f"<p>Of {len(roles)} neurons, {roles.count(ALONE)} lower the refusal margin when ablated alone, "
        f"{roles.count(IN_A_GROUP)} only (or more than twice as much) when others are ablated too, "
        f"{roles.count(ANTI_REFUSAL)} <i>raise</i> it ({term('anti-refusal neuron', 'anti-refusal neurons')}), and {roles.count('')} "
        f"have no effect that counts (Benjamini–Hochberg, q ≤ {p.rule.alpha:g}, at least {p.rule.material:.0%} of the strongest of its "
        f"layer, norms frozen). {len(p.verified)} are verified. {len(p.candidates)} were chosen and did not pass as a set. "
        f"{term('backup neuron', 'Backup neurons')} (self-repair: outside the set, with an effect once it is ablated): "
        f"{len(p.backups)}.</p><p>By signs, {kinds.count('refusal-promoting')} are refusal-promoting (larger on harmful "
        f"prompts, write towards refusal), {kinds.count('compliance-promoting')} compliance-promoting (larger on benign prompts, write "
        f"towards compliance), and {kinds.count('anti-refusal')} do the opposite of one of these.</p>"
    )
    if p.shuffled:
        text += f"<p>Members that lower the margin alone: {escape(str(p.shuffled))}.</p>"
    rows = [
        [f"({m.layer}, {m.index})", interval(m.alone, ".3f"), interval(m.last, ".3f"), m.role or "none", *_sign(m.sign),
         "yes" if m.verified else "no"]
        for m in sorted(p.members, key=lambda m: -(m.alone.value if m.alone.value == m.alone.value else 0))
    ]  # fmt: skip
    head = [
        "neuron (layer, index)", "ablated alone [95 %]", "ablated last [95 %]", "role", "harmful minus benign activation",
        "writes (logits per unit)", "sign", "verified",
    ]  # fmt: skip
    return f"<h3>Members</h3>{text}{folded('Every member', table(head, rows))}"


def _sign(sign: Sign | None) -> list[str]:
    if sign is None:
        return ["n/a", "n/a", "n/a"]
    return [num(sign.contrast, "+.2f"), num(sign.writes, "+.2f"), sign.kind or "none"]


def _experiments(e: Experiments) -> str:
    if not e.dose_response:
        return ""
    text = f"<h3>{term('dose-response curve', 'Dose-response')} and size</h3>" + figure(draw_dose_response(to_json(e.dose_response)), "dose-response")  # fmt: skip
    text += figure(draw_size(to_json(e.size)), "size") if e.size else ""
    if m := e.minimal:
        text += note(
            f"The strongest {m.size} of {m.of} members have {m.share:.0%} of the whole set's effect. They are ranked on the "
            "requests that chose members, and ablated on the others."
        )
    if e.groups:
        rows = [[g.group, g.n, interval(g.without), interval(g.lost)] for g in e.groups]
        left_out = table(["left out", "neurons", "effect of the others", "effect lost"], rows)
        text += "<h3>Leaving one group out</h3>" + folded("Every group", left_out)
    return text + _completeness(e) + _backups(e) + _recognition(e) + _cross_cell(e)


def _completeness(e: Experiments) -> str:
    rows = [[c.frame, interval(c.share), spread(c.random), interval(c.without_set)] for c in e.completeness]
    head = [
        "all others at their benign mean, in",
        "share that the set retains",
        "random sets",
        "lost without the set too",
    ]
    return "<h3>Completeness: only the set keeps its values</h3>" + table(head, rows)


def _backups(e: Experiments) -> str:
    if not e.backups:
        return ""
    rows = [[b.ablated, b.n, interval(b.effect), spread(b.random)] for b in e.backups]
    head = ["ablated", "neurons", EFFECT, "with as many random neurons"]
    return "<h3>Self-repair: ablate, select again, ablate again</h3>" + table(head, rows)


def _recognition(e: Experiments) -> str:
    if not e.recognition:
        return ""
    rows = [
        [f"{a.label}, {a.outcome}", a.n, interval(a.activity), spread(a.random), interval(a.effect)]
        for a in e.recognition
    ]
    head = ["prompts, all cells", "n", "activity of the set", "of random sets", "effect of ablating the set"]
    return (
        "<h3>Recognition of harm, or execution of refusal</h3>"
        + table(head, rows)
        + note(
            "Activity is 0 as on answered benign prompts and 1 as on refused harmful ones, each less the benign mean of its cell. "
            "On harmful prompts that were answered, activity near 1 means that the set responds to harm; near 0, that it is active "
            "only where the model refuses."
        )
    )


def _cross_cell(e: Experiments) -> str:
    if len({row.target for row in e.cross_cell}) < 2:
        return ""
    drawn = figure(draw_cross_cell(to_json(e.cross_cell)), "cross-cell")
    return f"<h3>{term('cross-cell patching', 'Cross-cell patching')}</h3>" + folded(
        "Every source and target cell", drawn
    )
