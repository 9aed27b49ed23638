"""A folder takes its place whole, never in the place of files of somebody else, and a crash leaves the old or the new."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from neuronshield import InputError
from neuronshield.core import folders
from neuronshield.core.folders import MANIFEST, check_files, check_place, replacing_folder


def names(folder: Path) -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*"))


def fill(text: str, *, fail: BaseException | None = None) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "sub" / "b.txt").write_text(text)
        if fail is not None:
            raise fail

    return write


WRITTEN = ["a.txt", MANIFEST, "sub", "sub/b.txt"]


def test_a_folder_appears_with_its_list_of_files_and_replaces_an_older_one(tmp_path: Path):
    for text in ("one", "two"):
        assert replacing_folder(tmp_path / "new" / "out", fill(text)) == tmp_path / "new" / "out"
        assert (tmp_path / "new" / "out" / "sub" / "b.txt").read_text() == text
        assert names(tmp_path / "new" / "out") == WRITTEN
    assert names(tmp_path / "new") == ["out", *(f"out/{name}" for name in WRITTEN)]


@pytest.mark.parametrize("foreign", ["notes.txt", "sub/notes.txt", "week1/", ".git/config", "link"])
def test_what_somebody_else_put_there_is_named_and_all_of_it_stays(tmp_path: Path, foreign: str):
    for start in (lambda out: out.mkdir(), lambda out: replacing_folder(out, fill("one"))):
        out = tmp_path / str(len(names(tmp_path)))
        start(out)
        place = out / foreign
        place.parent.mkdir(exist_ok=True)
        if foreign == "link":
            place.symlink_to(tmp_path / "nowhere")
        elif foreign.endswith("/"):
            place.mkdir()
        else:
            place.write_text("mine")
        before = names(out)
        called: list[Path] = []
        with pytest.raises(InputError, match=r"which neuronshield did not write; choose another folder$"):
            replacing_folder(out, called.append)
        assert names(out) == before
        assert not called


def test_a_file_that_was_changed_is_kept(tmp_path: Path):
    replacing_folder(tmp_path / "out", fill("one"))
    (tmp_path / "out" / "a.txt").write_text("my own words")
    with pytest.raises(InputError, match=r"out: 'a\.txt' was changed since neuronshield wrote it"):
        replacing_folder(tmp_path / "out", fill("two"))
    assert (tmp_path / "out" / "a.txt").read_text() == "my own words"


def test_what_was_put_there_while_the_folder_was_written_is_kept(tmp_path: Path):
    replacing_folder(tmp_path / "out", fill("one"))

    def slow(folder: Path) -> None:
        fill("two")(folder)
        (tmp_path / "out" / "notes.txt").write_text("mine")

    with pytest.raises(InputError, match=r"holds 'notes\.txt'"):
        replacing_folder(tmp_path / "out", slow)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("no")])
def test_an_error_leaves_the_old_folder_and_nothing_else(tmp_path: Path, error: BaseException):
    replacing_folder(tmp_path / "out", fill("one"))
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        replacing_folder(tmp_path / "out", fill("two", fail=error))
    if expected is InputError:
        assert "out: cannot be written (No space left on device)" in str(caught.value)
    assert (tmp_path / "out" / "a.txt").read_text() == "one"
    assert names(tmp_path) == ["out", *(f"out/{name}" for name in WRITTEN)]


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a second file system")
def test_a_link_to_another_file_system_stays_and_its_folder_is_replaced(tmp_path: Path):
    import tempfile

    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        (tmp_path / "out").symlink_to(Path(other) / "there")
        for text in ("one", "two"):
            replacing_folder(tmp_path / "out", fill(text))
            assert (tmp_path / "out").is_symlink()
            assert (Path(other) / "there" / "a.txt").read_text() == text
        assert sorted(p.name for p in Path(other).iterdir()) == ["there"]


def in_place(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that cannot be renamed, in three ways."""
    if kind == "mount point":
        monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == place)
    elif kind == "working folder":
        monkeypatch.chdir(place)
    else:
        real = Path.mkdir

        def mkdir(self: Path, *args: object, **kwargs: object) -> None:
            if self.parent == place.parent:
                raise PermissionError(13, "Permission denied")
            real(self, *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(Path, "mkdir", mkdir)


@pytest.mark.parametrize("kind", ["mount point", "working folder", "unwritable parent"])
def test_a_folder_that_cannot_be_renamed_is_filled_if_it_is_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    place = tmp_path / "out"
    place.mkdir()
    inode = place.stat().st_ino
    in_place(kind, place, monkeypatch)
    replacing_folder(place, fill("one"))
    assert names(place) == WRITTEN
    assert place.stat().st_ino == inode
    check_files(place, ["a.txt", "sub/b.txt"])
    with pytest.raises(InputError, match=r"cannot be replaced in one step .*empty it, or choose a folder in it"):
        replacing_folder(place, fill("two"))
    assert (place / "a.txt").read_text() == "one"
    assert names(place) == WRITTEN


def test_a_folder_that_was_filled_in_part_is_emptied_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "out"
    place.mkdir()
    in_place("mount point", place, monkeypatch)
    real = folders.shutil.move

    def move(source: Path, target: Path) -> None:
        if target.name == "sub":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(folders.shutil, "move", move)
    with pytest.raises(InputError, match="No space left on device"):
        replacing_folder(place, fill("one"))
    assert names(place) == []


def test_a_missing_folder_in_one_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    in_place("unwritable parent", tmp_path / "out", monkeypatch)
    with pytest.raises(InputError, match=r"out: cannot be written \(Permission denied\)"):
        replacing_folder(tmp_path / "out", fill("one"))
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError):
            replacing_folder(path, fill("one"))
    assert names(tmp_path) == ["file"]


