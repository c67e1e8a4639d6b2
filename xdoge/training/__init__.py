"""Code that all trainings share: run folder, checkpoints, optimiser and schedule, validation, and the proxy."""
