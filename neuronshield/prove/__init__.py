"""Prove: whether refusals depend on a set of neurons, beside matched controls."""
