"""Reading a checkpoint: the torch module of a name, and its processor.

A name is a model of this package, a folder, or a hub id. Every tensor of the model must be in the checkpoint, in the shape that
the config says: transformers gives any other random values. Whatever goes wrong is said in one line.
"""

from __future__ import annotations

import os
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import InputError
from ..graft import NAMES as GRAFTS
from ..organism.controls import folder as control_folder
from ..organism.controls import kind_of
from .gate import check_module
from .hub import SHIPPED, found, is_hub_id
from .options import checked_device, checked_device_map, checked_dtype, quantization

__all__ = ["in_one_line", "is_multimodal", "own_processor", "pretrained", "public_name"]


def public_name(name: str) -> str:
    """What a model is called in artefacts and messages: of a folder its own name, without where it is; of any other name the same.

    A folder of the hub's cache is called by its hub id. A folder called as a model of this package gets "./" before its name.

    >>> public_name("/home/me/models/mine/"), public_name("Qwen/Qwen3-0.6B"), public_name("/x/organism")
    ('mine', 'Qwen/Qwen3-0.6B', './organism')
    >>> public_name("/home/me/.cache/huggingface/hub/models--Qwen--Qwen3-0.6B/snapshots/0123abc")
    'Qwen/Qwen3-0.6B'

    Args:
        name: a model of this package, a folder, or a hub id.
    """
    path = Path(name)
    if name in SHIPPED or not (
        path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1 or path.exists()
    ):
        return name
    path = Path(os.path.abspath(path))  # noqa: PTH100 - a link keeps its name
    if path.parent.name == "snapshots" and path.parents[1].name.startswith("models--"):
        return path.parents[1].name.removeprefix("models--").replace("--", "/", 1)
    return f"./{path.name}" if path.name in SHIPPED else path.name or "model"


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
    """The torch module of that name, in eval mode and in its place, and its processor.

    >>> module, processor = pretrained("organism")
    >>> type(module).__name__
    'LlavaForConditionalGeneration'

    Args:
        name: "organism", "organism-shared", "organism-separate", "organism-wording", "smollm2", a name of `neuronshield.graft`, a folder or a hub id.
        processor: used instead of the checkpoint's own.
        revision: as in `load`.
        dtype: as in `load`.
        device: as in `load`.
        device_map: as in `load`.
        quantize: as in `load`.
        trust_remote_code: as in `load`.

    Raises:
        InputError: it cannot be loaded.
    """
    if device is not None and device_map is not None:
        raise InputError("load: give device= or device_map=, not both")
    device, device_map = checked_device(device), checked_device_map(device_map)
    if revision is not None and name in SHIPPED:
        raise InputError(f"load({name!r}, revision={revision!r}): this model has one revision; leave revision= out")
    kwargs: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    placed = device_map is not None or quantize is not None
    if placed:
        kwargs["device_map"] = device_map if device_map is not None else {"": device}
    if quantize is not None:
        kwargs["quantization_config"] = quantization(quantize)
    kwargs["dtype"] = checked_dtype(dtype, device)
    if revision is not None:
        kwargs["revision"] = revision
    if is_hub_id(name):
        kwargs |= found(name, revision=revision)
    source, extra = _source(name)
    given = None if name in GRAFTS else processor
    module, own = _from_pretrained(source, name, {**kwargs, **extra}, processor=given)
    module = module if placed else module.to(device)  # type: ignore[arg-type]
    if name in GRAFTS:
        from ..graft.assembly import assembled

        module, own = assembled(module, own, name=name)
    return module.eval(), processor or own


def _source(name: str) -> tuple[str, dict[str, Any]]:
    """The folder or hub id that a name stands for, and further options of its loading."""
    if name == "organism":
        from ..organism import folder

        return str(folder()), {}
    kind = kind_of(name)
    if kind is not None:
        return str(control_folder(kind)), {}
    if name == "smollm2" or name in GRAFTS:
        from ..data.fetch import smollm2

        return smollm2()
    return name, {}


