"""The result of comparing protocols: tables, a figure, a page and a file."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..core.arguments import one_of
from ..core.display import count
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.results import from_json, load_json, reading, save_json, to_json
from ..core.statistics import Interval
from ..figures.paper import Figure
from .tables import Directional, Outcome, Side

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["BEHAVIOURAL", "NAMES", "ModalityProtocol"]

FORMAT = "neuronshield.ModalityProtocol/1"
BEHAVIOURAL, DIRECTIONS = "behavioural", "directions"
#: What the published rules are called.
NAMES = {"precise_shield": "Precise Shield", "one_anchor": "One Anchor", "ss_neurons": "SS-Neurons"}


@dataclass(frozen=True, eq=False, repr=False)
class ModalityProtocol:
    """What each protocol found in two modalities. Made by `modality`.

    Attributes:
        modalities: text, and the modality of pictures.
        sides: what there is of each, and whether the model refuses it.
        outcomes: one a protocol: three published rules, then the behavioural protocol at each site.
        directions: the analysis of directions of the residual stream.
        n_layers: layers of the model.
        margins: refusal margins computed.
        answers: answers generated.
        provenance: model, data, seed, settings and versions, and the requests `seen`.
    """

    modalities: tuple[str, str]
    sides: tuple[Side, ...]
    outcomes: tuple[Outcome, ...]
    directions: Directional
    n_layers: int
    margins: int
    answers: int
    provenance: dict[str, Any] = field(default_factory=dict)

    def outcome(self, protocol: str, site: str = "neuron") -> Outcome:
        """What one protocol found.

        Args:
            protocol: "Precise Shield", "One Anchor", "SS-Neurons" or "behavioural".
            site: where the behavioural protocol read neurons.

        Raises:
            InputError: no such protocol or site.
        """
        one_of(protocol, list(dict.fromkeys(o.protocol for o in self.outcomes)), call="outcome", name="protocol")
        one_of(site, [o.site for o in self.outcomes if o.protocol == protocol], call="outcome", name="site")
        return next(o for o in self.outcomes if (o.protocol, o.site) == (protocol, site))

    def neurons(self, protocol: str, modality: str, *, site: str = "neuron") -> NeuronSet:
        """The neurons that a protocol found in a modality, possibly none.

        Args:
            protocol: as for `outcome`.
            modality: one of `modalities`.
            site: as for `outcome`.

        Raises:
            InputError: no such protocol, site or modality.
        """
        one_of(modality, self.modalities, call="neurons", name="modality")
        found = self.outcome(protocol, site).sets
        members = next((s.members for s in found if s.modality == modality), ())
        about = {**self.provenance, "method": protocol, "modality": modality}
        return NeuronSet(members, provenance=about, site=site)

    @property
    def verdicts(self) -> dict[str, str]:
        """The verdict by protocol; at other sites than "neuron" the site is named, and "directions" is one of them."""
        found = {_name(o): o.verdict for o in self.outcomes}
        return {**found, DIRECTIONS: self.directions.verdict}

    # -- shown ----------------------------------------------------------------------------------------
    def to_frame(self) -> pd.DataFrame:
        """One row for each protocol, modality of its set, and modality that the set is ablated in.

        Columns: protocol, source, target, neurons, the falls of margin, refusal mass, judged and keyword refusal with their
        intervals, the largest control, the largest p, the overlap and its references, and the verdict of the protocol.
        """
        import pandas as pd

        return pd.DataFrame([row for o in self.outcomes for row in _rows(o)])

    def rounds(self) -> pd.DataFrame:
        """One row for each round of the behavioural protocol."""
        import pandas as pd

        rows = [{"protocol": _name(o), **to_json(r)} for o in self.outcomes for r in o.rounds]
        return pd.DataFrame(
            rows, columns=["protocol", "modality", "number", "candidates", "confirmed", "controls", "largest"]
        )

    def figure(self) -> Figure:
        """Effects of every set in both modalities beside their controls, and falls over numbers of directions."""
        from ..figures import protocol_effects

        return protocol_effects(self.to_json())

    def summary(self) -> list[str]:
        """One line for each protocol: its name, its verdict, and why."""
        said = [f"{_name(o)}: {o.verdict}. {_sizes(o)}{o.reason}" for o in self.outcomes]
        needed = ", ".join(f"{name} {'none' if k is None else k}" for name, k in self.directions.needed.items())
        return [*said, f"{DIRECTIONS}: {self.directions.verdict}. Needed: {needed}; {self.directions.reason}"]

    def facts(self) -> list[str]:
        """One line for each modality, and the cost."""
        said = [
            f"{s.modality}: {count(s.n_requests, 'test request')}, {s.refused} refused, margin of harmful minus benign {s.difference}; "
            f"{s.n_refused} harmful prompts refused and {s.n_answered} benign ones answered select"
            for s in self.sides
        ]
        return [*said, f"{count(self.margins, 'margin')} and {count(self.answers, 'answer')} computed"]

    def __str__(self) -> str:
        return "\n".join([*self.facts(), *self.summary()])

    def __repr__(self) -> str:
        said = "; ".join(f"{name}: {word}" for name, word in self.verdicts.items())
        return f"ModalityProtocol({' and '.join(self.modalities)}; {said})"

    def _repr_html_(self) -> str:
        table = self.to_frame().to_html(index=False, float_format="{:.3g}".format, na_rep="", border=0)
        lines = "".join(f"<li>{escape(line)}</li>" for line in self.summary())
        return f"<p><b>{escape(' and '.join(self.modalities))}</b>. {escape('. '.join(self.facts()))}.</p><ul>{lines}</ul>{table}"

    def to_markdown(self) -> str:
        """The verdicts, and the table of effects, as Markdown."""
        frame = self.to_frame()
        lines = [
            f"# Protocols: {' and '.join(self.modalities)}",
            "",
            *(f"- {x}" for x in self.facts()),
            "",
            "## Verdicts",
            "",
        ]
        lines += [*(f"- **{x.partition(':')[0]}**:{x.partition(':')[2]}" for x in self.summary()), "", "## Effects", ""]
        lines += [f"| {' | '.join(map(str, frame.columns))} |", f"|{' --- |' * len(frame.columns)}"]
        lines += [f"| {' | '.join(map(_cell, row))} |" for row in frame.itertuples(index=False)]
        return "\n".join([*lines, ""])

    # -- kept -----------------------------------------------------------------------------------------
    def to_json(self) -> dict[str, Any]:
        """All of it as JSON can hold it, with the verdict of each protocol; None stands for what is not finite."""
        kept = {name: to_json(value) for name, value in vars(self).items()}
        return {"verdicts": self.verdicts, **kept}

    @staticmethod
    def from_json(data: Any) -> ModalityProtocol:
        """The result that `to_json` turned into `data`.

        Raises:
            InputError: a missing, unknown or ill-typed field.
        """
        if not isinstance(data, dict) or "verdicts" not in data:
            raise InputError("ModalityProtocol: 'verdicts' is missing; not written by ModalityProtocol.save")
        read = from_json(_Kept, {name: value for name, value in data.items() if name != "verdicts"})
        return ModalityProtocol(**vars(read))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the JSON file that the result was written to.

        Args:
            path: the file; it is written beside its place and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written; what was there before stays.
        """
        return save_json(path, FORMAT, self.to_json())

    @staticmethod
    def load(path: str | os.PathLike[str]) -> ModalityProtocol:
        """The result that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not a result of this version.
        """
        with reading(path, FORMAT):
            return ModalityProtocol.from_json(load_json(path, FORMAT))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ModalityProtocol) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash((self.modalities, self.margins, self.answers))


