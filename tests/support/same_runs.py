"""Compares runs of one config by different programs, up to rounding.

XLA compiles different code for a trial and for its single run, and for one device and for several,
and vectorises it as the processor allows, so sums are taken in another order. Two runs are
bit-identical only if the same compiled program made them.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from seqjax.distributed.packing import unpack
from seqjax.runs.checkpoint import read_facts, steps_in
from support.toys import read_json

# Float32 rounds by 6e-8. The largest difference of weights seen was 2e-7, with and without AVX-512.
# But where a gradient is nothing but the rounding error of a sum of 0, Adam magnifies it, and other
# processors round differently. A wrong seed, learning rate or dropout differs by more than 1e-2.
RTOL, ATOL = 1e-4, 1e-5
COSTS = ("wall_seconds", "compile_seconds", "examples_per_second", "peak_memory_bytes")


def assert_close(some: Any, other: Any, place: str = "") -> None:
    """Asserts that two JSON values are equal, their floats up to rounding."""
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
    """Asserts that two runs have equal configs, and equal records and results up to rounding."""
    assert (some / "config.json").read_bytes() == (other / "config.json").read_bytes()
    assert_close(*(read_result(path) for path in (some, other)))
    assert_close(*(read_lines(path / "metrics.jsonl") for path in (some, other)))


def read_result(workdir: Path) -> dict[str, Any]:
    """Returns the contents of result.json without what was measured of time and memory."""
    result = read_json(workdir / "result.json")
    for name in COSTS:
        assert result.pop(name) >= 0, name
    return result


def packed_arrays(workdir: Path) -> np.ndarray:
    """Returns the bytes of all arrays of a run's newest checkpoint."""
    stored = ocp.Checkpointer(ocp.StandardCheckpointHandler()).restore(
        (steps_in(workdir / "checkpoints")[0] / "arrays").absolute(),
        args=ocp.args.StandardRestore(),
    )
    return np.asarray(stored["bytes"])


def read_arrays(workdir: Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a run's newest checkpoint, by path."""
    layout = read_facts(steps_in(workdir / "checkpoints")[0])["layout"]
    like = [np.zeros(shape, dtype) for _, dtype, shape in layout]
    names = [name for name, *_ in layout]
    return dict(zip(names, unpack(packed_arrays(workdir), like), strict=True))


def read_lines(path: Path) -> list[Any]:
    """Returns the objects of a JSON Lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def assert_same_arrays(some: Any, other: Any) -> None:
    """Asserts that two trees of arrays are equal up to rounding."""
    assert jax.tree.structure(some) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL)


def assert_same_trials(some: Path, other: Path) -> None:
    """Asserts that two trials' directories hold the same files, equal up to rounding."""
    # The name of an event file tells its time.
    names = [sorted(p.name.partition(".tfevents")[0] for p in x.iterdir()) for x in (some, other)]
    assert names[0] == names[1]
    assert_same_records(some, other)
    assert_same_arrays(*(read_arrays(path) for path in (some, other)))
