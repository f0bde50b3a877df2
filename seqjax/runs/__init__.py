"""A run's directory: its lock, identity, checkpoints, weights file and signals."""
