"""Numbers of a config that a compiled program takes as arguments. Imports nothing of seqjax.

The members of a sweep differ in a learning rate, a dropout rate and the like. So that one program
serves them all, such a number stands in the config as a `Traced`: a float like any other wherever
it is checked or shown, and the array that the program was given where it is computed with.
"""

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from typing import Any

import numpy as np


class Traced(float):
    """A float, which stands for an array inside `given`. Whether it is 0 is the same for both."""

    array: Any = None


def value_of(number: Any) -> Any:
    """What to compute with: the array that a `Traced` stands for just now, else the number as a
    float32, so that what is computed from either rounds alike."""
    array = getattr(number, "array", None)
    return np.float32(number) if array is None else array


@contextmanager
def given(numbers: Iterable[tuple[Traced, Any]]) -> Generator[None]:
    """Inside, each of the numbers stands for its array."""
    numbers = list(numbers)
    try:
        for number, array in numbers:
            number.array = array
        yield
    finally:
        for number, _ in numbers:
            number.array = None
