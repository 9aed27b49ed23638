"""A model with its MLP neurons addressed: loading, encoding, forward passes, generation, interventions."""
