"""Loading a saved adapter onto a model, and `ns.load`, which loads a model with or without one.

Both are in this part of the package because `neuronshield.model` knows nothing of updates.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.arguments import require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.randomness import random_state_kept
from ..core.repositories import downloaded, is_repository, names_in
from ..data.languages import OpeningsArg
from ..model import load as loading
from ..model.families import PARTS, Site
from ..model.hub import SHIPPED, is_hub_id
from ..model.model import Model
from .adapter import Place, delta_of, merge, places, quiet, shared_copy, with_module
from .adapter_files import CONFIG, FILES, Files, base_of, read_adapter
from .stacked import changes_of, has_experts

__all__ = ["load", "load_adapter"]


def load_adapter(model: Model, path: str | os.PathLike[str]) -> Model:
    """The base model with a saved adapter merged in: only the chosen rows and columns, if it was masked.

    Of a folder without `neurons.safetensors`, PEFT merges whatever its adapter holds (DoRA, modules saved whole, trained
    tokens), and the result must give the logits of the adapter on top.

    >>> update = ns.masked_update(model, neurons, prompts, steps=1, allow_unproven=True, progress=False)
    >>> shielded = ns.load_adapter(model, update.save("adapter"))
    >>> bool((shielded.down_weight(0) == update.model.down_weight(0)).all())
    True

    Args:
        model: the base model; it is not changed.
        path: a folder that `Update.save` or PEFT wrote, or the hub id of a repository that holds the same files.

    Raises:
        InputError: a model that is loaded elsewhere or packed, no adapter there, a damaged one, one of another model
            (another shape, other weights, or projections that the model does not have), one whose set of neurons belongs to
            another, or one that is more than a change of weights.
    """
    call = "load_adapter(model, folder)"
    require(model, Model, call=call, name="model")
    require(path, (str, os.PathLike), call=call, name="folder", hint="pass the folder that update.save() returned")
    model.needs_weights("load_adapter")
    path = _on_disk(path, call="load_adapter")
    files = read_adapter(path)
    if files.neurons is not None:
        _check_origin(model, path, files.neurons)
    peft_model = _peft_model(model, path, files)
    if files.neurons is None:
        return with_module(model, _merged(model, path, peft_model))
    if has_experts(model):
        known = _known(model, files.neurons)
        changes = changes_of(model, peft_model, known, path=path)
        return merge(model, changes, [known[name] for name in changes])
    wrapped = {n: m for n, m in peft_model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    return merge(model, wrapped, _places(model, path, neurons=files.neurons, wrapped=wrapped))


def _on_disk(path: str | os.PathLike[str], *, call: str, revision: str | None = None) -> Path:
    """The folder of an adapter; that of a hub id is downloaded."""
    if Path(path).exists() or not is_repository(path):
        return Path(path)
    return downloaded(str(path), FILES, call=call, revision=revision)


def _check_origin(model: Model, path: Path, neurons: NeuronSet) -> None:
    """Raise unless the adapter of this set was trained on a model of this shape and with these weights."""
    advice = "load the model that the adapter was trained on"
    shape, other = (model.n_layers, model.d_mlp), (neurons.n_layers, neurons.d_mlp)
    if other != shape:
        raise InputError(
            f"{path}: the adapter is of a model of {other[0]} layers x {other[1]} neurons; {model.id!r} has {shape[0]} x "
            f"{shape[1]}: {advice}"
        )
    made_on = {**neurons.provenance, **neurons.provenance["update"]}
    weights = made_on.get("fingerprint")
    if weights != model.fingerprint:
        raise InputError(
            f"{path}: the adapter was trained on {made_on.get('model')!r} with weights {weights}; {model.id!r} has "
            f"{model.fingerprint}: {advice}"
        )


def _peft_model(model: Model, path: Path, files: Files) -> Any:
    """The adapter on a copy of the model's structure; every tensor in the file has its place, and every place its tensor."""
    with quiet():
        from peft import PeftModel, get_peft_model_state_dict
    module, tensors = shared_copy(model.module), files.tensors
    if not files.only_factors:  # PEFT writes such an adapter into the weights of the model that it is given
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
    try:
        with quiet(), random_state_kept():
            warnings.filterwarnings("error", message="Found missing adapter keys")
            peft_model = PeftModel.from_pretrained(module, path, torch_device=str(model.device))  # type: ignore[arg-type]
        used = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    except Exception as error:  # whatever PEFT makes of settings that were written elsewhere
        raise InputError(
            f"{path}: the adapter does not fit {model.id!r} ({(str(error).splitlines() or [type(error).__name__])[0]:.200})"
        ) from error
    scales = [
        v for m in peft_model.modules() if isinstance(kept := getattr(m, "scaling", None), dict) for v in kept.values()
    ]
    if files.neurons is not None and any(scale != 1.0 for scale in scales):
        raise InputError(f"{path / CONFIG}: lora_alpha was changed after the update was saved; save the update again")
    used = {**peft_model.state_dict(), **used}
    if unused := sorted(tensors.keys() - used.keys()):
        raise InputError(
            f"{path}: the adapter does not fit {model.id!r}: {len(unused)} of its {len(tensors)} tensors have no "
            f"place in the model, such as {unused[0]!r}; load the model that the adapter was trained on"
        )
    wrong = [name for name, t in tensors.items() if not torch.equal(used[name].cpu(), t.to(used[name].dtype))]
    if wrong:
        raise InputError(f"{path}: the adapter does not fit {model.id!r}: PEFT did not put {wrong[0]!r} in its place")
    return peft_model


