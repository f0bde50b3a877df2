"""Checkpoints: every bit of the newest whole one comes back; what is damaged is found."""

import errno
import os
import shutil
from functools import cache
from pathlib import Path

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.distributed.packing import layout, pack, unpack
from seqjax.errors import UserError
from seqjax.runs.checkpoint import (
    NUM_LATEST,
    STAMPS,
    Checkpoints,
    newest,
    newest_facts,
    set_aside_after,
)
from seqjax.training.train_step import TrainState

FACTS = {"best_epoch": 3, "best_value": 0.1 + 0.2, "logs": [[0.1, 1e-45]], "stopped": False}


@cache
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


def save(directory: Path, *steps: int, best_step: int = 0) -> None:
    checkpoints = Checkpoints(directory)
    for step in steps:
        checkpoints.prepare(step, make_arrays(step), FACTS, best_step)()
    checkpoints.close()


def restore(directory: Path, is_foreign=lambda facts: ""):
    """The newest checkpoint and the lines about those that were passed over."""
    lines = []
    found = newest(directory, shapes_of(make_arrays()), is_foreign, lines.append)
    return found, lines


def steps(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_newest_comes_back_bit_by_bit(directory):
    save(directory, 1, 3)
    found, lines = restore(directory)
    assert_same(found.arrays, make_arrays(3))
    assert isinstance(found.arrays["state"], TrainState)
    assert found.step == 3 and found.facts == {"step": 3, "layout": found.facts["layout"]} | FACTS
    assert newest_facts(directory) == found.facts
    assert lines == []


@pytest.mark.parametrize(("best", "kept"), [(0, "56"), (2, "256"), (5, "56"), (6, "56")])
def test_the_latest_and_the_best_are_kept(best, kept, directory):
    save(directory, 1, 2, 3, 4, 5, 6, best_step=best)
    assert steps(directory) == list(kept)
    assert NUM_LATEST == 2


def test_which_one_is_best_may_change_and_outlives_a_resumption(directory):
    save(directory, 1, 2, 3, best_step=2)
    save(directory, 4, 5, best_step=2)
    assert steps(directory) == ["2", "4", "5"]
    save(directory, 6, best_step=6)
    assert steps(directory) == ["5", "6"]


def test_without_a_checkpoint_there_is_nothing_to_restore(directory):
    assert restore(directory) == (None, [])
    assert not directory.exists()
    Checkpoints(directory).close()
    assert restore(directory) == (None, [])
    assert newest_facts(directory) is None


def test_reading_changes_no_file(directory):
    save(directory, 1, 2)
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    restore(directory)
    newest_facts(directory)
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_what_is_saved_is_what_there_was_then(directory):
    """Saving goes on in the background, while training overwrites the arrays and adds records."""
    checkpoints = Checkpoints(directory)
    state, records = {"w": jnp.arange(1e6)}, [1, 2]
    save = checkpoints.prepare(1, state, {"records": records}, 0)
    records += range(10**5)
    state = jax.jit(lambda state: {"w": 0 * state["w"]}, donate_argnums=0)(state)
    jax.block_until_ready(state)
    save()
    checkpoints.close()
    found = newest(directory, shapes_of(state), lambda facts: "", print)
    np.testing.assert_array_equal(found.arrays["w"], np.arange(1e6, dtype=np.float32))
    assert found.facts["records"] == [1, 2]


@given(
    tree=st.dictionaries(
        st.text("ab.", max_size=3),
        hnp.arrays(
            st.sampled_from([np.float32, np.int32, np.bool_, np.float64]),
            hnp.array_shapes(min_dims=0, min_side=0, max_side=3),
        ),
        min_size=1,
    )
)
def test_what_is_packed_is_unpacked(tree):
    packed = pack(tree)
    assert packed.shape == (sum(x.nbytes for x in jax.tree.leaves(tree)),)
    assert_same(unpack(packed, shapes_of(tree)), tree)
    assert layout(shapes_of(tree)) == layout(tree)


# What is damaged, or somebody else's


def flip(path: Path) -> None:
    """One bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def files_of(directory: Path) -> list[str]:
    """The files of a checkpoint; Orbax's own names of data differ from one to the next."""
    return sorted(p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file())


@pytest.mark.parametrize("damage", [flip, Path.unlink, lambda path: path.write_bytes(b"")])
def test_damage_to_any_file_is_found_and_the_one_before_used(damage, directory):
    save(directory, 1, 2)
    names = files_of(directory / "2")
    assert len(names) >= 7
    for name in names:
        copy = directory.with_name(name.replace("/", "-"))
        shutil.copytree(directory, copy)
        damage(copy / "2" / name)
        found, lines = restore(copy)
        if name in STAMPS:  # Orbax's, which nothing reads
            assert (found.step, lines) == (2, [])
            continue
        assert_same(found.arrays, make_arrays(1))
        (line,) = lines
        assert line.startswith(f"checkpoint {copy / '2'} cannot be used: ")
        assert f" used: {name} " in line or (damage, name) == (flip, "digests.json")
        assert line.endswith("; going back to step 1") and "\n" not in line


def test_what_is_no_checkpoint_is_passed_over(directory):
    save(directory, 1, 2)
    (directory / "3").mkdir()
    shutil.copytree(directory / "1", directory / "4")
    (directory / "4" / "arrays" / "stray").touch()
    shutil.copytree(directory / "1", directory / "5")
    (directory / "5" / "arrays" / "d").rename(directory.parent / "elsewhere")
    (directory / "5" / "arrays" / "d").symlink_to(directory.parent / "elsewhere")
    (directory / "6").touch()
    (directory / "7.orbax-checkpoint-tmp").mkdir()
    found, lines = restore(directory)
    assert found.step == 2
    reasons = [line.split("cannot be used: ")[1].split("; going")[0] for line in lines]
    assert reasons == [
        "it is no directory",
        "arrays/d is a link",
        "arrays/stray does not belong to it",
        "it is empty",
    ]


def test_what_belongs_to_another_run_is_passed_over(directory):
    save(directory, 1, 2)
    found, (line,) = restore(directory, lambda facts: "seed: 0 -> 1" if facts["step"] == 2 else "")
    assert found.step == 1
    assert "cannot be used: it belongs to another run (seed: 0 -> 1); going back" in line


def test_arrays_of_other_shapes_are_no_checkpoint_of_ours(directory):
    save(directory, 1)
    like = shapes_of(make_arrays())
    for other in (
        {**like, "best_params": {"output": like["best_params"]["output"]}},
        jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape, 2), x.dtype), like),
    ):
        with pytest.raises(UserError, match="cannot be used: .*; no whole one is left: restore"):
            newest(directory, other, lambda facts: "", print)


