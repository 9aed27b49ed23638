"""Applications: the main job, its result folder, its report, and the check-up of a model."""
