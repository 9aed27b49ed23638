"""Files are written beside their place and renamed; an interrupted write leaves what was there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from neuronshield import InputError
from neuronshield.core.files import as_path, beside, replacing, shipped, write_text


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


def test_a_link_stays_and_the_file_that_it_leads_to_is_replaced(tmp_path: Path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "a.txt")
    for text in ("one", "two"):
        write_text(tmp_path / "link", text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "a.txt").read_text() == text
    assert names(tmp_path / "there") == ["a.txt"]


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="pipe: is not a plain file"):
        write_text(tmp_path / "pipe", "x")
    assert (tmp_path / "pipe").is_fifo()


def test_a_file_has_the_permissions_of_a_new_file_or_keeps_those_it_had(tmp_path: Path):
    (tmp_path / "plain").write_text("x")
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("x")
        partial.chmod(0o600)  # as safetensors does
    assert (tmp_path / "a.txt").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "a.txt").chmod(0o640)
    write_text(tmp_path / "a.txt", "y")
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640


def test_two_writers_of_one_file_have_a_partial_file_each(tmp_path: Path):
    with replacing(tmp_path / "a.txt") as one, replacing(tmp_path / "a.txt") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a.txt").read_text() == "one"  # the last to finish
    assert names(tmp_path) == ["a.txt"]
    assert len(beside(Path("x" * 255)).name.encode()) < 255


def test_shipped_files_are_found():
    assert (shipped() / "prompts" / "pairs.jsonl").is_file()
