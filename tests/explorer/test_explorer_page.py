"""The explorer's page: everything of a view reaches it, nothing in it runs, leaves or breaks out, and it works in a browser."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterator
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import browser as chrome
import numpy as np
import pytest
import views

from neuronshield import InputError
from neuronshield.core.statistics import Interval
from neuronshield.explorer import page
from neuronshield.explorer.view import PictureView, SaidView, TokenView, View

LANGUAGES = ("en", "zh", "ar", "sw")
SAMPLE = views.sample(7, 3, LANGUAGES)
HOSTILE = views.hostile()


class Parsed(HTMLParser):
    """Tags of a page with their attributes, and the text of its scripts, as a browser reads them."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.title = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)
        if self.tags and self.tags[-1][0] == "title" and not self.title:
            self.title = data


def payload(html: str) -> Any:
    return json.loads(Parsed(html).scripts[0])


def test_hostile_texts_are_data_and_change_no_tag_of_the_page():
    calm, wild = Parsed(page.document(SAMPLE)), Parsed(page.document(HOSTILE))
    assert [tag for tag, _ in wild.tags] == [tag for tag, _ in calm.tags]
    assert wild.title == HOSTILE.title
    assert not set("<>&") & set(wild.scripts[0])
    read = json.loads(wild.scripts[0])
    assert read["notes"] == [note.replace("\ud800", "?") for note in views.HOSTILE]
    assert read["prompts"][0]["tokens"][:2] == [HOSTILE.prompts[0].tokens[0].text, HOSTILE.prompts[0].tokens[1].text]


def test_the_policy_of_the_page_allows_its_own_script_and_no_other():
    tags = Parsed(page.document(SAMPLE)).tags
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert "unsafe" not in policy


def test_nothing_is_fetched_evaluated_stored_or_set_as_markup():
    html = page.document(SAMPLE)
    outside = r"https?:|url\(|@import|\bfetch\(|XMLHttp|\beval\(|new Function|innerHTML|insertAdjacent|document\.write|storage"
    assert re.findall(outside, html, re.IGNORECASE) == []
    assert [a for tag, a in Parsed(html).tags if {"src", "href"} & set(a)] == []


def test_64_neurons_and_48_prompts_take_less_than_1_mb_beside_the_pictures():
    view = views.sample(64, 3, LANGUAGES)
    assert len(view.prompts) == 48
    html = page.document(view)
    pictures = sum(len(source) for source in payload(html)["pictures"])
    assert len(html.encode()) - pictures < 1_000_000


def test_the_same_view_gives_the_same_bytes():
    assert page.document(views.sample(7, 3, LANGUAGES)) == page.document(SAMPLE)


