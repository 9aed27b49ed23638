"""Loading a model, and the one place that knows where a family keeps its MLP neurons.

`load` takes the embedded organism, SmolLM2, a folder, a hub id or a module that is already built, and
returns a `Model`: the torch module, its processor, an nnsight wrapper to trace it with, and the address
of the MLP down-projection of every layer of its **language backbone** (a vision tower's MLPs are never
touched). Everything else in the package asks the `Model`, not the architecture.

Families are a table of addresses inside a decoder layer (`SITES`), found through transformers'
`get_decoder()`: adding a family is adding a row, or, for one that is not in the table, passing
`load(..., layers=, site=)`. Mixture-of-experts layers are refused by name: their experts are stacked tensors
without a projection of their own to read or adapt, and a model half of whose neurons is out of sight is none.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from .errors import InputError

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from .remote import Facts

__all__ = ["SITES", "Model", "Site", "load"]

logger = logging.getLogger("neuronshield")


class Site(NamedTuple):
    """Where one family keeps its MLP, relative to a decoder layer.

    `gate` is None if the MLP is not gated. Where gate and up are one projection (fused), both name it: its first d_mlp
    rows are the gates, the next d_mlp the ups.
    """

    down: str
    up: str
    gate: str | None

    @property
    def fused(self) -> bool:
        return self.gate == self.up


SITES = (
    Site("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj"),  # Llama, Qwen, Mistral, Gemma, OLMo, Cohere, their VLLMs
    Site("mlp.down_proj", "mlp.gate_up_proj", "mlp.gate_up_proj"),  # Phi-3, GLM-4
    Site("mlp.down_proj", "mlp.up_proj", None),  # Nemotron, Apertus
    Site("mlp.c_proj", "mlp.c_fc", None),  # GPT-2, GPT-Neo, StarCoder2
    Site("mlp.dense_4h_to_h", "mlp.dense_h_to_4h", None),  # GPT-NeoX, Falcon, BLOOM
    Site("mlp.fc2", "mlp.fc1", None),  # Phi-1/2
    Site("mlp.fc_out", "mlp.fc_in", None),  # GPT-J, CodeGen
    Site("fc2", "fc1", None),  # OPT
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
        traced: nnsight's wrapper; every trace of it is given `**there`.
        remote: where traces run, as in `load`.
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
        self._facts: Facts | None = None
        if self.quantized is not None:  # unpacked once, before a forward re-packs them for its device
            self.down_norms(1), self.down_norms(2)
            self._print = self.fingerprint
        if self.remote is True:
            from .remote import facts

            self._facts = facts(self)
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


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    processor: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantize: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
    layers: str | None = None,
    site: Site | tuple[str, str, str | None] | None = None,
    remote: bool | str = False,
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
        device_map: instead of `device`: "auto" or a map, to spread a model over GPUs (accelerate's).
        quantize: "4bit" (NF4) or "8bit", through bitsandbytes: to find and prove in, not to train. Statistics stay
            float32, and artefacts record it as their dtype.
        adapter: a folder that `Update.save` wrote: the shielded model, ready to be found and proven in again.
        layers: for a family we do not know: address of its decoder layers, e.g. "model.layers".
        site: and of the MLP in each: (down, up, gate), gate None if there is none, e.g. ("ffn.w2", "ffn.w3", "ffn.w1").
        remote: True: a hub id's weights stay on NDIF and traces run there; "local": they run here, sent the same way, as a
            trial (see `neuronshield.remote`).
        trust_remote_code: run code that the checkpoint brings. Off unless you turn it on.

    Raises:
        InputError: unknown id, no processor, no decoder layers with an MLP we know, mixture-of-experts layers, or an
            adapter that does not fit.
    """
    if remote not in (False, True, "local"):
        raise InputError(f"load: remote={remote!r} is unknown; use True (NDIF) or 'local'")
    if remote and quantize is not None:
        raise InputError("load: quantize= packs weights that are here; give quantize= or remote=, not both")
    if adapter is not None:
        from .update import load_adapter

        if remote:
            raise InputError(
                "load: an adapter is merged into weights that are here; give adapter= or remote=, not both"
            )

        base = load(
            model, processor=processor, revision=revision, dtype=dtype, device=device, device_map=device_map,
            quantize=quantize, layers=layers, site=site, trust_remote_code=trust_remote_code,
        )  # fmt: skip
        return load_adapter(base, adapter)
    if isinstance(model, nn.Module):
        if processor is None:
            raise InputError("load(module): pass processor= (a processor, or a tokenizer for a text model)")
        if remote is True:
            raise InputError("load(module, remote=True): a module that is here is not on NDIF; give its hub id")
        name = getattr(model.config, "_name_or_path", "") if hasattr(model, "config") else ""
        return _address(model.eval(), processor, name or type(model).__name__, revision, layers, site, remote=remote)
    name = os.fspath(model)
    if remote is True:
        return _elsewhere(name, processor, revision, layers, site, trust_remote_code)
    module, processor = pretrained(
        name, processor=processor, revision=revision, dtype=dtype, device=device, device_map=device_map, quantize=quantize,
        trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return _address(module, processor, name, revision, layers, site, remote=remote)


def _elsewhere(
    name: str, processor: Any, revision: str | None, layers: str | None, site: Any, trust_remote_code: bool
) -> Model:
    """A hub id's model without its weights, to be traced on NDIF."""
    from .remote import wrap

    if name in ("organism", "smollm2") or Path(name).exists():
        raise InputError(f"load({name!r}, remote=True): give a hub id that NDIF serves, or remote='local'")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    with _loading(name):
        multimodal = _multimodal(name, options)
        processor = processor or _processor(name, options, multimodal)
        traced = wrap(name, processor, multimodal=multimodal, **options)
    return _address(traced._module, processor, name, revision, layers, site, remote=True, traced=traced)


def pretrained(
    name: str,
    *,
    processor: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantize: str | None = None,
    trust_remote_code: bool = False,
) -> tuple[nn.Module, Any]:
    """The torch module of that name, in eval mode and in its place, and its processor; arguments as in `load`.

    Raises:
        InputError: it cannot be loaded.
    """
    if device is not None and device_map is not None:
        raise InputError("load: give device= or device_map=, not both")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    placed = device_map is not None or quantize is not None
    if placed:
        kwargs["device_map"] = device_map if device_map is not None else {"": device}
    if quantize is not None:
        kwargs["quantization_config"] = _quantization(quantize)
    if dtype is not None:
        named = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(named, torch.dtype):
            raise InputError(f"load: dtype={dtype!r} is unknown; use 'float32', 'bfloat16' or 'float16'")
        kwargs["dtype"] = named
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
    module, processor = _from_pretrained(source, name, kwargs, processor)
    module = module if placed else module.to(device)  # type: ignore[arg-type]
    return module.eval(), processor


def _quantization(bits: str) -> Any:
    from transformers import BitsAndBytesConfig

    if bits not in ("4bit", "8bit"):
        raise InputError(f"load: quantize={bits!r} is unknown; use '4bit' or '8bit'")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(f"load: quantize={bits!r} needs bitsandbytes: pip install bitsandbytes")
    if bits == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def _from_pretrained(source: str, name: str, kwargs: dict[str, Any], processor: Any = None) -> tuple[nn.Module, Any]:
    """Weights and processor (the one given, if any) from a folder or the hub, image-text models as such."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    if Path(source).exists() and not Path(source).is_dir():
        raise InputError(f"{name}: is a file; pass the folder of a model, a hub id, 'organism' or 'smollm2'")
    plain = {k: v for k, v in kwargs.items() if k not in ("dtype", "device_map", "quantization_config")}
    with _loading(name):
        multimodal = _multimodal(source, plain)
        factory = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        return factory.from_pretrained(source, **kwargs), processor or _processor(source, plain, multimodal)


def _multimodal(source: str, options: dict[str, Any]) -> bool:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(AutoConfig.from_pretrained(source, **options)) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def _processor(source: str, options: dict[str, Any], multimodal: bool) -> Any:
    from transformers import AutoProcessor, AutoTokenizer

    return (AutoProcessor if multimodal else AutoTokenizer).from_pretrained(source, **options)


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What a hub, a folder or transformers has to say, in one line."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, ImportError, KeyError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        reason = str(error).strip().split("\n")[0]
        raise InputError(f"cannot load model {name!r}: {reason} ({_advice(str(error))})") from error


def _advice(reason: str) -> str:
    """What to do about it."""
    if "trust_remote_code" in reason:
        return "it needs code of its own; read that code, then pass trust_remote_code=True"
    if "orchvision" in reason:
        return "its processor needs torchvision: pip install torchvision, built for your torch"
    if found := re.search(
        r"(?:requires|required to run|need)[^.]*?`?(accelerate|num2words|sentencepiece|bitsandbytes)", reason
    ):
        return f"pip install {found[1]}"
    return "use 'organism', 'smollm2', a folder or a hub id"


def _address(
    module: nn.Module,
    processor: Any,
    name: str,
    revision: str | None,
    layers_path: str | None = None,
    site: Site | tuple[str, str, str | None] | None = None,
    remote: bool | str = False,
    traced: Any = None,
) -> Model:
    """Find the decoder layers and the MLP in them; check the shapes at the door."""
    family = type(module).__name__
    if isinstance(processor, (str, os.PathLike)):
        raise InputError(f"processor={processor!r}: pass the processor object, not its name")
    path, layers = _decoder_layers(module, family, layers_path)
    for i, layer in enumerate(layers):
        found = next((n for n, _ in layer.named_modules() if EXPERTS.search(n)), None)
        if found is not None:
            raise InputError(
                f"{family}: layer {i} at {path!r} has mixture-of-experts modules ({found!r}), which are not supported: "
                "experts are stacked tensors, so their neurons cannot be read or adapted one by one"
            )
    known = SITES if site is None else (Site(*site),)
    chosen = next((s for s in known if _has(layers[0], s)), None)
    if chosen is None:
        looked = ", ".join(f"{s.down} + {s.up}" for s in known)
        raise InputError(
            f"{family}: decoder layers at {path!r} have no MLP we know (looked for {looked}; layer 0 has "
            f"{_leaves(layers[0])}); name it by hand: load(..., site=(down, up, gate or None))"
        )
    missing = [i for i, layer in enumerate(layers) if not _has(layer, chosen)]
    if missing:
        raise InputError(
            f"{family}: layer {missing[0]} has no {chosen.down!r} though layer 0 has ({_leaves(layers[missing[0]])}); "
            "layers of different kinds are not supported"
        )
    widths = {out_in(layer.get_submodule(chosen.down)) for layer in layers}
    if len(widths) != 1:
        raise InputError(f"{family}: layers differ in MLP width {sorted(widths)}; not supported")
    d_model, d_mlp = widths.pop()
    rows = out_in(layers[0].get_submodule(chosen.up))[0]
    if rows != d_mlp * (1 + chosen.fused):
        raise InputError(
            f"{family}: {chosen.up!r} has {rows} rows for {d_mlp} columns of {chosen.down!r}; not supported"
        )
    if remote and traced is None:
        from .remote import wrap

        traced = wrap(module, processor, multimodal=getattr(processor, "image_processor", None) is not None)
    return Model(
        module, processor, name, revision, path, chosen, len(layers), d_mlp, d_model, traced=traced, remote=remote
    )


EXPERTS = re.compile(r"(^|[._])(experts?|moe|router)([._]|$)")


def _leaves(layer: nn.Module) -> str:
    """The projections of a layer, for an error message."""
    return ", ".join(
        n for n, m in layer.named_modules() if getattr(m, "weight", None) is not None and m.weight.ndim == 2
    )


def _decoder_layers(module: nn.Module, family: str, by_hand: str | None) -> tuple[str, nn.ModuleList]:
    """The language backbone's list of layers, and its address in `module`."""
    if by_hand is not None:
        try:
            named = module.get_submodule(by_hand)
        except AttributeError as error:
            raise InputError(f"{family}: layers={by_hand!r}: there is no such module ({error})") from error
        if not isinstance(named, nn.ModuleList) or not len(named):
            raise InputError(f"{family}: layers={by_hand!r} is a {type(named).__name__}, not a list of decoder layers")
        return by_hand, named
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
        f"{family}: no decoder layers found (looked for 'layers', 'h', 'blocks' under get_decoder() and its 'model', "
        "'decoder', 'language_model', 'transformer', 'text_model'); name them by hand: load(..., layers='path.to.layers')"
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


def by_row(h: Tensor, rows: int) -> Float[Tensor, "batch pos d_mlp"]:
    """MLP activations with their batch axis, also where a family flattens batch and position (OPT); a view."""
    return h if h.ndim == 3 else h.unflatten(0, (rows, -1))


def is_conv1d(linear: nn.Module) -> bool:
    return type(linear).__name__ == "Conv1D"


def out_in(linear: nn.Module) -> tuple[int, int]:
    """Outputs and inputs of a projection: (d_model, d_mlp) of a down-projection."""
    if hasattr(linear, "in_features"):  # the weight itself may be packed
        return linear.out_features, linear.in_features  # type: ignore[return-value]
    rows, columns = linear.weight.shape  # type: ignore[union-attr,misc]
    return (columns, rows) if is_conv1d(linear) else (rows, columns)
