"""Files are written beside their place and renamed; an interrupted write leaves what was there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from neuronshield import InputError
from neuronshield.core.files import as_path, replacing, replacing_folder, shipped, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_appears_whole_in_a_folder_that_is_made(tmp_path: Path):
    target = tmp_path / "new" / "a.txt"
    with replacing(target) as partial:
        partial.write_text("done")
        assert not target.exists()
        assert partial.parent == target.parent  # a rename across file systems is no rename
    assert target.read_text() == "done"
    assert names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, error: type[BaseException]):
    (tmp_path / "a.txt").write_text("old")

    def interrupted() -> None:
        with replacing(tmp_path / "a.txt") as partial:
            partial.write_text("ne")
            raise error

    with pytest.raises(error):
        interrupted()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_an_error_of_the_system_becomes_one_line(tmp_path: Path):
    def full() -> None:
        with replacing(tmp_path / "a.txt"):
            raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"a\.txt: cannot be written \(No space left on device\); choose another path"):
        full()
    assert names(tmp_path) == []


@pytest.mark.parametrize("wrong", ["", None, 3, b"x", "a\0b"])
def test_what_is_no_path_is_one_line(wrong: object):
    with pytest.raises(InputError, match=r"^save\(path\): path "):
        as_path(wrong, call="save(path)")


def test_text_is_utf_8(tmp_path: Path):
    assert write_text(tmp_path / "a.txt", "é中").read_bytes() == "é中".encode()


def fill(text: str, *, fail: BaseException | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "a.txt").write_text(text)
        if fail is not None:
            raise fail

    return write


def test_a_folder_replaces_the_old_one_with_all_its_files(tmp_path: Path):
    replacing_folder(tmp_path / "out", fill("one"))
    (tmp_path / "out" / "stale.txt").write_text("x")
    assert replacing_folder(tmp_path / "out", fill("two")) == tmp_path / "out"
    assert (tmp_path / "out" / "a.txt").read_text() == "two"
    assert names(tmp_path / "out") == ["a.txt"]
    assert names(tmp_path) == ["out"]


def test_a_folder_that_cannot_be_written_is_one_line_and_the_old_one_stays(tmp_path: Path):
    replacing_folder(tmp_path / "out", fill("one"))
    with pytest.raises(InputError, match="out: cannot be written") as caught:
        replacing_folder(tmp_path / "out", fill("two", fail=OSError(28, "No space left on device")))
    assert "No space left on device" in str(caught.value)
    assert (tmp_path / "out" / "a.txt").read_text() == "one"
    with pytest.raises(KeyboardInterrupt):
        replacing_folder(tmp_path / "out", fill("two", fail=KeyboardInterrupt()))
    assert names(tmp_path) == ["out"]


def test_shipped_files_are_found():
    assert (shipped() / "prompts" / "pairs.jsonl").is_file()
