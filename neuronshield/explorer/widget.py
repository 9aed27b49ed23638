"""The live explorer: the page as a widget whose picks reach Python, and that answers prompts of the user's own.

The widget's module is the page's script and `live.js`, inlined. Python and the page share these values:

    data        what `mount` draws                              to the page
    whole       the set that is explored, as [layer, index]     to the page
    pictures    whether the view has pictures                   to the page
    neurons     the picked neurons, as [layer, index]           from the page
    asked       a prompt to answer: number, text, picture, language, factor     from the page
    answered    the two answers, or an error in one line: number, before, after, error      to the page

Source: Manz (2024), "anywidget".
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from ..core.neurons import NeuronSet
from .page import data, script, style
from .view import View

__all__ = ["live_widget"]


def live_widget(view: View, neurons: NeuronSet, answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """The live page of a view; the first neuron is picked.

    Args:
        view: what is shown.
        neurons: the set that is explored.
        answer: gives "answered" for what is "asked", without the number.
    """
    first = [[n.layer, n.index] for n in view.neurons[:1]]
    pictures = any(p.pictures for p in view.prompts)
    widget = _widget_class()(data=data(view), whole=list(map(list, neurons)), pictures=pictures, neurons=first)

    def reply(change: dict[str, Any]) -> None:
        widget.answered = {"number": change["new"].get("number"), **answer(change["new"])}

    widget.observe(reply, names="asked")
    return widget


@cache
def _widget_class() -> Any:
    """The class of the widget; made here, since anywidget is an extra."""
    import anywidget
    import traitlets

    here = files(__package__)

    class Live(anywidget.AnyWidget):  # type: ignore[misc]
        _esm = f"{script()}\n{here.joinpath('live.js').read_text('utf-8')}"
        _css = f"{style()}\n{here.joinpath('live.css').read_text('utf-8')}"
        data = traitlets.Dict().tag(sync=True)
        whole: Any = traitlets.List().tag(sync=True)
        pictures = traitlets.Bool().tag(sync=True)
        neurons: Any = traitlets.List().tag(sync=True)
        asked = traitlets.Dict().tag(sync=True)
        answered = traitlets.Dict().tag(sync=True)

    return Live
