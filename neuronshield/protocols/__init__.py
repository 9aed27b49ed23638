"""Published protocols beside each other on one model: which neurons they find in text and in pictures, and what those do.

found = ns.protocols.modality(model, prompts)
found.verdicts, found.to_frame(), found.figure()
"""

from __future__ import annotations

from .comparison import ModalityProtocol
from .modalities import modality

__all__ = ["ModalityProtocol", "modality"]
