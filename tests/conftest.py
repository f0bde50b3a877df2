"""Settings and fixtures of all tests: eight CPU devices, one compilation cache, Keras on JAX."""

import contextlib
import fcntl
import hashlib
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis
import jax
import pytest
from ml_collections import ConfigDict
from xdist.scheduler import LoadFileScheduling

os.environ |= {"JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax"}
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

# A process that a shell starts with "&" ignores Ctrl-C, and so do its child processes. Some tests
# need Ctrl-C.
with contextlib.suppress(ValueError):  # not in the main thread
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

# With these flags programs compile three times as fast but run slowly; most programs of the tests
# run only once. With --optimized the tests compile as users do. XLA ends a process that sets an
# unknown flag, and later versions do not know the second one.
QUICK = "--xla_cpu_parallel_codegen_split_count=1"
if jax.__version_info__ < (0, 11):
    QUICK += " --xla_cpu_use_fusion_emitters=false"

hypothesis.settings.register_profile(
    "seqjax", max_examples=20, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("seqjax")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=10, help="SIGKILLs in test_kills.py (10)")
    parser.addoption("--fault-seed", type=int, default=0, help="seed of the schedule of faults (0)")
    parser.addoption(
        "--optimized",
        action="store_true",
        help="compile as users do: programs run faster but take twice as long to compile",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Gives the tests, their workers and the processes that they start one compilation cache.

    The cache is kept between test runs; the user's own cache is not touched.
    """
    directory = config.rootpath / ".pytest_cache" / "jax"
    settings = {
        "jax_compilation_cache_dir": str(directory),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    if not config.getoption("--optimized"):
        settings["jax_disable_most_optimizations"] = True
        if QUICK not in (flags := os.environ.get("XLA_FLAGS", "")):
            os.environ["XLA_FLAGS"] = f"{QUICK} {flags}"
    for name, value in settings.items():
        jax.config.update(name, value)
        os.environ[name.upper()] = str(value)


NUMERIC = ("nn/", "models/test_seq2seq", "training/test_train_step", "sweeps/test_group")
SMOKE = (
    *(
        "data/test_batching",
        "data/test_vocabulary",
        "data/test_parallel_text",
        "nn/test_cells",
        "nn/test_unroll",
        "nn/test_layers",
        "decoding/test_sampling",
    ),
    *("runs/test_checkpoint", "runs/test_old_runs", "training/test_train_step", "tasks/"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Adds the markers `numeric` and `smoke` by file."""
    root = Path(__file__).parent
    for item in items:
        place = item.path.relative_to(root).as_posix()
        for marker, files in ((pytest.mark.numeric, NUMERIC), (pytest.mark.smoke, SMOKE)):
            if place.startswith(files):
                item.add_marker(marker)


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> LoadFileScheduling:
    """Keeps a file's tests in one worker, so that shared fixtures are built once."""
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session")
def train_once(tmp_path_factory, worker_id) -> Callable[[str, Callable[[Path], object]], Path]:
    """Returns a function `(name, train) -> directory` that calls `train(directory)` only once.

    All tests and workers share the directory: they may read or copy it, but not change it.
    """
    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "trained_once"
    shared.mkdir(exist_ok=True)

    def directory_of(name: str, train: Callable[[Path], object]) -> Path:
        directory, done = shared / name, shared / f"{name}.done"
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # the other workers wait here until it is trained
            if not done.exists():
                directory.mkdir()
                train(directory)
                done.touch()
        return directory

    return directory_of


@pytest.fixture(scope="session")
def text_run(train_once) -> Path:
    """A finished run that has memorized `support.texts.QUESTIONS`; its data files lie beside it."""
    from support.texts import train_text_run  # must be imported after the settings above

    return train_once("texts", train_text_run) / "run"


@pytest.fixture(scope="session")
def single_run(train_once) -> Callable[[ConfigDict], Path]:
    """Returns a function from a config, shipped or of the linear task, to its finished run."""
    from support.toys import train_single_run

    def run(config: ConfigDict) -> Path:
        name = hashlib.sha256(config.to_json(sort_keys=True).encode()).hexdigest()[:16]
        return train_once(name, partial(train_single_run, config))

    return run


@pytest.fixture
def empty(tmp_path, monkeypatch) -> Path:
    """The working directory, which holds nothing but the configs."""
    from support.commands import enter_empty

    return enter_empty(tmp_path, monkeypatch)


@pytest.fixture
def command(empty, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """`(name, *args)` runs an entry point there; returns (exit code, stdout, stderr)."""
    from support.commands import run_command

    return partial(run_command, monkeypatch, capsys)


def pytest_terminal_summary(terminalreporter) -> None:
    """Prints what tests recorded with `record_property("fault", "...")`, in order."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = sorted(
        (report.nodeid, value)
        for report in reports
        for name, value in report.user_properties
        if name == "fault"
    )
    if rows:
        terminalreporter.section("faults: what was done, and the result")
        for _, row in rows:
            terminalreporter.write_line(row)
