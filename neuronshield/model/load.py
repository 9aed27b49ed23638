"""Loading a model: the embedded organism, SmolLM2, a folder, a hub id, or a module that is already built.

Mixture-of-experts layers are refused by name: their experts are stacked tensors without a projection of their own, so their
neurons cannot be read or adapted one by one.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError
from ..data.languages import Prefixes
from .families import EXPERTS, SITES, Site, find_decoder_layers, has_site, projections
from .model import Model
from .weights import out_in

__all__ = ["load"]


logger = logging.getLogger("neuronshield")


def load(
    model: str | os.PathLike[str] | nn.Module,
    *,
    processor: Any = None,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    quantize: str | None = None,
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
        layers: for a family we do not know: address of its decoder layers, e.g. "model.layers".
        site: and of the MLP in each: (down, up, gate), gate None if there is none, e.g. ("ffn.w2", "ffn.w3", "ffn.w1").
        remote: True: a hub id's weights stay on NDIF and traces run there; "local": they run here, sent the same way, as a
            trial (see `neuronshield.remote`).
        trust_remote_code: run code that the checkpoint brings. Off unless you turn it on.

    Raises:
        InputError: unknown id, no processor, no decoder layers with an MLP we know, or mixture-of-experts layers.
    """
    if remote not in (False, True, "local"):
        raise InputError(f"load: remote={remote!r} is unknown; use True (NDIF) or 'local'")
    if remote and quantize is not None:
        raise InputError("load: quantize= packs weights that are here; give quantize= or remote=, not both")
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
    out = _address(module, processor, name, revision, layers, site, remote=remote)
    if name == "organism":
        from ..organism import COMPLIANCES, REFUSALS

        out.prefixes = Prefixes(REFUSALS, COMPLIANCES)
    return out


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
        from ..organism import folder

        source: str = str(folder())
    elif name == "smollm2":
        from ..data.fetch import smollm2

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
    path, layers = find_decoder_layers(module, family, layers_path)
    for i, layer in enumerate(layers):
        found = next((n for n, _ in layer.named_modules() if EXPERTS.search(n)), None)
        if found is not None:
            raise InputError(
                f"{family}: layer {i} at {path!r} has mixture-of-experts modules ({found!r}), which are not supported: "
                "experts are stacked tensors, so their neurons cannot be read or adapted one by one"
            )
    known = SITES if site is None else (Site(*site),)
    chosen = next((s for s in known if has_site(layers[0], s)), None)
    if chosen is None:
        looked = ", ".join(f"{s.down} + {s.up}" for s in known)
        raise InputError(
            f"{family}: decoder layers at {path!r} have no MLP we know (looked for {looked}; layer 0 has "
            f"{projections(layers[0])}); name it by hand: load(..., site=(down, up, gate or None))"
        )
    missing = [i for i, layer in enumerate(layers) if not has_site(layer, chosen)]
    if missing:
        raise InputError(
            f"{family}: layer {missing[0]} has no {chosen.down!r} though layer 0 has ({projections(layers[missing[0]])}); "
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
