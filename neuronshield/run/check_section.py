"""The report's sections on training and on the comparison of conditions."""

from __future__ import annotations

from html import escape

from ..check.curves import Matched
from ..core.results import to_json
from ..figures.cells import TITLES
from ..figures.drawings import draw_curves, draw_losses, draw_rates, draw_transfer
from .conditions import BASE, LORA, RANDOM_MASKS, SHIELD, over
from .page import figure, folded, interval, known, note, num, signed, table, term
from .sections import AttackSection, CheckSection, Means, ShieldSection

__all__ = ["check_section", "shield_section"]

OUTCOMES = (
    "An answer refuses, complies, or is incoherent (empty, blank or degenerate), which is neither a refusal nor a success; "
    "incoherent answers are in the denominator of every rate. Answers that could not be graded (a thought cut short, a language "
    "whose refusals are not known) are in no rate. A mean is over the cells that have the rate."
)
MATCHED = (
    "shield", "benign refused, both", "harmful refused, shield", "harmful refused, other", "difference [95 %]", "interval over",
    "curves that reach it",
)  # fmt: skip


# -- shield ---------------------------------------------------------------------------------------------------
def shield_section(s: ShieldSection) -> str:
    """What was trained on what, as HTML.

    Args:
        s: the section of results.json.
    """
    proven = "" if s.proven else "<b>These neurons were not proven</b>; the candidates were trained instead. "
    meant = (
        f" Meant for the blind cells <b>{escape(' and '.join(s.taught))}</b>; the other cells are to stay as they were."
        if s.taught
        else ""
    )
    rows = [
        [
            name,
            c.form,
            c.trained,
            f"{c.param_fraction:.3%}",
            *(num(x) for x in (*c.losses[:1], *c.losses[-1:]) or (None, None)),
        ]
        for name, c in s.conditions.items()
    ]
    stopped = [f"{name}: {c.stopped}" for name, c in s.conditions.items() if c.stopped]
    text = (
        f"<p>{proven}Trained on <i>train</i> prompts of {escape(', '.join(s.train_cells))}, {s.steps} steps: "
        f"{escape(_taught(s))}.{meant} The shield is a {term('masked update')}; controls that learn had the same data, steps and learning rate.</p>"
    )
    if stopped:
        text += f"<p><b>Stopped early</b>: {escape('; '.join(stopped))}. The last finite weights were kept.</p>"
    losses = {name: to_json(c.losses) for name, c in s.conditions.items() if c.losses}
    if losses:
        text += figure(draw_losses(losses, SHIELD), "losses")
    head = ["condition", "what changes", "numbers that can change", "of the parameters", "first loss", "last loss"]
    return text + table(head, rows, main=0)


def _taught(s: ShieldSection) -> str:
    """What the steps did with the training prompts."""
    n = s.prompts
    weight = "" if s.retention is None else f" (weight {s.retention:g})"
    said = [f"{n.refusals} harmful prompts were taught a refusal"]
    if n.targets:
        said.append(f"{n.targets} benign ones were taught their target")
    if n.preferred:
        said.append(f"the answers of {n.preferred} benign ones were preferred to a refusal")
    if n.held:
        said.append(f"{n.held} benign ones were held to the untouched model's answer by KL divergence{weight}")
    if n.texts:
        said.append(f"{n.texts} texts were held by KL divergence{weight}")
    if not n.held and not n.texts:
        said.append("no prompt was held by KL divergence")
    return "; ".join(said)


# -- check ----------------------------------------------------------------------------------------------------
def check_section(c: CheckSection, *, shield: ShieldSection, attack: AttackSection) -> str:
    """The shield beside its controls, as HTML.

    Args:
        c: the section of results.json.
        shield: what was trained.
        attack: the shield after attacks.
    """
    trained = set(shield.train_cells)
    text = _matched(c, _where(c)) + _end(c, trained)
    rates = {name: to_json(c.cells[name]) for name in (BASE, SHIELD, c.best_random_mask, LORA)}
    text += figure(draw_rates(rates), "selectivity")
    if c.compared_on == "untrained":
        text += folded("Selectivity of every cell, with intervals", figure(draw_transfer(rates, trained), "transfer"))
    grids = "".join(
        figure(draw_rates({n: rates[n] for n in (BASE, SHIELD)}, m), f"grid-{m}")
        for m in ("refusal", "over_refusal", "compliance", "utility")
    )
    return (
        text
        + folded("Grids of refusal, over-refusal, compliance and utility", grids)
        + _cells(c, trained)
        + _attacked(attack)
    )


def _where(c: CheckSection) -> str:
    if c.compared_on == "untrained":
        return "cells it did not train on"
    return "all cells (none was held out: this run does not ask whether safety transfers)"