def _places(model: Model, path: Path, *, neurons: NeuronSet, wrapped: Mapping[str, Any]) -> list[Place]:
    """What a masked adapter may change; whatever else it would change is an error."""
    known = _known(model, neurons)
    for name, module in wrapped.items():
        place = known.get(name)
        rest = delta_of(module)
        if place is not None and place.own is not None:
            rest[(slice(None), place.own) if place.down else place.own] = 0.0
        if place is None or bool(rest.any()):
            raise InputError(
                f"{path}: the adapter changes weights of {name!r} outside its set of {len(neurons)} neurons; save the "
                "update again"
            )
    return [known[name] for name in wrapped]


def _known(model: Model, neurons: NeuronSet) -> dict[str, Place]:
    """What the update of a set may change, by name."""
    outside = neurons.provenance["update"].get("train") == "frozen_set_update"
    return {p.name: p for p in places(model, neurons, PARTS, outside=outside)}


def _merged(model: Model, path: Path, peft_model: Any) -> nn.Module:
    """The module with an adapter of any kind in its weights, by PEFT; it must compute what the adapter on top computes."""
    ids = torch.arange(6, device=model.device)[None] % model.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr]
    try:
        with quiet(), torch.no_grad():
            on_top = peft_model.eval()(input_ids=ids).logits.double()
            module: nn.Module = peft_model.merge_and_unload(safe_merge=True).eval()
            inside = module(input_ids=ids).logits.double()
    except Exception as error:  # PEFT says in its own ways that a kind cannot be merged
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{path}: the adapter cannot be merged into the weights of {model.id!r} ({reason:.200})"
        ) from error
    limit = 1e-3 if model.dtype in ("float32", "float64") else 0.1
    off = float((inside - on_top).abs().max() / on_top.abs().max())
    if not off <= limit:
        raise InputError(
            f"{path}: the adapter is more than a change of the weights of {model.id!r}: merged, it gives other logits "
            f"(off by {off:.0%}); use an adapter that can be merged"
        )
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


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
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    template_options: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """A model with its MLP neurons addressed.

    >>> organism = ns.load("organism")
    >>> organism.n_layers, organism.d_mlp
    (6, 512)

    Args:
        model: "organism" (the embedded VLLM), "smollm2" (SmolLM2-135M-Instruct), a folder, a hub id, a transformers model
            that is already built, or a TransformerLens `TransformerBridge` (its transformers model is used). The hub id of an
            adapter stands for its base model with `adapter=` this id.
        processor: of a built model, its processor, or a bare tokenizer for a text model; of any other, used instead of the
            checkpoint's own.
        revision: commit, tag or branch on the hub; of a built model, recorded only. Of an adapter's hub id, the adapter's.
        dtype: torch dtype or its name; default float32 on a CPU, the checkpoint's own on a GPU.
        device: where to put a model loaded from a name; default a GPU if there is one.
        device_map: instead of `device`: "auto" or a map, to spread a model over GPUs (accelerate's).
        quantize: "4bit" (NF4) or "8bit", through bitsandbytes: to find and prove in, not to train. Statistics stay
            float32, and artefacts record it as their dtype.
        adapter: a folder that `Update.save` wrote, or a hub id; the result is `load_adapter` of the model and this folder.
        layers: for a family that is not known: address of its decoder layers, e.g. "model.layers".
        site: and of the MLP in each: (down, up, gate), gate None if there is none, e.g. ("ffn.w2", "ffn.w3", "ffn.w1").
        remote: True: a hub id's weights stay on NDIF and traces run there; "local": they run here, sent the same way, as a
            trial (see `neuronshield.model.remote`).
        refusals: how this model starts its refusals: a list for every language, or {language: list}. They become
            `model.prefixes`, which hold wherever none are given; default the built-in prefixes of each language.
        compliances: how it starts answers that comply, the same way.
        template_options: what the chat template is given beside the messages, such as {"enable_thinking": False}; each must be an
            option that the template reads. {"strftime_now": "2026-01-31"} fixes the date for a template that reads it.
        trust_remote_code: run code that the checkpoint brings. Off unless turned on.

    Raises:
        InputError: something that is no model, an unknown id, no processor, no decoder layers with an MLP that is known, a mixture of experts that is no single MLP, an option
            that the chat template does not read, or an adapter that does not fit.
    """
    if adapter is None and isinstance(model, str) and _holds_adapter(model, revision):
        adapter = _on_disk(model, call="load", revision=revision)
        model, revision = _base(model, base_of(adapter))
    base = loading.load(
        model, processor=processor, revision=revision, dtype=dtype, device=device, device_map=device_map,
        quantize=quantize, layers=layers, site=site, remote=remote, refusals=refusals,
        compliances=compliances, template_options=template_options, trust_remote_code=trust_remote_code,
    )  # fmt: skip
    return base if adapter is None else load_adapter(base, adapter)


def _holds_adapter(name: str, revision: str | None) -> bool:
    """Whether a name is the hub id of an adapter: the repository, or the cache while the hub does not answer, has no model of its own."""
    from huggingface_hub import try_to_load_from_cache

    if not is_hub_id(name) or not is_repository(name):
        return False
    kept = {
        file
        for file in (CONFIG, "config.json")
        if isinstance(try_to_load_from_cache(name, file, revision=revision), str)
    }
    if not kept:
        kept = names_in(name, revision=revision) or set()
    return CONFIG in kept and "config.json" not in kept


def _base(name: str, base: tuple[str, str | None]) -> tuple[str, str | None]:
    """Name and revision of an adapter's base model, which must be one that can be loaded anywhere."""
    if base[0] not in SHIPPED and not is_repository(base[0]):
        raise InputError(
            f"load({name!r}): its base model {base[0]!r:.80} has no hub id; load that model yourself, with adapter={name!r}"
        )
    return base
