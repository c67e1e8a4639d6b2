"""What every training shares: run folder, checkpoints, optimiser and schedule, validation, and the proxy."""