def _matched(c: CheckSection, where: str) -> str:
    """The shield beside its controls at matched benign refusal: verdict, table, curves, and every cell."""
    masks = c.matched[over(RANDOM_MASKS)]
    compared = known(masks.difference.value)
    verdict = (
        "At the same benign refusal the shield refuses more harmful prompts than masks of random neurons of the same size."
        if c.beats_random_mask
        else "The shield and masks of random neurons cannot be compared: no cell has graded answers to prompts of both labels."
        if not compared
        else "At the same benign refusal the shield does not refuse more harmful prompts than masks of random neurons of the same size: "
        "there is no evidence here that the choice of neurons matters."
    )
    text = (
        f"<p><b>{verdict}</b> Means over {where}. Each condition was evaluated after several steps of its training; harmful refusal is "
        f"read off these curves at {term('matched benign refusal')}, that of the finished shield. Intervals are over "
        f"{term('request', 'requests')}, and over masks where there are two or more; one seed of training.</p>"
    )
    last = c.curves[SHIELD][-1].over_refusal.value
    text += figure(draw_curves(to_json(c.curves), SHIELD, level=last if known(last) else None), "curves")
    text += table(MATCHED, [_matched_row(k, v) for k, v in c.matched.items()])
    short = [f"{v.n - v.reached} of {v.n} curves ({k})" for k, v in c.matched.items() if v.reached < v.n]
    if short and compared:
        text += note(
            f"Never refuse as many benign prompts as the finished shield: {', '.join(short)}. There both are read at the largest benign "
            "refusal that the other curve reaches."
        )
    rows = [[cell, *_matched_row(k, v)] for cell, found in c.matched_cells.items() for k, v in found.items()]
    return text + folded("Matched benign refusal, cell by cell", table(["cell", *MATCHED], rows))


def _matched_row(name: str, m: Matched) -> list[str]:
    return [name, num(m.benign), num(m.harmful), num(m.others), signed(m.difference), m.over, f"{m.reached} of {m.n}"]


def _end(c: CheckSection, trained: set[str]) -> str:
    """The conditions at the end of their training."""
    metrics = list(TITLES)
    n = len([cell for cell in c.cells[BASE] if c.compared_on == "all" or cell not in trained])
    rows = [[name, *(_mean(m[c.compared_on], k, of=n) for k in metrics)] for name, m in c.means.items()]
    text = "<h3>At the end of training</h3>"
    text += table(["condition", *(TITLES[m] for m in metrics)], rows, main=list(c.means).index(SHIELD)) + note(OUTCOMES)
    gains = [[k, signed(v)] for k, v in c.gains_in_selectivity.items()]
    text += table(["gain in selectivity of the shield", "value [95 %]"], gains)
    return text + (
        f'<p class="note">A condition that refuses more differs in {term("selectivity")} too; the comparison above does not depend on it.</p>'
    )


def _mean(means: Means, metric: str, *, of: int) -> str:
    """A mean over cells, and over how many of them where some have no such rate."""
    n = means.n_cells[metric]
    return interval(getattr(means, metric)) + (f" ({n} of {of} cells)" if n < of else "")


def _cells(c: CheckSection, trained: set[str]) -> str:
    metrics = list(TITLES)
    rows = [
        [f"{cell}{' *' if cell in trained else ''}", name, *(interval(values[cell][m]) for m in metrics), values[cell].n_unknown]
        for cell in c.cells[BASE] for name, values in c.cells.items() if name in (BASE, SHIELD)
    ]  # fmt: skip
    every = table(["cell (* trained)", "condition", *(TITLES[m] for m in metrics), "unknown answers"], rows)
    return folded("Every cell, with intervals", every)


def _attacked(a: AttackSection) -> str:
    if not a.cells:
        return "<h3>Under attack</h3><p>Nothing to attack: the shield raised refusal by 0.10 in no cell.</p>"
    metrics = (
        "refusal",
        "compliance",
        "attack_success",
        "over_refusal",
        "benign_compliance",
        "selectivity",
        "incoherent",
    )
    rows = [[name, *(_mean(m, k, of=len(a.cells)) for k in metrics)] for name, m in a.means.items()]
    return (
        f"<h3>Under attack</h3><p>Means over the {len(a.cells)} cells in which the shield raised refusal by 0.10 or more. "
        f"Pruned: {a.k} neurons found again on the shielded model are zeroed (random pruned: as many others of the same "
        "layers). Fine-tuned: 40 steps of a LoRA on benign prompts only.</p>"
        + table(["shield", *(TITLES[m] for m in metrics)], rows)
    )
