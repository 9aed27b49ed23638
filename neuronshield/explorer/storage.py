"""A view in a file: activations as one array, everything else as JSON, with a format and a checksum."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ..core.results import from_json, load_arrays, reading, save_arrays
from .view import View

__all__ = ["load_view", "save_view", "three_digits"]

FORMAT = "neuronshield.View/1"


def save_view(view: View, path: str | os.PathLike[str]) -> Path:
    """Path of the safetensors file that a view was written to.

    >>> load_view(save_view(view, "view.safetensors")).title
    'Safety neurons of a sample'

    Args:
        view: the view.
        path: the file; it is written beside `path` and renamed.

    Raises:
        InputError: `path` is not a path, or the file cannot be written; what was there before stays.
    """
    arrays = {"values": np.concatenate([np.array(p.values, np.float32) for p in view.prompts], axis=1)}
    about = replace(view, prompts=tuple(replace(p, values=()) for p in view.prompts))
    return save_arrays(path, FORMAT, arrays=arrays, about=about)


def load_view(path: str | os.PathLike[str]) -> View:
    """The view that `save_view` wrote.

    >>> load_view(save_view(view, "view.safetensors")) == view
    True

    Args:
        path: the file.

    Raises:
        InputError: no such file, or not written by `save_view`.
    """
    arrays, about = load_arrays(path, FORMAT)
    with reading(path, FORMAT):
        view = from_json(View, about)
        ends = np.cumsum([len(p.tokens) for p in view.prompts])
        if arrays["values"].shape != (len(view.neurons), ends[-1]):
            raise ValueError("activations of another number of tokens or neurons")
        parts = np.split(three_digits(arrays["values"]), ends[:-1], axis=1)
        prompts = [
            replace(p, values=tuple(map(tuple, part.tolist()))) for p, part in zip(view.prompts, parts, strict=True)
        ]
        return replace(view, prompts=tuple(prompts))


def three_digits(values: Float[np.ndarray, "*any"]) -> Float[np.ndarray, "*any"]:
    """Numbers rounded to three significant digits, as float64.

    >>> three_digits(np.array([12.345, -0.00123456, 0.0])).tolist()
    [12.3, -0.00123, 0.0]

    Args:
        values: finite numbers.
    """
    wide = np.asarray(values, dtype=np.float64)
    size = np.where(wide == 0, 1, np.abs(wide))
    digits = 2 - np.floor(np.log10(size)).astype(int)
    pairs = zip(wide.ravel().tolist(), digits.ravel().tolist(), strict=True)
    return np.array([round(v, d) for v, d in pairs]).reshape(wide.shape)
