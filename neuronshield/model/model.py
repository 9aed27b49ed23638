"""A model with its MLP neurons addressed: the one object that every other part asks.

A `Model` holds the torch module, its processor, nnsight's wrapper of the module, and the address of the MLP of every layer of
its **language backbone** (a vision tower's MLPs are never touched). How families differ is in `families`, how weights are
read in `weights`, what is asked of a model that runs elsewhere in `remote`.
"""

from __future__ import annotations

import dataclasses
import datetime
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.arguments import require
from ..core.errors import InputError
from ..data.languages import Prefixes
from . import families, weights
from . import remote as elsewhere
from .families import Site
from .running import wrapped
from .template import ChatTemplate, chat_template, media_tokens

__all__ = ["Model", "require_model"]


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Model:
    """A language or vision-language model with its MLP neurons addressed. Made by `load`.

    >>> model
    Model('LlamaForCausalLM', LlamaForCausalLM, n_layers=3, d_mlp=29, d_model=20, ...)
    >>> model.down_norms().shape
    torch.Size([3, 29])

    It is immutable, but its module is the one that was given: change the module's weights, and every later step sees it.

    Args:
        module: the torch model.
        processor: a transformers processor, or a bare tokenizer for a text model.
        id: what was asked for; recorded in every artefact.
        revision: commit, tag or branch on the hub; recorded too.
        layers_path: where the decoder layers are, e.g. "model.language_model.layers".
        site: where the MLP is in each of them.
        n_layers: number of decoder layers.
        d_mlp: neurons a layer.
        d_model: width of the residual stream.
        info: further facts for the provenance of artefacts.
        traced: nnsight's wrapper; every trace of it is given `**there`. Made here by default.
        remote: where traces run, as in `load`.
        prefixes: how it starts refusals and answers; the built-in prefixes of each language by default.
        template_options: what its chat template is given beside the messages, as in `load`.
        date: what its chat template reads as today, an ISO date; the day on which it was made by default.
        recipe: what `load` was given for a model of a name, so that it can be loaded again elsewhere; None for a built module.
    """

    module: nn.Module
    processor: Any
    id: str
    revision: str | None = None
    layers_path: str
    site: Site
    n_layers: int
    d_mlp: int
    d_model: int
    info: dict[str, Any] = field(default_factory=dict)
    traced: Any = None
    remote: bool | str = False
    prefixes: Prefixes = field(default_factory=Prefixes)
    template_options: Mapping[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.date.today().isoformat())
    recipe: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.traced is None:
            object.__setattr__(self, "traced", wrapped(self.module, lambda: _traced(self.module)))
        _ = self._unpacked

    def replace(self, **changes: Any) -> Model:
        """The same model with some attributes changed.

        >>> model.replace(id="mine").id
        'mine'

        Args:
            **changes: attributes by name. A new `module` of the same structure is traced here, unless `traced` is given.
        """
        if "module" in changes:
            changes = {"traced": None, "remote": False, **changes}
        return dataclasses.replace(self, **changes)

    # -- what it is -----------------------------------------------------------------------------------
    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer, or the processor itself where it is one."""
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def takes_images(self) -> bool:
        """Whether its processor takes pictures."""
        return getattr(self.processor, "image_processor", None) is not None

    @property
    def image_token_id(self) -> int | None:
        """Id of the placeholder token that stands for image features, if the model has one."""
        return families.image_token_id(self.module.config, self.processor)

    @property
    def answer_token_type(self) -> int:
        """`token_type_ids` of an answer's tokens (see `families.Traits`)."""
        return families.traits(self.module.config).answer_token_type

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template with its options; None if the processor has none, and a prompt is used verbatim."""
        return chat_template(self.processor, self.template_options, self.date)

    @cached_property
    def media_tokens(self) -> tuple[str, ...]:
        """Tokens that stand for pictures and other media, which no words of a prompt may hold; empty for a text model."""
        takes = self.takes_images or self.image_token_id is not None
        return media_tokens(self.module.config, self.processor) if takes else ()

    def idle(self, encoding: Mapping[str, Any]) -> list[int]:
        """Layers that do not run for this batch; their neurons count as silent (0), and no intervention touches them.

        >>> model.idle({"input_ids": torch.ones(1, 3)})
        []

        Args:
            encoding: what the forward is given.
        """
        return families.idle_layers(self.module.config, self.n_layers, encoding)

    def forward_takes(self, name: str) -> bool:
        """Whether the module's forward has an argument of that name; where it passes on what it does not name, the family's own.

        >>> model.forward_takes("logits_to_keep")
        True

        Args:
            name: the argument.
        """
        module: Any = self.module
        module = module.get_base_model() if hasattr(module, "get_base_model") else module  # under adapters of PEFT
        given = inspect.signature(module.forward).parameters
        passes_on = any(p.kind is p.VAR_KEYWORD for p in given.values())
        return name in given or (passes_on and name in inspect.signature(type(module).forward).parameters)

    def last_logits(self, n: int = 1) -> dict[str, Any]:
        """Options of a forward that computes logits at the last n tokens only; none if the module knows no such thing.

        >>> model.last_logits()
        {'logits_to_keep': 1}

        Args:
            n: tokens.
        """
        if not self.forward_takes("logits_to_keep"):
            return {}
        return {"logits_to_keep": families.kept_logits(self.module.config, n)}

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """A context in which no weight asks for a gradient, so that a backward pass leaves nothing on the model.

        >>> with model.frozen():
        ...     any(p.requires_grad for p in model.module.parameters())
        False
        """
        asking = [p for p in self.module.parameters() if p.requires_grad]
        try:
            for p in asking:
                p.requires_grad_(False)
            yield
        finally:
            for p in asking:
                p.requires_grad_(True)

    # -- where it is ----------------------------------------------------------------------------------
    @property
    def there(self) -> dict[str, Any]:
        """Options of a trace: where it runs."""
        return {"remote": self.remote} if self.remote else {}

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        if self.remote is True:
            return torch.device("cpu")
        return weights.input_device(self.module)

    def needs_here(self, what: str) -> None:
        """Raise if traces run elsewhere.

        >>> model.needs_here("generate")

        Args:
            what: the function that asks, for the message.

        Raises:
            InputError: they do.
        """
        if self.remote:
            raise InputError(
                f"{what}: {self.id!r} is loaded with remote={self.remote!r}, where only one forward can be asked for "
                "(capture, attribution, logits under an intervention); load it here"
            )

    def needs_weights(self, what: str) -> None:
        """Raise if the weights cannot be changed one by one: packed, offloaded, under an adapter, or elsewhere.

        >>> model.needs_weights("masked_update")

        Args:
            what: the function that asks, for the message.

        Raises:
            InputError: they are.
        """
        self.needs_here(what)
        if (why := weights.held_back(self)) is not None:
            raise InputError(f"{what}: {self.id!r} {why}")

    # -- where its neurons are ------------------------------------------------------------------------
    @cached_property
    def layer_envoys(self) -> list[Any]:
        """nnsight's names of the decoder layers."""
        layers: Any = _walk(self.traced, self.layers_path)
        return [layers[i] for i in range(self.n_layers)]

    @cached_property
    def envoys(self) -> list[Any]:
        """nnsight's names of the down-projections, whose inputs are the neurons."""
        return [_walk(layer, self.site.down) for layer in self.layer_envoys]

    @cached_property
    def attention(self) -> tuple[str, ...]:
        """Address of the output projection of attention in each layer.

        Raises:
            InputError: a layer without an attention block that is known.
        """
        layers: Any = self.module.get_submodule(self.layers_path)
        found = [families.attention_of(layer) for layer in layers]
        if None in found:
            raise InputError(
                f"site='attention': layer {found.index(None)} of {self.id!r} has no attention block that is known (a recurrent or "
                "convolutional layer has none); use another site"
            )
        return tuple(map(str, found))

    def linear(self, layer: int, name: str) -> nn.Module:
        """The module at an address inside a decoder layer.

        >>> model.linear(1, "mlp.up_proj")
        Linear(in_features=20, out_features=29, bias=False)

        Args:
            layer: the layer, from 0.
            name: the address, e.g. "mlp.up_proj" or `model.site.down`.
        """
        return self.module.get_submodule(f"{self.layers_path}.{layer}.{name}")

    # -- its weights ----------------------------------------------------------------------------------
    @cached_property
    def _elsewhere(self) -> elsewhere.Facts | None:
        """What the weights tell where they are, asked once and on first use; None if they are here."""
        return elsewhere.facts(self) if self.remote is True else None

    @cached_property
    def _unpacked(self) -> tuple[dict[int, Tensor], str] | None:
        """Norms by order, and fingerprint, of packed or offloaded weights: read once, before a forward re-packs or moves them."""
        if self.remote is True or (self.quantized is None and not weights.is_offloaded(self)):
            return None
        return {order: weights.down_norms(self, order) for order in (1, 2)}, weights.fingerprint(self)

    @property
    def quantized(self) -> str | None:
        """ "nf4", "int8" or another name if MLP weights are packed, which cannot be changed one by one; None if not."""
        return weights.packing(self)

    @property
    def dtype(self) -> str:
        """Of the MLP weights: a torch dtype's name, "nf4", "int8" or another name if they are packed."""
        return self._elsewhere.dtype if self._elsewhere is not None else weights.dtype_name(self)

    @property
    def n_params(self) -> int:
        """All parameters (see `weights.count_params`)."""
        return weights.count_params(self)

    @property
    def params_per_neuron(self) -> int:
        """Weights a neuron owns (see `weights.params_per_neuron`)."""
        return weights.params_per_neuron(self)

    @property
    def fingerprint(self) -> str:
        """Short hash of the shape and of a sample of the MLP weights: tells two checkpoints apart."""
        if self._unpacked is not None:
            return self._unpacked[1]
        return weights.fingerprint(self, self._elsewhere.samples if self._elsewhere is not None else None)

    def down_weight(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """W_down of a layer, one column a neuron (see `weights.down_weight`).

        >>> model.down_weight(1).shape
        torch.Size([20, 29])

        Args:
            layer: the layer, from 0.
        """
        return weights.down_weight(self, layer)

    def down_norms(self, order: int = 2) -> Float[Tensor, "n_layers d_mlp"]:
        """c_i = ||W_down[:, i]|| of every neuron, float64.

        >>> model.down_norms(1).shape
        torch.Size([3, 29])

        Args:
            order: 2 or 1, the order of the norm.
        """
        if self._unpacked is not None:
            return self._unpacked[0][order]
        return self._elsewhere.norms[order] if self._elsewhere is not None else weights.down_norms(self, order)

    # -- what artefacts say of it ---------------------------------------------------------------------
    def provenance(self) -> dict[str, Any]:
        """What an artefact says about the model that it came from.

        >>> sorted(model.provenance())
        ['dtype', 'fingerprint', 'model', 'revision', 'template']
        """
        template = self.template
        return {
            "model": self.id,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            "template": None if template is None else template.facts(),
            **self.info,
        }

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {type(self.module).__name__}, n_layers={self.n_layers}, d_mlp={self.d_mlp}, "
            f"d_model={self.d_model}, {self.n_params / 1e6:.1f} M parameters)"
        )


def require_model(value: Any, *, call: str) -> None:
    """Raise unless a value is a `Model`; of an update of a model, the message names the model in it.

    >>> require_model(model, call="evaluate(model, prompts)")

    Args:
        value: what was given.
        call: how the call reads when it is right.

    Raises:
        InputError: something else.
    """
    inside = isinstance(getattr(value, "model", None), Model)
    require(value, Model, call=call, name="model", hint="pass update.model" if inside else "")


def _traced(module: nn.Module) -> Any:
    """nnsight's wrapper of a module that is here; inputs go where its embeddings act, which may be offloaded themselves."""
    from nnsight import NNsight

    if not any(p.is_meta for p in module.parameters()):
        return NNsight(module)

    class Offloaded(NNsight):  # type: ignore[misc]
        @property
        def device(self) -> torch.device:
            return weights.input_device(module)

    return Offloaded(module)


def _walk(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root
