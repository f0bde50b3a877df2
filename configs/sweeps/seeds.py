"""Seeds 0, 1, ... of any config: 32 trials, or N with --sweep=configs/sweeps/seeds.py:N."""

from seqjax.sweeps.space import seeds


def get_sweep(number: str = "32"):
    return seeds(number)
