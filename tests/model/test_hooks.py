"""One context of plain hooks: what it reads, what it replaces, and that nothing stays behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from neuronshield.model.hooks import hooked


class Scaled(nn.Module):
    def forward(self, x: torch.Tensor, by: float = 1.0) -> torch.Tensor:
        return x * by


X = torch.tensor([1.0, 2.0])


def test_before_reads_and_replaces_the_first_input() -> None:
    module, seen = Scaled(), []
    with hooked([module], before=lambda key, x: seen.append((key, x.tolist()))):
        assert torch.equal(module(X, by=3.0), 3 * X)
    with hooked([module], before=lambda _, x: x + 1):
        assert torch.equal(module(X, by=3.0), 3 * (X + 1))
        assert torch.equal(module(x=X, by=3.0), 3 * (X + 1))
    assert seen == [(0, [1.0, 2.0])]


def test_after_reads_and_replaces_the_output() -> None:
    module, seen = Scaled(), []
    with hooked({"one": module}, after=lambda key, x, out: seen.append((key, x.tolist(), out.tolist()))):
        assert torch.equal(module(X, by=2.0), 2 * X)
    with hooked({"one": module}, after=lambda _, x, out: out - x):
        assert torch.equal(module(x=X, by=3.0), 2 * X)
    assert seen == [("one", [1.0, 2.0], [2.0, 4.0])]


def test_before_and_after_act_together() -> None:
    module = Scaled()
    with hooked([module], before=lambda _, x: x + 1, after=lambda _, x, out: out + x):
        assert torch.equal(module(X), 2 * (X + 1))


def test_a_context_can_be_entered_again_and_leaves_nothing_behind() -> None:
    module = Scaled()
    context = hooked([module], before=lambda _, x: x + 1)
    for _ in range(2):
        with context:
            assert torch.equal(module(X), X + 1)
        assert torch.equal(module(X), X)
    with pytest.raises(ZeroDivisionError), context:
        module(X / (1 // 0))
    assert torch.equal(module(X), X)
    assert not module._forward_pre_hooks
    assert not module._forward_hooks


def test_a_module_that_cannot_be_hooked_leaves_the_others_unhooked() -> None:
    module = Scaled()
    with pytest.raises(AttributeError), hooked([module, None], before=lambda _, x: x + 1):  # type: ignore[list-item]
        pass
    assert not module._forward_pre_hooks