def other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, Interval):
        return Interval(value.value + 0.5, value.low + 0.5, value.high + 0.5)
    if is_dataclass(value):
        return next(changed for _, changed in variants(value))
    if isinstance(value, dict):
        return {k: other(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return tuple(other(v) for v in value)
    if isinstance(value, str):
        return f"{views.picture(99)}" if value.startswith("data:") else {"text": "image"}.get(value, f"{value}!")
    return 3 if value is None else value + 1


def variants(value: Any) -> Iterator[tuple[str, Any]]:
    for field in fields(value):
        yield field.name, replace(value, **{field.name: other(getattr(value, field.name))})


@pytest.mark.parametrize("part", ["view", "neuron", "prompt", "token", "picture", "answer", "shared"])
def test_every_field_of_a_view_reaches_the_page(part: str):
    def with_prompt(**changes: Any) -> View:
        return replace(SAMPLE, prompts=(*SAMPLE.prompts[:-1], replace(SAMPLE.prompts[-1], **changes)))

    last = SAMPLE.prompts[-1]
    changed = {
        "view": lambda: [(n, v) for n, v in variants(SAMPLE) if n not in ("neurons", "prompts", "shared")],
        "neuron": lambda: [(n, replace(SAMPLE, neurons=(v, *SAMPLE.neurons[1:]))) for n, v in variants(SAMPLE.neurons[0])],
        "prompt": lambda: [(n, with_prompt(**{n: getattr(v, n)})) for n, v in variants(last) if n != "tokens"],
        "token": lambda: [(n, with_prompt(tokens=(last.tokens[0], v, *last.tokens[2:]))) for n, v in variants(last.tokens[1])],
        "picture": lambda: [(n, with_prompt(pictures=(v,))) for n, v in variants(last.pictures[0])],
        "answer": lambda: [(n, with_prompt(alone=(v, *last.alone[1:]))) for n, v in variants(last.alone[0])],
        "shared": lambda: [(n, replace(SAMPLE, shared=(v, *SAMPLE.shared[1:]))) for n, v in variants(SAMPLE.shared[0])],
    }  # fmt: skip
    before = page.data(SAMPLE)
    for name, view in changed[part]():
        assert page.data(view) != before, f"{part}.{name}"


def test_activations_are_read_back_to_half_a_step_and_unknown_ones_as_unknown():
    read = page.data(HOSTILE)
    for k, neuron in enumerate(read["neurons"]):
        whole = np.frombuffer(b64decode(neuron["values"]), "<i2")
        want = np.concatenate([p.values[k] for p in HOSTILE.prompts])
        got = np.where(whole == -32768, np.nan, whole * neuron["step"])
        np.testing.assert_allclose(got, want, rtol=0, atol=neuron["step"] / 2 * 1.0001)
        assert neuron["step"] <= 9.0 / 32767 * 1.0001


def test_a_frame_holds_the_document_as_it_is():
    [(tag, attributes)] = Parsed(page.fragment(HOSTILE)).tags
    assert (tag, attributes["sandbox"], attributes["title"]) == ("iframe", "allow-scripts", HOSTILE.title)
    assert attributes["srcdoc"] == page.document(HOSTILE)


def test_the_sentence_says_what_was_not_measured():
    said = [page.describe(n) for n in HOSTILE.neurons]
    assert said[0].startswith("Its mean activation is higher on harmful requests in 2 of 2 cells; the effect")
    assert said[1].startswith("How its activation differs between harmful and benign requests was not measured; a unit")
    assert said[1].endswith("ablating it alone adds 20.0 % to the clean logit difference.")
    assert said[2].startswith("Its mean activation is equal on harmful and benign requests;")
    assert said[2].endswith("the effect of ablating it alone was not measured.")


@pytest.mark.parametrize("source", ["https://example.org/a.png", "data:image/svg+xml;base64,PHN2Zz4=", "data:text/html,x", "data:image/png;base64,AA\" onerror=\"x"])  # fmt: skip
def test_a_picture_that_is_not_raster_data_is_refused_by_prompt_and_number(source: str):
    bad = replace(SAMPLE.prompts[-1], pictures=(PictureView(source, None),))
    with pytest.raises(InputError, match=f"prompt '{bad.id}': picture 0 must be a data: URI of a PNG"):
        page.document(replace(SAMPLE, prompts=(bad,)))


def test_values_that_do_not_match_tokens_or_neurons_are_refused():
    first = SAMPLE.prompts[0]
    short = replace(first, tokens=(*first.tokens, TokenView("x", "text")))
    with pytest.raises(
        InputError, match=f"'{first.id}': values must be \\[7 neurons, {len(first.tokens) + 1} tokens\\]"
    ):
        page.data(replace(SAMPLE, prompts=(short,)))
    with pytest.raises(InputError, match="1 answers with one neuron ablated for 7 neurons"):
        page.data(replace(SAMPLE, prompts=(replace(first, alone=(SaidView("x", ""),)),)))
    with pytest.raises(InputError, match="height=100"):
        page.fragment(SAMPLE, height=100)


# ---- colours ----

#: Simulation of a kind of colour blindness on linear RGB (Machado, Oliveira and Fernandes 2009, severity 1).
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": np.array([[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]),
    "deuteranopia": np.array([[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]),
    "tritanopia": np.array([[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]),
}  # fmt: skip


def colours() -> list[dict[str, np.ndarray]]:
    """Linear RGB of the variables, in the light and in the dark."""
    found = []
    for block in re.findall(r"--bg: #[^}]*", page.style()):
        hexes = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", block))
        srgb = {k: np.array([int(h[i : i + 2], 16) / 255 for i in (1, 3, 5)]) for k, h in hexes.items()}
        found.append({k: np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4) for k, v in srgb.items()})
    return found


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    weights = np.array([0.2126, 0.7152, 0.0722])
    high, low = sorted((float(weights @ a), float(weights @ b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def lab(linear: np.ndarray) -> np.ndarray:
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear.clip(0, 1)
    f = np.cbrt(xyz / np.array([0.9505, 1, 1.089]))
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_is_readable_on_the_strongest_colours_and_the_ends_differ_for_every_kind_of_sight(theme: int):
    c = colours()[theme]
    for ground in ("bg", "panel", "hot", "cold", "warn"):
        assert contrast(c["ink"], c[ground]) >= 4.5, ground
    for text in ("muted", "hot-ink", "cold-ink"):
        assert min(contrast(c[text], c["bg"]), contrast(c[text], c["panel"])) >= 4.5, text
    for kind, matrix in BLINDNESS.items():
        hot, cold, base = (lab(matrix @ c[k]) for k in ("hot", "cold", "bg"))
        assert np.linalg.norm(hot - cold) > 40, kind
        assert min(np.linalg.norm(hot - base), np.linalg.norm(cold - base)) > 30, kind


# ---- in a browser ----


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chrome.chromium() as one:
        yield one


@pytest.fixture
def tab(browser: Any) -> Iterator[Any]:
    """The sample's page."""
    with chrome.opened(browser, page.document(SAMPLE)) as one:
        yield one


def heading(tab: Any) -> str:
    return tab.locator("h2").first.inner_text()


def ranked() -> list[tuple[int, int]]:
    order = sorted(SAMPLE.neurons, key=lambda n: -(n.effect or Interval(0, 0, 0)).value)
    return [(n.layer, n.index) for n in order]


def test_arrow_keys_step_through_neurons_by_effect(tab: Any):
    assert heading(tab) == f"Neuron {ranked()[0]}"
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowDown")
    assert heading(tab) == f"Neuron {ranked()[2]}"
    tab.keyboard.press("ArrowUp")
    assert heading(tab) == f"Neuron {ranked()[1]}"
    active = tab.locator(".list").get_attribute("aria-activedescendant")
    assert tab.locator(f"#{active}").get_attribute("aria-label").startswith("Layer {}, index {};".format(*ranked()[1]))


def test_search_and_status_leave_the_neurons_that_match(tab: Any):
    tab.get_by_label("Show status").select_option("candidate")
    shown = tab.locator("[role=option]:visible").all_inner_texts()
    assert [s.split("\n")[0] for s in shown] == [
        str((n.layer, n.index)) for n in SAMPLE.neurons if n.status == "candidate"
    ]
    tab.get_by_label("Show status").select_option("*")
    tab.get_by_label("Search neurons").fill("5, 68")
    assert tab.locator("[role=option]:visible").count() == 1
    assert heading(tab) == "Neuron (5, 68)"


def test_a_cell_of_the_grid_shows_its_value_and_its_prompts(tab: Any):
    strongest = SAMPLE.neurons[0]
    cell = tab.get_by_role("button", name="Arabic, image:")
    assert float(cell.inner_text().replace("−", "-")) == pytest.approx(strongest.differences["ar/image"], abs=0.051)
    cell.click()
    ids = tab.locator(".row .id").all_inner_texts()
    assert ids == [p.id for p in SAMPLE.prompts if p.cell == "ar/image"]
    assert tab.locator(".tokens").first.evaluate("e => getComputedStyle(e).direction") == "rtl"


def test_the_switch_shows_answers_and_outcomes_of_its_condition(tab: Any):
    def outcomes() -> list[str]:
        return [text.split()[-1] for text in tab.locator(".outcome").all_inner_texts()]

    def want(condition: str) -> list[str]:
        return [p.answers[condition].outcome for p in SAMPLE.prompts if p.cell == "en/text"]

    assert outcomes() == want("as it is")
    tab.get_by_label("set ablated", exact=True).check()
    assert outcomes() == want("set ablated")
    assert "as it is: refused" in tab.locator(".answer").first.inner_text()
    tally = (
        "Refused, set ablated: 0 of 3 harmful (as it is: 3), 0 of 3 benign (as it is: 0); of the prompts shown here."
    )
    assert tab.locator(".tally").inner_text() == tally
    tab.get_by_label("this neuron ablated").check()
    assert outcomes()[0] == "complied"
    tab.get_by_role("button", name="Next neuron").click()
    assert outcomes()[0] == "refused"


def test_hiding_leaves_no_harmful_text_and_no_harmful_picture_on_the_page(tab: Any):
    tab.get_by_role("button", name="English, image:").click()
    everything = tab.get_by_role("main").inner_html()
    assert "destroy" in everything
    tab.get_by_label("hide them").check()
    for row in tab.locator(".row.harmful").all():
        assert row.locator("img").count() == 0
        row.locator(".tok").nth(3).hover()
        text = row.inner_text() + tab.locator(".tip").inner_text()
        assert not any(word in text for word in (*views.VERBS["en"], "Sorry"))
    assert tab.locator(".row.benign img").count() == 3


def test_hover_and_focus_tell_the_exact_value_of_tokens_and_patches(tab: Any):
    first = SAMPLE.prompts[0]
    token = tab.locator(".tok").nth(2)
    token.hover()
    value = f"{float(f'{first.values[0][2]:.3g}'):g}".replace("-", "−")
    said = tab.locator(".tip").inner_text()
    assert said.startswith("“␣is” · token 3 · ")
    assert float(said.split(" · ")[2].replace("−", "-")) == pytest.approx(float(value.replace("−", "-")), abs=1e-3)
    tab.locator(".tok").first.focus()
    tab.keyboard.press("ArrowRight")
    assert "token 2 ·" in tab.locator(".tip").inner_text()
    tab.get_by_role("button", name="English, image:").click()
    tab.locator(".picture").first.focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("ArrowRight")
    shown = next(p for p in SAMPLE.prompts if p.cell == "en/image")
    j = next(i for i, t in enumerate(shown.tokens) if (t.row, t.column) == (1, 1))
    said = tab.locator(".tip").inner_text()
    assert said.startswith("row 2, column 2 · ")
    assert float(said.split(" · ")[1].replace("−", "-")) == pytest.approx(shown.values[0][j], abs=1e-3)


def test_patches_are_painted_at_their_place_by_size_and_sign(tab: Any):
    tab.get_by_role("button", name="English, image:").click()
    shown = next(p for p in SAMPLE.prompts if p.cell == "en/image")
    want = np.zeros((5, 5))
    for token, value in zip(shown.tokens, shown.values[0], strict=True):
        if token.row is not None:
            want[token.row, token.column] = value / SAMPLE.neurons[0].scale
    pixels = "c => [...c.getContext('2d').getImageData(0, 0, 5, 5).data]"
    got = np.array(tab.locator(".picture canvas").first.evaluate(pixels)).reshape(5, 5, 4)
    np.testing.assert_allclose(got[..., 3] / 255, 0.8 * abs(want), atol=0.005)
    strong = abs(want) > 0.1
    assert ((got[..., 2] > got[..., 0]) == (want < 0))[strong].all()


def test_a_pair_of_cells_filters_the_list_to_the_neurons_they_share(tab: Any):
    tab.get_by_role("tab", name="Neurons that cells share").click()
    pair = next(s for s in SAMPLE.shared if s.cells == ("en/text", "sw/image"))
    tab.get_by_role("button", name="en/text and sw/image: overlap").click()
    assert tab.locator("[role=option]:visible").count() == len(pair.neurons) < len(SAMPLE.neurons)
    tab.locator("nav").get_by_role("button", name="show all").click()
    assert tab.locator("[role=option]:visible").count() == len(SAMPLE.neurons)


def test_the_selection_is_reported_and_can_be_set_from_outside(browser: Any):
    call = """([data, css]) => {
        told = []
        const root = document.body.attachShadow({mode: "open"}), style = root.appendChild(document.createElement("style"))
        style.textContent = css
        view = mount(root, data, {onSelect: (neurons) => told.push(neurons)})
    }"""
    with chrome.opened(browser, f"<!doctype html><body><script>{page.script()}</script>") as tab:
        tab.evaluate(call, [page.data(SAMPLE), page.style()])
        a, b, c = (list(n) for n in ranked()[:3])
        tab.locator("[role=option]").nth(1).click()
        tab.keyboard.press(" ")
        tab.locator("[role=option]").nth(2).locator(".box").click()
        tab.evaluate("a => view.select([a])", a)
        assert tab.evaluate("told") == [[b], [b], [b, c]]
        assert heading(tab) == f"Neuron {tuple(a)}"
        tab.evaluate("view.remove()")
        assert tab.locator(".explorer").count() == 0


@pytest.mark.parametrize("width", [390, 1360])
def test_hostile_texts_are_shown_and_do_nothing(browser: Any, width: int):
    with chrome.opened(browser, page.document(HOSTILE), width=width) as tab:
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert tab.locator("h1").inner_text() == HOSTILE.title
        assert tab.locator(".notes li").count() == len(views.HOSTILE)
        for _ in HOSTILE.neurons:
            tab.keyboard.press("ArrowDown")
        tab.get_by_role("tab", name="Neurons that cells share").click()
        for button in tab.locator(".overlap button").all():
            button.click()
        tab.get_by_role("tab", name="Neuron", exact=True).click()
        tab.get_by_role("button", name="Arabic, image:").click()
        assert "6 picture tokens, place not known" in tab.locator(".row").first.inner_text()
        tab.get_by_label("this neuron ablated").check()
        assert "no answer under this condition" in tab.locator(".answer").first.inner_text()
        assert tab.locator(".tally").inner_text() == "No answers were graded here."
        assert tab.evaluate("typeof pwned") == "undefined"
        assert tab.evaluate("document.documentElement.scrollWidth") <= width


def test_a_long_prompt_is_folded_and_whole_in_print(browser: Any):
    with chrome.opened(browser, page.document(HOSTILE)) as tab:
        row = tab.locator(".row", has_text="w1999")
        assert row.locator(".tok").count() < 300
        assert "more tokens, largest 3.0" in row.locator(".fold").inner_text()
        tab.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert row.locator(".tok").count() == 2000
        tab.evaluate("window.dispatchEvent(new Event('afterprint'))")
        row.locator(".fold").click()
        assert row.locator(".tok").count() == 2000


def test_a_phone_scrolls_only_down(browser: Any):
    with chrome.opened(browser, page.document(SAMPLE), width=390, height=844) as tab:
        for button in ("English, text:", "Arabic, image:"):
            tab.get_by_role("button", name=button).click()
            assert tab.evaluate("document.documentElement.scrollWidth") == 390


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Any, scheme: str):
    with chrome.opened(browser, page.document(SAMPLE), color_scheme=scheme) as tab:
        tab.get_by_role("button", name="English, image:").click()
        tab.get_by_label("set ablated", exact=True).check()
        assert chrome.violations(tab) == []
        tab.get_by_role("tab", name="Neurons that cells share").click()
        tab.locator(".overlap button").first.click()
        assert chrome.violations(tab) == []


@pytest.mark.slow
def test_two_frames_on_a_page_share_nothing_with_it_or_each_other(browser: Any):
    around = (
        "<!doctype html><title>notebook</title><style>* { color: red !important; display: block !important }</style>"
    )
    with chrome.opened(browser, around + page.fragment(SAMPLE) + page.fragment(SAMPLE)) as tab:
        first, second = (tab.frame_locator("iframe").nth(i) for i in range(2))
        first.locator("h1").wait_for()
        assert tab.evaluate("document.activeElement.tagName") == "BODY"  # the keyboard stays with the notebook
        tab.locator("iframe").nth(1).scroll_into_view_if_needed()
        second.get_by_role("button", name="Next neuron").click()
        tab.locator("iframe").nth(0).scroll_into_view_if_needed()
        assert (heading(first), heading(second)) == (f"Neuron {ranked()[0]}", f"Neuron {ranked()[1]}")
        assert first.locator("h1").evaluate("e => getComputedStyle(e).color") != "rgb(255, 0, 0)"


def test_of_many_prompts_only_those_near_the_window_are_drawn(browser: Any):
    view = views.sample(20, 40, ("en",))
    with chrome.opened(browser, page.document(view)) as tab:
        assert 6 <= tab.locator(".row").count() < 60
        assert tab.locator(".pair").count() == 40
        tab.locator(".pair").last.scroll_into_view_if_needed()
        tab.locator(".pair").last.locator(".row").first.wait_for()
