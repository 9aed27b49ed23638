"""Repositories of the Hugging Face hub: a folder is committed to one, and files are had from one.

A folder is committed whole, in one commit, with the list of its files (`neuronshield.core.folders`): the files in a repository
belong together. A repository is written to only if it is new, empty, or holds a list that an earlier commit made.

A token is given to `huggingface_hub` and to nothing else: it is in no file, in no log and in no message. Whether the hub answers is
found out first, in seconds: `CONNECT` seconds for a connection, `ANSWER` seconds for an answer.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from .arguments import require
from .errors import InputError
from .folders import MANIFEST, list_files, listed_files

__all__ = ["ANSWER", "CONNECT", "Commit", "committed", "downloaded", "is_name", "is_repository", "names_in", "offline"]

CONNECT, ANSWER = 2.0, 10.0  # seconds

#: Files that the hub or its users put into a repository that is otherwise empty.
HARMLESS = {".gitattributes", ".gitignore", "LICENSE", "README.md"}
TOKEN = re.compile(r"\bhf_\w{8,}")


@dataclass(frozen=True)
class Commit:
    """What was committed to a repository.

    >>> Commit("me/shield", "0123abc", "https://hub/me/shield/commit/0123abc").revision
    '0123abc'

    Attributes:
        repo_id: the repository, "user/name".
        revision: the commit; with it, exactly these files are loaded.
        url: its page.
    """

    repo_id: str
    revision: str
    url: str


def is_repository(name: Any) -> bool:
    """Whether a name can be that of somebody's repository, "user/name".

    >>> is_repository("me/shield"), is_repository("shield"), is_repository("a/b/c"), is_repository("./shield")
    (True, False, False, False)

    Args:
        name: what was given.
    """
    return isinstance(name, str) and name.count("/") == 1 and is_name(name)


def is_name(name: Any) -> bool:
    """Whether a hub can have a model of this name, with or without a user.

    >>> is_name("organism"), is_name("me/shield"), is_name("./organism"), is_name(None)
    (True, True, False, False)

    Args:
        name: what was given.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if not isinstance(name, str):
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return all(part and not part.startswith((".", "-")) for part in name.split("/"))


def offline(name: str) -> str | None:
    """Why the hub cannot be asked about a repository; None if it answers, whatever it says.

    >>> offline("me/shield")
    'HF_HUB_OFFLINE forbids asking the hub'

    Args:
        name: of the repository.
    """
    from huggingface_hub import constants, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub"
    from huggingface_hub.utils import get_session

    session = get_session()
    httpx = import_module(type(session).__module__.partition(".")[0])  # httpx, or the fork of it that this version uses
    url = hf_hub_url(name, "config.json")
    host = httpx.URL(url).host
    try:
        session.head(url, timeout=httpx.Timeout(ANSWER, connect=CONNECT), follow_redirects=False)
    except httpx.TimeoutException:
        return f"{host} did not answer within {CONNECT:g} s (connection) and {ANSWER:g} s (answer)"
    except httpx.HTTPError:
        return f"{host} cannot be reached"
    return None


def committed(
    write: Callable[[Path], None],
    repo_id: str,
    *,
    call: str,
    message: str,
    private: bool = True,
    token: str | None = None,
) -> Commit:
    """The commit of a folder that `write` filled, to a repository that is made if it is missing.

    >>> committed(lambda folder: None, "me/shield", call="push_to_hub", message="Adapter")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: push_to_hub('me/shield'): HF_HUB_OFFLINE forbids asking the hub

    Files of the list in the repository that are not in the folder are deleted in the same commit; the hub keeps every commit.

    Args:
        write: is called with the folder to fill.
        repo_id: the repository, "user/name".
        call: the public function, for messages.
        message: of the commit.
        private: whether a repository that is made is private; one that exists stays as it is.
        token: of the hub; None for the one that `hf auth login` or HF_TOKEN gave.

    Raises:
        InputError: no name of a repository, the hub does not answer, it refuses the login, or the repository holds files that
            this program did not write.
    """
    where = f"{call}({repo_id!r:.120})"
    _check(repo_id, call=call, token=token)
    if why := offline(repo_id):
        raise InputError(f"{where}: {why}")
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants

    api = HfApi(endpoint=constants.ENDPOINT, token=token)
    with tempfile.TemporaryDirectory() as place, _told(where, token):
        folder = Path(place)
        write(folder)
        list_files(folder)
        api.create_repo(repo_id, private=private, exist_ok=True)
        parent, old = _own_files(api, repo_id, where=where)
        new = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        adds = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in new]
        gone = [CommitOperationDelete(path_in_repo=name) for name in sorted(old - set(new))]
        done = api.create_commit(repo_id, [*adds, *gone], commit_message=message, parent_commit=parent)
    return Commit(repo_id, done.oid, done.commit_url)


