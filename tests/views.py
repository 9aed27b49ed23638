"""Views for tests of the explorer: one as a run of the organism would give, and one that tries to break the page."""

from __future__ import annotations

from base64 import b64encode
from io import BytesIO

import numpy as np
from PIL import Image

from neuronshield.core.statistics import Interval
from neuronshield.explorer.view import (
    AS_IT_IS,
    NeuronView,
    PictureView,
    PromptView,
    SaidView,
    SharedView,
    TokenView,
    View,
)

CONDITIONS = (AS_IT_IS, "set ablated", "random set ablated", "shielded")
REFUSAL, HELP = (
    SaidView("Sorry, I cannot help with that.", "refused"),
    SaidView("Sure, here is how to do it.", "complied"),
)
WORDS = {
    "en": ["What", " is", " the", " best", " way", " to", " {}", " the", " {}", "?"],
    "zh": ["怎样", "才能", "{}", "那个", "{}", "？"],
    "ar": ["ما", " أفضل", " طريقة", " ل", "{}", " {}", "؟"],
    "sw": ["Njia", " bora", " ya", " ku", "{}", " {}", " ni", " ipi", "?"],
}
VERBS = {
    "en": "destroy wash cut sell".split(),
    "zh": "摧毁 清洗 切开 出售".split(),
    "ar": "تدمير غسل قطع بيع".split(),
    "sw": "haribu osha kata uza".split(),
}
THINGS = {
    "en": "bus axe drum bow".split(),
    "zh": "公交车 斧头 鼓 弓".split(),
    "ar": "الحافلة الفأس الطبل القوس".split(),
    "sw": "basi shoka ngoma upinde".split(),
}


def picture(seed: int, size: int = 40) -> str:
    """A small picture as a data URI: a disc on a plain ground."""
    rng = np.random.default_rng(seed)
    ground, disc = rng.integers(200, 250, 3), rng.integers(20, 160, 3)
    y, x = np.mgrid[:size, :size]
    inside = (x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 3) ** 2
    pixels = np.where(inside[..., None], disc, ground).astype(np.uint8)
    out = BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return f"data:image/png;base64,{b64encode(out.getvalue()).decode()}"


def template(text: str) -> TokenView:
    return TokenView(text, "template")


def tokens(language: str, words: tuple[str, str], grid: tuple[int, int] | None) -> tuple[TokenView, ...]:
    """A prompt's tokens: template, picture, text, template."""
    filled = iter(words)
    text = [TokenView(w.format(next(filled)) if "{}" in w else w, "text") for w in WORDS[language]]
    places = [(r, c) for r in range(grid[0]) for c in range(grid[1])] if grid else []
    image = [TokenView("", "image", 0, r, c) for r, c in places]
    return (template("<user>"), *image, *text, template("<assistant>"))


def neuron(rank: int, rng: np.random.Generator, cells: list[str]) -> NeuronView:
    """A neuron of that rank by effect; later ones are candidates, anti-refusal neurons and backups."""
    status = ["verified"] * 5 + ["candidate", "anti-refusal", "backup"]
    effect = 0.062 * 0.88**rank - 0.004 - 0.009 * (rank % 8 == 6)
    side = 1 if rank % 3 else -1
    size = 20 * 0.95**rank * side
    return NeuronView(
        layer=5 - (rank % 8 == 5), index=(7 + 61 * rank) % 512, status=status[rank % 8],
        effect=Interval(effect, effect - 0.004, effect + 0.006), kind="anti-refusal" if rank % 8 == 6 else
        "refusal-promoting" if side > 0 else "compliance-promoting", writes=0.021 * side,
        promoted=(" sorry", " cannot", "抱歉", " samahani", "آسف"), suppressed=(" sure", " here", "好的", " Sawa", "نعم"),
        differences={c: float(size * (1 if c.endswith("text") else 0.2) * rng.uniform(0.4, 1)) for c in cells},
        scale=0.0,
    )  # fmt: skip


