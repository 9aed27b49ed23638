"""A system of models: a directed acyclic graph whose nodes write one after the other.

With x the request and y_k the output of node k, which reads its parents pa(k) (nodes, the request, or both),

    p(y_1, ..., y_K | x) = prod_k p_k(y_k | y_pa(k), x)

Outputs are greedy, node by node in an order in which each comes after those that it reads. The output of the node that no other
reads is the system's answer.

Source: SysDPO (Wang et al., 2025, arXiv 2502.17721), which writes a compound system as such a graph.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..core.folders import check_files, replacing_folder
from ..core.progress import bar
from ..core.results import from_json, load_json, reading, save_json
from ..data.prompts import Prompt
from ..model.encoding import as_prompts
from ..model.generation import generate
from ..model.model import Model
from ..shield.loading import load_adapter
from .graph import check_fields, in_order, last_of
from .nodes import REQUEST, Node

__all__ = ["FILE", "Outcome", "System"]

FORMAT = "neuronshield.System/1"
#: The file of a saved system that names its nodes.
FILE = "system.json"


@dataclass(frozen=True)
class Outcome:
    """What every node of a system wrote for one request.

    >>> Outcome({"describe": "a cake", "answer": "sure"}).answer
    'sure'

    Attributes:
        outputs: text by node, the one that answers last.
    """

    outputs: Mapping[str, str]

    @property
    def answer(self) -> str:
        """The output of the last node."""
        return list(self.outputs.values())[-1]


@dataclass(frozen=True)
class _NodeFile:
    """A node as a file holds it: `model` and `fingerprint` are of the base model, `adapter` is a folder beside the file."""

    name: str
    reads: str
    pictures: bool
    max_new_tokens: int
    model: str
    fingerprint: str
    adapter: str | None = None


@dataclass(frozen=True)
class _SystemFile:
    nodes: list[_NodeFile]
    provenance: dict[str, Any] = field(default_factory=dict)


class System:
    """Models that read each other's outputs.

    >>> describe = ns.Node("describe", model)
    >>> system = ns.System([describe, ns.Node("answer", model, "{prompt} {describe}", max_new_tokens=4)])
    >>> system
    System(describe -> answer; 1 model)
    >>> len(system.generate(prompts[:3]))
    3

    Args:
        nodes: in any order.

    Raises:
        InputError: no nodes, two of one name, a template that reads what is no node, a cycle, or several nodes that none reads.
    """

    def __init__(self, nodes: Iterable[Node]) -> None:
        call, hint = "System(nodes)", "such as System([Node('describe', model), Node('answer', model, '{describe}')])"
        require(nodes, Iterable, call=call, name="nodes", hint=hint)
        given = [require(node, Node, call=call, name="every node", hint=hint) for node in nodes]
        if not given:
            raise InputError(f"{call}: no nodes; {hint}")
        check_fields([(node.name, node.fields) for node in given], request=REQUEST)
        named = {node.name: node for node in given}
        parents = {name: [f for f in node.fields if f != REQUEST] for name, node in named.items()}
        order = in_order(parents)
        end = last_of(parents)
        self.nodes: dict[str, Node] = {name: named[name] for name in [*(n for n in order if n != end), end]}
        self.parents = {name: tuple(parents[name]) for name in self.nodes}

    # -- what it is -----------------------------------------------------------------------------------
    @property
    def last(self) -> Node:
        """The node that answers."""
        return list(self.nodes.values())[-1]

    @property
    def between(self) -> list[Node]:
        """The nodes before the one that answers, in the order in which they run."""
        return list(self.nodes.values())[:-1]

    @property
    def models(self) -> list[Model]:
        """Its models, each once."""
        return list({id(node.model): node.model for node in self.nodes.values()}.values())

    def with_models(self, models: Mapping[str, Model]) -> System:
        """The same system with other models at some nodes.

        >>> system = ns.System([ns.Node("answer", model)])
        >>> system.with_models({"answer": model.replace(id="mine")}).last
        Node('answer', 'mine')

        Args:
            models: by the name of a node.

        Raises:
            InputError: a name that is no node.
        """
        for name in models:
            if name not in self.nodes:
                raise InputError(f"with_models: no node {name!r:.60}; there are {', '.join(self.nodes)}")
        return System(
            Node(n.name, models.get(n.name, n.model), n.reads, pictures=n.pictures, max_new_tokens=n.max_new_tokens)
            for n in self.nodes.values()
        )

    def provenance(self) -> dict[str, Any]:
        """What an artefact says about the system: that of every node's model, and what each node reads.

        >>> sorted(ns.System([ns.Node("answer", model)]).provenance())
        ['fingerprint', 'model', 'nodes', 'revision']
        """
        nodes = [
            {"node": n.name, "reads": n.reads, "pictures": n.pictures, "max_new_tokens": n.max_new_tokens, **n.model.provenance()}
            for n in self.nodes.values()
        ]  # fmt: skip
        told = [[n["node"], n["reads"], n["pictures"], n["fingerprint"]] for n in nodes]
        return {
            "model": " -> ".join(f"{n['node']}: {n['model']}" for n in nodes), "revision": None,
            "fingerprint": hashlib.sha256(str(told).encode()).hexdigest()[:16], "nodes": nodes,
        }  # fmt: skip

    def __repr__(self) -> str:
        n = len(self.models)
        return f"System({' -> '.join(self.nodes)}; {n} model{'' if n == 1 else 's'})"

    # -- what it writes -------------------------------------------------------------------------------
    def run(
        self,
        prompts: str | Prompt | Iterable[str | Prompt],
        *,
        max_new_tokens: int | None = None,
        batch_size: int = 32,
        progress: bool = False,
        desc: str = "system",
    ) -> list[Outcome]:
        """What every node writes for each request, greedy.

        >>> system = ns.System([ns.Node("describe", model), ns.Node("answer", model, "{describe} cake")])
        >>> list(system.run(prompts[:1])[0].outputs)
        ['describe', 'answer']

        Args:
            prompts: a `PromptSet`, a sequence of prompts or strings, or one of either.
            max_new_tokens: tokens an answer; None for what the node that answers says itself.
            batch_size: prompts a forward.
            progress: show a progress bar.
            desc: its label.

        Raises:
            InputError: as `ns.generate`, with the name of the node; or a node has nothing to read.
        """
        rows = as_prompts(self.last.model, prompts, call="System.run")
        if max_new_tokens is not None:
            at_least(1, "System.run", max_new_tokens=max_new_tokens)
        outputs: list[dict[str, str]] = [{} for _ in rows]
        with bar(len(self.nodes), desc=desc, unit="node", show=progress) as tick:
            for name, node in self.nodes.items():
                limit = max_new_tokens if node is self.last and max_new_tokens is not None else node.max_new_tokens
                asked = [node.prompt(row, said) for row, said in zip(rows, outputs, strict=True)]
                try:
                    texts = generate(node.model, asked, max_new_tokens=limit, batch_size=batch_size) if asked else []
                except InputError as error:
                    raise InputError(f"node {name!r}: {error}") from None
                for said, text in zip(outputs, texts, strict=True):
                    said[name] = text
                tick(1)
        return [Outcome(said) for said in outputs]

    def generate(self, prompts: Iterable[str | Prompt], **options: Any) -> list[str]:
        """The system's answers: the outputs of the last node.

        >>> ns.System([ns.Node("answer", model)]).generate(prompts[:2]) == ns.generate(model, prompts[:2])
        True

        Args:
            prompts: a `PromptSet`, or a sequence of prompts or strings.
            **options: those of `run`.

        Raises:
            InputError: as `run`.
        """
        return [outcome.answer for outcome in self.run(prompts, **options)]

    def asked(self, prompts: Sequence[Prompt], outcomes: Sequence[Outcome]) -> list[Prompt]:
        """The prompts that the last node read.

        >>> system = ns.System([ns.Node("describe", model), ns.Node("answer", model, "{describe} cake")])
        >>> system.asked(prompts[:1], [Outcome({"describe": "bake", "answer": "sure"})])[0].prompt
        'bake cake'

        Args:
            prompts: the requests.
            outcomes: of each.
        """
        return [self.last.prompt(p, o.outputs) for p, o in zip(prompts, outcomes, strict=True)]

    # -- files ----------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> Path:
        """The folder that the nodes are written to, without their models; `System.load` reads it.

        >>> system = ns.System([ns.Node("answer", model)])
        >>> ns.System.load(system.save("system"), {"answer": model})
        System(answer; 1 model)

        Args:
            path: the folder: missing, empty, or one that was written by this method or by `SystemUpdate.save`.

        Raises:
            InputError: a node's model was changed by an update (save the update instead), or the folder cannot be written.
        """
        for node in self.nodes.values():
            if node.model.info.get("shielded"):
                raise InputError(
                    f"{path}: the model of node {node.name!r} was changed by an update; use update.save(...)"
                )
        return replacing_folder(path, lambda folder: self.write(folder, adapters={}, provenance=self.provenance()))

    def write(self, folder: Path, *, adapters: Mapping[str, str], provenance: Mapping[str, Any]) -> None:
        """Write the file that names the nodes.

        Args:
            folder: an empty folder.
            adapters: folder of a node's adapter, by node.
            provenance: of the system or of its update.
        """
        nodes = [
            _NodeFile(
                name=n.name, reads=n.reads, pictures=n.pictures, max_new_tokens=n.max_new_tokens, model=n.model.id,
                fingerprint=n.model.fingerprint, adapter=adapters.get(n.name),
            )
            for n in self.nodes.values()
        ]  # fmt: skip
        save_json(folder / FILE, FORMAT, _SystemFile(nodes, dict(provenance)))

    @staticmethod
    def load(path: str | os.PathLike[str], models: Mapping[str, Model] | Model) -> System:
        """The system that `save` or `SystemUpdate.save` wrote, its adapters merged in.

        Args:
            path: the folder.
            models: the base model of each node, or one model for all. Nodes with the same adapter share the loaded model.

        Raises:
            InputError: no saved system, a damaged one, a node without a model, or a model with other weights.
        """
        path = Path(path)
        with reading(path / FILE, FORMAT):
            saved = from_json(_SystemFile, load_json(path / FILE, FORMAT))
        check_files(path, [FILE])
        if not isinstance(models, Model):
            require(
                models, Mapping, call="System.load(path, models)", name="models", hint="models by the name of the node"
            )
        made: dict[str, Model] = {}
        nodes = []
        for n in saved.nodes:
            given = models if isinstance(models, Model) else models.get(n.name)
            name, hint = f"the model of node {n.name!r}", f"load {n.model!r:.60}"
            model = base = require(given, Model, call="System.load(path, models)", name=name, hint=hint)
            if base.fingerprint != n.fingerprint:
                raise InputError(
                    f"{path}: node {n.name!r} has a model with weights {n.fingerprint} ({n.model!r:.60}), not "
                    f"{base.fingerprint}; load that one"
                )
            if n.adapter is not None:
                if n.adapter not in made:
                    made[n.adapter] = load_adapter(base, path / Path(n.adapter).name)
                model = made[n.adapter]
            nodes.append(Node(n.name, model, n.reads, pictures=n.pictures, max_new_tokens=n.max_new_tokens))
        return System(nodes)