def _from_pretrained(source: str, name: str, kwargs: dict[str, Any], *, processor: Any) -> tuple[nn.Module, Any]:
    """Weights and processor (the one given, if any) from a folder or the hub, image-text models as such."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

    if Path(source).exists() and not Path(source).is_dir():
        raise InputError(f"{name}: is a file; pass the folder of a model, a hub id, 'organism' or 'smollm2'")
    if (Path(source) / "adapter_config.json").is_file() and not (Path(source) / "config.json").is_file():
        raise InputError(f"{name}: is an adapter, not a model; load its base model, with adapter={name!r}")
    plain = {k: v for k, v in kwargs.items() if k not in ("dtype", "device_map", "quantization_config")}
    with in_one_line(name):
        config = AutoConfig.from_pretrained(source, **plain)  # read once: that of a GGUF file takes seconds
        multimodal = is_multimodal(config)
        factory = AutoModelForImageTextToText if multimodal else AutoModelForCausalLM
        how = {"config": config, "output_loading_info": True, "ignore_mismatched_sizes": True}
        loaded = factory.from_pretrained(source, **how, **kwargs)
        module, info = loaded if isinstance(loaded, tuple) else (loaded, {})
        check_module(module)  # a model of another kind says so, before the tensors that it lacks
        _check_complete(name, info)
        return module, processor or own_processor(source, plain, multimodal=multimodal)


def _check_complete(name: str, info: Mapping[str, Any]) -> None:
    """Raise unless every tensor of the model was in the checkpoint, in its shape; any other would be random."""
    wrong = [
        f"{key} is {list(found)}, must be {list(wanted)}" for key, found, wanted in info.get("mismatched_keys", ())
    ]
    if wrong:
        raise InputError(
            f"cannot load model {name!r}: {len(wrong)} of its tensors {'has' if len(wrong) == 1 else 'have'} another shape "
            f"than config.json says ({min(wrong)}): config.json is of another model"
        )
    missing, unused = sorted(info.get("missing_keys", ())), sorted(info.get("unexpected_keys", ()))
    if missing:
        also = f"; {len(unused)} tensors of the checkpoint have no place, such as {unused[0]!r}" if unused else ""
        raise InputError(
            f"cannot load model {name!r}: {len(missing)} of its tensors {'is' if len(missing) == 1 else 'are'} not in the "
            f"checkpoint and would be random, such as {missing[0]!r}{also}: download or convert it again"
        )
    if unused:
        what = "a tensor of the checkpoint has" if len(unused) == 1 else f"{len(unused)} tensors of the checkpoint have"
        warnings.warn(f"{name}: {what} no place in the model and will not be read, such as {unused[0]!r}", stacklevel=5)


def is_multimodal(config: Any) -> bool:
    """Whether a config is of a model that takes pictures and text.

    >>> is_multimodal(vlm.module.config), is_multimodal(model.module.config)
    (True, False)

    Args:
        config: of a transformers model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    return type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def own_processor(source: str, options: Mapping[str, Any], *, multimodal: bool) -> Any:
    """The processor of a checkpoint, or its tokenizer if it takes no pictures.

    >>> from neuronshield.organism import folder
    >>> type(own_processor(str(folder()), {}, multimodal=True)).__name__
    'LlavaProcessor'

    Args:
        source: a folder or a hub id.
        options: what reading it needs (revision, trust_remote_code).
        multimodal: whether it takes pictures.
    """
    from transformers import AutoProcessor, AutoTokenizer

    return (AutoProcessor if multimodal else AutoTokenizer).from_pretrained(source, **options)


@contextmanager
def in_one_line(name: str) -> Iterator[None]:
    """A context in which whatever a hub, a folder or transformers has to say is one line.

    >>> with in_one_line("mine"):
    ...     raise OSError("no such file")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: cannot load model 'mine': no such file (use 'organism', 'smollm2', a folder or a hub id)

    Args:
        name: the model, as it was asked for.

    Raises:
        InputError: any exception in the block, in one line.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what is loaded was written by others, and so is the code that reads it
        raise InputError(f"cannot load model {name!r}: {_reason(error)} ({_advice(error)})") from error


def _reason(error: Exception) -> str:
    """The first line that an error has to say, and the next where that one only announces it."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [type(error).__name__]
    said = " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
    known = (OSError, ValueError, ImportError, RuntimeError)
    return said if isinstance(error, known) else f"{type(error).__name__}: {said}"


def _advice(error: Exception) -> str:
    """What to do about it."""
    reason = str(error)
    if isinstance(error, pickle.UnpicklingError):
        return "its weights are a pickle that holds more than tensors; get them as safetensors"
    if isinstance(error, torch.OutOfMemoryError):
        return "pass dtype='bfloat16', quantize='4bit' or device_map='auto'"
    if "trust_remote_code" in reason:
        return "it needs code of its own; read that code, then pass trust_remote_code=True"
    if "orchvision" in reason:
        return "its processor needs torchvision: pip install torchvision, built for your torch"
    if found := re.search(
        r"(?:requires|required to run|need)[^.]*?`?(accelerate|num2words|sentencepiece|bitsandbytes)", reason
    ):
        return f"pip install {found[1]}"
    return "use 'organism', 'smollm2', a folder or a hub id"
