"""Loading a model: the embedded organism, SmolLM2, a folder, a hub id, or a module that is already built.

Loading has two steps. `neuronshield.model.checkpoint.pretrained` gets a torch module and its processor; `addressed` finds the MLP neurons of its language
backbone and checks every shape. The experts of a mixture are written as one MLP first (`neuronshield.model.mixtures`).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.arguments import require
from ..core.errors import InputError
from ..data.languages import OpeningsArg, Prefixes, check_openings
from ..organism.controls import kind_of, prefixes
from .bridge import is_bridge, processor_of, unwrapped
from .checkpoint import in_one_line, is_multimodal, own_processor, pretrained, public_name
from .families import EXPERTS, SITES, Site, find_decoder_layers, has_site, projections
from .gate import check_module, check_pictures, check_processor
from .hub import SHIPPED, is_hub_id
from .mixtures import experts_of, flattened
from .model import Model, require_model
from .template import checked_options
from .weights import check_adapters, check_loaded, check_projections, out_in

__all__ = ["addressed", "load"]


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
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    template_options: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> Model:
    """A model with its MLP neurons addressed.

    >>> organism = load("organism")
    >>> organism.n_layers, organism.d_mlp
    (6, 512)
    >>> load(model.module, processor=model.tokenizer, refusals=["sorry"]).prefixes.refusals
    ['sorry']

    Args:
        model: "organism" (the embedded VLLM), "smollm2" (SmolLM2-135M-Instruct), a folder, a hub id, a transformers model
            that is already built, or a TransformerLens `TransformerBridge` or what `torch.compile` made of one (the transformers
            model in it is used).
        processor: of a built model, its processor, or a bare tokenizer for a text model; of any other, used instead of the
            checkpoint's own.
        revision: commit, tag or branch on the hub; of a built model, recorded only.
        dtype: torch dtype or its name; default float32 on a CPU, the checkpoint's own on a GPU.
        device: where to put a model loaded from a name; default a GPU if there is one.
        device_map: instead of `device`: "auto" or a map, to spread a model over GPUs (accelerate's).
        quantize: "4bit" (NF4) or "8bit", through bitsandbytes: to find and prove in, not to train. Statistics stay
            float32, and artefacts record it as their dtype.
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
        InputError: something that is no model, an unknown id, no processor, a model that is no causal language model, a
            processor that is another model's or places no pictures (see `neuronshield.model.gate`), no decoder layers with an
            MLP that is known, a mixture of experts that is no single MLP, or an option that the chat template does not read.
    """
    _check_call(model, processor, remote=remote, quantize=quantize, site=site)
    check_openings(refusals=refusals, compliances=compliances)
    model = getattr(model, "_orig_mod", model)  # under torch.compile, whose graph shows no neurons
    if isinstance(model, nn.Module):
        built = {"dtype": dtype, "device": device, "device_map": device_map, "quantize": quantize}
        _check_built({**built, "trust_remote_code": trust_remote_code or None})
    if is_bridge(model):
        processor, model = processor or processor_of(model), unwrapped(model)
    if isinstance(model, nn.Module):
        if processor is None:
            raise InputError("load(module): pass processor= (a processor, or a tokenizer for a text model)")
        if remote is True:
            raise InputError("load(module, remote=True): a module that is here is not on NDIF; give its hub id")
        name = getattr(model.config, "_name_or_path", "") if hasattr(model, "config") else ""
        out = addressed(
            model, processor, id=public_name(name) if name else type(model).__name__, revision=revision, layers=layers, site=site,
            remote=remote,
        )  # fmt: skip
        return _with_template(_with_prefixes(out, refusals, compliances), template_options)
    name, own = os.fspath(model), processor
    traced = None
    if remote is True:
        module, processor, traced = _elsewhere(
            name, processor=processor, revision=revision, trust_remote_code=trust_remote_code
        )
    else:
        module, processor = pretrained(
            name, processor=processor, revision=revision, dtype=dtype, device=device, device_map=device_map,
            quantize=quantize, trust_remote_code=trust_remote_code,
        )  # fmt: skip
    out = addressed(
        module, processor, id=public_name(name), revision=revision, layers=layers, site=site, remote=remote,
        traced=traced,
    )  # fmt: skip
    if own is None and remote is False:
        options = {"revision": revision, "device_map": device_map, "quantize": quantize, "layers": layers, "site": site}
        out = out.replace(recipe=_recipe(name, module, dtype=dtype, trust_remote_code=trust_remote_code, **options))
    return _with_template(_with_prefixes(out, refusals, compliances), template_options)


def _recipe(name: str, module: nn.Module, *, dtype: Any, **options: Any) -> dict[str, Any]:
    """What `load` is to be given elsewhere for the same model: no default of this machine is left open."""
    if dtype is None and options["quantize"] is None and module.dtype in (torch.float32, torch.bfloat16, torch.float16):
        dtype = module.dtype
    folder = Path(name).is_dir() and name not in SHIPPED
    return {
        "model": str(Path(name).resolve()) if folder else name,
        "dtype": None if dtype is None else str(dtype).removeprefix("torch."),
        **{key: value for key, value in options.items() if value},
    }


def _with_template(model: Model, options: Mapping[str, Any] | None) -> Model:
    """The model with options of its chat template, each of which the template reads."""
    checked = checked_options(options, model.template)
    return model.replace(template_options=checked) if checked else model


def _check_built(options: dict[str, Any]) -> None:
    """Raise on an option that says how to load a checkpoint, given with a module that is loaded."""
    given = next((name for name, value in options.items() if value is not None), None)
    if given is not None:
        raise InputError(
            f"load(module, {given}=...): {given}= says how to load a checkpoint, and this module is built already; place "
            "and convert the module yourself"
        )


def _check_call(model: Any, processor: Any, *, remote: Any, quantize: str | None, site: Any) -> None:
    """Raise on a call that cannot be meant."""
    if hasattr(model, "apply_chat_template") or hasattr(model, "image_processor"):
        raise InputError(
            f"load(model): got a {type(model).__name__}, which is a processor; pass the model first: "
            "load(model, processor=...)"
        )
    if isinstance(getattr(model, "model", None), Model):
        require_model(model, call="load(model)")
    if isinstance(model, Model):
        raise InputError("load(model): this model is loaded already; use it as it is")
    require(
        model, (str, os.PathLike, nn.Module), call="load(model)", name="model",
        hint="use 'organism', 'smollm2', a folder, a hub id or a built transformers model",
    )  # fmt: skip
    if isinstance(processor, (str, os.PathLike)):
        raise InputError(f"load: processor={processor!r}: pass the processor object, not its name")
    if processor is not None and not callable(processor):
        raise InputError(f"load: processor must be a processor or a tokenizer, got {type(processor).__name__}")
    if site is not None and (isinstance(site, str) or not isinstance(site, Sequence) or len(site) != 3):
        raise InputError(
            f"load: site={site!r:.60}: must be three addresses (down, up, gate), gate None if there is none"
        )
    if remote not in (False, True, "local"):
        raise InputError(f"load: remote={remote!r} is unknown; use True (NDIF) or 'local'")
    if remote and quantize is not None:
        raise InputError("load: quantize= packs weights that are here; give quantize= or remote=, not both")


def _with_prefixes(model: Model, refusals: OpeningsArg, compliances: OpeningsArg) -> Model:
    """The model with the prefixes that were given; the organisms, whose answers are made up, have their own."""
    own = Prefixes()
    if model.id == "organism":
        from ..organism import COMPLIANCES, REFUSALS

        own = Prefixes(REFUSALS, COMPLIANCES)
    kind = kind_of(model.id)
    if kind is not None:
        own = Prefixes(*prefixes(kind))
    return model.replace(
        prefixes=Prefixes(
            own.refusals if refusals is None else refusals, own.compliances if compliances is None else compliances
        )
    )


def _elsewhere(
    name: str, *, processor: Any, revision: str | None, trust_remote_code: bool
) -> tuple[nn.Module, Any, Any]:
    """A hub id's module without its weights, its processor, and nnsight's wrapper that is traced on NDIF."""
    from transformers import AutoConfig

    from .remote import wrap

    if not is_hub_id(name):
        raise InputError(f"load({name!r}, remote=True): give a hub id that NDIF serves, or remote='local'")
    options: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision is not None:
        options["revision"] = revision
    with in_one_line(name):
        multimodal = is_multimodal(AutoConfig.from_pretrained(name, **options))
        processor = processor or own_processor(name, options, multimodal=multimodal)
        traced = wrap(name, processor, multimodal=multimodal, **options)
    return traced._module, processor, traced


# -- addressing -------------------------------------------------------------------------------------------
def addressed(
    module: nn.Module,
    processor: Any,
    *,
    id: str,
    revision: str | None = None,
    layers: str | None = None,
    site: Site | tuple[str, str, str | None] | None = None,
    remote: bool | str = False,
    traced: Any = None,
) -> Model:
    """A built module as a `Model`: its decoder layers and the MLP in them are found, and every shape is checked.

    >>> addressed(model.module, model.tokenizer, id="mine")
    Model('mine', LlamaForCausalLM, n_layers=3, d_mlp=29, d_model=20, ...)

    Args:
        module: a transformers model.
        processor: its processor, or a bare tokenizer.
        id: the name it goes by in artefacts.
        revision: as in `load`.
        layers: as in `load`.
        site: as in `load`.
        remote: as in `load`.
        traced: nnsight's wrapper, where it was made already.

    Raises:
        InputError: what `neuronshield.model.gate` refuses, no decoder layers with an MLP that is known, layers that differ, or
            a mixture of experts that is no single MLP.
    """
    check_module(module)
    check_processor(module, processor)
    family = type(module).__name__
    path, found = find_decoder_layers(module, family, layers)
    if site is None and any(experts_of(layer) for layer in found):
        if remote:
            raise InputError(
                f"{family}: mixture-of-experts layers cannot be traced elsewhere; load it here, without remote="
            )
        module, chosen = flattened(module, path, family=family)
        found = module.get_submodule(path)  # type: ignore[assignment]
    else:
        chosen = _site(family, path, found, by_hand=site)
    if remote is not True:
        check_loaded(family, module)
        check_adapters(family, module)
        check_projections(family, list(found), chosen)
    widths = {out_in(layer.get_submodule(chosen.down)) for layer in found}
    if len(widths) != 1:
        raise InputError(f"{family}: layers differ in MLP width {sorted(widths)}; not supported")
    d_model, d_mlp = widths.pop()
    rows = out_in(found[0].get_submodule(chosen.up))[0]
    if rows != d_mlp * (1 + chosen.fused):
        raise InputError(
            f"{family}: {chosen.up!r} has {rows} rows for {d_mlp} columns of {chosen.down!r}; not supported"
        )
    if remote and traced is None:
        from .remote import wrap

        traced = wrap(module, processor, multimodal=getattr(processor, "image_processor", None) is not None)
    out = Model(
        module=module, processor=processor, id=id, revision=revision, layers_path=path, site=chosen,
        n_layers=len(found), d_mlp=d_mlp, d_model=d_model, traced=traced, remote=remote,
    )  # fmt: skip
    check_pictures(out)
    return out


def _site(family: str, path: str, layers: nn.ModuleList, *, by_hand: Any) -> Site:
    """Where the MLP of each of these layers is."""
    for i, layer in enumerate(layers):
        expert = next((n for n, _ in layer.named_modules() if EXPERTS.search(n)), None)
        if expert is not None:
            raise InputError(
                f"{family}: layer {i} at {path!r} has mixture-of-experts modules ({expert!r}) of a form that is not supported: "
                "no stacked tensors with one gate, up and down projection for each expert"
            )
    known = SITES if by_hand is None else (Site(*by_hand),)
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
    if len({id(layer.get_submodule(chosen.down)) for layer in layers}) != len(layers):
        raise InputError(f"{family}: several layers at {path!r} are one module that runs several times; not supported")
    return chosen
