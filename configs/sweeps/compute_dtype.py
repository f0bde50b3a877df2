"""float32 x bfloat16 operands of matrix products: 5 seeds each, or N with compute_dtype.py:N."""

from seqjax.sweeps.space import product, seeds


def get_sweep(number: str = "5"):
    return product(seeds(number), {"train.compute_dtype": ["float32", "bfloat16"]})
