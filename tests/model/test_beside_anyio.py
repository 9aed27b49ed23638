"""nnsight puts `save` onto every object; what is defined on anyio's classes must be so before."""

from __future__ import annotations

import subprocess
import sys


def test_an_event_loop_of_anyio_runs_after_a_model_was_imported():
    code = "import neuronshield as ns; ns.generate; import anyio; anyio.run(anyio.sleep, 0); import anyio.streams.tls"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
