"""answers.parquet: every answer of a run with its grade, chosen, printed and exported."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest

import neuronshield as ns
from neuronshield import InputError
from neuronshield.check.evaluation import Answer, Evaluation
from neuronshield.run.answer_files import COLUMNS, answers_of, evaluation_files, export_answers, read_answers

pytest_plugins = ["finished_runs"]

CONDITIONS = {
    "no update",
    "shield",
    "random mask 1",
    "random mask 2",
    "plain LoRA",
    "clamp, no training",
    "low-rank edit, no training",
}


def test_every_answer_of_every_condition_is_kept_with_its_grade(finished: Path):
    table = pd.read_parquet(finished / "answers.parquet")
    assert list(table.columns) == list(COLUMNS)
    run = ns.open(finished)
    n = len(run.evaluations["shield"].answers)
    last = table[table["steps"].isna()]
    assert dict(last["condition"].value_counts()) == dict.fromkeys(CONDITIONS, n)
    early = table[~table["steps"].isna()]
    assert set(early["steps"]) == {1}
    assert set(early["condition"]) == {"shield", "random mask 1", "random mask 2", "plain LoRA"}
    for name, evaluation in run.evaluations.items():
        mine = last[last["condition"] == name].set_index("prompt_id")
        for answer in evaluation.answers:
            row = mine.loc[answer.prompt.id]
            assert (row["response"], row["label"], row["language"]) == (
                answer.response,
                answer.prompt.label,
                answer.prompt.language,
            )
            assert row["outcome"] == answer.outcome
            assert (None if row["refused"] is pd.NA else bool(row["refused"])) == answer.refused
    assert set(table["judge"]) == {"words"}


def test_answers_are_chosen_by_cell_condition_and_label(finished: Path):
    whole = read_answers(finished)
    some = read_answers(finished, cell="sw/text", condition="shield", label="harmful")
    by_hand = whole[(whole["language"] == "sw") & (whole["condition"] == "shield") & (whole["label"] == "harmful")]
    assert some["response"].tolist() == by_hand["response"].tolist()
    assert 0 < len(some) < len(whole)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"condition": "sheild"}, "no answers with condition 'sheild'; there are .*'shield'"),
        ({"cell": "fr/text"}, "no answers with language 'fr'; there are 'en', 'sw'"),
        ({"cell": "fr"}, "'fr'"),
    ],
)
def test_answers_that_are_not_there_are_one_line_with_those_that_are(finished: Path, asked: dict[str, str], said: str):
    with pytest.raises(InputError, match=said):
        read_answers(finished, **asked)


def test_a_folder_without_answers_or_with_a_damaged_file_is_one_line(finished: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"no answers\.parquet; run 'neuronshield check' first"):
        read_answers(tmp_path)
    (tmp_path / "answers.parquet").write_bytes((finished / "answers.parquet").read_bytes()[:-20])
    with pytest.raises(InputError, match=r"answers\.parquet: cannot be read"):
        read_answers(tmp_path)
    pd.DataFrame({"condition": ["shield"]}).to_parquet(tmp_path / "answers.parquet")
    with pytest.raises(InputError, match="has no column 'steps'"):
        read_answers(tmp_path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_export_holds_what_was_chosen(finished: Path, tmp_path: Path, ending: str):
    table = read_answers(finished, condition="shield")
    path = export_answers(table, tmp_path / f"a.{ending}")
    read = {"csv": pd.read_csv, "jsonl": lambda p: pd.read_json(p, lines=True), "parquet": pd.read_parquet}[ending](
        path
    )
    assert read["prompt_id"].tolist() == table["prompt_id"].tolist()
    assert read["response"].fillna("").tolist() == table["response"].tolist()
    assert [p.name for p in tmp_path.iterdir()] == [f"a.{ending}"]


def test_an_export_with_another_ending_is_refused(finished: Path, tmp_path: Path):
    with pytest.raises(InputError, match=r"--export .*a\.xlsx: must end in \.csv, \.jsonl, \.parquet"):
        export_answers(read_answers(finished), tmp_path / "a.xlsx")
    assert not list(tmp_path.iterdir())


def test_what_is_in_an_answer_is_kept_letter_by_letter(tmp_path: Path):
    odd = 'line\n"quoted", \u2028 <script> لا 🙂'
    answer = Answer(ns.Prompt("1", odd, "harmful"), odd, refused=None, right=None)
    table = answers_of(Evaluation([answer]), condition="shield", steps=3)
    assert (table["outcome"][0], table["steps"][0]) == ("unknown", 3)
    line = json.loads(export_answers(table, tmp_path / "a.jsonl").read_text(encoding="utf-8"))
    assert (line["prompt"], line["response"], line["refused"]) == (odd, odd, None)
    assert pd.read_csv(export_answers(table, tmp_path / "a.csv"))["response"][0] == odd


def test_evaluations_of_a_run_are_found_in_a_fixed_order(finished: Path):
    found = [(str(f.relative_to(finished)), steps, attack) for f, steps, attack in evaluation_files(finished)]
    assert found[0] == ("check/answers/shield.json", None, False) or len(found[0]) == 3
    assert [f for f, _, _ in found] == [str(f.relative_to(finished)) for f, _, _ in evaluation_files(finished)]
    assert [(steps, attack) for _, steps, attack in found] == [(None, False)] * 7 + [(1, False)] * 4
