"""Many trials of one config: search spaces, groups of trials, workers and results."""
