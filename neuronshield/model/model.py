"""A model with its MLP neurons addressed: the one object every other part asks.

A `Model` holds the torch module, its processor, nnsight's wrapper, and the address of the MLP down-projection of every layer
of its **language backbone** (a vision tower's MLPs are never touched).
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..core.errors import InputError
from ..data.languages import Prefixes
from . import remote
from .families import Site
from .weights import is_conv1d

__all__ = ["Model"]


@dataclass(eq=False)
class Model:
    """A language or vision-language model with its MLP neurons addressed. Made by `load`.

    Attributes:
        module: the underlying torch model; change it and every later step sees the change.
        processor: a transformers processor, or a bare tokenizer for a text model.
        id, revision: what was asked for, recorded in every artefact.
        layers_path: where the decoder layers are, e.g. "model.language_model.layers".
        n_layers, d_mlp, d_model: layers, neurons a layer, width of the residual stream.
        traced: nnsight's wrapper; every trace of it is given `**there`.
        remote: where traces run, as in `load`.
        prefixes: how it starts refusals and answers; the built-in prefixes of each language unless set.
    """

    module: nn.Module
    processor: Any
    id: str
    revision: str | None
    layers_path: str
    site: Site
    n_layers: int
    d_mlp: int
    d_model: int
    info: dict[str, Any] = field(default_factory=dict)
    traced: Any = None
    remote: bool | str = False
    prefixes: Prefixes = field(default_factory=Prefixes)

    def __post_init__(self) -> None:
        from nnsight import NNsight

        self.traced = self.traced if self.traced is not None else NNsight(self.module)
        envoy: Any = self.traced
        for part in self.layers_path.split("."):
            envoy = getattr(envoy, part)
        self.layer_envoys = [envoy[i] for i in range(self.n_layers)]
        self.envoys = [_walk(layer, self.site.down) for layer in self.layer_envoys]
        self._norms: dict[int, Tensor] = {}
        self._print: str | None = None
        self._facts: Any = None
        if self.quantized is not None:  # unpacked once, before a forward re-packs them for its device
            self.down_norms(1), self.down_norms(2)
            self._print = self.fingerprint
        if self.remote is True:
            self._facts = remote.facts(self)
            self._norms = self._facts.norms

    # -- what it is -----------------------------------------------------------------------------------
    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)

    @property
    def takes_images(self) -> bool:
        return getattr(self.processor, "image_processor", None) is not None

    @property
    def image_token_id(self) -> int | None:
        """Id of the placeholder token that stands for image features, if the model has one."""
        config = self.module.config
        for name in ("image_token_id", "image_token_index"):
            if isinstance(getattr(config, name, None), int):
                return getattr(config, name)
        return None

    @property
    def answer_token_type(self) -> int:
        """`token_type_ids` of an answer: PaliGemma reads 0 as its prefix, which sees all of itself; Gemma 3 as text."""
        return int(self.module.config.model_type == "paligemma")  # type: ignore[union-attr]

    def idle(self, encoding: Mapping[str, Any]) -> list[int]:
        """Layers that do not run for this batch: Llama 3.2 Vision's cross-attention layers, where there is no picture.

        Their neurons count as silent there (0), and an intervention on them touches nothing.
        """
        config: Any = self.module.config
        crossed = getattr(config.get_text_config(), "cross_attention_layers", None) or []
        return [] if "pixel_values" in encoding else [i for i in range(self.n_layers) if i in crossed]

    @property
    def there(self) -> dict[str, Any]:
        """Options of a trace: where it runs."""
        return {"remote": self.remote} if self.remote else {}

    @property
    def device(self) -> torch.device:
        """Where inputs go."""
        if self.remote is True:
            return torch.device("cpu")
        return self.module.get_input_embeddings().weight.device  # type: ignore[operator,union-attr,return-value]

    @property
    def n_params(self) -> int:
        """All parameters, tied ones once, packed ones by what they unpack to."""
        count = getattr(self.module, "num_parameters", None) if self.quantized else None
        return int(count()) if count is not None else sum(p.numel() for p in self.module.parameters())

    @property
    def quantized(self) -> str | None:
        """ "nf4" or "int8" if the weights are packed, which cannot be changed one by one; None if not."""
        packed = {"Linear4bit": "nf4", "Linear8bitLt": "int8"}
        return packed.get(type(self.linear(0, self.site.down)).__name__)

    @property
    def dtype(self) -> str:
        """Of the weights: a torch dtype's name, "nf4" or "int8"."""
        if self._facts is not None:
            return self._facts.dtype
        return self.quantized or str(next(self.module.parameters()).dtype).removeprefix("torch.")

    def needs_here(self, what: str) -> None:
        """Raise if traces run elsewhere.

        Raises:
            InputError: they do.
        """
        if self.remote:
            raise InputError(
                f"{what}: {self.id!r} is loaded with remote={self.remote!r}, where only one forward can be asked for "
                "(capture, attribution, logits under an intervention); load it here"
            )

    def needs_weights(self, what: str) -> None:
        """Raise if the weights are packed or elsewhere.

        Raises:
            InputError: they are.
        """
        self.needs_here(what)
        if self.quantized is not None:
            raise InputError(
                f"{what}: {self.id!r} is loaded in {self.quantized}, whose weights cannot be changed one by one; load it in bfloat16"
            )

    @property
    def params_per_neuron(self) -> int:
        """Weights a neuron owns: its gate and up rows (and their biases) and its down column."""
        total = self.d_model
        for name in (self.site.up, self.site.gate):
            if name is not None:
                linear = self.linear(0, name)
                total += self.d_model + (getattr(linear, "bias", None) is not None)
        return total

    @property
    def fingerprint(self) -> str:
        """Short hash of the shape and of a sample of the MLP weights: tells two checkpoints apart."""
        if self._print is not None:
            return self._print
        digest = hashlib.sha256(f"{self.n_layers},{self.d_mlp},{self.d_model},{self.n_params}".encode())
        for layer in range(self.n_layers):
            sample = self.down_weight(layer)[:4] if self._facts is None else self._facts.samples[layer]
            digest.update(sample.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    def forward_takes(self, name: str) -> bool:
        """Whether the module's forward has an argument of that name."""
        return name in inspect.signature(self.module.forward).parameters

    # -- where its neurons are ------------------------------------------------------------------------
    def linear(self, layer: int, name: str) -> nn.Module:
        """The module at `name` (e.g. "mlp.up_proj") of decoder layer `layer`."""
        return self.module.get_submodule(f"{self.layers_path}.{layer}.{name}")

    def down_weight(self, layer: int) -> Float[Tensor, "d_model d_mlp"]:
        """W_down of a layer, one column a neuron (Conv1D's transposed storage is undone)."""
        linear: Any = self.linear(layer, self.site.down)
        if self.quantized is not None:
            from transformers.integrations.bitsandbytes import dequantize_bnb_weight

            return dequantize_bnb_weight(linear.weight, getattr(linear, "state", None))  # type: ignore[no-any-return]
        weight: Tensor = linear.weight
        return weight.T if is_conv1d(linear) else weight

    def down_norms(self, order: int = 2) -> Float[Tensor, "n_layers d_mlp"]:
        """c_i = ||W_down[:, i]|| of every neuron, of order 2 or 1, float64."""
        if order not in self._norms:
            norms = [self.down_weight(i).detach().double().norm(order, dim=0).cpu() for i in range(self.n_layers)]
            if self.quantized is None:  # weights may change in place
                return torch.stack(norms)
            self._norms[order] = torch.stack(norms)
        return self._norms[order]

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """No weight asks for a gradient inside, so that a backward pass leaves nothing on the model."""
        asking = [p for p in self.module.parameters() if p.requires_grad]
        try:
            for p in asking:
                p.requires_grad_(False)
            yield
        finally:
            for p in asking:
                p.requires_grad_(True)

    def provenance(self) -> dict[str, Any]:
        """What an artefact says about the model it came from."""
        return {
            "model": self.id,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "dtype": self.dtype,
            **self.info,
        }

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {type(self.module).__name__}, n_layers={self.n_layers}, d_mlp={self.d_mlp}, "
            f"d_model={self.d_model}, {self.n_params / 1e6:.1f} M parameters)"
        )


def _walk(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def by_row(h: Tensor, rows: int) -> Float[Tensor, "batch pos d_mlp"]:
    """MLP activations with their batch axis, also where a family flattens batch and position (OPT); a view."""
    return h if h.ndim == 3 else h.unflatten(0, (rows, -1))
