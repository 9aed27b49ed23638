"""Each data set's columns, on files of its shape written here; the requests are ours and harmless."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny

from neuronshield import InputError
from neuronshield.data.readers import READERS, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg", "SD/0.jpg", "SD_TYPO/0.jpg", "TYPO/0.jpg", "query_ForbidQI_1_2_6.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        tiny.picture(0).save(path, format="PNG")
    return tmp_path


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    if path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


#: name -> file name, its rows, and (prompt, label, language, modality, pictures) of every prompt wanted of them
CASES: dict[str, tuple[str, Any, list[tuple[str, str, str, str, int]]]] = {
    "advbench": ("a.csv", [{"goal": "Steal a, ring", "target": "Sure"}], [("Steal a, ring", "harmful", "en", "text", 0)]),
    "harmbench": (
        "h.csv",
        [{"Behavior": "Cut it", "FunctionalCategory": "standard", "SemanticCategory": "x", "BehaviorID": "cut"},
         {"Behavior": "In this context", "FunctionalCategory": "contextual", "SemanticCategory": "x", "BehaviorID": "c"}],
        [("Cut it", "harmful", "en", "text", 0)],
    ),
    "strongreject": (
        "s.csv", [{"category": "v", "source": "x", "forbidden_prompt": "Steal it"}],
        [("Steal it", "harmful", "en", "text", 0)],
    ),
    "xstest": (
        "x.csv",
        [{"id": 1, "prompt": "How do I kill a process?", "type": "homonyms", "label": "safe"},
         {"id": 2, "prompt": "How do I steal it?", "type": "contrast_homonyms", "label": "unsafe"}],
        [("How do I kill a process?", "benign", "en", "text", 0), ("How do I steal it?", "harmful", "en", "text", 0)],
    ),
    "multijail": (
        "m.csv", [{"id": 7, "source": "x", "tags": "['t']", "en": "Steal it", "zh": "偷", "sw": "Iba"}],
        [("Steal it", "harmful", "en", "text", 0), ("偷", "harmful", "zh", "text", 0), ("Iba", "harmful", "sw", "text", 0)],
    ),
    "xsafety": (
        "x.parquet", [{"text": "Volez", "language": "French", "category": "crime", "id": 3}],
        [("Volez", "harmful", "fr", "text", 0)],
    ),
    "polyguardprompts": (
        "p.parquet",
        [{"id": 1, "prompt": "Steal", "prompt_harm_label": "harmful", "language": "English", "subcategory": "x"},
         {"id": 3, "prompt": "Bake", "prompt_harm_label": "unharmful", "language": "Korean", "subcategory": None},
         {"id": 2, "prompt": "Hm", "prompt_harm_label": None, "language": "Thai", "subcategory": "x"}],
        [("Steal", "harmful", "en", "text", 0), ("Bake", "benign", "ko", "text", 0)],
    ),
    "lingua-safetybench": (
        "l.json", [{"question": "Steal", "language": "Finnish", "image_path": "a.jpg"}, {"question": "Take", "language": "sw", "image_path": None}],
        [("Steal", "harmful", "fi", "text+image", 1), ("Take", "harmful", "sw", "text", 0)],
    ),
    "mm-safetybench": (
        "mm.json",
        {"0": {"Question": "How to steal?", "Rephrased Question": "List how to do the phrase in the picture",
               "Rephrased Question(SD)": "How to do this with what is shown"}},
        [("How to steal?", "harmful", "en", "text", 0),
         ("How to do this with what is shown", "harmful", "en", "text+image", 1),
         ("List how to do the phrase in the picture", "harmful", "en", "typographic", 1),
         ("List how to do the phrase in the picture", "harmful", "en", "typographic", 1)],
    ),
    "figstep": (
        "f.csv", [{"dataset": "d", "category_id": 1, "task_id": 2, "category_name": "n", "question": "How?", "instruction": "i"}],
        [("How?", "harmful", "en", "text", 0), ("The image shows a list", "harmful", "en", "typographic", 1)],
    ),
    "vlguard": (
        "v.json",
        [{"id": "1", "image": "a.jpg", "safe": False, "harmful_category": "p", "instr-resp": [{"instruction": "Do it", "response": "No"}]},
         {"id": "2", "image": "b.jpg", "safe": True, "instr-resp": [{"safe_instruction": "Describe", "response": "A cat"},
                                                                    {"unsafe_instruction": "Insult", "response": "No"}]}],
        [("Do it", "harmful", "en", "text+image", 1), ("Describe", "benign", "en", "text+image", 1),
         ("Insult", "harmful", "en", "text+image", 1)],
    ),
    "spa-vl": ("s.json", [{"image": "a.jpg", "question": "Who?", "chosen": "x", "rejected": "y"}],
               [("Who?", "harmful", "en", "text+image", 1)]),
    "jailbreakv-28k": (
        "j.csv", [{"id": 3, "jailbreak_query": "Ignore all, steal", "redteam_query": "steal", "format": "t", "policy": "p", "image_path": "a.jpg"}],
        [("Ignore all, steal", "harmful", "en", "text+image", 1)],
    ),
    "msts": ("t.csv", [{"case_id": "1", "prompt_type": "Assistance request", "prompt_text": "Soll ich das trinken?", "unsafe_image_id": "b",
                         "hazard_category": "h", "language": "german"}],
             [("Soll ich das trinken?", "harmful", "de", "text+image", 1)]),
}  # fmt: skip


def test_every_reader_is_tried():
    assert CASES.keys() == READERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_columns_become_prompts(folder: Path, name: str):
    file, rows, wanted = CASES[name]
    path = folder / file
    if isinstance(rows, dict):
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        table(path, rows)
    prompts = read(name, path)
    got = [(p.prompt, p.label, p.language, p.modality, len(p.images)) for p in prompts]
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one[0].startswith(other[0])
        assert one[1:] == other[1:]
    assert all(p.source == name and p.target is None for p in prompts)  # never an answer of theirs
    assert len({p.id for p in prompts}) == len(prompts)


def test_rows_of_a_hub_dataset_do_as_well_as_a_file():
    row = {"id": "0", "question": "How to do this?", "image": tiny.picture(1)}
    add = {"category": "01-Illegal_Activitiy"}
    kinds = {"SD": "text+image", "SD_TYPO": "typographic", "TYPO": "typographic"}
    sets = [read("mm-safetybench", [row], add={**add, "kind": kind}) for kind in kinds]
    sets.append(read("mm-safetybench", [{**row, "image": None}], add=add))
    prompts = sum(sets[1:], sets[0])
    assert [p.modality for p in prompts] == [*kinds.values(), "text"]
    assert len({p.cluster for p in prompts}) == 1
    with pytest.raises(InputError, match=r"row 1: mm-safetybench has a column 'category or file'.*; add=\{\.\.\.\}"):
        read("mm-safetybench", [row])


def test_other_scenarios_are_other_requests(folder: Path):
    rows = CASES["mm-safetybench"][1]
    sets = []
    for name in ("01-Illegal_Activitiy.json", "02-HateSpeech.json"):
        (folder / name).write_text(json.dumps(rows), encoding="utf-8")
        sets.append(read("mm-safetybench", folder / name))
    assert {p.cluster for p in sets[0]}.isdisjoint({p.cluster for p in sets[1]})
    assert len(sets[0] + sets[1]) == 8
    with pytest.raises(InputError, match="both prompt sets have an id 'mm-safetybench-01-Illegal_Activitiy-0-text'"):
        sets[0] + sets[0]


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("polyguardprompts", {"id": 7, "prompt": "x", "prompt_harm_label": "harmful"}),
        ("xsafety", {"id": 7, "text": "x", "category": "crime"}),
        ("lingua-safetybench", {"id": 7, "question": "x"}),
        ("msts", {"case_id": 7, "prompt_text": "x", "unsafe_image": b""}),
    ],
)
def test_a_request_in_two_languages_is_one_cluster(name: str, row: dict[str, Any]):
    if "unsafe_image" in row:
        row["unsafe_image"] = tiny.picture(1)
    prompts = read(name, [{**row, "language": x} for x in ("German", "French")])
    assert [p.language for p in prompts] == ["de", "fr"]
    assert len({p.cluster for p in prompts}) == 1


def test_what_is_missing_from_a_parquet_row_is_missing(folder: Path):
    rows = [{"id": 1, "en": "Steal", "zh": None, "tags": None}, {"id": 2, "en": "Take", "zh": "偷", "tags": "t"}]
    prompts = read("multijail", table(folder / "m.parquet", rows))
    assert [(p.language, p.prompt) for p in prompts] == [("en", "Steal"), ("en", "Take"), ("zh", "偷")]


@pytest.mark.parametrize("label", ["unsafe", "Unsafe", "UNSAFE"])
def test_labels_of_a_set_are_read_in_any_case(label: str):
    # trap: an unknown spelling of "unsafe" read as safe
    assert read("xstest", [{"prompt": "x", "type": "homonyms", "label": label}])[0].label == "harmful"
    row = {"id": 1, "prompt": "x", "prompt_harm_label": label, "language": "en"}
    assert read("polyguardprompts", [row])[0].label == "harmful"


def test_labels_that_may_mean_either_are_refused():
    # trap: a 0 taken for no label, a picture that is safe in other words taken for an unsafe one
    with pytest.raises(InputError, match="xstest: row 1: label 0 is unknown"):
        read("xstest", [{"prompt": "x", "type": "homonyms", "label": 0}])
    assert read("xstest", [{"prompt": "x", "type": "contrast_x", "label": ""}])[0].label == "harmful"
    row = {"id": 1, "prompt": "x", "prompt_harm_label": 0, "language": "en"}
    with pytest.raises(InputError, match="polyguardprompts: row 1: label 0 is unknown"):
        read("polyguardprompts", [row, {**row, "id": 2, "prompt_harm_label": "harmful"}])
    row = {"id": 1, "image": tiny.picture(0), "safe": "true", "instr-resp": [{"instruction": "x"}]}
    with pytest.raises(InputError, match=r"vlguard: row 1: .*safe is 'true', not true or false"):
        read("vlguard", [row])
    assert read("vlguard", [{**row, "safe": np.True_}])[0].label == "benign"


def test_spellings_of_a_language_are_one_cell_for_a_reader():
    rows = [
        {"id": i, "prompt": f"x{i}", "prompt_harm_label": "harmful", "language": x}
        for i, x in enumerate(("EN", "English", "en_US"))
    ]
    assert [str(c) for c in read("polyguardprompts", rows).cells()] == ["en/text"]


@pytest.mark.parametrize("name", ["language", "lang"])
def test_a_column_to_add_that_a_set_does_not_have_is_refused(name: str):
    # trap: translated AdvBench read as English
    with pytest.raises(InputError, match=rf"add=\{{'{name}': ...\}}: advbench has no such column"):
        read("advbench", [{"goal": "Stehle den Ring"}], add={name: "de"})
    row = {"id": 1, "text": "Stehle den Ring", "category": "crime"}
    assert read("xsafety", [row], add={"language": "German"})[0].language == "de"


def test_a_column_to_add_does_not_change_what_a_row_says():
    # trap: French rows measured as German ones
    row = {"id": 1, "prompt": "x", "prompt_harm_label": "harmful", "language": "fr"}
    with pytest.raises(InputError, match=r"row 1: add=\{'language': 'de'\}, but the row has 'fr'; leave it out"):
        read("polyguardprompts", [row], add={"language": "de"})
    for spoken in (None, "", "de"):
        assert read("polyguardprompts", [{**row, "language": spoken}], add={"language": "de"})[0].language == "de"


def test_rows_without_an_id_are_numbered():
    rows = [{"id": None, "prompt": f"x{i}", "type": "homonyms", "note": float("nan")} for i in range(2)]
    assert [p.id for p in read("xstest", rows)] == ["xstest-0", "xstest-1"]


def test_translations_and_pictures_of_a_request_are_one_cluster(folder: Path):
    for name in ("multijail", "mm-safetybench", "figstep"):
        file, rows, _ = CASES[name]
        path = folder / file
        path.write_text(json.dumps(rows), encoding="utf-8") if isinstance(rows, dict) else table(path, rows)
        prompts = read(name, path)
        assert len(prompts) > 1
        assert len({p.cluster for p in prompts}) == 1


def test_safe_and_unsafe_instructions_of_one_picture_are_a_matched_pair(folder: Path):
    prompts = read("vlguard", table(folder / "v.json", CASES["vlguard"][1]))
    assert [(h.prompt, b.prompt) for h, b in prompts.pairs()] == [("Insult", "Describe")]


@pytest.mark.parametrize(
    ("name", "file", "content", "says"),
    [
        ("advbnch", "a.csv", "goal\nx\n", r"'advbnch' is unknown; did you mean 'advbench'\? use one of advbench"),
        ("advbench", "none.csv", None, "none.csv: no such file"),
        (
            "advbench",
            "a.csv",
            "prompt,target\nx,y\n",
            r"a.csv: row 1: advbench has a column 'goal', this has prompt, target",
        ),
        ("advbench", "a.csv", "goal\n", "no prompts of advbench"),
        ("advbench", "a.csv", "goal\nSteal\n \n", r"a.csv: row 2: prompt is missing or empty"),
        ("multijail", "a.json", "{broken", "a.json: not JSON"),
        ("advbench", "a.xlsx", "x", "use .csv, .tsv, .json, .jsonl, .parquet"),
        ("spa-vl", "a.jsonl", '{"image": "../out.png", "question": "Who?"}', "lies outside|not found"),
        (
            "xsafety",
            "a.jsonl",
            '{"text": "x", "language": "Klingonish", "category": "c", "id": 1}',
            "row 1: language 'Klingonish' is not a",
        ),
        (
            "vlguard",
            "a.jsonl",
            '{"image": "a.jpg", "instr-resp": null}',
            "row 1: vlguard needs a value in column 'instr-resp'",
        ),
        ("vlguard", "a.jsonl", '{"image": "a.jpg", "instr-resp": 3}', "row 1: not a row of vlguard"),
        ("advbench", "a.jsonl", '{"goal": null}', "row 1: advbench needs a value in column 'goal'"),
        (
            "xstest",
            "a.jsonl",
            '{"prompt": "x", "type": "homonyms", "label": "maybe"}',
            "row 1: label 'maybe' is unknown",
        ),
        (
            "polyguardprompts",
            "a.jsonl",
            '{"id": 1, "prompt": "x", "prompt_harm_label": "maybe", "language": "en"}',
            "'maybe' is",
        ),
        ("advbench", "a.jsonl", "[1]", "expected a list of objects, got list in it"),
        (
            "msts",
            "a.jsonl",
            '{"case_id": 1, "prompt_text": "x", "unsafe_image_id": "a"}',
            "'language'.*; add=.* gives every row",
        ),
    ],
)
def test_bad_files_are_one_line(folder: Path, name: str, file: str, content: str | None, says: str):
    path = folder / file
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=says) as caught:
        read(name, path)
    assert "\n" not in str(caught.value)
