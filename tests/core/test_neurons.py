"""NeuronSet against Python's own sets, and its files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from neuronshield import InputError, Model, NeuronSet
from neuronshield.core.neurons import FORMAT
from neuronshield.core.results import save_arrays

L, D = 3, 29


def draw(seed: int, n: int = 40) -> set[tuple[int, int]]:
    rng = random.Random(seed)
    return {(rng.randrange(L), rng.randrange(D)) for _ in range(n)}


@pytest.mark.parametrize("seed", range(5))
def test_algebra_is_that_of_python_sets(seed: int):
    a, b = draw(seed), draw(seed + 100, 23)
    x, y = NeuronSet(a, n_layers=L, d_mlp=D), NeuronSet(b, n_layers=L, d_mlp=D)
    for ours, theirs in ((x | y, a | b), (x & y, a & b), (x - y, a - b), (y - x, b - a), (x ^ y, a ^ b)):
        assert set(ours) == theirs
        assert len(ours) == len(theirs)
        assert (ours.n_layers, ours.d_mlp) == (L, D)
    assert all((pair in x) == (pair in a) for pair in draw(seed + 7, 60))
    assert x == NeuronSet(a)
    assert x != y
    assert hash(x) == hash(NeuronSet(sorted(a, reverse=True)))


def test_operands_are_left_as_they_were():
    x, y = NeuronSet([(0, 1)], provenance={"method": "m"}), NeuronSet([(0, 2)], provenance={"method": "n"})
    _ = x | y
    assert list(x) == [(0, 1)]
    assert x.provenance == {"method": "m"}


def test_intersection_and_union_take_any_number_of_sets():
    sets = [draw(s, 60) for s in range(3)]
    assert set(NeuronSet.intersection(*map(NeuronSet, sets))) == set.intersection(*sets)
    assert set(NeuronSet.union(*map(NeuronSet, sets))) == set.union(*sets)
    for function in (NeuronSet.intersection, NeuronSet.union):
        with pytest.raises(InputError, match="at least one"):
            function()
        named = {str(i): NeuronSet(s) for i, s in enumerate(sets)}
        assert function(named) == function(*named.values())
        with pytest.raises(InputError, match="at least one"):
            function({})


def test_iterates_as_sorted_pairs_of_python_ints():
    # trap: numpy integers are not JSON, and sort as (index, layer) if the pair is swapped
    s = NeuronSet(zip(np.array([2, 0, 0]), np.array([1, 28, 3]), strict=True), n_layers=L, d_mlp=D)
    assert list(s) == [(0, 3), (0, 28), (2, 1)]
    assert all(type(layer) is int and type(index) is int for layer, index in s)
    assert json.dumps(list(s)) == "[[0, 3], [0, 28], [2, 1]]"


def test_views_agree_with_the_members():
    s = NeuronSet([(2, 1), (0, 28), (0, 3), (0, 3)])
    assert s.by_layer() == {0: [3, 28], 2: [1]}
    assert s.per_layer() == {0: 2, 2: 1}
    assert s.to_frame().to_dict("list") == {"layer": [0, 0, 2], "index": [3, 28, 1]}
    assert repr(s) == "NeuronSet(3 neurons in 2 layers)"


@pytest.mark.parametrize("pair", [(3, 0), (0, 29), (-1, 0), (0, -1), (28, 2)])
def test_a_neuron_outside_the_shape_is_refused(pair: tuple[int, int]):
    with pytest.raises(InputError, match=r"outside 3 layers x 29"):
        NeuronSet([pair], n_layers=L, d_mlp=D)


@pytest.mark.parametrize("op", ["__or__", "__and__", "__sub__", "__xor__"])
def test_sets_of_models_of_different_shape_do_not_combine(op: str):
    a, b = NeuronSet([(0, 1)], n_layers=L, d_mlp=D), NeuronSet([(0, 1)], n_layers=L, d_mlp=31)
    with pytest.raises(InputError, match="different shapes"):
        getattr(a, op)(b)


def test_a_set_does_not_combine_with_a_plain_set():
    with pytest.raises(InputError, match="NeuronSet with set"):
        _ = NeuronSet([(0, 1)]) | {(0, 1)}  # type: ignore[operator]


def test_combined_provenance_keeps_agreement_lists_disagreement_and_adds_what_was_seen():
    a = NeuronSet([(0, 1)], provenance={"model": "m", "cell": "en/text", "seen": ["p1", "p2"]})
    b = NeuronSet([(0, 1)], provenance={"model": "m", "cell": "sw/text", "seen": ["p3", "p2"]})
    both = (a & b).provenance
    assert both["model"] == "m"
    assert both["cell"] == ["en/text", "sw/text"]
    # trap: verify refuses prompts that selection saw, so an intersection must remember both parents' prompts
    assert both["seen"] == ["p1", "p2", "p3"]
    assert (a & b & a).provenance["seen"] == ["p1", "p2", "p3"]
    assert "seen_incomplete" not in both


def test_a_set_combined_with_one_of_unknown_history_says_so():
    a = NeuronSet([(0, 1)], provenance={"model": "m", "seen": ["p1"]})
    for other in (NeuronSet([(0, 1)]), NeuronSet([(0, 1)], provenance={"model": "m"})):
        for both in (a & other, other | a, a - other, a & other & a):
            assert (both.provenance["seen"], both.provenance["seen_incomplete"]) == (["p1"], True)


@pytest.mark.parametrize(
    ("op", "left", "right", "proven"),
    [
        ("__and__", True, False, True), ("__and__", False, True, True), ("__and__", False, False, False),
        ("__or__", True, True, True), ("__or__", True, False, False), ("__or__", False, True, False),
        ("__xor__", True, True, True), ("__xor__", False, True, False),
        ("__sub__", True, False, True), ("__sub__", False, True, False), ("__sub__", True, True, True),
    ],
)  # fmt: skip
def test_a_set_is_proven_only_if_each_of_its_members_was(op: str, left: bool, right: bool, proven: bool):
    a, b = (NeuronSet(pairs, provenance={"verified_on": "x", "proof": "y"} if known else {"method": "m"})
            for pairs, known in (([(0, 1), (0, 2)], left), ([(0, 2), (0, 3)], right)))  # fmt: skip
    about = getattr(a, op)(b).provenance
    assert ("verified_on" in about) is ("proof" in about) is proven


def test_a_combination_says_how_it_was_selected_where_every_part_does(tmp_path: Path):
    leaves = [{"rule": "top", "method": "sas", "cell": f"{c}/text", "size": {"k": 2}, "sign": None} for c in "abc"]
    a, b, c = (NeuronSet([(0, 1), (0, i)], provenance={"selection": leaf}) for i, leaf in enumerate(leaves))
    unknown = NeuronSet([(0, 1)], provenance={"method": "sas"})

    def tree(s: NeuronSet) -> object:
        return s.provenance.get("selection")

    assert tree(a & b) == {"op": "&", "of": leaves[:2]}
    assert tree((a & b) & c) == tree(a & (b & c)) == tree(NeuronSet.intersection(a, b, c)) == {"op": "&", "of": leaves}
    assert tree(a - b - c) == {"op": "-", "of": leaves}
    assert tree(a - (b - c)) == {"op": "-", "of": [leaves[0], {"op": "-", "of": leaves[1:]}]}  # not the same set
    assert tree(a - (b | c)) == {"op": "-", "of": [leaves[0], {"op": "|", "of": leaves[1:]}]}
    assert tree(a & a) == tree(a | a) == leaves[0]
    assert tree((a ^ b) ^ a) == {"op": "^", "of": [*leaves[:2], leaves[0]]}  # twice is not once
    for other in (a & unknown, unknown | a, a - NeuronSet([(0, 1)]), (a & b) ^ unknown, NeuronSet(list(a))):
        assert tree(other) is None
    assert NeuronSet.load((a - (b | c)).save(tmp_path / "s")).provenance == (a - (b | c)).provenance
    assert tree(a) == leaves[0]  # the parents stay as they were


def test_param_fraction_counts_rows_and_column_over_all_parameters(llama: Model):
    # a gated MLP neuron: gate row, up row, down column, d_model = 20 each
    total = sum(p.numel() for p in llama.module.parameters())
    s = NeuronSet([(0, 1), (2, 5), (2, 6)], n_layers=L, d_mlp=D)
    assert s.param_fraction(llama) == pytest.approx(3 * 3 * 20 / total, rel=1e-12)


def test_html_of_a_large_set_fits_a_screen():
    html = NeuronSet([(layer, i) for layer in range(40) for i in range(100)])._repr_html_()
    assert html.count("<tr>") == 12
    assert "28 more rows" in html
    assert "13, 14, 15 ..." in html
    assert "<script>" not in NeuronSet([(0, 1)], provenance={"method": "<script>"})._repr_html_()


def test_members_are_whole_numbers():
    # trap: int() would cut 1.5 to 1 and choose another neuron
    wrongs: list[Any] = [[(0, 1.5)], [(0, "1")], [(0, 1, 2)], np.zeros((2, 2))]
    for wrong in wrongs:
        with pytest.raises(InputError, match=r"give \(layer, index\) pairs"):
            NeuronSet(wrong)


# -- files ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [0, 1, 40])
def test_a_saved_set_comes_back_with_everything(tmp_path: Path, n: int):
    about = {"method": "contribution", "seed": 7, "versions": {"torch": "2"}, "seen": ["é", "中"]}
    s = NeuronSet(draw(3, n), n_layers=L, d_mlp=D, provenance=about)
    path = s.save(tmp_path / "new" / "folder" / "s.safetensors")
    back = NeuronSet.load(path)
    assert set(back) == set(s)
    assert (back.n_layers, back.d_mlp, back.provenance) == (L, D, about)
    assert [p.name for p in path.parent.iterdir()] == ["s.safetensors"]


def test_saving_again_replaces_the_file(tmp_path: Path):
    NeuronSet([(0, 1)]).save(tmp_path / "s")
    NeuronSet([(1, 2)]).save(tmp_path / "s")
    assert list(NeuronSet.load(tmp_path / "s")) == [(1, 2)]


def test_nothing_is_left_behind_when_saving_fails(tmp_path: Path):
    NeuronSet([(0, 1)]).save(tmp_path / "s")
    with pytest.raises(TypeError):
        NeuronSet([(1, 2)], provenance={"oops": object()}).save(tmp_path / "s")
    assert [p.name for p in tmp_path.iterdir()] == ["s"]
    assert list(NeuronSet.load(tmp_path / "s")) == [(0, 1)]


def test_nothing_is_left_behind_when_a_folder_has_the_name(tmp_path: Path):
    (tmp_path / "taken").mkdir()  # a folder where the file should go
    with pytest.raises(InputError, match="taken: is a folder"):
        NeuronSet([(0, 1)]).save(tmp_path / "taken")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path):
    with pytest.raises(InputError, match=r"none\.safetensors: no such file"):
        NeuronSet.load(tmp_path / "none.safetensors")


def corrupt_files() -> dict[str, bytes]:
    return {"empty": b"", "text": b"not safetensors at all", "short": b"\xff" * 8, "truncated": b"cut"}


@pytest.mark.parametrize(
    "name", ["empty", "text", "short", "truncated", "folder", "foreign", "outside", "uneven", "fractions", "nested"]
)
def test_a_corrupt_file_is_named(tmp_path: Path, name: str):
    path = tmp_path / name
    one = np.array([1], dtype=np.int32)
    about = {"n_layers": L, "d_mlp": D, "provenance": {}}
    if name == "folder":
        path.mkdir()
    elif name == "foreign":  # real safetensors, but not ours
        save_file({"weight": np.zeros((2, 3), np.float32)}, path)
    elif name == "outside":  # a member the shape does not have
        save_arrays(path, FORMAT, {"layer": one * 9, "index": one}, about)
    elif name == "uneven":
        save_arrays(path, FORMAT, {"layer": one, "index": np.array([1, 2], np.int32)}, about)
    elif name == "fractions":
        save_arrays(path, FORMAT, {"layer": one, "index": np.array([1.7])}, about)
    elif name == "nested":
        save_file({"layer": one, "index": one}, path, metadata={"neuronshield": "[" * 100_000})
    elif name == "truncated":
        NeuronSet([(0, 1)], n_layers=L, d_mlp=D).save(path)
        path.write_bytes(path.read_bytes()[:-3])
    else:
        path.write_bytes(corrupt_files()[name])
    with pytest.raises(InputError, match=f"{name}: (is a folder|not a file of neuronshield.NeuronSet)"):
        NeuronSet.load(path)


def test_no_changed_bit_gives_another_set(tmp_path: Path):
    path = tmp_path / "s"
    NeuronSet([(0, 1), (1, 5), (2, 7)], n_layers=L, d_mlp=D, provenance={"method": "x"}).save(path)
    raw = path.read_bytes()
    for byte in range(8, len(raw)):  # the first eight bytes are the length of the header
        path.write_bytes(raw[:byte] + bytes([raw[byte] ^ 1]) + raw[byte + 1 :])
        with pytest.raises(InputError, match="s: "):
            NeuronSet.load(path)