def test_where_none_is_whole_each_is_named_and_nothing_touched(directory):
    save(directory, 1, 2)
    for step in (1, 2):
        flip(directory / str(step) / "facts" / "metadata")
    before = {path: path.stat().st_mtime_ns for path in directory.rglob("*")}
    with pytest.raises(UserError) as caught:
        restore(directory)
    for part in ("2 cannot be used", "1 cannot be used", "no whole one is left: restore one from"):
        assert part in str(caught.value)
    assert newest_facts(directory) is None
    assert {path: path.stat().st_mtime_ns for path in directory.rglob("*")} == before


def test_a_run_that_went_back_writes_the_later_steps_anew(directory):
    save(directory, 1, 2, 3, best_step=1)
    for step in (2, 3):
        flip(directory / str(step) / "digests.json")
    (directory / "4").mkdir()
    set_aside_after(directory, 1)
    assert steps(directory) == ["1", "2.damaged", "3.damaged", "4.damaged"]
    save(directory, 2)
    found, lines = restore(directory)
    assert (found.step, lines) == (2, [])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS, errno.EIO])
@pytest.mark.parametrize("where", ["mkdir", "write"])
def test_a_save_that_fails_says_so_and_leaves_the_one_before(number, where, directory, monkeypatch):
    save(directory, 1)
    checkpoints = Checkpoints(directory)

    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    name = "seqjax.runs.checkpoint.write_json" if where == "write" else "os.mkdir"
    monkeypatch.setattr(name, refuse)
    with pytest.raises(UserError, match=f"cannot save a checkpoint: {os.strerror(number)}; "):
        checkpoints.prepare(2, make_arrays(2), FACTS, 0)()
        checkpoints.close()
    monkeypatch.undo()
    assert steps(directory)[0] == "1" and "2" not in steps(directory)
    found, lines = restore(directory)
    assert (found.step, lines) == (1, [])
    save(directory, 2)
    assert restore(directory)[0].step == 2
