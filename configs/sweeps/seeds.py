"""Seeds 0, 1, ... of any config: 32, or as many as --sweep=configs/sweeps/seeds.py:N says."""

from seqjax.sweeps.space import seeds


def get_sweep(number: str = "32"):
    return seeds(int(number))
