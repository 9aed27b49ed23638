"""Places: where in a layer the numbers of a site are, for traces and for plain hooks.

    site         read and changed at
    neuron       the input of the down-projection
    gate, up     the output of the gate or up-projection; where both are one projection, its first or second half
    attention    the output of the attention block's output projection (`families.ATTENTION`)
    residual     the output of the decoder layer: where `Directions` act

A change at a layer leaves what the layers below give, and what the layer itself reads, as they are. It reaches this layer's output at the same
tokens, and later layers there and at the tokens after them. So a run may go on from what the layer reads, whatever the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from .experts import Projection
from .hooks import hooked
from .model import Model

__all__ = ["Place", "place_of", "width_of"]


class Place(NamedTuple):
    """Where the numbers of a site are in every layer of a model.

    Attributes:
        site: its name.
        width: numbers a layer.
        addresses: of the module in each layer; "" for the layer itself.
        taken: whether they are what the module takes; otherwise what it gives.
        start: the first of them among the numbers that the module gives.
        whole: whether the module gives nothing else.
    """

    site: str
    width: int
    addresses: tuple[str, ...]
    taken: bool = False
    start: int = 0
    whole: bool = True

    def envoys(self, model: Model) -> list[Any]:
        """nnsight's names of the modules, one a layer.

        Args:
            model: the model.
        """
        if self.site == "neuron":
            return model.envoys
        found = []
        for layer, address in zip(model.layer_envoys, self.addresses, strict=True):
            envoy = layer
            for part in address.split(".") if address else ():
                envoy = getattr(envoy, part)
            found.append(envoy)
        return found

    def read(self, envoy: Any) -> Float[Tensor, "*batch_pos width"]:
        """The numbers of a layer, inside a trace.

        Args:
            envoy: of the layer, from `envoys`.
        """
        return envoy.input if self.taken else self._part(_first(envoy.output))  # type: ignore[no-any-return]

    def write(self, envoy: Any, h: Tensor) -> None:
        """Put other numbers in their place, inside a trace.

        Args:
            envoy: of the layer, from `envoys`.
            h: of the shape that `read` gave.
        """
        if self.taken:
            envoy.input = h
        else:
            envoy.output = self._within(envoy.output, h)

    def changing(
        self, model: Model, layers: Iterable[int], change: Callable[[int, Tensor], Tensor]
    ) -> AbstractContextManager[Any]:
        """A context of plain hooks in which `change(layer, h)` takes the place of the numbers of some layers.

        Args:
            model: the model.
            layers: their numbers.
            change: gives the new numbers of a layer; it must not write to those it is given.
        """
        modules: dict[int, nn.Module] = {}
        for layer in layers:
            owner = model.module.get_submodule(f"{model.layers_path}.{layer}")
            modules[layer] = owner.get_submodule(self.addresses[layer])
        if self.taken:
            return hooked(modules, before=change)
        return hooked(modules, after=lambda layer, _, out: self._within(out, change(layer, self._part(_first(out)))))

    def _part(self, out: Tensor) -> Tensor:
        """The numbers among those that the module gives, a view."""
        if self.site == "residual" and (out.ndim != 3 or out.shape[-1] != self.width):
            raise InputError(_no_stream(f"shape {tuple(out.shape)}"))
        return out if self.whole else out[..., self.start : self.start + self.width]

    def _within(self, out: Any, h: Tensor) -> Any:
        """What the module gives, with other numbers in their place."""
        if not self.whole:
            new = _first(out).clone()
            new[..., self.start : self.start + self.width] = h
            h = new
        return (h, *out[1:]) if isinstance(out, tuple) else h


def place_of(model: Model, site: str) -> Place:
    """Where the numbers of a site are in a model.

    >>> place_of(model, "neuron").addresses[0], place_of(model, "attention")[:3]
    ('mlp.down_proj', ('attention', 20, ('self_attn.o_proj', 'self_attn.o_proj', 'self_attn.o_proj')))

    Args:
        model: the model.
        site: "neuron", "gate", "up", "attention", or "residual" for the output of the layers.

    Raises:
        InputError: the model has no such site; says which layer and why.
    """
    if site == "residual":
        config: Any = model.module.config.get_text_config()  # type: ignore[union-attr,operator]
        if (streams := getattr(config, "altup_num_inputs", 1)) > 1:
            raise InputError(f"{model.id!r}: {_no_stream(f'{streams} streams at once')}")
        return Place(site, model.d_model, ("",) * model.n_layers)
    if site == "attention":
        return Place(site, model.d_model, model.attention)
    address = {"neuron": model.site.down, "gate": model.site.gate, "up": model.site.up}[site]
    if address is None:
        raise InputError(
            f"site={site!r}: the MLP of {model.id!r} has no gate; site 'up' is what its activation function reads"
        )
    if site != "neuron" and isinstance(model.linear(0, address), Projection):
        raise InputError(
            f"site={site!r}: {model.id!r} is a mixture of experts, whose gates and ups are computed expert by expert; its sites are "
            "'neuron' and 'attention'"
        )
    fused = model.site.fused and site != "neuron"
    return Place(
        site, model.d_mlp, (address,) * model.n_layers, taken=site == "neuron",
        start=model.d_mlp if fused and site == "up" else 0, whole=not fused,
    )  # fmt: skip


def width_of(model: Model, site: str) -> int:
    """Numbers a layer at a site: d_mlp, or d_model at "attention" and "residual".

    >>> width_of(model, "gate"), width_of(model, "attention")
    (29, 20)

    Args:
        model: the model.
        site: as for `place_of`.

    Raises:
        InputError: the model has no such site.
    """
    return place_of(model, site).width


def _first(out: Any) -> Any:
    return out[0] if isinstance(out, tuple) else out


def _no_stream(what: str) -> str:
    return f"its layers hand on {what}, not one residual stream [row, pos, d_model]; directions cannot be changed there"
