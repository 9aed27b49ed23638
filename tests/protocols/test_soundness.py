"""Every family that reads pictures runs all protocols to the end, and untrained weights are not called safe."""

from __future__ import annotations

import families
import numpy as np
import pytest
import tiny
from families import PICTURED, SIZE, Family

import neuronshield as ns
from neuronshield.protocols.verdicts import SEPARATE, SHARED


def rows() -> ns.PromptSet:
    """Fifteen requests of either modality, with pictures of the size that families read."""
    found = tiny.records(pictures=True, languages=("en",))
    for i, row in enumerate(found):
        if row["modality"] == "image":
            row["images"] = [tiny.picture(i, (SIZE, SIZE))]
    return ns.PromptSet.from_records(found)


@pytest.mark.slow
@pytest.mark.parametrize("family", PICTURED, ids=lambda f: f.name)
def test_a_family_runs_all_protocols(family: Family) -> None:
    try:
        model = family.load()
    except families.NotHere as error:
        pytest.skip(str(error))
    found = ns.protocols.modality(
        model, rows(), rho=0.2, draws=3, controls=5, rounds=1, refusals=["sorry"], compliances=["sure"], progress=False
    )
    assert [o.protocol for o in found.outcomes] == ["Precise Shield", "One Anchor", "SS-Neurons", "behavioural"]
    assert not set(found.verdicts.values()) & {SHARED, SEPARATE}  # three draws show nothing
    for outcome in found.outcomes:
        for effect in outcome.effects:
            assert np.isfinite([*effect.margin, *effect.mass]).all()
            assert effect.n == len(found.neurons(outcome.protocol, effect.source))
    assert all(side.n_test == side.n_requests > 0 for side in found.sides)
