"""A journal gives back what was put, bit for bit, and uses no file that is damaged or another unit's."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from neuronshield import InputError
from neuronshield.core.journal import Journal

KEY, OTHER = "ab" * 32, "cd" * 32
ARRAYS = {"mean": np.array([[0.1, 1e-300, -0.0]]), "n": np.array([3], dtype=np.int64)}
ABOUT = {"texts": ["Pole, siwezi.", ""], "count": 7, "x": 0.1}


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    out = Journal(tmp_path / "new" / "journal")
    out.put(KEY, ARRAYS, ABOUT)
    return out


def test_a_result_comes_back_bit_for_bit(journal: Journal):
    found = Journal(journal.folder).get(KEY)
    assert found is not None
    arrays, about = found
    assert about == ABOUT
    assert {k: (v.dtype, v.tobytes()) for k, v in arrays.items()} == {
        k: (v.dtype, v.tobytes()) for k, v in ARRAYS.items()
    }
    assert list(journal) == [KEY]


def test_a_unit_that_is_not_there_is_none_and_makes_no_folder(tmp_path: Path):
    journal = Journal(tmp_path / "none")
    assert journal.get(KEY) is None
    assert len(journal) == 0
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "text", "other", "folder"])
def test_a_file_that_cannot_be_used_is_named_and_the_unit_is_done_again(
    journal: Journal, damage: str, caplog: pytest.LogCaptureFixture
):
    path = journal.path(KEY)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[-3] ^= 1
    path.write_bytes(bytes({"cut": data[:-5], "empty": b"", "text": b"hello"}.get(damage, data)))
    if damage == "other":
        other = journal.put(OTHER, ARRAYS, ABOUT)
        path.write_bytes(other.read_bytes())
    if damage == "folder":
        path.unlink()
        path.mkdir()
    with caplog.at_level(logging.WARNING, logger="neuronshield"):
        assert journal.get(KEY) is None
    if damage != "folder":
        assert path.name in caplog.text
        assert "done again" in caplog.text
        journal.put(KEY, ARRAYS, ABOUT)
        assert journal.get(KEY) is not None


def test_no_file_is_half_written_when_the_disk_refuses(journal: Journal, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        journal.put(OTHER, ARRAYS, ABOUT)
    assert list(journal) == [KEY]


def test_a_journal_needs_a_folder():
    with pytest.raises(InputError, match=r"Journal\(folder\)"):
        Journal(3)  # type: ignore[arg-type]
