"""Check: what a model does in every language and modality, judged on its answers, also under attack."""
