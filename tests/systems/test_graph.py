"""Bad graphs give one clear line, and the order of a good one is the order of its edges."""

from __future__ import annotations

import itertools

import pytest

import neuronshield as ns
from neuronshield import InputError
from neuronshield.systems.graph import in_order, last_of

SHAPE = {"answer": ["b", "c"], "b": ["a"], "c": ["a"], "a": []}


def test_every_node_comes_after_those_it_reads_whatever_the_order_given():
    for names in itertools.permutations(SHAPE):
        order = in_order({name: SHAPE[name] for name in names})
        assert sorted(order) == sorted(SHAPE)
        assert all(order.index(parent) < order.index(name) for name, parents in SHAPE.items() for parent in parents)
        assert last_of({name: SHAPE[name] for name in names}) == "answer"


def test_nodes_that_do_not_read_each_other_keep_their_order():
    assert in_order({"b": [], "a": [], "z": ["a", "b"]}) == ["b", "a", "z"]


@pytest.mark.parametrize(
    ("reads", "said"),
    [
        ({"a": "{b}", "b": "{a}"}, "nodes read each other in a cycle ("),
        ({"a": "{a}"}, "in a cycle (a -> a); a node can read earlier ones only"),
        ({"a": "{prompt}", "b": "{describe}"}, "node 'b' reads {describe}, which is no node; use one of prompt, a"),
        ({"describe": "{prompt}", "b": "{descrbe}"}, "did you mean 'describe'?"),
        ({"a": "{promt}"}, "node 'a' reads {promt}, which is no node; did you mean 'prompt'?"),
        ({"a": "{prompt}", "b": "{prompt}"}, "no node reads 'a' and 'b'; exactly one node, the one that answers, may be read by none"),
    ],
)  # fmt: skip
def test_a_bad_graph_is_one_line(llama: ns.Model, reads: dict[str, str], said: str):
    with pytest.raises(InputError) as caught:
        ns.System([ns.Node(name, llama, text) for name, text in reads.items()])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_system_of_nothing_of_one_name_twice_or_of_models_is_one_line(llama: ns.Model):
    with pytest.raises(InputError, match=r"System: two nodes have the name 'a'; give each its own"):
        ns.System([ns.Node("a", llama), ns.Node("a", llama)])
    with pytest.raises(InputError, match=r"System\(nodes\): no nodes; such as"):
        ns.System([])
    with pytest.raises(InputError, match=r"every node must be Node, got Model"):
        ns.System([llama])  # type: ignore[list-item]
    with pytest.raises(InputError, match=r"nodes must be Iterable, got Node"):
        ns.System(ns.Node("a", llama))  # type: ignore[arg-type]
