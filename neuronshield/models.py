"""Loading a model, and the one place that knows where a family keeps its MLP neurons.

`load` takes the embedded organism, SmolLM2, a folder, a hub id or a module that is already built, and
returns a `Model`: the torch module, its processor, an nnsight wrapper to trace it with, and the address
of the MLP down-projection of every layer of its **language backbone** (a vision tower's MLPs are never
touched). Everything else in the package asks the `Model`, not the architecture.

Families are a table of addresses inside a decoder layer (`SITES`), found through transformers'
`get_decoder()`: adding a family is adding a row.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SITES", "Model", "Site", "load"]

logger = logging.getLogger("neuronshield")


class Site(NamedTuple):
    """Where one family keeps its MLP, relative to a decoder layer (`gate` is None if not gated)."""

    down: str
    up: str
    gate: str | None


SITES = (
    Site("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj"),  # Llama, Qwen2/3, Mistral, Gemma, OLMo, their VLLMs
    Site("mlp.c_proj", "mlp.c_fc", None),  # GPT-2
    Site("mlp.dense_4h_to_h", "mlp.dense_h_to_4h", None),  # GPT-NeoX, Falcon, BLOOM
    Site("mlp.fc2", "mlp.fc1", None),  # Phi-1/2
)


@dataclass(eq=False)
class Model:
    """A language or vision-language model with its MLP neurons addressed. Made by `load`.

    Attributes:
        module: the underlying torch model; change it and every later step sees the change.
        processor: a transformers processor, or a bare tokenizer for a text model.
        id, revision: what was asked for, recorded in every artefact.
        layers_path: where the decoder layers are, e.g. "model.language_model.layers".
        n_layers, d_mlp, d_model: layers, neurons a layer, width of the residual stream.
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

    def __post_init__(self) -> None:
        from nnsight import NNsight

        self.traced = NNsight(self.module)
        envoy: Any = self.traced
        for part in self.layers_path.split("."):
            envoy = getattr(envoy, part)
        self.layer_envoys = [envoy[i] for i in range(self.n_layers)]
        self.envoys = [_walk(layer, self.site.down) for layer in self.layer_envoys]

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
    def device(self) -> torch.device:
        return self.module.get_input_embeddings().weight.device  # type: ignore[operator,union-attr,return-value]

    @property
    def n_params(self) -> int:
        """All parameters, tied ones once."""
        return sum(p.numel() for p in self.module.parameters())

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
        digest = hashlib.sha256(f"{self.n_layers},{self.d_mlp},{self.d_model},{self.n_params}".encode())
        for layer in range(self.n_layers):
            weight = self.down_weight(layer)
            digest.update(weight[: min(4, len(weight))].detach().float().cpu().numpy().tobytes())
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
        linear = self.linear(layer, self.site.down)
        weight: Tensor = linear.weight  # type: ignore[assignment]
        return weight.T if _is_conv1d(linear) else weight

    def down_norms(self) -> Float[Tensor, "n_layers d_mlp"]:
        """c_i = ||W_down[:, i]||_2 for every neuron, float64."""
        return torch.stack(
            [self.down_weight(layer).detach().double().norm(dim=0).cpu() for layer in range(self.n_layers)]
        )

    def provenance(self) -> dict[str, Any]:
        """What an artefact says about the model it came from."""
        return {
            "model": self.id,
            "revision": self.revision,
            "fingerprint": self.fingerprint,
            "dtype": str(next(self.module.parameters()).dtype).removeprefix("torch."),
            **self.info,
        }

    def __repr__(self) -> str:
        return (
            f"Model({self.id!r}, {type(self.module).__name__}, n_layers={self.n_layers}, d_mlp={self.d_mlp}, "
            f"d_model={self.d_model}, {self.n_params / 1e6:.1f} M parameters)"
        )


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    processor: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    adapter: str | os.PathLike[str] | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """Load a model and find its MLP neurons.

    >>> model = load("organism")
    >>> model.n_layers, model.d_mlp            # doctest: +SKIP
    (6, 512)

    Args:
        model: "organism" (the embedded VLLM), "smollm2" (SmolLM2-135M-Instruct), a folder, a hub id,
            or a transformers model that is already built.
        processor: for a built model: its processor, or a bare tokenizer for a text model.
        revision: commit, tag or branch on the hub.
        dtype: torch dtype or its name; default float32 on a CPU, the checkpoint's own on a GPU.
        device: where to put a model loaded from a name; default a GPU if there is one.
        adapter: a folder that `Update.save` wrote: the shielded model, ready to be found and proven in again.
        trust_remote_code: run code that the checkpoint brings. Off unless you turn it on.

    Raises:
        InputError: unknown id, no processor, no decoder layers with an MLP we know, or an adapter that does not fit.
    """
    if adapter is not None:
        from .update import load_adapter

        base = load(
            model, processor=processor, revision=revision, dtype=dtype, device=device,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        return load_adapter(base, adapter)
    if isinstance(model, nn.Module):
        if processor is None:
            raise InputError("load(module): pass processor= (a processor, or a tokenizer for a text model)")
        name = getattr(model.config, "_name_or_path", "") if hasattr(model, "config") else ""
        return _address(model.eval(), processor, name or type(model).__name__, revision)
    name = os.fspath(model)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if dtype is not None:
        kwargs["dtype"] = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    else:
        kwargs["dtype"] = torch.float32 if device.type == "cpu" else "auto"
    if revision is not None:
        kwargs["revision"] = revision
    if name == "organism":
        from .organism import folder

        source: str = str(folder())
    elif name == "smollm2":
        from .fetch import smollm2

        source, extra = smollm2()
        kwargs |= extra
    else:
        source = name
    module, loaded = _from_pretrained(source, name, kwargs)
    return _address(module.to(device).eval(), processor or loaded, name, revision)  # type: ignore[arg-type]


def _from_pretrained(source: str, name: str, kwargs: dict[str, Any]) -> tuple[nn.Module, Any]:
    """Weights and processor from a folder or the hub, image-text models as such."""
    from safetensors import SafetensorError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoProcessor,
        AutoTokenizer,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if Path(source).exists() and not Path(source).is_dir():
        raise InputError(f"{name}: is a file; pass the folder of a model, a hub id, 'organism' or 'smollm2'")
    plain = {k: v for k, v in kwargs.items() if k != "dtype"}
    try:
        config = AutoConfig.from_pretrained(source, **plain)
        multimodal = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        factory = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        module = factory.from_pretrained(source, **kwargs)
        processor = (AutoProcessor if multimodal else AutoTokenizer).from_pretrained(source, **plain)
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise InputError(
            f"cannot load model {name!r}: {reason} (use 'organism', 'smollm2', a folder or a hub id)"
        ) from error
    return module, processor


def _address(module: nn.Module, processor: Any, name: str, revision: str | None) -> Model:
    """Find the decoder layers and the MLP in them; check the shapes at the door."""
    family = type(module).__name__
    if isinstance(processor, (str, os.PathLike)):
        raise InputError(f"processor={processor!r}: pass the processor object, not its name")
    path, layers = _decoder_layers(module, family)
    site = next((s for s in SITES if _has(layers[0], s)), None)
    if site is None:
        children = [n for n, _ in layers[0].named_modules()]
        if any("expert" in n for n in children):
            raise InputError(f"{family}: mixture-of-experts layers at {path!r} are not supported")
        looked = ", ".join(s.down for s in SITES)
        raise InputError(f"{family}: decoder layers at {path!r} have no MLP we know (looked for {looked})")
    missing = [i for i, layer in enumerate(layers) if not _has(layer, site)]
    if missing:
        raise InputError(f"{family}: layer {missing[0]} has no {site.down!r} though layer 0 has; not supported")
    widths = {_shape(layer.get_submodule(site.down)) for layer in layers}
    if len(widths) != 1:
        raise InputError(f"{family}: layers differ in MLP width {sorted(widths)}; not supported")
    d_model, d_mlp = widths.pop()
    return Model(module, processor, name, revision, path, site, len(layers), d_mlp, d_model)


def _decoder_layers(module: nn.Module, family: str) -> tuple[str, nn.ModuleList]:
    """The language backbone's list of layers, and its address in `module`."""
    try:
        decoder = module.get_decoder()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        decoder = module
    names = {id(m): n for n, m in module.named_modules()}
    for owner in _candidates(decoder):
        for attribute in ("layers", "h", "blocks"):
            layers = getattr(owner, attribute, None)
            if isinstance(layers, nn.ModuleList) and len(layers) and id(layers) in names:
                return names[id(layers)], layers
    raise InputError(
        f"{family}: no decoder layers found (looked for 'layers', 'h', 'blocks' under get_decoder()); "
        "it has no decoder MLP to study"
    )


def _candidates(decoder: nn.Module) -> Iterator[nn.Module]:
    yield decoder
    for name in ("model", "decoder", "language_model", "transformer", "text_model"):
        inner = getattr(decoder, name, None)
        if isinstance(inner, nn.Module):
            yield inner


def _walk(root: Any, path: str) -> Any:
    for part in path.split("."):
        root = getattr(root, part)
    return root


def _has(layer: nn.Module, site: Site) -> bool:
    names = {name for name, _ in layer.named_modules()}
    return all(part in names for part in site if part is not None)


def _is_conv1d(linear: nn.Module) -> bool:
    return type(linear).__name__ == "Conv1D"


def _shape(linear: nn.Module) -> tuple[int, int]:
    """(d_model, d_mlp) of a down-projection."""
    rows, columns = linear.weight.shape  # type: ignore[union-attr,misc]
    return (columns, rows) if _is_conv1d(linear) else (rows, columns)
