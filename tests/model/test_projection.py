"""The weight that a projection applies, against what the projection does to unit vectors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn
from torch.nn import functional

import neuronshield as ns
from neuronshield.model import projection

OUT, IN = 20, 29


@torch.no_grad()
def applied(linear: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    """[out, in]: what the projection makes of every unit vector, its bias taken away."""
    return (linear(torch.eye(IN, dtype=dtype)) - linear(torch.zeros(1, IN, dtype=dtype))).T


def dense(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(IN, OUT)


class Float8(nn.Linear):
    """An FP8 projection as transformers stores it: a float8 weight and its scales, for all, for rows, or for blocks."""

    def __init__(self, name: str, scale: Tensor, block: tuple[int, int] | None = None) -> None:
        super().__init__(IN, OUT)
        rows, columns = block or (1, 1)
        self.whole = scale.reshape(scale.shape or (1, 1)).repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        self.whole = self.whole[:OUT, :IN]
        self.weight = nn.Parameter((dense().weight.data / self.whole).to(torch.float8_e4m3fn), requires_grad=False)
        setattr(self, name, nn.Parameter(scale, requires_grad=False))
        if block:
            self.block_size = block

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight.float() * self.whole, self.bias)


class Integers(nn.Module):
    """Packed integers without a weight, as GPTQ and AWQ keep them."""

    def __init__(self, act: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.in_features, self.out_features, self.act = IN, OUT, act
        self.register_buffer("qweight", (dense().weight.data * 100).to(torch.int8))
        self.register_buffer("bias", torch.ones(OUT))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(functional.linear(x, self.qweight.float() / 100, self.bias))  # type: ignore[operator,arg-type]


class Packed(Tensor):
    """A tensor of a packed class, as torchao and quanto make them: it unpacks itself."""

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["whole"], None

    def dequantize(self) -> Tensor:
        return self.as_subclass(Tensor) * 3


class Tripled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 3 * functional.linear(x, self.weight.as_subclass(Tensor)) + self.bias


def torchao_like() -> nn.Module:
    linear = Tripled(IN, OUT)
    linear.weight = nn.Parameter(linear.weight.data.as_subclass(Packed), requires_grad=False)
    return linear


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(OUT, IN)


def normed() -> nn.Module:
    return torch.nn.utils.parametrizations.weight_norm(dense())


def offloaded() -> nn.Module:
    from accelerate import cpu_offload

    return cpu_offload(dense())


@pytest.mark.parametrize(
    ("make", "packed"),
    [
        (dense, None),
        (conv1d, None),
        (normed, None),
        (offloaded, None),
        (lambda: Float8("weight_scale_inv", torch.tensor(0.01)), "float8_e4m3fn"),
        (lambda: Float8("weight_scale", torch.rand(OUT, 1) + 0.1), "float8_e4m3fn"),
        (lambda: Float8("weight_scale_inv", torch.rand(3, 2) + 0.1, (8, 16)), "float8_e4m3fn"),
        (Integers, "Integers"),
        (torchao_like, "Packed"),
    ],
)
def test_it_is_what_the_projection_makes_of_unit_vectors(make: Callable[[], nn.Module], packed: str | None):
    linear = make()
    assert projection.refusal(linear) is None
    torch.testing.assert_close(projection.acting_weight(linear), applied(linear), rtol=1e-5, atol=1e-6)
    assert projection.out_in(linear) == (OUT, IN)
    assert projection.packed_as(linear) == packed
    assert projection.is_plain(linear) == (make in (dense, conv1d))


def test_fp8_of_transformers_is_unpacked_by_its_blocks():
    from transformers.integrations.finegrained_fp8 import FP8Linear, _dequantize_fp8_weight

    linear = FP8Linear(IN, OUT, block_size=(8, 16))
    linear.weight.data = dense().weight.data.to(torch.float8_e4m3fn)
    linear.weight_scale_inv.data = torch.rand(3, 2) + 0.5
    theirs = _dequantize_fp8_weight(linear.weight, linear.weight_scale_inv, [8, 16], torch.float32)
    torch.testing.assert_close(projection.acting_weight(linear), theirs)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.packed = dense().weight


def replaced() -> nn.Module:
    linear = dense()
    own = linear.forward
    linear.forward = lambda x: own(x) + own(-2 * x)  # type: ignore[method-assign,assignment]
    return linear


def integers() -> nn.Module:
    linear = dense()
    linear.weight = nn.Parameter(linear.weight.data.to(torch.int8), requires_grad=False)
    return linear


def pruned() -> nn.Module:
    import torch.nn.utils.prune

    return torch.nn.utils.prune.random_unstructured(dense(), "weight", 0.3)  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: Doubled(IN, OUT), "output is not its weight times its input (off by"),
        (replaced, "output is not its weight times its input (off by"),
        (lambda: Integers(torch.relu), "output is not its weight times its input (off by"),
        (Silent, "Silent is no projection"),
        (integers, "cannot be run here"),
        (lambda: dense().to(torch.float8_e4m3fn), "cannot be run here"),
        (lambda: dense().to("meta"), "was not loaded"),
        (lambda: nn.utils.weight_norm(dense()), "computed from 'weight_g'"),
        (pruned, "computed from 'weight_orig'"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
def test_what_cannot_be_told_is_said(make: Callable[[], nn.Module], why: str):
    assert why in (projection.refusal(make()) or "")


@pytest.mark.parametrize("layer", [0, 2])
def test_a_model_is_refused_by_the_layer_whose_weight_cannot_be_told(layer: int):
    module = tiny.llama()
    mlp: Any = module.model.layers[layer].mlp
    mlp.up_proj = Doubled(20, 29, bias=False)
    said = f"LlamaForCausalLM: 'mlp.up_proj' of layer {layer} is a Doubled, and its output is not"
    with pytest.raises(ns.InputError, match=said):
        ns.load(module, processor=tiny.tokenizer())


def test_layers_that_share_their_weights_are_refused():
    module = tiny.llama()
    first, last = (module.model.layers[i].mlp for i in (0, 2))
    last.down_proj.weight = first.down_proj.weight  # type: ignore[union-attr,assignment]
    with pytest.raises(ns.InputError, match=r"layers 0 and 2 share one 'mlp.down_proj' \(tied\)"):
        ns.load(module, processor=tiny.tokenizer())


# -- models -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", ["lm_head.weight", "model.layers.1.self_attn.q_proj.weight", "model.rotary_emb.inv_freq"]
)
def test_a_model_with_a_tensor_that_was_not_loaded_is_refused_by_its_name(name: str):
    module = tiny.llama()
    owner, _, last = name.rpartition(".")
    part = module.get_submodule(owner)
    given = getattr(part, last)
    empty = given.to("meta")
    setattr(part, last, nn.Parameter(empty) if isinstance(given, nn.Parameter) else empty)
    with pytest.raises(
        ns.InputError, match=rf"'{name}' was not loaded \(it is on the meta device\); load the model whole"
    ):
        ns.load(module, processor=tiny.tokenizer())


def test_packed_integers_are_measured_by_what_they_do_and_not_trained():
    module = tiny.llama()
    for layer in module.model.layers:
        layer.mlp.down_proj = Integers()  # type: ignore[union-attr,assignment]
    model = ns.load(module, processor=tiny.tokenizer())
    assert (model.dtype, model.n_params) == ("Integers", tiny.llama().num_parameters() + 3 * OUT)
    expected = applied(Integers()).double().norm(dim=0)
    torch.testing.assert_close(model.down_norms()[1], expected)
    with pytest.raises(ns.InputError, match=r"prune: .* is loaded in Integers.*load it in bfloat16"):
        ns.attacks.prune(model, ns.NeuronSet([(1, 3)], n_layers=3, d_mlp=29))


def test_an_offloaded_model_is_read_and_not_trained(llama: ns.Model):
    from accelerate import cpu_offload

    model = ns.load(cpu_offload(copy.deepcopy(tiny.llama())), processor=tiny.tokenizer())
    assert model.device.type == "cpu"
    assert model.fingerprint == llama.fingerprint
    prompts = tiny.prompts(languages=("en",))[:4]
    assert torch.equal(ns.record(model, prompts), ns.record(llama, prompts))
    assert torch.equal(model.down_norms(), llama.down_norms())
    with pytest.raises(ns.InputError, match=r"masked_update: .* has weights that are offloaded; load it whole"):
        ns.masked_update(model, ns.NeuronSet([(1, 3)], n_layers=3, d_mlp=29), prompts)


def test_the_dtype_is_that_of_the_mlp_weights():
    module = tiny.llama()
    module.model.embed_tokens.to(torch.float64)
    assert ns.load(module, processor=tiny.tokenizer()).dtype == "float32"


# -- adapters on top --------------------------------------------------------------------------------------
def lora(family: str = "llama", **options: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    targets = ["c_proj", "c_fc"] if family == "gpt2" else ["down_proj", "up_proj", "q_proj"]
    common = {"r": 2, "target_modules": targets, "init_lora_weights": False, "fan_in_fan_out": family == "gpt2"}
    torch.manual_seed(4)
    return get_peft_model(getattr(tiny, family)(), LoraConfig(**{**common, **options})).eval()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {}),
        ("gpt2", {}),
        ("llama", {"use_rslora": True}),
        ("llama", {"use_dora": True}),
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"target_modules": ["q_proj"]}),
    ],
)
def test_the_weights_of_an_unmerged_adapter_are_those_of_the_merged_model(family: str, options: dict[str, Any]):
    tokenizer = tiny.tokenizer()
    on_top = ns.load(lora(family, **options), processor=tokenizer)
    merged = ns.load(lora(family, **options).merge_and_unload(), processor=tokenizer)
    torch.testing.assert_close(on_top.down_norms(), merged.down_norms(), rtol=1e-5, atol=1e-6)
    assert on_top.n_params == merged.n_params == getattr(tiny, family)().num_parameters()
    assert on_top.params_per_neuron == merged.params_per_neuron
    if not options.get("use_dora"):  # whose weight is rounded in another order
        assert on_top.fingerprint == merged.fingerprint
    with pytest.raises(ns.InputError, match=r"masked_update: .* has an adapter that is not merged; merge it first"):
        ns.masked_update(on_top, ns.NeuronSet([(1, 3)], n_layers=3, d_mlp=29), tiny.prompts())


def test_only_the_adapters_that_act_count():
    module = lora()
    other = lora().peft_config["default"]
    module.add_adapter("other", other)
    model = ns.load(module, processor=tiny.tokenizer())
    base = ns.load(tiny.llama(), processor=tiny.tokenizer()).fingerprint
    down = model.linear(1, model.site.down)
    seen = []
    for active in ("default", "other", ["default", "other"]):
        module.base_model.set_adapter(active)
        torch.testing.assert_close(model.down_weight(1), applied(down), rtol=1e-5, atol=1e-6)
        seen.append(model.fingerprint)
    with module.disable_adapter():
        seen.append(model.fingerprint)
        assert model.fingerprint == base
    module.merge_adapter()
    assert model.fingerprint == seen[2]
    assert len(set(seen)) == 4
    with module.disable_adapter():  # a forward pass takes the adapters out of the weights again
        base_weight = tiny.llama().model.layers[1].mlp.down_proj.weight
        torch.testing.assert_close(model.down_weight(1), base_weight.detach(), rtol=1e-5, atol=1e-6)


def test_an_adapter_that_is_more_than_weights_is_refused():
    from peft import PromptTuningConfig, get_peft_model

    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(ns.InputError, match=r"adapter 'default' \(PROMPT_TUNING\) adds virtual tokens"):
        ns.load(get_peft_model(tiny.llama(), config), processor=tiny.tokenizer())
    with pytest.raises(ns.InputError, match=r"adapter 'default' \(LORA\) depends on the token"):
        ns.load(lora(alora_invocation_tokens=[5], task_type="CAUSAL_LM"), processor=tiny.tokenizer())
