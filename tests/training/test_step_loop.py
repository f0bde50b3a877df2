"""The step loop: chunks of batches that a thread reads ahead, from rows that may stay on disk."""

import json
import os
import resource
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import jax
import numpy as np
import pytest
from support.processes import ROOT
from support.same_runs import packed_arrays, read_result
from support.toys import linear_config, linear_task

import seqjax.plots
import seqjax.training.epoch
from seqjax.data.streams import memory_mapped, record_columns
from seqjax.errors import UserError
from seqjax.metrics import Average
from seqjax.runs.signals import Stopped
from seqjax.tasks.base import Task
from seqjax.training.epoch import LOOPS, LoopOptions, Place
from seqjax.training.fit import fit
from seqjax.training.setup import make_setup
from seqjax.training.train_step import init_train_state, make_keys
from seqjax.training.trainer import Trainer

TASK = linear_task()
PER_EPOCH, NUM_STEPS = 4, 24  # 22 rows in batches of 7, six epochs
ROUNDING = dict(rtol=1e-6, atol=1e-7)  # of float32 sums that another program takes in another order


@pytest.fixture(autouse=True)
def empty_pictures(monkeypatch):
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())


class Watched:
    """A column that notes which rows are read and in which thread, and may fail at a row."""

    def __init__(self, rows: np.ndarray, bad: int = -1):
        self.rows, self.bad, self.reads = rows, bad, []
        self.shape, self.dtype = rows.shape, rows.dtype

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index):
        self.reads.append((np.asarray(index), threading.current_thread()))
        if np.any(np.asarray(index) == self.bad):
            raise OSError("the disk is gone")
        return self.rows[index]


def with_train(rows) -> Task:
    return TASK._replace(splits={**TASK.splits, "train": rows})


def make_loop(task: Task, num_devices: int = 1, size: int = 3, kind: str = "step"):
    """Returns a loop whose chunks have `size` steps, and its first state on the host."""
    setup = make_setup(task, linear_config(loop=kind, num_devices=num_devices))
    options = LoopOptions(max_steps=NUM_STEPS, num_epochs=6)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seqjax.training.epoch, "CHUNK_STEPS", size)
        parts = (task.loss_and_metrics, setup.optimizer, setup.data, setup.mesh, options)
        loop = LOOPS[kind](*parts)
    state = init_train_state(jax.jit(task.init)(jax.random.key(0)), setup.optimizer)
    return loop, jax.device_get(state)


KEYS = make_keys(0)


def run(loop, state, calls=(NUM_STEPS,), first: int = 0):
    """Returns the state on the host and the losses after calls of so many steps."""
    losses = []
    for num_steps in calls:
        state, log = loop(state, KEYS, Place(*divmod(first, PER_EPOCH)), num_steps)
        losses += np.asarray(log.metrics["loss"].total)[:num_steps].tolist()
        first += num_steps
    return jax.device_get(state), losses


def assert_same(some, other) -> None:
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_calls_and_loops_may_end_anywhere_in_a_chunk():
    """Three steps are read at once, so that chunks end neither with calls nor with epochs."""
    loop, state = make_loop(TASK, num_devices=2)
    expected = run(loop, state)
    for calls in ((1, 2, 3, 4, 5, 9), (1,) * NUM_STEPS, (7, 17)):
        assert_same(run(loop, state, calls), expected)
    half, first = run(loop, state, calls=(5,))
    resumed, second = run(make_loop(TASK, num_devices=2)[0], half, calls=(19,), first=5)
    assert_same((resumed, first + second), expected)


@pytest.mark.parametrize("size", [1, 100])
def test_the_size_of_chunks_changes_nothing_but_rounding(size):
    loop, state = make_loop(TASK, kind="epoch")
    expected, losses = run(loop, state)
    state, found = run(*make_loop(TASK, size=size))
    np.testing.assert_allclose(found, losses, **ROUNDING)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_chunks_are_bounded_in_bytes_and_by_the_steps_of_a_call(monkeypatch):
    setup = make_setup(TASK, linear_config(loop="step"))
    row, sizes = 6 * 4 + 4, []  # bytes of "x" and "label"
    for num_bytes in (1, 7 * row, 7 * row * 5 + 3, 2**30):
        monkeypatch.setattr(seqjax.training.epoch, "CHUNK_BYTES", num_bytes)
        options = LoopOptions(max_steps=NUM_STEPS, num_epochs=6)
        sizes.append(seqjax.training.epoch._Chunks(setup.data, setup.mesh, options).size)
    assert sizes == [1, 1, 5, NUM_STEPS]


