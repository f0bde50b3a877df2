"""Runs of one config by different programs, compared up to rounding.

XLA compiles other code for a trial than for its single run, and for one device than for several,
and vectorises it as the processor allows: sums are in another order. Bit equality is given only
where one compiled program makes both.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from support.toys import read_json

# Of float32, which rounds by 6e-8. Seen in weights were at most 2e-7, with and without AVX-512; but
# where a gradient is what rounding leaves of a sum of 0, Adam scales it up, and other processors
# round otherwise. A wrong seed, rate or dropout differs by more than 1e-2.
RTOL, ATOL = 1e-4, 1e-5


def assert_close(some: Any, other: Any, place: str = "") -> None:
    """The same nest of JSON; its floats are equal up to rounding."""
    if isinstance(some, dict):
        assert list(some) == list(other), place
        for name in some:
            assert_close(some[name], other[name], f"{place}.{name}")
    elif isinstance(some, list):
        assert len(some) == len(other), place
        for i, pair in enumerate(zip(some, other, strict=True)):
            assert_close(*pair, f"{place}[{i}]")
    elif isinstance(some, float) and isinstance(other, float):
        assert some == pytest.approx(other, rel=RTOL, abs=ATOL, nan_ok=True), place
    else:
        assert some == other and type(some) is type(other), place


def assert_same_records(some: Path, other: Path) -> None:
    """Two run directories hold the same config; records and results are equal up to rounding."""
    assert (some / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert_close(*(read_json(path / "result.json") for path in (some, other)))
    assert_close(*(read_lines(path / "metrics.jsonl") for path in (some, other)))


def read_lines(path: Path) -> list[Any]:
    """The objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_arrays(some: Any, other: Any) -> None:
    """The same nest of arrays, equal up to rounding."""
    assert jax.tree.structure(some) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL)


def assert_same_trials(some: Path, other: Path) -> None:
    """The directories of two trials hold the same files, equal up to rounding."""
    assert sorted(p.name for p in some.iterdir()) == sorted(p.name for p in other.iterdir())
    assert_same_records(some, other)
    assert_same_arrays(*(load_file(path / "weights.safetensors") for path in (some, other)))
