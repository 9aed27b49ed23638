"""The conditions of the main job, compared: means over cells, and the shield beside its baselines at matched benign refusal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ..check.curves import Curve, Matched, matched
from ..check.evaluation import Evaluation
from ..data.prompts import Cell
from .conditions import BASE, LORA, RANDOM_MASKS, SHIELD, is_random_mask, over
from .sections import CheckSection, ShownAnswer, means

__all__ = ["compare", "compared_cells", "curve_of"]


SHOWN_ANSWERS = 12


def compared_cells(cells: Sequence[Cell], trained: set[Cell]) -> list[Cell]:
    """The cells that conditions are compared on: those that were not trained, or all where each one was.

    >>> compared_cells([ns.Cell("en", "text"), ns.Cell("sw", "text")], {ns.Cell("en", "text")})
    [Cell(language='sw', modality='text')]

    Args:
        cells: all of them.
        trained: those of which a prompt was trained.
    """
    return [c for c in cells if c not in trained] or list(cells)


def curve_of(
    before: Evaluation, early: Mapping[int, Evaluation], last: Evaluation, *, steps: int, cells: Sequence[Cell]
) -> Curve:
    """The curve of a condition over some cells.

    Args:
        before: of the untouched model.
        early: after fewer steps, by their number.
        last: of the finished update.
        steps: of the finished update.
        cells: which cells.
    """
    wanted = set(cells)
    points = {0: before, **dict(sorted(early.items())), steps: last}
    inside = [
        replace(e, answers=[a for a in e.answers if a.prompt.cell in wanted], touched={}) for e in points.values()
    ]
    return Curve(list(points), inside)


def compare(evaluations: Mapping[str, Evaluation], trained: set[Cell], curves: Mapping[str, Curve]) -> CheckSection:
    """Means over trained, untrained and all cells, and the shield beside its baselines.

    Args:
        evaluations: by condition.
        trained: cells that were trained; conditions are compared on the others, if there are any.
        curves: of every condition that was trained.
    """
    cells = evaluations[BASE].cells()
    group = compared_cells(cells, trained)
    unseen = [c for c in cells if c not in trained]
    groups = {"all": cells, "trained": [c for c in cells if c in trained], "untrained": unseen}
    masks = [name for name in evaluations if is_random_mask(name)]
    baselines = {BASE: [BASE], RANDOM_MASKS: masks, LORA: [LORA]}
    gains = {
        over(name): evaluations[SHIELD].gain([evaluations[o] for o in others], "selectivity", group)
        for name, others in baselines.items()
    }
    best = max(masks, key=lambda name: evaluations[name].mean("selectivity", group).value)
    whole = _matched(curves, masks, group)
    found = whole[over(RANDOM_MASKS)]
    return CheckSection(
        cells={name: {str(c): rates for c, rates in e.results().items()} for name, e in evaluations.items()},
        means={
            name: {of: means(e, members) for of, members in groups.items() if members}
            for name, e in evaluations.items()
        },
        compared_on="untrained" if unseen else "all",
        curves={name: tuple(curve.points()) for name, curve in curves.items()},
        matched=whole,
        matched_cells={str(c): _matched(curves, masks, [c]) for c in group},
        beats_random_mask=bool(found.n > 1 and found.difference.low > 1e-9),  # NaN is no gain
        gains_in_selectivity=gains,
        best_random_mask=best,
        examples=_examples(evaluations),
    )


def _matched(curves: Mapping[str, Curve], masks: Sequence[str], cells: Sequence[Cell]) -> dict[str, Matched]:
    """The shield beside the random masks and beside plain LoRA, at matched benign refusal."""
    return {
        over(name): matched(curves[SHIELD], [curves[o] for o in others], cells)
        for name, others in ((RANDOM_MASKS, masks), (LORA, [LORA]))
    }


def _examples(evaluations: Mapping[str, Evaluation], n: int = SHOWN_ANSWERS) -> tuple[ShownAnswer, ...]:
    """A few answers before and after, spread over the cells."""
    base, after = evaluations[BASE].answers, evaluations[SHIELD].answers
    rows = np.linspace(0, len(base) - 1, min(n, len(base))).round().astype(int)
    return tuple(
        ShownAnswer(
            cell=str(base[i].prompt.cell), label=base[i].prompt.label, prompt=base[i].prompt.prompt,
            before=base[i].response, after=after[i].response,
        )
        for i in rows
    )  # fmt: skip
