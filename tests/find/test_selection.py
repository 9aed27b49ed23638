"""Sets from scores: their files, what a set difference leaves, and warnings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from neuronshield import Cell, InputError, NeuronSet
from neuronshield.core.results import save_arrays
from neuronshield.find.cells import CellSets
from neuronshield.find.selection import Scores

CELLS = [Cell("en", "text"), Cell("sw", "text+image")]


def scores(*, against: bool = False, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    values, other, difference = (rng.normal(0, 1, (2, 3, 11)) for _ in range(3))
    return Scores(CELLS, values, other if against else None, "m", 3300, 10, {"seen": ["x"]}, difference)


def test_sizes_of_one_amount_agree():
    found = scores()
    # 33 neurons, 3,300 parameters, 10 a neuron
    assert found.top(k=8) == found.top(fraction=8 / 33) == found.top(param_fraction=80 / 3300)
    assert found.top(fraction=8.99 / 33) == found.top(k=8)
    assert found.top(k=33) == found.top(per_layer=11)


@pytest.mark.parametrize("size", [{"k": 33}, {"fraction": 1.0}, {"param_fraction": 0.1}, {"per_layer": 11}])
def test_the_whole_model_may_be_chosen_and_no_more(size: dict[str, float]):
    assert [len(s) for s in scores().top(**size).values()] == [33, 33]  # type: ignore[arg-type]
    more = {name: value + 1 if isinstance(value, int) else value * 34 / 33 for name, value in size.items()}
    with pytest.raises(InputError, match="must be 1 to"):
        scores().top(**more)  # type: ignore[arg-type]


def test_a_set_difference_takes_the_least_k_that_leaves_exactly_enough():
    # one layer, ranks 1..6 by harmful; benign shares the first: k = 3 leaves two
    values = np.array([[[6.0, 5, 4, 3, 2, 1]]])
    against = np.array([[[6.0, 0.1, 0.2, 0.3, 4, 5]]])
    found = Scores(CELLS[:1], values, against, "m", 60, 10)
    assert list(found.top(k=1)["en/text"]) == [(0, 1)]  # k = 2: {0, 1} - {0, 5}
    assert list(found.top(k=2)["en/text"]) == [(0, 1), (0, 2)]  # k = 3: {0, 1, 2} - {0, 5, 4}
    assert list(found.top(per_layer=3)["en/text"]) == [(0, 1), (0, 2)]


def test_too_little_left_by_a_set_difference_is_warned_of(caplog: pytest.LogCaptureFixture):
    same = np.arange(6.0).reshape(1, 1, 6)
    other = np.array([[[5.0, 4, 3, 2, 1, 0]]])
    found = Scores(CELLS[:1], same, other, "m", 60, 10)
    with caplog.at_level("WARNING", logger="neuronshield"):
        assert len(found.top(k=3)["en/text"]) == 3
    assert not caplog.text
    with caplog.at_level("WARNING", logger="neuronshield"):
        assert len(found.top(k=4)["en/text"]) == 3
    assert "en/text: a set difference leaves only 3" in caplog.text


def test_signs_do_not_matter_and_zeros_are_last():
    values = np.array([[[-3.0, 0, 2, 0, -1]]])
    found = Scores(CELLS[:1], values, None, "m", 50, 10)
    assert [list(found.top(k=k)["en/text"]) for k in (1, 2, 4)] == [
        [(0, 0)], [(0, 0), (0, 2)], [(0, 0), (0, 1), (0, 2), (0, 4)],
    ]  # fmt: skip


@pytest.mark.parametrize("against", [False, True])
def test_scores_come_back_from_their_file(tmp_path: Path, against: bool):
    found = scores(against=against)
    back = Scores.load(found.save(tmp_path / "s"))
    np.testing.assert_array_equal(back.values, found.values)
    assert (back.against is None) is (found.against is None)
    if back.against is not None and found.against is not None:
        np.testing.assert_array_equal(back.against, found.against)
    np.testing.assert_array_equal(back.difference, found.difference)
    for name in ("cells", "method", "n_params", "params_per_neuron", "provenance"):
        assert getattr(back, name) == getattr(found, name)
    assert back.top(k=5) == found.top(k=5)


def test_scores_that_do_not_fit_their_cells_are_refused(tmp_path: Path):
    about = {"cells": ["en/text"], "method": "m", "n_params": 1, "params_per_neuron": 1, "provenance": {}}
    save_arrays(tmp_path / "s", "neuronshield.Scores/2", {"values": np.zeros((2, 3, 4))}, about)
    with pytest.raises(InputError, match=r"s: not a file of .*1 cell, but values has shape \(2, 3, 4\)"):
        Scores.load(tmp_path / "s")
    save_arrays(tmp_path / "s", "neuronshield.Scores/2", {"values": np.zeros((1, 3, 4))}, {"cells": ["en/text"]})
    with pytest.raises(InputError, match=r"s: not a file of neuronshield.Scores/2 \(.*field 'method' is missing\)"):
        Scores.load(tmp_path / "s")
    save_arrays(tmp_path / "s", "neuronshield.Scores/2", {"against": np.zeros((1, 3, 4))}, about)
    with pytest.raises(InputError, match=r"s: not a file of neuronshield.Scores/2 .*'values'"):
        Scores.load(tmp_path / "s")


def test_sets_come_back_from_their_file_with_their_provenance(tmp_path: Path):
    sets = CellSets({**scores().top(k=5), "ko/text": NeuronSet(n_layers=3, d_mlp=11)})
    back = CellSets.load(sets.save(tmp_path / "s"))
    assert list(back) == list(sets)
    assert back == sets
    for cell, neurons in sets.items():
        assert (back[cell].provenance, back[cell].n_layers, back[cell].d_mlp) == (neurons.provenance, 3, 11)
    save_arrays(tmp_path / "t", "neuronshield.CellSets/1", {"members": np.array([[1, 0, 0]])}, [])
    with pytest.raises(InputError, match=r"not a file of neuronshield\.CellSets"):
        CellSets.load(tmp_path / "t")


def test_sets_are_a_mapping():
    sets = scores().top(k=5)
    assert dict(sets) == {cell: sets[cell] for cell in CELLS}
    assert [str(c) for c in sets] == ["en/text", "sw/text+image"]
    assert sets.get("en/text") == sets[CELLS[0]]
    assert sets.get("ko/text", 1) == 1
    assert repr(CellSets({f"en-x-{a}{b}/text": NeuronSet([(0, 1)]) for a in "ab" for b in "abc"})).endswith("2 more)")


def test_a_fraction_that_rounding_puts_just_below_a_number_gives_that_number():
    values = np.random.default_rng(0).normal(0, 1, (1, 4, 25))
    found = Scores(CELLS[:1], values, None, "m", 1000, 10)
    assert 0.29 * 100 < 29
    assert len(found.top(fraction=0.29)["en/text"]) == 29


def test_a_neuron_that_was_taken_away_does_not_return_as_a_tie_at_zero():
    values = np.array([[[0.0, 0, 0, 0], [5, 0, 0, 0]]])
    against = np.array([[[4.0, 3, 2, 1], [0, 0, 1, 2]]])
    found = Scores(CELLS[:1], values, against, "m", 1000, 10)
    assert list(found.top(k=2)["en/text"]) == [(1, 0), (1, 1)]


# -- signs -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("sign", ["harmful", "benign"])
@pytest.mark.parametrize("size", [{"k": 5}, {"fraction": 5 / 33}, {"per_layer": 2}, {"param_fraction": 50 / 3300}])
def test_a_sign_takes_the_best_of_its_side_alone(sign: str, size: dict[str, float]):
    found = scores()
    assert found.difference is not None
    for at, neurons in enumerate(found.top(**size, sign=sign).values()):  # type: ignore[arg-type]
        side = found.difference[at] * {"harmful": 1, "benign": -1}[sign]
        order = sorted(
            ((la, i) for la in range(3) for i in range(11) if side[la, i] > 0), key=lambda n: -abs(found.values[at][n])
        )
        if "per_layer" in size:
            assert set(neurons) == {n for la in range(3) for n in [m for m in order if m[0] == la][:2]}
        else:
            assert set(neurons) == set(order[:5])
        assert neurons.provenance["selection"]["sign"] == sign


@pytest.mark.parametrize("sign", ["harmful", "benign"])
@pytest.mark.parametrize("size", [{"k": 5}, {"per_layer": 6}])
def test_with_a_set_difference_the_sign_is_of_the_first_ranking(sign: str, size: dict[str, int]):
    """The neurons of the other side are left out before the top k is taken; the top k that is taken away stays whole."""
    found = scores(against=True)
    assert found.difference is not None
    assert found.against is not None
    for at, neurons in enumerate(found.top(**size, sign=sign).values()):  # type: ignore[arg-type]
        side = found.difference[at] * {"harmful": 1, "benign": -1}[sign] > 0

        def left(k: int, at: int = at, side: np.ndarray = side) -> set[tuple[int, int]]:
            out = set()
            for la in range(3):
                mine = [i for i in np.argsort(-np.abs(found.values[at, la])).tolist() if side[la, i]][:k]
                out |= {(la, i) for i in set(mine) - set(np.argsort(-np.abs(found.against[at, la]))[:k].tolist())}  # type: ignore[index]
            return out

        if "per_layer" in size:
            assert set(neurons) == left(6)
        else:
            pool = next(left(k) for k in range(1, 12) if len(left(k)) >= 5)
            assert set(neurons) == set(sorted(pool, key=lambda n: -abs(found.values[at][n]))[:5])


def test_the_two_signs_share_the_neurons_that_differ_among_them(caplog: pytest.LogCaptureFixture):
    found = scores()
    assert found.difference is not None
    found.difference[0, 0, 3] = 0.0  # neither
    with caplog.at_level("WARNING", logger="neuronshield"):
        a, b = (found.top(k=33, sign=sign)["en/text"] for sign in ("harmful", "benign"))
    assert not a & b
    assert set(a | b) == {(la, i) for la in range(3) for i in range(11)} - {(0, 3)}
    assert f"sign='harmful' leaves only {len(a)}" in caplog.text


def test_a_sign_is_refused_where_it_is_not_known():
    without = Scores(CELLS[:1], np.ones((1, 3, 11)), None, "snip", 3300, 10)
    with pytest.raises(
        InputError, match=r"top\(sign='harmful'\): snip scores do not say on which prompts a neuron is larger"
    ):
        without.top(k=3, sign="harmful")
    with pytest.raises(InputError, match="sign='harmfull' is unknown; did you mean 'harmful'"):
        scores().top(k=3, sign="harmfull")


def test_the_signs_of_the_best_are_shown_when_directions_are_given():
    found = scores()
    rng = np.random.default_rng(5)
    directions = {"en": rng.normal(0, 1, (3, 11)), "sw": rng.normal(0, 1, (3, 11))}
    table = found.to_frame(k=6, directions=directions)
    assert table.columns.tolist() == ["cell", "rank", "layer", "index", "m", "difference", "writes", "kind"]
    assert table.drop(columns=["difference", "writes", "kind"]).equals(found.to_frame(k=6))
    names = {(1, 1): "refusal-promoting", (-1, -1): "compliance-promoting"}
    assert found.difference is not None
    for row in table.itertuples():
        at = [str(c) for c in CELLS].index(str(row.cell))
        contrast = found.difference[at, row.layer, row.index]  # type: ignore[index]
        writes = directions[CELLS[at].language][row.layer, row.index]  # type: ignore[index]
        assert (row.difference, row.writes) == (contrast, writes)
        assert row.kind == names.get((np.sign(contrast), np.sign(writes)), "anti-refusal")
    assert table["kind"].nunique() == 3
    with pytest.raises(InputError, match=r"none for the language of sw/text\+image; there are en"):
        found.to_frame(directions={"en": directions["en"]})
    with pytest.raises(InputError, match="m scores do not say on which prompts"):
        Scores(CELLS, found.values, None, "m", 3300, 10).to_frame(directions=directions)