def test_without_an_exchange_two_renames_do_it_and_an_error_between_them_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(folders.sys, "platform", "other")
    for text in ("one", "two"):
        replacing_folder(tmp_path / "out", fill(text))
        assert (tmp_path / "out" / "a.txt").read_text() == text
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name.endswith(".partial"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="Input/output error"):
        replacing_folder(tmp_path / "out", fill("three"))
    assert (tmp_path / "out" / "a.txt").read_text() == "two"
    assert names(tmp_path) == ["out", *(f"out/{name}" for name in WRITTEN)]


def test_a_kill_leaves_the_old_folder_or_the_new_one_whole(tmp_path: Path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom neuronshield.core.folders import replacing_folder\n"
        "for i in range(10**6):\n"
        "    def write(folder):\n        [(folder / f'{j}.txt').write_text(str(i)) for j in range(5)]\n"
        "    replacing_folder(sys.argv[1], write)\n    print(i, flush=True)\n"
    )
    for wait in (1, 3, 8):
        child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        for _ in range(wait):
            child.stdout.readline()
        child.kill()
        child.wait()
        check_files(tmp_path / "out", [f"{j}.txt" for j in range(5)])
        assert len({(tmp_path / "out" / f"{j}.txt").read_text() for j in range(5)}) == 1
        check_place(tmp_path / "out")


def test_threads_that_write_the_same_folder_leave_one_of_theirs_whole(tmp_path: Path):
    replacing_folder(tmp_path / "out", fill("start"))
    errors: list[BaseException] = []

    def work(text: str) -> None:
        for _ in range(20):
            try:
                replacing_folder(tmp_path / "out", fill(text))
            except InputError as error:  # its list was read while the other one took the place
                errors.append(error)

    threads = [threading.Thread(target=work, args=(text,)) for text in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    check_files(tmp_path / "out", ["a.txt", "sub/b.txt"])
    assert (tmp_path / "out" / "a.txt").read_text() == (tmp_path / "out" / "sub" / "b.txt").read_text()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_files_are_checked_against_the_list(tmp_path: Path):
    out = replacing_folder(tmp_path / "out", fill("one"))
    check_files(out, ["a.txt", "sub/b.txt", "gone.txt"])
    (out / "new.txt").write_text("x")
    with pytest.raises(InputError, match=r"new\.txt: is not the file that was saved in this folder"):
        check_files(out, ["new.txt"])
    (out / "a.txt").write_text("two")
    with pytest.raises(InputError, match=r"a\.txt: is not the file that was saved in this folder"):
        check_files(out, ["a.txt"])
    (out / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="out: its list of files cannot be read"):
        check_files(out, ["a.txt"])
    with pytest.raises(InputError, match="out: its list of files cannot be read"):
        check_place(out)
    (out / MANIFEST).unlink()
    with pytest.raises(InputError, match=r"out: has no neuronshield\.json: written by an older version"):
        check_files(out, ["a.txt"])


def test_files_have_the_permissions_of_new_files(tmp_path: Path):
    def write(folder: Path) -> None:
        (folder / "a.txt").write_text("x")
        (folder / "a.txt").chmod(0o600)

    out = replacing_folder(tmp_path / "out", write)
    (tmp_path / "plain").write_text("x")
    expected = (tmp_path / "plain").stat().st_mode
    assert {p.stat().st_mode for p in out.iterdir()} == {expected}


def test_a_busy_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder that is mounted from the same disk is known only when it cannot be renamed."""
    replacing_folder(tmp_path / "out", fill("one"))
    monkeypatch.setattr(folders.sys, "platform", "other")
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if self.name == "out":
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(InputError, match="cannot be replaced in one step"):
        replacing_folder(tmp_path / "out", fill("two"))
    assert (tmp_path / "out" / "a.txt").read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
