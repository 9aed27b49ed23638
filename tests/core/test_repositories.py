"""What is pushed to a hub is what is had from it, a token goes nowhere else, and whatever goes wrong is one line."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from local_hub import OWNER, STRANGER, Hub

import neuronshield as ns
from neuronshield.core import repositories
from neuronshield.core.cards import set_card
from neuronshield.core.repositories import committed, downloaded, is_name, is_repository

pytest_plugins = ["local_hub"]

MEMBERS = ns.NeuronSet([(0, 3), (2, 7)], n_layers=3, d_mlp=29, provenance={"model": "organism", "method": "sas"})


def filling(**files: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        for name, content in files.items():
            (folder / f"{name}.txt").write_text(content)

    return write


def test_a_set_comes_back_from_the_hub_as_it_was(hub: Hub):
    done = MEMBERS.push_to_hub("me/neurons", token=OWNER)
    assert set(hub.repositories["me/neurons"].files) == {
        ".gitattributes", "README.md", "neurons.safetensors", "neuronshield.json",
    }  # fmt: skip
    assert done.revision == hub.repositories["me/neurons"].commits[-1][0]
    assert done.url == f"{hub.url}/me/neurons/commit/{done.revision}"
    again = ns.NeuronSet.from_hub("me/neurons", token=OWNER)
    assert again == MEMBERS
    assert again.provenance == MEMBERS.provenance
    assert (again.n_layers, again.d_mlp) == (3, 29)


def test_a_commit_stays_what_it_was(hub: Hub):
    first = MEMBERS.push_to_hub("me/neurons", private=False, token=OWNER)
    other = ns.NeuronSet([(1, 1)])
    other.push_to_hub("me/neurons", token=OWNER)
    assert ns.NeuronSet.from_hub("me/neurons") == other
    assert ns.NeuronSet.from_hub("me/neurons", revision=first.revision) == MEMBERS


def test_a_repository_is_private_unless_asked_otherwise(hub: Hub):
    MEMBERS.push_to_hub("me/hidden", token=OWNER)
    MEMBERS.push_to_hub("me/shown", private=False, token=OWNER)
    assert hub.repositories["me/hidden"].private
    assert not hub.repositories["me/shown"].private
    assert ns.NeuronSet.from_hub("me/shown") == MEMBERS
    for token in (None, STRANGER):
        with pytest.raises(
            ns.InputError, match=r"from_hub\('me/hidden'\): the hub has no such repository, or this login"
        ):
            ns.NeuronSet.from_hub("me/hidden", token=token)


def test_what_an_earlier_commit_listed_and_the_new_one_lacks_is_deleted(hub: Hub):
    committed(filling(a="1", b="2"), "me/x", call="push", message="m", token=OWNER)
    hub.repositories["me/x"].files["own.txt"] = b"a user's"
    committed(filling(b="3", c="4"), "me/x", call="push", message="m", token=OWNER)
    files = hub.repositories["me/x"].files
    assert {k: v for k, v in files.items() if k.endswith(".txt")} == {
        "own.txt": b"a user's",
        "b.txt": b"3",
        "c.txt": b"4",
    }
    assert len(hub.repositories["me/x"].commits) == 3  # the hub's own, and one of each call


def test_a_repository_with_files_of_somebody_else_is_not_written_to(hub: Hub, tmp_path: Path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    hub.add("me/model", tmp_path / "model")
    with pytest.raises(
        ns.InputError, match=r"push\('me/model'\): the repository holds 'config.json', which neuronshield did"
    ):
        committed(filling(a="1"), "me/model", call="push", message="m", token=OWNER)
    assert set(hub.repositories["me/model"].files) == {"config.json"}
    (tmp_path / "model" / "config.json").rename(tmp_path / "model" / "README.md")
    hub.add("me/model", tmp_path / "model")
    committed(filling(a="1"), "me/model", call="push", message="m", token=OWNER)


def test_a_commit_that_came_in_between_is_not_written_over(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    committed(filling(a="1"), "me/x", call="push", message="m", token=OWNER)
    real = repositories._own_files

    def slow(*args: object, **options: str) -> tuple[str, set[str]]:
        out = real(*args, **options)  # type: ignore[arg-type]
        hub.repositories["me/x"].commit({"b.txt": b"2"})
        return out

    monkeypatch.setattr(repositories, "_own_files", slow)
    with pytest.raises(ns.InputError, match=r"the hub answered 412 \(A commit has happened since.*\); push again"):
        committed(filling(a="3"), "me/x", call="push", message="m", token=OWNER)
    assert hub.repositories["me/x"].files == {"b.txt": b"2"}


# -- tokens -----------------------------------------------------------------------------------------------
def test_a_token_is_in_the_header_and_nowhere_else(hub: Hub, caplog: pytest.LogCaptureFixture, tmp_path: Path):
    caplog.set_level(logging.DEBUG)
    done = MEMBERS.push_to_hub("me/neurons", token=OWNER)
    ns.NeuronSet.from_hub("me/neurons", token=OWNER)
    sent = [r for r in hub.requests if r[2].get("authorization")]
    assert {r[2]["authorization"] for r in sent} == {f"Bearer {OWNER}"}
    assert not any(path.startswith(("/storage", "/lfs/")) for _, path, _, _ in sent)  # which are other hosts
    for _, path, headers, body in hub.requests:
        told = {k: v for k, v in headers.items() if k != "authorization"}
        assert OWNER not in path + str(told)
        assert OWNER.encode() not in body
    assert OWNER not in caplog.text + str(done)
    on_disk = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert len(on_disk) > 2
    assert not any(OWNER.encode() in p.read_bytes() for p in on_disk)


@pytest.mark.parametrize("status", [400, 403, 418])
def test_a_token_that_the_hub_repeats_is_not_in_the_message(hub: Hub, status: int):
    hub.broken = status
    with pytest.raises(
        ns.InputError, match=r"push_to_hub\('me/neurons'\): the hub answered 4\d\d \(broken, token Bearer \*+\)"
    ) as caught:
        MEMBERS.push_to_hub("me/neurons", token=OWNER)
    assert OWNER not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__
    with pytest.raises(ns.InputError, match=r"the hub|failed") as caught:
        ns.NeuronSet.from_hub("me/neurons", token=OWNER)
    assert OWNER not in str(caught.value)


def test_a_token_in_the_place_of_the_name_is_not_repeated(hub: Hub):
    with pytest.raises(
        ns.InputError, match=r"push_to_hub\('hf_\*\*\*'\): no name of a repository; give 'user/name'"
    ) as caught:
        MEMBERS.push_to_hub(OWNER)
    assert OWNER not in str(caught.value)


# -- what goes wrong --------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("token", "said"),
    [
        (None, r"the hub answered 401 \(Invalid username or password.\); log in with `hf auth login`, or pass token="),
        (STRANGER, r"the hub answered 403 \(You don't have the rights to create .*\); log in with"),
    ],
)
def test_who_may_not_write_is_told_what_to_do(hub: Hub, token: str | None, said: str):
    with pytest.raises(ns.InputError, match=r"^NeuronSet.push_to_hub\('me/neurons'\): " + said) as caught:
        MEMBERS.push_to_hub("me/neurons", token=token)
    assert "\n" not in str(caught.value)
    assert hub.repositories == {}


@pytest.mark.parametrize(
    ("name", "revision", "said"),
    [
        ("me/nothing", None, "the hub has no such repository, or this login cannot see it; check the name, or log in"),
        ("me/other", None, r"the repository has no neurons\.safetensors; check its name and revision"),
        ("me/other", "v2", "it has no such revision; check the commit, tag or branch"),
    ],
)
def test_what_is_not_there_is_said(hub: Hub, name: str, revision: str | None, said: str, tmp_path: Path):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "a.txt").write_text("a")
    hub.add("me/other", tmp_path / "one")
    with pytest.raises(ns.InputError, match=rf"^NeuronSet\.from_hub\('{name}'\): {said}"):
        ns.NeuronSet.from_hub(name, revision=revision)


def test_without_the_hub_the_newest_in_the_cache_is_loaded(hub: Hub, monkeypatch: pytest.MonkeyPatch):
    MEMBERS.push_to_hub("me/neurons", private=False, token=OWNER)
    ns.NeuronSet.from_hub("me/neurons")
    asked = len(hub.requests)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert ns.NeuronSet.from_hub("me/neurons") == MEMBERS
    with pytest.raises(ns.InputError, match="it is not in the cache, and HF_HUB_OFFLINE forbids asking the hub"):
        ns.NeuronSet.from_hub("me/other")
    with pytest.raises(ns.InputError, match="HF_HUB_OFFLINE forbids asking the hub"):
        MEMBERS.push_to_hub("me/neurons", token=OWNER)
    assert len(hub.requests) == asked


def test_a_hub_that_fails_is_no_missing_repository(hub: Hub):
    hub.broken = 418
    with pytest.raises(
        ns.InputError, match="it is not in the cache, and the hub answers with an error; try again later"
    ):
        downloaded("me/neurons", ["a.txt"], call="get")


def test_a_damaged_file_of_the_hub_is_refused(hub: Hub):
    MEMBERS.push_to_hub("me/neurons", private=False, token=OWNER)
    files = hub.repositories["me/neurons"].files
    raw = files["neurons.safetensors"]
    files["neurons.safetensors"] = raw[:-1] + bytes([raw[-1] ^ 1])
    with pytest.raises(ns.InputError, match=r"neurons\.safetensors"):
        ns.NeuronSet.from_hub("me/neurons")


@pytest.mark.parametrize("name", ["x", "a/b/c", "./a", "a/../b", "-a/b", "a b/c", "", "/tmp/x", "me/.x", None, 3])
def test_what_is_no_repository_is_said_without_asking(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(repositories, "offline", lambda _: pytest.fail("asked"))
    assert not is_repository(name)
    for call in (MEMBERS.push_to_hub, ns.NeuronSet.from_hub):
        with pytest.raises(ns.InputError, match=r"no name of a repository; give 'user/name'|repo_id must be str"):
            call(name)


def test_a_name_without_a_user_can_be_a_base_model_but_no_repository():
    assert is_name("gpt2")
    assert not is_repository("gpt2")


# -- the card ---------------------------------------------------------------------------------------------
def test_the_card_of_a_set_has_metadata_and_says_what_is_known(hub: Hub):
    MEMBERS.push_to_hub("me/neurons", token=OWNER)
    card = hub.repositories["me/neurons"].files["README.md"].decode()
    assert card == set_card(MEMBERS)
    about = yaml.safe_load(card.split("---\n")[1])
    assert about["base_model"] == "organism"
    assert about["library_name"] == "neuronshield"
    assert "| how many | 2 of 3 x 29 |" in card
    assert "| score | sas |" in card
    assert "**Not verified.**" in card
    listed = json.loads(hub.repositories["me/neurons"].files["neuronshield.json"])
    assert set(listed["files"] if "files" in listed else listed["about"]["files"]) == {
        "README.md",
        "neurons.safetensors",
    }


def test_a_base_model_that_no_hub_can_name_is_left_out_of_the_metadata(hub: Hub):
    local = ns.NeuronSet([(0, 1)], provenance={"model": "./organism <b>"})
    local.push_to_hub("me/neurons", token=OWNER)
    card = hub.repositories["me/neurons"].files["README.md"].decode()
    assert "base_model" not in card
    assert "`./organism <b>`" in card