def _own_files(api: Any, repo_id: str, *, where: str) -> tuple[str, set[str]]:
    """The newest commit of a repository, and the files that earlier commits of this program listed in it."""
    from huggingface_hub import constants, hf_hub_download

    info = api.model_info(repo_id)
    names = {file.rfilename for file in info.siblings}
    if MANIFEST not in names:
        foreign = sorted(names - HARMLESS)
        if foreign:
            raise InputError(
                f"{where}: the repository holds {foreign[0]!r:.80}, which neuronshield did not write; choose another repository"
            )
        return info.sha, set()
    with tempfile.TemporaryDirectory() as place:
        hf_hub_download(
            repo_id, MANIFEST, revision=info.sha, local_dir=place, token=api.token, endpoint=constants.ENDPOINT
        )
        return info.sha, set(listed_files(Path(place))) & names


def names_in(repo_id: str, *, revision: str | None = None) -> set[str] | None:
    """Names of the files in a repository; None where the hub does not tell.

    >>> names_in("me/shield") is None
    True

    Args:
        repo_id: the repository.
        revision: commit, tag or branch.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError

    if offline(repo_id):
        return None
    try:
        info = HfApi(endpoint=constants.ENDPOINT).model_info(repo_id, revision=revision)
    except (HfHubHTTPError, OSError):
        return None
    return {file.rfilename for file in info.siblings or ()}


def downloaded(
    repo_id: str, names: Sequence[str], *, call: str, revision: str | None = None, token: str | None = None
) -> Path:
    """The folder in the cache with those of the named files that a repository has; it has the first.

    >>> downloaded("me/shield", ["neurons.safetensors"], call="NeuronSet.from_hub")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: NeuronSet.from_hub('me/shield'): it is not in the cache, and HF_HUB_OFFLINE forbids ...

    Args:
        repo_id: the repository, "user/name".
        names: files that are wanted; without the first, the others are of no use.
        call: the public function, for messages.
        revision: commit, tag or branch; default the newest commit, or the newest in the cache where the hub does not answer.
        token: of the hub; None for the one that `hf auth login` or HF_TOKEN gave.

    Raises:
        InputError: no name of a repository, no such repository or revision, one without the first file, or the hub does not answer
            and they are not in the cache.
    """
    where = f"{call}({repo_id!r:.120})"
    _check(repo_id, call=call, token=token)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    why = offline(repo_id)
    with _told(where, token):
        try:
            folder = snapshot_download(
                repo_id, revision=revision, allow_patterns=list(names), token=token, local_files_only=why is not None
            )
        except LocalEntryNotFoundError:
            if why is None:
                raise
            raise InputError(f"{where}: it is not in the cache, and {why}") from None
    if not (Path(folder) / names[0]).is_file():
        raise InputError(f"{where}: the repository has no {names[0]}; check its name and revision")
    return Path(folder)


def _check(repo_id: Any, *, call: str, token: Any) -> None:
    """Raise unless this can be the name of a repository and a token."""
    require(repo_id, str, call=f"{call}(repo_id)", name="repo_id")
    if not is_repository(repo_id):
        raise InputError(f"{call}({TOKEN.sub('hf_***', repo_id)!r:.120}): no name of a repository; give 'user/name'")
    if token is not None and not isinstance(token, str):
        raise InputError(f"{call}: token must be a text, got {type(token).__name__}")


@contextmanager
def _told(where: str, token: str | None) -> Iterator[None]:
    """Say in one line, without a token in it, what the hub or the way to it raises."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        LocalTokenNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    login = "log in with `hf auth login`, or pass token="
    try:
        yield
        return
    except InputError:
        raise
    except GatedRepoError:
        said = f"the hub gives it to accounts that its owner accepts; ask on its page, and {login}"
    except RepositoryNotFoundError:
        said = f"the hub has no such repository, or this login cannot see it; check the name, or {login}"
    except RevisionNotFoundError:
        said = "it has no such revision; check the commit, tag or branch"
    except LocalEntryNotFoundError:
        said = "it is not in the cache, and the hub answers with an error; try again later"
    except EntryNotFoundError:
        said = "a file of it cannot be found; check the repository on the hub"
    except LocalTokenNotFoundError:
        said = f"no token was found; {login}"
    except HfHubHTTPError as error:
        code = error.response.status_code
        reason = error.server_message or error.response.reason_phrase
        advice = f"; {login}" if code in (401, 403) else "; push again" if code in (409, 412) else ""
        said = f"the hub answered {code} ({reason!s:.160}){advice}"
    except (OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        said = f"failed ({(str(cause).splitlines() or [type(cause).__name__])[0]:.160})"
    said = said.replace(token, "***") if token else said
    raise InputError(f"{where}: {TOKEN.sub('hf_***', said)}") from None
