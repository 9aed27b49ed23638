"""Loading: which MLP is addressed, what is counted, and what is refused by name."""

# mypy: disable-error-code="arg-type, call-overload, list-item, attr-defined"
# Wrong calls are made on purpose.

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from transformers import BertConfig, BertForMaskedLM, JambaConfig, JambaForCausalLM, PreTrainedModel

import neuronshield as ns
from neuronshield import InputError
from neuronshield.model.forward import answer_logits
from neuronshield.model.intervention import Intervention

MODELS = ("llama", "gpt2", "llava")


@pytest.mark.parametrize("name", MODELS)
def test_a_built_model_has_its_language_backbone_addressed(request: pytest.FixtureRequest, name: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    assert (model.n_layers, model.d_mlp, model.d_model) == (3, 29, 20)
    addressed = [model.linear(layer, model.site.down) for layer in range(3)]
    assert [id(m) for m in addressed] == [id(m) for m in tiny.downs(model)]
    assert len(model.envoys) == 3
    assert not model.module.training


def other_family(name: str) -> PreTrainedModel:
    """A three-layer model of a real class with random weights."""
    sizes: dict[str, Any] = dict(hidden_size=24, intermediate_size=29, num_hidden_layers=3, num_attention_heads=2,
                 vocab_size=len(tiny.WORDS), pad_token_id=0, bos_token_id=1, eos_token_id=2)  # fmt: skip
    torch.manual_seed(0)
    if name == "bloom":
        few = {k: sizes[k] for k in ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")}
        return transformers.BloomForCausalLM(transformers.BloomConfig(hidden_size=24, n_layer=3, n_head=2, **few))
    if name == "qwen2vl":
        rope = {"rope_type": "default", "mrope_section": [2, 2, 2]}
        text = {**sizes, "num_key_value_heads": 2, "rope_parameters": rope}
        vision = dict(depth=1, embed_dim=16, hidden_size=24, num_heads=2)
        return transformers.Qwen2VLForConditionalGeneration(
            transformers.Qwen2VLConfig(text_config=text, vision_config=vision)
        )
    kinds: dict[str, tuple[Any, Any]] = {
        "neox": (transformers.GPTNeoXForCausalLM, transformers.GPTNeoXConfig),
        "phi": (transformers.PhiForCausalLM, transformers.PhiConfig),
        "qwen3": (transformers.Qwen3ForCausalLM, transformers.Qwen3Config),
        "gemma3": (transformers.Gemma3ForCausalLM, transformers.Gemma3TextConfig),
        "mistral": (transformers.MistralForCausalLM, transformers.MistralConfig),
    }
    model, config = kinds[name]
    heads = {"num_key_value_heads": 2} if name in ("qwen3", "gemma3", "mistral") else {}
    return model(config(**sizes, **heads))  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["neox", "bloom", "phi", "qwen3", "gemma3", "mistral", "qwen2vl"])
def test_other_families_are_read_where_plain_hooks_read_them(name: str) -> None:
    model = ns.load(other_family(name).eval(), processor=tiny.tokenizer())
    prompts = tiny.prompts().where(label="harmful").in_cells([("en", "text")])
    got = ns.capture(model, prompts, progress=False).moments("harmful", ("en", "text"))
    downs = [m for n, m in model.module.named_modules() if n.endswith((".down_proj", ".dense_4h_to_h", ".mlp.fc2"))
             and "visual" not in n]  # fmt: skip
    rows = []
    for prompt in prompts:
        kept: dict[int, torch.Tensor] = {}
        with torch.no_grad(), tiny.hooked(downs, lambda layer, h, kept=kept: kept.update({layer: h[0, -1].double()})):  # type: ignore[misc]
            model.module(**tiny.encode(model, prompt)[0])
        rows.append(torch.stack([kept[i] for i in range(3)]))
    wanted = torch.stack(rows)
    assert got.n == len(prompts)
    torch.testing.assert_close(torch.from_numpy(got.mean), wanted.mean(0), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(torch.from_numpy(got.var), wanted.var(0), rtol=1e-3, atol=1e-8)


def test_the_vision_towers_mlps_are_never_addressed(llava: ns.Model) -> None:
    # the tower's MLPs are 14 -> 22 -> 14; they must not be found, traced or counted as neurons
    tower = {id(m) for n, m in llava.module.named_modules() if "vision" in n}
    assert tower
    for layer in range(llava.n_layers):
        for part in ("mlp.down_proj", "mlp.up_proj", "mlp.gate_proj"):
            assert id(llava.linear(layer, part)) not in tower
    assert "vision" not in llava.layers_path


# -- folders --------------------------------------------------------------------------------------------
def assert_same_weights(a: torch.nn.Module, b: torch.nn.Module) -> None:
    one, two = dict(a.named_parameters()), dict(b.named_parameters())
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_saved_text_model_loads_from_its_folder(tmp_path: Path, llama: ns.Model) -> None:
    llama.module.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    back = ns.load(tmp_path)
    assert_same_weights(back.module, llama.module)
    assert back.id == tmp_path.name
    assert back.fingerprint == llama.fingerprint
    assert back.tokenizer("how do i")["input_ids"] == llama.tokenizer("how do i")["input_ids"]
    assert next(back.module.parameters()).dtype == torch.float32
    half = ns.load(str(tmp_path), dtype="bfloat16")
    assert next(half.module.parameters()).dtype == torch.bfloat16


def test_a_saved_llava_loads_from_its_folder_with_its_image_processor(tmp_path: Path, llava: ns.Model) -> None:
    llava.module.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    back = ns.load(tmp_path)
    assert type(back.module).__name__ == "LlavaForConditionalGeneration"
    assert_same_weights(back.module, llava.module)
    assert back.takes_images
    prompts = tiny.prompts(pictures=True).where(modality="image")[:3]
    here, there = ns.generate(llava, prompts, max_new_tokens=5), ns.generate(back, prompts, max_new_tokens=5)
    assert here == there


# -- errors ---------------------------------------------------------------------------------------------
def bert() -> PreTrainedModel:
    config = BertConfig(vocab_size=38, hidden_size=20, intermediate_size=29, num_hidden_layers=2, num_attention_heads=2)
    return BertForMaskedLM(config)


def jamba() -> PreTrainedModel:
    config = JambaConfig(vocab_size=38, hidden_size=20, intermediate_size=29, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, num_experts=3)  # fmt: skip
    return JambaForCausalLM(config)


def uneven() -> PreTrainedModel:
    module = tiny.llama()
    module.model.layers[1].mlp.down_proj = torch.nn.Linear(31, 20, bias=False)
    return module


def repeated() -> PreTrainedModel:
    module = tiny.llama()
    module.model.layers = torch.nn.ModuleList([module.model.layers[0]] * 3)
    return module


@pytest.mark.parametrize(
    ("build", "says"),
    [
        (bert, "BertForMaskedLM: it reads in both directions"),
        (jamba, r"JambaForCausalLM: layer 0 at .* is dense and others have mixture-of-experts modules"),
        (uneven, "LlamaForCausalLM: layers differ in MLP width"),
        (lambda: torch.nn.Linear(2, 3), "Linear: no decoder layers found"),
        (
            lambda: tiny.llama(num_hidden_layers=0),
            "LlamaForCausalLM: its list of decoder layers, 'model.layers', is empty",
        ),
        (repeated, "LlamaForCausalLM: several layers at 'model.layers' are one module that runs several times"),
    ],
    ids=[
        "BERT",
        "mixture in some layers",
        "layers of different width",
        "no transformer",
        "no layers",
        "one layer three times",
    ],
)
def test_a_model_without_a_known_decoder_mlp_is_refused_by_name(build: Any, says: str) -> None:
    with pytest.raises(InputError, match=says):
        ns.load(build(), processor=tiny.tokenizer())


def test_a_compiled_model_is_read_as_the_model_in_it(gpt2: ns.Model) -> None:
    compiled: Any = torch.compile(gpt2.module, backend="eager")
    model = ns.load(compiled, processor=gpt2.processor)
    assert model.module is gpt2.module
    assert model.fingerprint == gpt2.fingerprint


def test_a_built_model_needs_its_processor() -> None:
    with pytest.raises(InputError, match="processor="):
        ns.load(tiny.llama())
    with pytest.raises(InputError, match="pass the processor object, not its name"):
        ns.load(tiny.llama(), processor="some/name")


def test_an_unknown_name_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot load model '.*nowhere'.*organism") as caught:
        ns.load(str(tmp_path / "nowhere"))
    assert "\n" not in str(caught.value)


def test_a_file_and_an_empty_folder_are_not_models(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("x")
    with pytest.raises(InputError, match=r"weights\.bin: is a file"):
        ns.load(tmp_path / "weights.bin")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot load model"):
        ns.load(tmp_path / "empty")


def test_a_folder_with_broken_weights_is_refused(tmp_path: Path, llama: ns.Model) -> None:
    llama.module.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="cannot load model"):
        ns.load(tmp_path)


# -- big models -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama on disk whose widths are what 4-bit blocks need."""
    folder = tmp_path_factory.mktemp("wide")
    tiny.llama(hidden_size=64, intermediate_size=128).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(("bits", "name", "near"), [("4bit", "nf4", 0.35), ("8bit", "int8", 0.05)])
def test_a_quantised_model_is_found_and_proven_in_but_not_trained(
    wide: Path, bits: str, name: str, near: float
) -> None:
    pytest.importorskip("bitsandbytes")
    full, packed = ns.load(wide), ns.load(wide, quantize=bits)
    assert (packed.n_layers, packed.d_mlp, packed.d_model) == (3, 128, 64)
    assert packed.n_params == full.n_params
    assert packed.params_per_neuron == full.params_per_neuron
    assert packed.provenance()["dtype"] == name
    assert (packed.down_norms() / full.down_norms() - 1).abs().max() < near
    before = packed.fingerprint
    prompts = tiny.prompts().in_cells([("en", "text")])
    got, wanted = ns.capture(packed, prompts, progress=False), ns.capture(full, prompts, progress=False)
    a, b = got.moments("harmful", ("en", "text")), wanted.moments("harmful", ("en", "text"))
    assert a.n == b.n
    assert np.corrcoef(a.mean.ravel(), b.mean.ravel())[0, 1] > 1 - near / 2
    one = tiny.activations(packed, prompts[0])[0]  # exactly what plain hooks read in the packed model
    np.testing.assert_allclose(ns.record(packed, [prompts[0]])[0], one[-1], rtol=1e-3, atol=1e-3)
    assert got.provenance["dtype"] == name
    neurons = ns.NeuronSet([(1, 3)], n_layers=3, d_mlp=128)
    logits = [answer_logits(packed, list(prompts)[:2], i) for i in (None, Intervention(neurons, "clamp", 5.0))]
    assert not torch.equal(*logits)
    assert packed.fingerprint == before  # a forward re-packs the weights
    for what, act in {
        "masked_update": lambda: ns.masked_update(packed, neurons, prompts),
        "prune": lambda: ns.attacks.prune(packed, neurons),
    }.items():
        with pytest.raises(InputError, match=f"{what}: .* is loaded in {name}.*bfloat16"):
            act()


def test_a_device_map_places_the_model_and_the_numbers_stay(wide: Path) -> None:
    plain, mapped = ns.load(wide), ns.load(wide, device_map={"": "cpu"})
    prompts = tiny.prompts().in_cells([("en", "text")])
    a, b = (ns.capture(m, prompts, progress=False).moments("benign", ("en", "text")).mean for m in (plain, mapped))
    np.testing.assert_array_equal(a, b)


def test_where_and_how_to_load_is_said_once_and_known(wide: Path) -> None:
    with pytest.raises(InputError, match="device= or device_map="):
        ns.load(wide, device="cpu", device_map="auto")
    with pytest.raises(InputError, match="quantize='2bit' is unknown; use '4bit' or '8bit'"):
        ns.load(wide, quantize="2bit")


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("Qwen2VLVideoProcessor requires the Torchvision library but it was not found", "pip install torchvision"),
        ("The repository x/y contains custom code ... set `trust_remote_code=True`", "trust_remote_code=True"),
        ("Package `num2words` is required to run SmolVLM processor.", "folder or a hub id"),
    ],
)
def test_what_a_load_fails_on_is_advised_on(
    wide: Path, monkeypatch: pytest.MonkeyPatch, said: str, advice: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ImportError(said)

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", fail)
    with pytest.raises(InputError, match=f"cannot load model .*{advice}"):
        ns.load(wide)


# -- wrong calls ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda _: ns.load(None), "load(model): model must be str or a path or Module, got NoneType; use 'organism'"),
        (lambda _: ns.load(7), "load(model): model must be str or a path or Module, got int 7"),
        (lambda _: ns.load(tiny.tokenizer()), "which is a processor; pass the model first: load(model, processor=...)"),
        (lambda _: ns.load(tiny.llava()[1]), "load(model): got a LlavaProcessor, which is a processor"),
        (lambda _: ns.load(tiny.llama()), "load(module): pass processor="),
        (lambda m: ns.load(ns.Update(m, None, None, trained=0)), "got Update; pass update.model"),
        (lambda m: ns.load(model=m), "load(model): this model is loaded already"),
        (lambda _: ns.load("organism", dtype="float99"), "load: dtype='float99' is unknown; use 'float32'"),
        (lambda _: ns.load("organism", dtype=16), "load: dtype=16 is unknown"),
        (lambda _: ns.load("organism", processor="organism"), "pass the processor object, not its name"),
        (lambda m: ns.load(m.module, processor=m.processor, dtype="float16"), "load(module, dtype=...): dtype= says how"),
        (lambda m: ns.load(m.module, processor=m.processor, device="cpu"), "place and convert the module yourself"),
        (lambda m: ns.load(m.module, processor=m.processor, device_map="auto"), "load(module, device_map=...)"),
        (lambda m: ns.load(m.module, processor=m.processor, quantize="4bit"), "load(module, quantize=...)"),
        (lambda m: ns.load(m.module, processor=m.processor, trust_remote_code=True), "load(module, trust_remote_code=...)"),
        (lambda m: ns.load(m.module, processor=3), "processor must be a processor or a tokenizer, got int"),
        (lambda m: ns.load(m.module, processor=m.processor, site=("a", "b")), "site=('a', 'b'): must be three addresses"),
        (lambda m: ns.load(m.module, processor=m.processor, site=4), "site=4: must be three addresses"),
        (lambda _: ns.load("organism", revision="main"), "load('organism', revision='main'): this model has one revision"),
        (lambda _: ns.load("organism", device="gpu"), "load: device='gpu' is not available; use 'cpu', 'cuda' or 'cuda:1'"),
        (lambda _: ns.load("organism", device="cuda:99"), "load: device='cuda:99' is not available"),
        (lambda _: ns.load("organism", device_map="cuda:99"), "load: device_map='cuda:99' is not available"),
        (lambda _: ns.load("organism", device_map={"": "cuda:99"}), "load: device_map='cuda:99' is not available"),
        (lambda _: ns.load("organism", device_map="spread"), "device_map='spread' is unknown; use 'auto', 'balanced'"),
        (lambda _: ns.load("organism", device_map=[1]), "device_map must be str or int or device, got list"),
        (lambda m: answer_logits(list(tiny.prompts()), m), "answer_logits(model, prompts): model must be Model, got list"),
        (lambda m: answer_logits(m, []), "answer_logits: no prompts"),
        (lambda m: answer_logits(m, "make cake", batch_size=0), "answer_logits: batch_size=0"),
        (lambda m: answer_logits(m, "make cake", "zero"), "intervention must be Intervention or NoneType, got str 'zero'"),
        (lambda m: ns.doctor(m.module), "doctor(model): model must be Model, got LlamaForCausalLM; ns.load makes one"),
    ],
)  # fmt: skip
def test_a_wrong_call_is_one_line(llama: ns.Model, call: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        call(llama)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_given_processor_replaces_the_checkpoints_own(wide: Path) -> None:
    mine = tiny.tokenizer()
    assert ns.load(wide, processor=mine).processor is mine