@dataclass(frozen=True)
class _Kept:
    """The fields of a file."""

    modalities: tuple[str, str]
    sides: tuple[Side, ...]
    outcomes: tuple[Outcome, ...]
    directions: Directional
    n_layers: int
    margins: int
    answers: int
    provenance: dict[str, Any]


def _name(outcome: Outcome) -> str:
    return outcome.protocol if outcome.site == "neuron" else f"{outcome.protocol} ({outcome.site})"


def _sizes(outcome: Outcome) -> str:
    sizes = ", ".join(f"{count(s.n, 'neuron')} of {s.modality}" for s in outcome.sets)
    return f"{sizes}; " if sizes else ""


def _rows(outcome: Outcome) -> list[dict[str, Any]]:
    """The rows of `to_frame` of one protocol; one with empty cells where it has no effect."""
    overlap = {} if outcome.overlap is None else to_json(outcome.overlap)
    measures = {name: overlap.get(name) for name in ("jaccard", "across", "reliability", "benign_null")}
    rows = []
    for e in outcome.effects:
        told = e.answers
        falls: dict[str, Interval | None] = {"margin": e.margin, "mass": e.mass}
        for name in ("judged", "keyword", "complied"):
            falls[name] = None if told is None else getattr(told, name)
        row: dict[str, Any] = {"protocol": _name(outcome), "source": e.source, "target": e.target, "neurons": e.n}
        for name, found in falls.items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), found or (None, None, None), strict=True))
        row |= {
            "control": max((s.high for s in e.controls.values()), default=None),
            "p": max(e.p.values(), default=None),
        }
        row |= {"effect": e.verdict, "ratio": told and told.ratio, **measures, "verdict": outcome.verdict}
        rows.append(row)
    return rows or [{"protocol": _name(outcome), **measures, "verdict": outcome.verdict}]


def _cell(value: Any) -> str:
    if value is None or (isinstance(value, float) and not np.isfinite(value)):
        return ""
    text = f"{value:.3g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
