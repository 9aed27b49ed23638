"""An explorer of neurons: a page in a notebook, in a file, and, where a kernel runs and `anywidget` is installed, alive.

_repr_html_     the page as a frame: what a notebook keeps, and what JupyterLab, VS Code and Colab show without the extra
save            the page as one file
live            the same page as a widget: what is picked in it is `selected` in Python, and prompts of one's own are answered with
                the picked neurons scaled (extra `explore`)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..core.display import count
from ..core.errors import InputError
from ..core.files import write_text
from ..core.neurons import NeuronSet
from ..model.model import Model
from .page import document, fragment
from .trial import answer
from .view import View

__all__ = ["Explorer"]


class Explorer:
    """What `ns.explore` returns. The last line of a notebook's cell shows it.

    >>> explorer = Explorer(view, neurons=neurons, model=lambda: model)
    >>> explorer, explorer.save("explorer.html").name
    (Explorer(3 neurons, 6 prompts), 'explorer.html')

    Args:
        view: what is shown.
        neurons: the set that is explored.
        model: gives the model when a prompt of the user's own is first answered.
        max_new_tokens: tokens of these answers, at most.
    """

    def __init__(self, view: View, *, neurons: NeuronSet, model: Callable[[], Model], max_new_tokens: int = 24) -> None:
        self.view, self.neurons, self.max_new_tokens = view, neurons, max_new_tokens
        self._load = model

    @cached_property
    def model(self) -> Model:
        """The model."""
        return self._load()

    @property
    def selected(self) -> NeuronSet:
        """The neurons that are picked in the live page: those that are marked, else the current one. Without it the first of the list."""
        live = self.__dict__.get("live")
        first = [[n.layer, n.index] for n in self.view.neurons[:1]]
        shape = {"n_layers": self.neurons.n_layers, "d_mlp": self.neurons.d_mlp}
        return NeuronSet(map(tuple, first if live is None else live.neurons), **shape)  # type: ignore[arg-type]

    @cached_property
    def live(self) -> Any:
        """The live page, an `anywidget`.

        Raises:
            InputError: `anywidget` is not installed.
        """
        if find_spec("anywidget") is None:
            raise InputError(
                "explorer.live: needs anywidget; pip install 'neuronshield[explore]', or use explorer.save(path)"
            )
        from .widget import live_widget

        return live_widget(self.view, self.neurons, self._answer)

    def _answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        return answer(asked, neurons=self.selected, model=lambda: self.model, max_new_tokens=self.max_new_tokens)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Path of the HTML file that the page was written to; it works offline.

        Args:
            path: the file; it is written beside `path` and renamed.

        Raises:
            InputError: `path` is not a path, or the file cannot be written.
        """
        return write_text(path, document(self.view))

    def __repr__(self) -> str:
        return f"Explorer({count(len(self.view.neurons), 'neuron')}, {count(len(self.view.prompts), 'prompt')})"

    def _repr_html_(self) -> str:
        return fragment(self.view)

    def _repr_mimebundle_(self, **kinds: Any) -> Any:
        """The live page, where there can be one; a notebook keeps the frame beside it."""
        if find_spec("anywidget") is None or not _kernel_runs():
            return None
        bundle, about = self.live._repr_mimebundle_(**kinds)
        return {**bundle, "text/plain": repr(self)}, about


def _kernel_runs() -> bool:
    """Whether this is a notebook's kernel, which a page can talk to."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None
