"""Terms of the report with their definitions, as docs/method.md defines them."""

from __future__ import annotations

from html import escape

__all__ = ["TERMS", "glossary", "key_of"]

TERMS = {
    "neuron": "One coordinate of the input of an MLP's down-projection in the language backbone, written (layer, index).",
    "cell": "One language in one modality, such as en/text or sw/image.",
    "request": "A matched pair with all its translations and renderings. Requests are the unit of every split and of every interval.",
    "matched pair": "A harmful and a benign prompt of one cell that differ in one thing, such as the object.",
    "candidate": "A neuron that was selected by its score. A score describes an association, not an effect.",
    "share in common": "Overlap of the neurons of two cells minus noise, divided by reliability minus noise: 0 for unrelated neurons, "
    "1 for the same.",
    "benign null": "Overlap of two sets that are selected with benign prompts in place of harmful ones.",
    "refusal margin": "At the first answer token: log of the summed probability of refusal prefixes minus that of compliance prefixes. "
    "Above 0 it predicts a refusal.",
    "clean logit difference": "Mean refusal margin of harmful prompts minus that of their matched benign prompts, in the unmodified model.",
    "normalised effect": "A change of the mean refusal margin divided by the clean logit difference. 1 removes or creates all of the "
    "difference between harmful and benign prompts.",
    "matched control sets": "Sets of other neurons of the same size: random, matched to the set's activations, from the whole selection on "
    "shuffled labels (permuted), of the next ranks, and others. The set must exceed them.",
    "anti-refusal neuron": "A neuron whose ablation raises the refusal margin. It is reported and not chosen.",
    "backup neuron": "A neuron outside the set that has an effect once the set is ablated: it compensates for the set (self-repair).",
    "dose-response curve": "Change of the refusal margin when the set's values are multiplied by alpha.",
    "cross-cell patching": "Values of the set on harmful prompts of one cell are written into benign prompts of another.",
    "selectivity": "Share of harmful prompts refused minus share of benign prompts refused.",
    "matched benign refusal": "Two conditions are compared where both refuse the same share of benign prompts.",
    "masked update": "Training in which only the weights of the chosen neurons can change.",
    "interval": "All intervals are 95 % intervals over requests.",
}


def key_of(name: str) -> str:
    """The id of a term on the page.

    >>> key_of("matched pair")
    'term-matched-pair'

    Args:
        name: of the term.
    """
    return "term-" + name.replace(" ", "-")


def glossary() -> str:
    """All terms as an HTML description list."""
    rows = "".join(f'<dt>{escape(n)}</dt><dd id="{key_of(n)}">{escape(t)}</dd>' for n, t in TERMS.items())
    return f'<dl class="glossary">{rows}</dl>'
