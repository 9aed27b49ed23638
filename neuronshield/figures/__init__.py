"""Plotly figures from plain tables (nested lists and mappings of numbers), all in one style.

Every figure is returned and never shown. Effects are drawn with their intervals and beside their controls, overlaps relative to
their noise and reliability, updates beside no update. The results' own `figure()` methods call these
functions; they take no result class, so that `results.json` can be drawn as well. `figure.save("figure.pdf", width="column")` writes
one for a paper. The report has the same figures as static SVG (`neuronshield.figures.drawings`).

    overlap_heatmap, layers, methods     find
    proof_figure                         prove
    grid, transfer, training_curves      check
    compared_runs                        runs beside each other
    protocol_effects                     published protocols beside each other
"""

from __future__ import annotations

from .cells import grid, layers, methods, transfer
from .curves import training_curves
from .overlaps import overlap_heatmap
from .proof import proof_figure
from .protocols import protocol_effects
from .runs import compared_runs

__all__ = [
    "compared_runs",
    "grid",
    "layers",
    "methods",
    "overlap_heatmap",
    "proof_figure",
    "protocol_effects",
    "training_curves",
    "transfer",
]
