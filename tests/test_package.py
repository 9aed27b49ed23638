"""The package as a whole: what importing it costs, and what its names are."""

from __future__ import annotations

import subprocess
import sys

import pytest

import neuronshield as ns


def fresh(code: str) -> str:
    """What `code` prints in a new interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_imports_neither_torch_nor_transformers():
    code = "import sys, neuronshield; print([m for m in ('torch', 'transformers', 'nnsight', 'numpy') if m in sys.modules])"
    assert fresh(code) == "[]"


@pytest.mark.slow
def test_public_names_are_never_shadowed_by_modules():
    code = (
        "import neuronshield as ns, neuronshield.find.moments as c, neuronshield.run.pipeline, neuronshield.prove.verify; "
        "print(type(c).__name__, [n for n in ns.__all__ if n not in ns._SUBMODULES and type(getattr(ns, n)).__name__ == 'module'])"
    )
    assert fresh(code) == "module []"


@pytest.mark.slow
def test_names_that_are_short_here_have_their_own_in_their_modules_and_hide_nothing():
    assert (ns.open.__name__, ns.compare.__name__, ns.Run.__name__) == ("open_run", "compare_runs", "Run")
    assert fresh("import neuronshield as ns; ns.open; print(open is ns.open, open.__module__)") == "False io"


def test_every_public_name_is_listed_by_dir():
    assert set(ns.__all__) <= set(dir(ns))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'captur'"):
        _ = ns.captur  # type: ignore[attr-defined]


def test_an_input_error_is_one_line_whatever_it_is_given():
    assert str(ns.InputError("a\n  b\tc")) == "a b c"
    assert issubclass(ns.InputError, ValueError)
