"""Shield: train the chosen neurons and nothing else, and the baselines that this is compared with."""
