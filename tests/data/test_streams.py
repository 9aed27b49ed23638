"""Streams give the rows of a `PromptSet`, a few at a time, and capture reads sets that do not fit into memory."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from weakref import ReferenceType, ref

import numpy as np
import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError, PromptSet, PromptStream
from neuronshield.data.streams import StreamedStep
from neuronshield.find import shards


def folder_of(prompts: PromptSet, folder: Path, *, files: int) -> Path:
    folder.mkdir()
    size = -(-len(prompts) // files)
    for number in range(files):
        prompts[number * size : (number + 1) * size].to_parquet(folder / f"part-{number:02}.parquet")
    return folder


@pytest.mark.parametrize("files", [1, 4])
def test_the_rows_of_a_folder_are_those_of_the_set_in_order_as_often_as_it_is_read(tmp_path: Path, files: int):
    prompts = tiny.prompts(pictures=True, languages=["en"])
    stream = PromptStream.from_parquet(folder_of(prompts, tmp_path / "rows", files=files))
    for _ in range(2):
        assert PromptSet(stream) == prompts
    step = stream.for_step("discover")
    assert len(list(step)) == len(prompts)
    assert step.hash() == prompts.hash()
    assert sorted({r.cluster for r in step.seen}) == sorted({p.cluster for p in prompts})


def test_a_step_takes_its_own_split(tmp_path: Path):
    prompts = tiny.prompts().with_splits(seed=0)
    stream = PromptStream.from_parquet(prompts.to_parquet(tmp_path / "p.parquet"))
    for split in ("discover", "test"):
        assert PromptSet(stream.for_step(split)) == prompts.for_step(split)


def test_a_stream_has_the_moments_of_the_set(llama: ns.Model, tmp_path: Path):
    prompts = tiny.prompts()
    one = PromptStream.from_parquet(folder_of(prompts, tmp_path / "one", files=1))
    many = PromptStream.from_parquet(folder_of(prompts, tmp_path / "many", files=5))
    rows = PromptStream.from_dataset([{"id": p.id, "prompt": p.prompt, "label": p.label, "language": p.language,
                                       "pair_id": p.pair_id, "target": p.target} for p in prompts])  # fmt: skip
    found = [ns.capture(llama, s, progress=False) for s in (one, many, rows)]
    assert found[0] == found[1]
    assert found[0].groups.keys() == found[2].groups.keys()
    whole = ns.capture(llama, prompts, progress=False)
    assert found[0].provenance["data"] == whole.provenance["data"]
    assert found[0].provenance["seen"] == whole.provenance["seen"]
    for label in ("harmful", "benign"):
        for cell in ("en/text", "sw/text"):
            got, expected = (s.moments(label, cell) for s in (found[0], whole))
            assert got.n == expected.n
            np.testing.assert_allclose(got.mean, expected.mean, rtol=1e-5, atol=1e-7)
            np.testing.assert_allclose(got.m2, expected.m2, rtol=1e-4, atol=1e-9)


class Generated:
    """A data set of any size that holds no row."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(self.rows):
            label = ("harmful", "benign")[i % 2]
            words = ["how", "do", "i", "bake", *["the"] * (i % 5), "bread"]
            yield {"prompt": " ".join(words), "label": label, "pair_id": f"{i // 2}"}


@pytest.mark.slow
def test_capture_holds_a_bounded_number_of_prompts(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "HELD", 100)
    monkeypatch.setattr(shards, "PROMPTS", 50)
    alive: list[ReferenceType[ns.Prompt]] = []
    most: list[int] = []
    read = PromptStream.__iter__

    def watched(self: PromptStream) -> Iterator[ns.Prompt]:
        for number, prompt in enumerate(read(self)):
            alive.append(ref(prompt))
            if number % 100 == 99:
                gc.collect()
                alive[:] = [r for r in alive if r() is not None]
                most.append(len(alive))
            yield prompt

    monkeypatch.setattr(PromptStream, "__iter__", watched)
    stats = ns.capture(llama, PromptStream.from_dataset(Generated(600)), batch_size=50, progress=False)
    assert sum(m.n for m in stats.groups.values()) == 600
    assert len(most) == 6
    assert max(most) <= 100 + 3 * 50  # what is gathered, and the shard that is read


# -- wrong data -------------------------------------------------------------------------------------------
ROW = {"prompt": "how do i bake", "label": "benign"}
HARM = {"prompt": "how do i cut", "label": "harmful"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "capture: no prompts"),
        ([ROW, {**HARM, "label": "bad"}], "row 1"),
        ([{**ROW, "split": "discover"}, HARM], "has no split"),
        ([ROW, {**HARM, "split": "discover"}], "has a split"),
        ([{**ROW, "split": "test", "pair_id": "1"}, {**HARM, "split": "discover", "pair_id": "1"}], "in the splits"),
        ([{**ROW, "split": "test"}], "capture: no prompts"),
    ],
)
def test_wrong_rows_are_named(llama: ns.Model, rows: list[dict[str, Any]], said: str):
    with pytest.raises(InputError, match=said) as error:
        ns.capture(llama, PromptStream.from_dataset(rows), progress=False)
    assert "\n" not in str(error.value)


def test_a_missing_target_is_named(llama: ns.Model):
    with pytest.raises(InputError, match="needs a 'target'"):
        ns.capture(llama, PromptStream.from_dataset([ROW, HARM]), tokens="response", progress=False)


def test_what_is_no_source_is_refused(tmp_path: Path, llama: ns.Model):
    (tmp_path / "bad.parquet").write_bytes(b"hello")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no such file"):
        PromptStream.from_parquet(tmp_path / "none.parquet")
    with pytest.raises(InputError, match=r"without \.parquet files"):
        PromptStream.from_parquet(tmp_path / "empty")
    with pytest.raises(InputError, match="not a Parquet file"):
        list(PromptStream.from_parquet(tmp_path / "bad.parquet"))
    with pytest.raises(InputError, match="read twice"):
        PromptStream.from_dataset(iter([ROW]))
    with pytest.raises(InputError, match="dataset"):
        PromptStream.from_dataset(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="model must be"):
        ns.capture(PromptStream.from_dataset([ROW]), llama)  # type: ignore[arg-type]


def test_it_prints_what_it_reads(tmp_path: Path):
    stream = PromptStream.from_parquet(tiny.prompts().to_parquet(tmp_path / "p.parquet"))
    assert repr(stream) == "PromptStream('p.parquet')"
    assert isinstance(stream.for_step("test"), StreamedStep)
