"""A chat template's options and date: given by name, read by the template, and recorded in every artefact."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
import tiny
from transformers.utils import chat_template_utils

import neuronshield as ns
from neuronshield import InputError
from neuronshield.model.encoding import collate, render
from neuronshield.model.template import chat_template, dated, media_tokens, variables

THINKS = "{% for m in messages %}{{ m.content }} {% endfor %}{% if enable_thinking is defined and not enable_thinking %}no{% endif %}"
#: As in Llama 3.2: the date is an option, else what the machine's clock says.
DATED = (
    "{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
    "{{ date_string }} {% for m in messages %}{{ m.content }} {% endfor %}"
)


def loaded(template: Any, **options: Any) -> ns.Model:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = template
    return ns.load(tiny.llama(), processor=tokenizer, **options)


def test_options_reach_the_template_and_what_the_model_reads() -> None:
    plain, quiet = loaded(THINKS), loaded(THINKS, template_options={"enable_thinking": False})
    assert render(plain, "how do i")[0] == "how do i "
    assert render(quiet, "how do i")[0] == "how do i no"
    assert [tiny.WORDS[i] for i in collate(quiet, ["how do i"]).encoding["input_ids"][0]] == "how do i no".split()  # type: ignore[list-item]


def test_every_artefact_records_template_and_options() -> None:
    plain, quiet = loaded(THINKS), loaded(THINKS, template_options={"enable_thinking": False})
    facts = [ns.capture(m, tiny.prompts(), progress=False).provenance["template"] for m in (plain, quiet)]
    assert facts[0] == {**facts[1], "options": {}}
    assert facts[1]["options"] == {"enable_thinking": False}
    other = loaded(THINKS + " ")
    assert other.provenance()["template"]["hash"] != facts[0]["hash"]
    assert ns.load(tiny.llama(), processor=tiny.tokenizer()).provenance()["template"] is None


@pytest.mark.parametrize(
    ("template", "options", "told"),
    [
        (THINKS, {"enable_thinkin": False}, r"enable_thinkin= is unknown; did you mean 'enable_thinking'\?"),
        (THINKS, {"messages": []}, "messages= is unknown"),
        (THINKS, {"tokenize": False}, "tokenize= is unknown"),
        (THINKS, {"enable_thinking": {1, 2}}, "give values that JSON can hold"),
        (THINKS, ["enable_thinking"], "must be a dict"),
        ("{{ messages[0].content }}", {"enable_thinking": False}, "the chat template reads no options"),
        (None, {"enable_thinking": False}, "has no chat template to give them to"),
        (DATED, {"strftime_now": "26 Jul 2024"}, "give the date as in '2026-01-31'"),
    ],
)
def test_options_that_the_template_does_not_read_are_refused(template: Any, options: Any, told: str) -> None:
    with pytest.raises(InputError, match=f"load: template_options.*{told}"):
        loaded(template, template_options=options)


def at(monkeypatch: pytest.MonkeyPatch, day: int) -> None:
    """Templates' own clock shows that day of January 2031."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Clock:  # noqa: ARG003
            return cls(2031, 1, day)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.mark.parametrize(
    "template", [DATED, "{% set f = '%d %b %Y' %}{{ strftime_now(f) }} {{ messages[0].content }} "]
)
def test_a_model_reads_one_date_and_records_it(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, today = loaded(template), datetime.date.today()
    said = [render(model, "how do i")[0]]
    for day in (1, 2):
        at(monkeypatch, day)
        said.append(render(model, "how do i")[0])
    assert set(said) == {f"{today:%d %b %Y} how do i "}
    assert model.provenance()["template"]["date"] == today.isoformat()
    assert "date" not in loaded(THINKS).provenance()["template"]


def test_the_date_can_be_given() -> None:
    by_clock = loaded(DATED, template_options={"strftime_now": "2026-01-31"})
    assert render(by_clock, "how do i")[0] == "31 Jan 2026 how do i "
    assert by_clock.provenance()["template"]["date"] == "2026-01-31"
    by_option = loaded(DATED, template_options={"date_string": "26 Jul 2024"})
    assert render(by_option, "how do i")[0] == "26 Jul 2024 how do i "
    assert by_option.provenance()["template"]["options"] == {"date_string": "26 Jul 2024"}


@pytest.mark.parametrize(
    "start", ["", "\n", "  ", "\n  {% if true %}\n  x{% endif %}\n", "  {%- if true %} x{% endif %}"]
)
def test_a_fixed_date_changes_nothing_else_of_a_template(start: str) -> None:
    today = datetime.date.today().isoformat()
    text = start + "{{ strftime_now('%Y-%m-%d %-d %j %A') }}{% for m in messages %}\n  {{ m.content }}\n{% endfor %}"

    def written(template: str) -> str:
        talk: Any = [[{"role": "user", "content": "how"}]]
        return str(chat_template_utils.render_jinja_template(conversations=talk, chat_template=template)[0][0])

    assert dated(text, today) != text
    assert written(dated(text, today)) == written(text)


def test_of_several_templates_the_default_is_used() -> None:
    named = {"default": "{{ messages[0].content }} here", "tool_use": "{{ messages[0].content }} no"}
    assert render(loaded(named), "how do i")[0] == "how do i here"
    del named["default"]
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = named
    with pytest.raises(InputError, match="the chat templates 'tool_use' and no 'default'"):
        chat_template(tokenizer)


def test_variables_are_what_a_template_reads() -> None:
    text = (
        "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{% generation %}{{ a }}{% endgeneration %}{% endfor %}"
        "{{ bos_token }}{% if b is defined %}x{% endif %}"
    )
    assert variables(text) == {"messages", "a", "b", "bos_token"}
    assert variables("{% for %}") == frozenset()


def test_media_tokens_come_from_the_config_of_a_model_with_a_bare_tokenizer(llava: ns.Model) -> None:
    assert media_tokens(llava.module.config, llava.tokenizer) == ("<image>",)
