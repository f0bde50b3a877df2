"""A config file, in the form of those in configs/, that reads the config of a run's directory."""

from pathlib import Path

from ml_collections import ConfigDict

from seqjax.runs.signals import say
from seqjax.runs.workdir import load_run_config


def get_config(directory: str) -> ConfigDict:
    """Returns the config of the run in the directory; raises UserError if it has none."""
    return load_run_config(Path(directory), say).unlock()