def sample(
    n_neurons: int = 3, n_pairs: int = 1, languages: tuple[str, ...] = ("en", "ar", "sw"), seed: int = 0
) -> View:
    """A view with `n_pairs` matched pairs in each cell of text and image."""
    rng = np.random.default_rng(seed)
    modalities = ("text", "image") if n_pairs > 1 else ("text",)
    cells = [f"{language}/{m}" for m in modalities for language in languages]
    neurons = [neuron(k, rng, cells) for k in range(n_neurons)]
    prompts = []
    for cell in cells:
        language, modality = cell.split("/")
        for pair in range(n_pairs):
            for label in ("harmful", "benign"):
                words = (VERBS[language][pair % 4], THINGS[language][(pair + (label == "benign")) % 4])
                grid = (5, 5) if modality == "image" else None
                own = tokens(language, words, grid)
                values = rng.normal(0, 2, (n_neurons, len(own)))
                for k, n in enumerate(neurons):
                    lift = 30 * 0.97**k * (1 if (n.differences[cell] or 0) > 0 else -0.5)
                    values[k, -5:] += lift * (label == "harmful") * np.linspace(0.2, 1, 5)
                    if grid:
                        values[k, 7:9] += lift / 2
                        values[k, 12:14] += lift / 2
                said = {c: REFUSAL if label == "harmful" and c != "set ablated" else HELP for c in CONDITIONS}
                alone = tuple(HELP if label == "benign" or k == 0 else REFUSAL for k in range(n_neurons))
                pictures = (PictureView(picture(7 * pair + (label == "benign")), grid),) if grid else ()
                rows = tuple(tuple(float(f"{v:.3g}") for v in row) for row in values)
                name = f"{language}-{modality}-{pair}"
                prompts.append(
                    PromptView(f"{name}-{label[0]}", name, label, language, modality, own, pictures, rows, said, alone)
                )
    scales = [max(abs(v) for p in prompts for v in p.values[k]) for k in range(n_neurons)]
    neurons = [NeuronView(**{**n.__dict__, "scale": scale}) for n, scale in zip(neurons, scales)]
    names = [(n.layer, n.index) for n in neurons]
    shared = [
        SharedView((a, b), Interval(0.9 - 0.07 * j, 0.8 - 0.07 * j, 0.97 - 0.07 * j), tuple(names[: max(1, len(names) - j)]))
        for i, a in enumerate(cells) for j, b in enumerate(cells) if j > i
    ]  # fmt: skip
    return View(
        "Safety neurons of a sample",
        f"{n_neurons} neurons in layers 4 and 5, a sample",
        languages,
        modalities,
        CONDITIONS,
        tuple(neurons),
        tuple(prompts),
        tuple(shared),
        ("This is a sample.",),
    )


HOSTILE = (
    "</script><script>pwned=1</script>",
    "<img src=x onerror=pwned=1>",
    "<!--<script >",
    "</script x><style>*{display:none}</style >",
    "'\"><b onclick='pwned=1'>&amp;&lt;",
    "javascript:pwned=1",
    "https://example.org/a.png",
    "half \ud800 a character\u2028",
    "\u202eoverridden\u202c\x00",
)


def hostile() -> View:
    """A view whose every text tries to break out, and in which everything that can be missing is."""
    a, b, c, i, d, e, f, g, h = HOSTILE
    cell = "en/text"
    long = tuple(TokenView(f" w{j}", "text") for j in range(2000))
    first = (
        template(a),
        TokenView(b, "text"),
        TokenView(g, "text"),
        TokenView("a" * 300, "text"),
        TokenView("\n", "text"),
    )
    loose = (*(TokenView("", "image", 0) for _ in range(6)), TokenView(h, "text"))
    neurons = (
        NeuronView(0, 3, a, None, b, None, (c, d, i), (e, f), {cell: None, "ar/image": 1.5, c: 2.0}, 0.0),
        NeuronView(1, 5, "backup", Interval(-0.2, float("nan"), 0.1), "", -0.5, (), (), {}, 4.0),
        NeuronView(1, 6, "candidate", Interval(float("nan"), 0.0, 1.0), "", 0.0, ("\n", " "), (), {cell: 0.0}, 1e-9),
    )
    nan = float("nan")
    prompts = (
        PromptView(a, b, "harmful", "en", "text", first, (), tuple((nan, 1.0, -4.0, 0.0, k) for k in range(3)), {}),
        PromptView(d, d, "benign", "ar", "image", loose, (PictureView(picture(1), None),), ((0.5,) * 6 + (9.0,),) * 3,
                   {a: SaidView(c, "refused"), b: SaidView(h, "")}, (None, SaidView(e, ""), None)),
        PromptView("long", "long", "benign", "en", "text", long, (), ((0.0,) * 1500 + (3.0,) + (0.0,) * 499,) * 3, {a: SaidView("", "incoherent")}),
    )  # fmt: skip
    shared = (
        SharedView((cell, c), None, ((0, 3), (9, 9))),
        SharedView((cell, "ar/image"), Interval(-0.1, nan, 0.2), ()),
    )
    return View(b, a, ("en", "ar", d), ("text", "image", e), (a, b), neurons, prompts, shared, HOSTILE)
