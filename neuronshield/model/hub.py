"""Whether a model can be had from the hub, found out in seconds and without torch.

Loading a name that is no folder asks the hub several times, and each request is repeated while no answer comes: a wrong name on a machine
without network takes half a minute. Here the hub is asked once (`neuronshield.core.repositories.offline`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.repositories import offline
from ..graft import NAMES as GRAFTS
from ..organism.controls import NAMES as CONTROLS

__all__ = ["SHIPPED", "found", "is_hub_id"]

#: Names of the models that need no hub.
SHIPPED = ("organism", *CONTROLS, "smollm2", *GRAFTS)


def found(name: str, *, revision: str | None = None) -> dict[str, Any]:
    """Options with which a hub id is loaded: none where the hub answers, only local files where the model is in the cache and it does not.

    >>> found("nobody/nothing")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: cannot load model 'nobody/nothing': it is not in the cache, and HF_HUB_OFFLINE forbids asking ...

    Args:
        name: a hub id.
        revision: commit, tag or branch.

    Raises:
        InputError: no name of a model, or one that is not in the cache while the hub does not answer.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    advice = "check the name; use 'organism', 'smollm2', a folder or a hub id"
    try:
        kept = isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        raise InputError(
            f"cannot load model {name!r:.120}: no such folder, and no name on the hub ({advice})"
        ) from None
    why = offline(name)
    if why is None:
        return {}
    if not kept:
        raise InputError(f"cannot load model {name!r:.120}: it is not in the cache, and {why} ({advice})")
    return {"local_files_only": True}


def is_hub_id(name: str) -> bool:
    """Whether a name is neither a shipped model nor a folder.

    >>> is_hub_id("organism"), is_hub_id("Qwen/Qwen3-VL-8B-Instruct")
    (False, True)

    Args:
        name: of a model.
    """
    return name not in SHIPPED and not Path(os.fspath(name)).exists()
