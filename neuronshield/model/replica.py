"""A replica: a copy of a model in another process, which computes units there. It knows nothing of what starts the process.

A model travels as a `Spec`: how it was loaded (`Model.recipe`), or else its class, its config and the files of its processor. The
replica loads or builds it, and says what its tensors are (`identity.digests`). The tensors that differ are then sent, as safetensors
bytes: all of them for a model that was built in memory, those of the changed rows' projections after a masked update. At the end the
replica's model must have the `identity` of the original. A model that cannot be made again like this is refused in one line.

Interventions travel with the values of their neurons only; values that several of them share are sent once.
"""

from __future__ import annotations

import importlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..core.directions import Directions
from ..core.errors import InputError
from ..core.journal import Result
from ..core.neurons import NeuronSet
from ..data.pictures import file_bytes
from .engine import Context, Unit, result_of, storage
from .identity import digests, identity, tensors
from .intervention import Intervention
from .load import load
from .model import Model
from .places import width_of

__all__ = ["Parcel", "Replica", "Spec", "packed", "spec_of", "weights_of"]

FACTS = ("id", "revision", "date", "template_options", "prefixes", "info")


@dataclass(frozen=True)
class Spec:
    """How a model is made again in another process.

    Attributes:
        recipe: what `load` was given for it; None if it was built in memory.
        family: name of its class in transformers, where it was built in memory.
        config: its config as JSON.
        processor: the class and the files of its processor, by name; None where the recipe brings it.
        site: layers_path and names of the MLP's projections.
        facts: attributes of the `Model` that `load` does not bring.
        dtypes: type of each tensor.
    """

    recipe: Mapping[str, Any] | None
    family: str
    config: str
    processor: tuple[str, dict[str, bytes]] | None
    site: tuple[str, tuple[str, str, str | None]]
    facts: dict[str, Any]
    dtypes: dict[str, str]


def spec_of(model: Model) -> Spec:
    """How a model is made again elsewhere.

    >>> spec_of(model).family, spec_of(model).recipe
    ('LlamaForCausalLM', None)

    Args:
        model: the model.

    Raises:
        InputError: it runs elsewhere already, or it was built in memory of something that is not transformers' own.
    """
    model.needs_here("engine")
    module, family = model.module, type(model.module).__name__
    facts = {name: getattr(model, name) for name in FACTS}
    dtypes = {name: str(value.dtype) for name, value in tensors(module).items()}
    site = (model.layers_path, tuple(model.site))
    if model.recipe is not None:
        recipe = dict(model.recipe)
        return Spec(recipe, family, "", processor=None, site=site, facts=facts, dtypes=dtypes)  # type: ignore[arg-type]
    if getattr(importlib.import_module("transformers"), family, None) is not type(module):
        raise InputError(
            f"engine: {model.id!r} is a {family} that was built in memory, which workers cannot build; save it, load it by the "
            "name of its folder with ns.load, and put that folder where all workers see it"
        )
    config = json.dumps(module.config.to_dict(), default=str)  # type: ignore[union-attr,operator]
    processor = _files(model.processor)
    return Spec(None, family, config, processor=processor, site=site, facts=facts, dtypes=dtypes)  # type: ignore[arg-type]


