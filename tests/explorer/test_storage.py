"""A view survives its file, and a file that is no view is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import views

from neuronshield import InputError
from neuronshield.explorer.page import data
from neuronshield.explorer.storage import load_view, save_view, three_digits


@pytest.mark.parametrize("missing", [False, True])
def test_a_view_is_read_back_as_it_was(tmp_path: Path, missing: bool):
    view = views.sample(5, 2)
    if missing:
        first = replace(view.prompts[0], answers={}, alone=(None,) * 5, pictures=())
        view = replace(view, prompts=(first, *view.prompts[1:]), shared=(), notes=())
    assert load_view(save_view(view, tmp_path / "view.safetensors")) == view


def test_the_page_of_a_view_is_that_of_its_file(tmp_path: Path):
    view = views.sample(3, 2)
    assert data(load_view(save_view(view, tmp_path / "a"))) == data(view)


def test_a_file_of_something_else_or_with_other_numbers_is_refused(tmp_path: Path):
    view = views.sample()
    (tmp_path / "b").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match=r"neuronshield\.View/1"):
        load_view(tmp_path / "b")
    path = save_view(view, tmp_path / "view")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(InputError, match="damaged"):
        load_view(path)


def test_three_digits_are_those_of_formatting():
    values = np.concatenate([np.random.default_rng(0).normal(size=500) * 10.0**k for k in range(-8, 9)])
    assert three_digits(values).tolist() == [float(f"{v:.3g}") for v in values]
    assert three_digits(three_digits(values).astype(np.float32)).tolist() == three_digits(values).tolist()