def test_each_row_is_read_once_an_epoch_in_a_thread_that_ends_with_the_call():
    column = Watched(TASK.splits["train"]["x"])
    loop, state = make_loop(with_train({**TASK.splits["train"], "x": column}))
    before = threading.enumerate()
    column.reads.clear()
    for first, num_steps in ((0, 1), (1, 4), (5, 19)):
        state, _ = loop(state, KEYS, Place(*divmod(first, PER_EPOCH)), num_steps)
        assert threading.enumerate() == before
        # One chunk of three steps is read ahead, and none after the end of the run.
        assert len(column.reads) == min(-(-(first + num_steps) // 3) + 1, NUM_STEPS // 3)
    read = np.concatenate([index.reshape(-1) for index, _ in column.reads])
    assert len(read) == NUM_STEPS * 7
    for epoch in read.reshape(6, 28):  # the batches of an epoch end with six filler rows
        assert sorted(epoch[:22]) == list(range(22)) and not epoch[22:].any()
    assert threading.main_thread() not in {thread for _, thread in column.reads}


def test_an_error_while_reading_reaches_the_caller_with_its_traceback():
    column = Watched(TASK.splits["train"]["label"])
    loop, state = make_loop(with_train({**TASK.splits["train"], "label": column}))
    column.reads.clear()
    run(loop, state, calls=(3,))
    column.bad = int(column.reads[1][0].flat[0])  # a row of the second chunk
    before = threading.enumerate()
    loop, state = make_loop(with_train({**TASK.splits["train"], "label": column}))
    state, _ = loop(state, KEYS, Place(0, 0), 3)  # what is read ahead is not needed yet
    assert int(state.step) == 3
    with pytest.raises(OSError, match="the disk is gone") as caught:
        loop(state, KEYS, Place(0, 3), 5)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert (frames[-1].filename, frames[-1].name) == (__file__, "__getitem__")
    assert threading.enumerate() == before


def save_rows(folder: Path) -> dict:
    folder.mkdir(parents=True)
    for name, array in TASK.splits["train"].items():
        np.save(folder / f"{name}.npy", array)
    return memory_mapped(folder)


def records() -> dict:
    rows = TASK.splits["train"]
    pairs = list(zip(rows["x"], rows["label"], strict=True))
    return record_columns(pairs, lambda pair: {"x": pair[0], "label": pair[1]})


def test_a_run_from_disk_is_the_run_from_memory_and_goes_on_from_it(tmp_path, monkeypatch):
    """It is stopped in the middle of an epoch with rows in memory, goes on with memory-mapped ones,
    stops again, and ends with records: one identity, and the same bits."""
    config = linear_config(loop="step", num_epochs=4)
    fit(TASK, config, tmp_path / "memory")
    call = Trainer._call

    def call_and_stop(self, steps_left):
        call(self, steps_left)
        if self.now.step in (6, 13):
            self.signals.received = 15

    monkeypatch.setattr(Trainer, "_call", call_and_stop)
    with config.unlocked():
        config.train.steps_per_call = 1
    for rows in (TASK.splits["train"], save_rows(tmp_path / "rows")):
        with pytest.raises(Stopped):
            fit(with_train(rows), config, tmp_path / "disk")
    fit(with_train(records()), config, tmp_path / "disk")
    runs = tmp_path / "memory", tmp_path / "disk"
    assert read_result(runs[0]) == read_result(runs[1])
    assert packed_arrays(runs[0]).tobytes() == packed_arrays(runs[1]).tobytes()


@pytest.mark.parametrize("make", [save_rows, lambda folder: records()], ids=["mapped", "records"])
def test_rows_on_disk_need_the_step_loop(make, tmp_path):
    task = with_train(make(tmp_path / "rows"))
    message = "^train.loop='epoch' needs rows in memory, not 'label': set it to 'step'$"
    with pytest.raises(UserError, match=message.replace("label", "(label|x)")):
        fit(task, linear_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# More data than memory

GIGABYTE, NUM_ROWS, WIDTH, EVERY = 2**30, 2**16, 2**14, 16  # 65,536 rows of 64 kB are 4 GB


def large_task(folder: Path) -> Task:
    """Returns a task that is to predict 1 from rows of which all but some are zeros."""

    def init(key):
        return {"kernel": jax.numpy.zeros(WIDTH)}

    def predict(params, batch):
        return batch["x"] @ params["kernel"]

    def measure(params, batch, keys=None, **_):
        errors = (predict(params, batch) - 1) ** 2
        return {"loss": Average(batch["weight"] @ errors, batch["weight"].sum())}

    splits = {"train": memory_mapped(folder)}
    return Task(splits, init, measure, predict, lambda *_: [], main_metric="loss")


def anonymous_memory() -> int:
    """Returns the bytes of this process's memory, without the pages of mapped files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    [kilobytes] = [line.split()[1] for line in lines if line.startswith("RssAnon:")]
    return 1024 * int(kilobytes)


def train_large(folder: Path) -> None:
    """Trains with 1 GB of memory, in a process of its own; prints the loss and what it used."""
    resource.setrlimit(resource.RLIMIT_DATA, (GIGABYTE, GIGABYTE))
    with pytest.raises(MemoryError):
        np.load(folder / "x.npy")
    seqjax.plots.save_figure = lambda figure, path: path.touch()
    used, call = [], Trainer._call

    def call_and_look(self, steps_left):
        call(self, steps_left)
        used.append(anonymous_memory())

    Trainer._call = call_and_look
    config = linear_config(loop="step", num_epochs=1, batch_size=256, monitor="epoch")
    result = fit(large_task(folder), config, folder / "run")
    (folder / "found.json").write_text(json.dumps([result["train"]["loss"], max(used), len(used)]))


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits and /proc as in Linux")
def test_four_gigabytes_are_trained_on_in_one(tmp_path):
    rows = tmp_path / "x.npy"
    np.lib.format.open_memmap(rows, "w+", np.float32, (NUM_ROWS, WIDTH))
    with rows.open("r+b", buffering=0) as file:  # The rest is a hole, which takes no disk space.
        start = rows.stat().st_size - 4 * NUM_ROWS * WIDTH
        for number in range(0, NUM_ROWS, EVERY):
            os.pwrite(file.fileno(), np.float32(1).tobytes(), start + 4 * WIDTH * number)
    path = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    code = "import sys; from pathlib import Path; import runpy\n"
    code += f"runpy.run_path({__file__!r})['train_large'](Path(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": path},
        check=True,
        timeout=300,
    )
    loss, used, num_calls = json.loads((tmp_path / "found.json").read_text())
    assert rows.stat().st_size > 4 * GIGABYTE > 40 * 512 * rows.stat().st_blocks
    assert used < GIGABYTE and num_calls > 1
    # One row in 16 can be predicted, and is.
    assert loss == pytest.approx(1 - 1 / EVERY, abs=1e-3)
