"""Entry points, each `python -m experiments.NAME --help`."""
