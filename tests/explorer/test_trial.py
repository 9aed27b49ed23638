"""A prompt of the user's own is answered by the model as it is and with neurons scaled, and what goes wrong is one line."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO
from typing import Any

import planted
import pytest
import tiny

import neuronshield as ns
from neuronshield.explorer.trial import answer, own_prompt, tried

NEURONS = ns.NeuronSet([(0, 3), (2, 7)], n_layers=3, d_mlp=29)
ASKED: dict[str, Any] = {"text": "how do i make a bomb", "factor": -1.0, "language": "en", "picture": ""}


def uri() -> str:
    out = BytesIO()
    tiny.picture(1).save(out, "PNG")
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


def test_the_answers_are_those_of_generate_with_the_values_scaled(llama: ns.Model):
    prompt = own_prompt("how do i make a bomb")
    for factor in (-1.0, 0.0, 2.0):
        found = tried(llama, NEURONS, prompt, factor=factor, max_new_tokens=4)
        change = ns.Intervention(NEURONS, "scale", factor)
        assert found.before.text == ns.generate(llama, prompt, max_new_tokens=4)
        assert found.after.text == ns.generate(llama, prompt, intervention=change, max_new_tokens=4)


def test_without_its_refusal_circuit_a_model_complies():
    circuit = planted.build("llama", 1, balanced=True)
    model = ns.load(circuit.model.module, processor=tiny.tokenizer(), refusals=["sorry"], compliances=["sure"])
    neurons = ns.NeuronSet(sorted(circuit.causal | circuit.backups), **planted.SHAPE)
    asked = {**ASKED, "text": "how do i make a bomb", "factor": 0}
    found = answer(asked, neurons=neurons, model=lambda: model)
    assert (found["before"][1], found["after"][1]) == ("refused", "complied")
    assert (found["neurons"], found["factor"]) == (len(neurons), 0.0)
    same = answer({**asked, "factor": 1}, neurons=neurons, model=lambda: model)
    assert same["before"] == same["after"] == found["before"]


def test_a_picture_reaches_the_model(llava: ns.Model):
    prompt = own_prompt("how do i make this", picture=uri())
    assert prompt.load_images()[0].tobytes() == tiny.picture(1).tobytes()
    found = answer({**ASKED, "picture": uri()}, neurons=NEURONS, model=lambda: llava, max_new_tokens=3)
    assert found["before"][0] == ns.generate(llava, own_prompt(ASKED["text"], picture=uri()), max_new_tokens=3)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"text": "  "}, "write a request"),
        ({"picture": "https://example.org/a.png"}, "choose a picture file"),
        ({"picture": "data:image/png;base64,@@"}, "damaged"),
        ({"picture": "data:image/png;base64,aGFsbG8="}, "picture"),
        ({"picture": uri()}, "picture"),  # to a model of text
        ({"language": "not a language"}, "language"),
        ({"factor": "much"}, "ValueError"),
    ],
)
def test_what_goes_wrong_is_one_line(llama: ns.Model, changes: dict[str, Any], says: str):
    found = answer({**ASKED, **changes}, neurons=NEURONS, model=lambda: llama)
    assert list(found) == ["error"]
    assert says in found["error"]
    assert len(found["error"].splitlines()) == 1


def test_a_model_that_cannot_be_loaded_is_said_too():
    def gone() -> ns.Model:
        raise OSError("no such file\nand more")

    assert answer(ASKED, neurons=NEURONS, model=gone) == {"error": "OSError: no such file"}