def _files(processor: Any) -> tuple[str, dict[str, bytes]]:
    """The class of a processor, and the files that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        found = {p.relative_to(folder).as_posix(): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}
    return type(processor).__name__, found


def weights_of(model: Model, names: list[str]) -> bytes:
    """Some tensors of a model, as the bytes of a safetensors file.

    >>> len(weights_of(model, ["model.norm.weight"])) > 80
    True

    Args:
        model: the model.
        names: of the tensors.
    """
    from safetensors.torch import save

    found = tensors(model.module)
    return save({name: found[name].cpu().contiguous().clone() for name in names})


@dataclass(frozen=True)
class Parcel:
    """A unit without what need not travel: pictures as bytes, interventions with the values of their neurons.

    Attributes:
        unit: the unit, without conditions.
        conditions: for each condition what makes it again, and the number of its values; one on directions as it is.
        values: (neurons, values of those neurons, numbers a layer at their site), each shared by one or more conditions.
        n_layers: layers of the model.
        widths: numbers a layer at each site that a condition is at.
    """

    unit: Unit
    conditions: tuple[Any, ...]
    values: tuple[tuple[np.ndarray, np.ndarray, int], ...]
    n_layers: int
    widths: dict[str, int]

    def unpacked(self) -> Unit:
        """The unit."""
        whole = [self._whole(neurons, values, width=width) for neurons, values, width in self.values]
        made: list[Intervention | None] = []
        for told in self.conditions:
            if told is None or isinstance(told, Intervention):
                made.append(told)
                continue
            pairs, site, kind, positions, cells, number, value = told
            shape = (self.n_layers, self.widths[site])
            neurons = NeuronSet(map(tuple, pairs.tolist()), n_layers=shape[0], d_mlp=shape[1], site=site)
            given = value if number is None else whole[number]
            one = Intervention(
                neurons,
                kind,
                0.0 if kind == "scale" else None if kind == "zero" else torch.zeros(shape),
                positions=positions,
                cells=cells,
            )  # type: ignore[arg-type]
            made.append(one if given is None else one.with_value(given))
        return replace(self.unit, conditions=tuple(made))

    def _whole(self, neurons: np.ndarray, values: np.ndarray, *, width: int) -> torch.Tensor:
        """Values with an entry for every neuron, as an intervention has them; those of other neurons are 0 and never read."""
        out = torch.zeros(*values.shape[:-1], self.n_layers, width, dtype=torch.float32)
        layer, index = torch.from_numpy(neurons.T.copy())
        out[..., layer, index] = torch.from_numpy(values.copy())
        return out


def packed(model: Model, unit: Unit) -> Parcel:
    """A unit as it travels.

    >>> unit = Unit("", tuple(prompts[:2]), (None, ns.Intervention(neurons, "mean", torch.ones(3, 29))))
    >>> parcel = packed(model, unit)
    >>> parcel.values[0][1].shape, parcel.unpacked().conditions[1] == unit.conditions[1]
    ((3,), True)

    Args:
        model: the model that the unit is for.
        unit: the unit.
    """
    members: dict[Any, set[tuple[int, int]]] = {}
    shared: dict[Any, torch.Tensor] = {}
    for c in unit.conditions:
        if c is not None and isinstance(c.neurons, NeuronSet) and c.value is not None and c.value.ndim:
            shared[storage(c.value)] = c.value
            members.setdefault(storage(c.value), set()).update(c.neurons)
    number = {name: i for i, name in enumerate(shared)}
    values = []
    for name, value in shared.items():
        pairs = np.array(sorted(members[name]), dtype=np.int64)
        values.append((pairs, value[..., pairs[:, 0], pairs[:, 1]].numpy(), value.shape[-1]))
    conditions = tuple(
        c
        if c is None or isinstance(c.neurons, Directions)
        else (
            np.array(list(c.neurons), dtype=np.int64),
            c.neurons.site,
            c.kind,
            c.positions,
            None if c.cells is None else [str(cell) for cell in c.cells],
            number.get(storage(c.value)) if c.value is not None else None,
            c.value if c.value is not None and not c.value.ndim else None,
        )
        for c in unit.conditions
    )
    prompts = tuple(
        replace(p, images=tuple(file_bytes(image) if isinstance(image, Path) else image for image in p.images))
        if any(isinstance(image, Path) for image in p.images)
        else p
        for p in unit.prompts
    )
    sites = {c.neurons.site for c in unit.conditions if c is not None and isinstance(c.neurons, NeuronSet)}
    return Parcel(
        replace(unit, prompts=prompts, conditions=()), conditions, values=tuple(values), n_layers=model.n_layers,
        widths={site: width_of(model, site) for site in sorted(sites)},
    )  # fmt: skip


class Replica:
    """A model in this process that computes units which were sent to it.

    >>> replica = Replica(threads=1)
    >>> mine = replica.bind(spec_of(model), device="cpu")
    >>> theirs = digests(model.module)
    >>> replica.patch(weights_of(model, [name for name in theirs if mine[name] != theirs[name]])) == identity(model)
    True
    >>> unit = Unit("neuronshield.model.units:answers_of", tuple(prompts[:3]), (None,), {"max_new_tokens": 3, "batch_size": 4})
    >>> len(replica.run(packed(model, unit))[1])
    3

    Args:
        threads: that torch may use here.
    """

    def __init__(self, *, threads: int) -> None:
        torch.set_num_threads(threads)
        self.spec: Spec | None = None
        self.model: Model | None = None
        self.context = Context()

    def bind(self, spec: Spec, *, device: str) -> dict[str, str]:
        """Load or build a model; the `digests` of its tensors. One that was made by the same recipe is kept.

        Args:
            spec: of the model.
            device: where it goes, where its recipe has no device_map: "cpu", "cuda", or "auto" for several GPUs.

        Raises:
            InputError: it cannot be loaded here.
        """
        self.context = Context()
        if self.model is None or self.spec is None or _structure(self.spec) != _structure(spec):
            self.spec = self.model = None  # the old one gives its memory back before the new one takes its own
            self.model = _loaded(spec, device) if spec.recipe is not None else _built(spec, device)
        self.spec = spec
        self.model = self.model.replace(**spec.facts)
        return digests(self.model.module)

    def patch(self, weights: bytes) -> str:
        """Overwrite some tensors of the model; its `identity` then.

        Args:
            weights: the bytes of a safetensors file.

        Raises:
            InputError: a tensor that the model does not have, or of another shape.
        """
        from safetensors.torch import load as read

        model = self._model()
        own = tensors(model.module)
        with torch.no_grad():
            for name, value in read(weights).items() if weights else ():
                if name not in own or own[name].shape != value.shape:
                    raise InputError(
                        f"engine: a worker's copy of {model.id!r} has no tensor {name!r} of shape {list(value.shape)}"
                    )
                own[name].copy_(value)
        self.model = model.replace()  # what was read of the old weights is forgotten
        return identity(self.model)

    def run(self, parcel: Parcel) -> Result | str:
        """The result of a unit; where the input is wrong, the line that says so.

        Args:
            parcel: the unit.
        """
        try:
            return result_of(self._model(), parcel.unpacked(), self.context)
        except InputError as error:
            return str(error)

    def pid(self) -> int:
        """The number of this process."""
        return os.getpid()

    def _model(self) -> Model:
        if self.model is None:
            raise RuntimeError("this replica has no model; bind one")
        return self.model


def _structure(spec: Spec) -> str:
    """What decides a model's structure, as opposed to the values of its tensors."""
    files = None if spec.processor is None else sorted((name, hash(data)) for name, data in spec.processor[1].items())
    return repr((spec.recipe, spec.family, spec.config, files, spec.site, sorted(spec.dtypes.items())))


def _loaded(spec: Spec, device: str) -> Model:
    options = dict(spec.recipe or {})
    if "device_map" not in options:
        options["device_map" if device == "auto" else "device"] = device
    return load(options.pop("model"), **options)


def _built(spec: Spec, device: str) -> Model:
    """The model of a class and a config, with weights that are still to come."""
    transformers: Any = importlib.import_module("transformers")
    family = getattr(transformers, spec.family)
    kinds = Counter(spec.dtypes.values())
    dtype = next((name for name, _ in kinds.most_common() if "float" in name), "torch.float32").removeprefix("torch.")
    module = family(family.config_class.from_dict(json.loads(spec.config))).to(getattr(torch, dtype)).eval()
    name, files = spec.processor or ("", {})
    with tempfile.TemporaryDirectory() as folder:
        for file, data in files.items():
            path = Path(folder) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        processor = getattr(transformers, name).from_pretrained(folder)
    layers, site = spec.site
    return load(module.to("cuda" if device == "auto" else device), processor=processor, layers=layers, site=site)
