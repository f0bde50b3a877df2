"""Checkpoints: every bit comes back, of the newest one; reading writes nothing."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from seqjax.checkpoint import NUM_KEPT, Checkpoints
from seqjax.train import TrainState

PROGRESS = {"epoch": 3, "best_value": 0.1 + 0.2, "best_epoch": 2, "stopped": False}


def make_arrays(seed: int = 0) -> dict:
    """A train state with a deep optimizer state, and parameters, of random numbers."""
    rng = np.random.default_rng(seed)
    params = {
        "output": {"bias": rng.normal(size=3).astype(np.float32)},
        "stack": {"layer_0": {"w": rng.normal(size=(4, 3)).astype(np.float32)}},
    }
    optimizer = optax.MultiSteps(optax.chain(optax.clip(1.0), optax.adam(0.1)), 2)
    state = TrainState(params, optimizer.init(params), jnp.array(7, jnp.int32))
    _, opt_state = optimizer.update(params, state.opt_state, params)
    return {"state": state._replace(opt_state=opt_state), "best_params": params}


def shapes_of(arrays):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), arrays)


def assert_same(actual, expected) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "checkpoints"


def save(directory: Path, *epochs: int) -> None:
    checkpoints = Checkpoints(directory)
    for epoch in epochs:
        checkpoints.save(epoch, make_arrays(epoch), PROGRESS | {"epoch": epoch})
    checkpoints.close()


@pytest.mark.parametrize("read_only", [False, True])
def test_the_newest_comes_back_bit_by_bit(directory, read_only):
    save(directory, 1, 3)
    checkpoints = Checkpoints(directory, read_only=read_only)
    arrays, progress = checkpoints.restore(shapes_of(make_arrays()))
    checkpoints.close()
    assert_same(arrays, make_arrays(3))
    assert isinstance(arrays["state"], TrainState)
    assert progress == PROGRESS


def test_the_two_newest_are_kept(directory):
    save(directory, 1, 2, 3, 4)
    assert sorted(path.name for path in directory.iterdir()) == ["3", "4"]
    assert NUM_KEPT == 2


def test_without_a_checkpoint_there_is_nothing_to_restore(directory):
    checkpoints = Checkpoints(directory)
    assert checkpoints.restore(shapes_of(make_arrays())) is None
    checkpoints.close()


def test_reading_makes_no_directory_and_changes_no_file(directory):
    checkpoints = Checkpoints(directory, read_only=True)
    assert checkpoints.restore(shapes_of(make_arrays())) is None
    checkpoints.close()
    assert not directory.exists()
    save(directory, 1, 2)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    checkpoints = Checkpoints(directory, read_only=True)
    checkpoints.restore(shapes_of(make_arrays()))
    checkpoints.close()
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_what_is_saved_is_what_the_arrays_held_then(directory):
    """Saving goes on in the background, while training overwrites the arrays."""
    checkpoints = Checkpoints(directory)
    state = {"w": jnp.arange(1e6)}
    checkpoints.save(1, state, PROGRESS)
    state = jax.jit(lambda state: {"w": 0 * state["w"]}, donate_argnums=0)(state)
    jax.block_until_ready(state)
    checkpoints.close()
    reader = Checkpoints(directory, read_only=True)
    arrays, _ = reader.restore(shapes_of(state))
    reader.close()
    np.testing.assert_array_equal(arrays["w"], np.arange(1e6, dtype=np.float32))
