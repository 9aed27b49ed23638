"""A model with its MLP neurons addressed: loading, encoding, forward passes, generation, interventions."""

from contextlib import suppress

# nnsight puts `save` onto every object. anyio, which inspect_ai and servers run on, refuses to define classes that have it, and so
# has to define its own before.
with suppress(ImportError):
    from anyio.abc import SocketAttribute  # noqa: F401
    from anyio.streams.tls import TLSAttribute  # noqa: F401
