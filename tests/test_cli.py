"""Entry points: a mistake is one line and exit code 2, and nothing of it is left behind."""

import os
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import pytest
from absl import flags
from ml_collections import config_flags
from support.commands import ROOT, assert_one_line
from support.toys import read_json, tiny_config

import seqjax.cli
from seqjax.cli import default_workdir, launch
from seqjax.config import as_json
from seqjax.distributed.devices import start_jax
from seqjax.errors import UserError
from seqjax.files import write_json

# ml_collections reads config files by a method that Python 3.12 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


WORDS = "--config=configs/word_completion.py"


@pytest.mark.parametrize(
    ("arg", "expected"),
    [
        # fields
        ("config.model.cel=gru", "unknown config field 'model.cel': did you mean 'model.cell'?"),
        ("config.train.epochs=3", "unknown config field 'train.epochs': did you mean "),
        ("config.seed.x=3", "unknown config field 'seed.x'"),
        ("config.=3", "unknown config field ''"),
        ("noconfig.train.drop_remaindr", "did you mean 'train.drop_remainder'?"),
        ("config.model=gru", "config field model is a section: set a field of it, such as model.X"),
        # types
        ("config.seed=abc", "--config.seed=abc: invalid literal for int"),
        ("config.train.batch_size=1e3", "--config.train.batch_size=1e3: invalid literal for int"),
        ("config.train.batch_size=True", "--config.train.batch_size=True"),
        ("config.train.batch_size=2.5", "--config.train.batch_size=2.5"),
        ("config.optim.learning_rate=fast", "--config.optim.learning_rate=fast"),
        ("config.optim.learning_rate=True", "--config.optim.learning_rate=True"),
        ("config.train.drop_remainder=maybe", "--config.train.drop_remainder=maybe"),
        ("config.seed", "Missing value for flag --config.seed"),
        ("config.model.output_dropout=half", "output_dropout"),
        ('config.model.cell=lstm(forget_bias="a")', "forget_bias='a'"),
        ('config.optim.schedule=cosine(warmup_epochs="x")', "warmup_epochs='x'"),
        # names
        ("config.task=recal", "unknown task 'recal': did you mean 'recall'?"),
        ("config.task=recall", "recall"),  # whose data has other fields
        ("config.model.cell=lstn", "unknown cell 'lstn': did you mean 'lstm'?"),
        ("config.model.cell=lstm(forget=1)", "options of lstm: forget_bias"),
        (
            "config.model.cell=lstm(",
            "cannot read cell 'lstm(': write `name` or `name(option=value)`",
        ),
        ("config.model.kernel_init=glorot", "unknown initializer 'glorot': did you mean 'glorot_"),
        ("config.model.output_bias_init=glorot_uniform", "glorot_uniform"),  # of a vector
        ("config.optim.name=adm", "unknown optimizer 'adm': did you mean 'adam'?"),
        ("config.optim.name=adam(b3=1)", "options of adam: b1, b2, eps"),
        ("config.optim.schedule=cosin", "unknown schedule 'cosin': did you mean 'cosine'?"),
        ("config.train.monitor=train.los", "unknown train.monitor 'train.los': did you mean"),
        ("config.train.loop=epok", "unknown train.loop 'epok': did you mean 'epoch'?"),
        ("config.data.name=common.text", "unknown word list 'common.text': did you mean "),
        # numbers
        ("config.train.batch_size=0", "train.batch_size=0 must be between 1 and 10, "),
        ("config.train.batch_size=11", "train.batch_size=11 must be between 1 and 10, "),
        ("config.train.batch_size=-1", "train.batch_size=-1 must be between 1 and 10, "),
        ("config.train.num_devices=9", "train.num_devices=9: this machine has 8"),
        ("config.train.num_devices=-1", "train.num_devices=-1 must be at least 0"),
        ("config.train.num_epochs=0", "train.num_epochs=0 must be at least 1"),
        ("config.optim.learning_rate=0", "optim.learning_rate=0.0 must be positive"),
        ("config.optim.schedule=plateau(factor=2.0)", "plateau(factor=2.0)"),
        ("config.seed=99999999999999999999", "seed=99999999999999999999"),
        ("config.data.split_seed=-1", "data.split_seed=-1"),
        ("config.data.valid_share=2.0", "data.valid_share=2.0 must be in [0, 1)"),
        ("config.model.output_dropout=(0.1,0.2,0.3)", "3 rates for 2 layers"),
        ("config.model.output_dropout=(1.0,)", "a dropout rate lies in [0, 1)"),
        ("config.model.hidden_size=0", "sizes must be positive"),
        ("config.model.num_layers=0", "a stack needs at least one layer"),
        # what no field may hold
        ("config.data.valid_share=nan", "data.valid_share=nan must be a number up to 3.4e+38"),
        ("config.data.test_share=-0.1", "data.test_share=-0.1 must be in [0, 1)"),
        ("config.train.min_delta=1e39", "train.min_delta=1e+39 must be a number up to 3.4e+38"),
        ("config.train.patience=2147483648", "train.patience=2147483648 must be at most"),
        ("config.data.name=a\x1b.txt", r"data.name='a\x1b.txt' contains a control character"),
        ("config.optim.name=adam(eps=1e400)", "eps=inf must be a number"),
        ("config.model.cell=lstm(forget_bias=10**9)", "cannot read cell 'lstm(forget_bias=10**9)'"),
        ("config.model.cell=" + "-" * 20_000 + "1", "cannot read cell '-----"),
        ("config.model.input_dropout=" + "-" * 20_000 + "1", "input_dropout=-----"),
        ("config.model.num_layers=101", "model.num_layers=101 must be at most 100"),
        ("config.model.hidden_size=1000001", "model.hidden_size=1000001 must be at most 1000000"),
        ("config.model.hidden_size=1000000", "parameters takes "),  # of memory that is not there
        (
            "config.train.compilation_cache_dir=/x",
            "unknown config field 'train.compilation_",
        ),
        (
            "compilation_cache_dir=/dev/null",
            "COMPILATION_CACHE_DIR=/dev/null is not a directory",
        ),
        # flags
        ("wrkdir=x", "unknown flag 'wrkdir': did you mean 'workdir'?"),
        ("workdir", "Missing value for flag --workdir"),
    ],
)
def test_a_mistake_is_one_line(arg, expected, command, empty):
    assert_one_line(command("train", WORDS, f"--{arg}"), expected)
    assert not (empty / "runs").exists()


@pytest.mark.parametrize("form", [("--config=run: 1",), ("--config", "run: 1")])
def test_the_config_may_be_that_of_a_run(form, command, empty):
    config = tiny_config("recall", num_epochs=3)
    (empty / "run: 1").mkdir()
    write_json(empty / "run: 1" / "config.json", as_json(config))
    code, _, err = command("train", *form, "--config.train.num_epochs=1", "--workdir=a")
    assert (code, err) == (0, "")
    written = read_json(empty / "a" / "config.json")
    assert written["train"].pop("num_epochs") == 1
    expected = as_json(config)
    expected["train"].pop("num_epochs")
    assert written == expected
    assert not (empty / "run: 1" / "checkpoints").exists()
    outcome = command("train", *form, "--config.train.num_epoch=1")
    assert_one_line(outcome, "did you mean 'train.num_epochs'?")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "--config is missing: give a file, as --config="),
        (("--workdir=x",), "--config is missing"),
        (("--config=configs/nothing.py",), "configs/nothing.py does not exist: in configs is"),
        (("--config=configs",), "configs/config.json does not exist: is configs a run directory?"),
        (("--config=configs/mnist_rows.py:lstn",), "unknown variant 'lstn': did you mean 'lstm'?"),
        (("--config=configs/recall.py", "stray"), "cannot use 'stray': flags are written as"),
        (("--config", "configs/recall.py", "--config.sed", "1"), "unknown config field 'sed'"),
        (
            ("--config=configs/mnist_rows.py", "--config.data.name=tfds:fashion_mnst"),
            "tfds:fashion_mnst: Dataset fashion_mnst not found: did you mean fashion_mnist?",
        ),
    ],
)
def test_a_mistaken_command_is_one_line(args, expected, command, empty):
    assert_one_line(command("train", *args), expected)
    assert not (empty / "runs").exists()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\ndef get_config(:", "mine.py, line 2: invalid syntax: def get_config(:"),
        ("x = 1", "mine.py: get_config() is missing: write one"),
        ("def get_config(): return 3", "mine.py: get_config() must return a ConfigDict, not 3"),
        ("def get_config(a): return 3", "mine.py: TypeError: get_config() missing 1 required"),
        ("from seqjax.errors import UserError\nraise UserError('no')", "mine.py: no"),
    ],
)
def test_a_broken_config_file_is_one_line(text, expected, command, empty):
    (empty / "mine.py").write_text(text, encoding="utf-8")
    assert_one_line(command("train", "--config=mine.py"), expected)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("return 1 / 0", ZeroDivisionError),
        ("import no_such_module", ModuleNotFoundError),
        ("open('missing')", FileNotFoundError),
        ("raise MemoryError", MemoryError),
    ],
)
def test_an_error_of_a_config_keeps_its_traceback(line, error, command, empty):
    (empty / "mine.py").write_text(f"def get_config():\n    {line}", encoding="utf-8")
    with pytest.raises(error) as caught:
        command("train", "--config=mine.py")
    files = [Path(frame.filename).name for frame in traceback.extract_tb(caught.tb)]
    # Of the frames between our own and the file's, none is shown.
    assert files[files.index("cli.py") :] == [*["cli.py"] * 3, "mine.py"]


@pytest.mark.parametrize(
    ("workdir", "expected"),
    [
        ("file", "file is, or lies in, a file: give a directory as --workdir"),
        ("file/run", "file/run is, or lies in, a file"),
        ("full", "full is not empty and no run: give a new --workdir"),
    ],
)
def test_a_directory_that_cannot_be_used_is_one_line(workdir, expected, command, empty):
    (empty / "file").touch()
    (empty / "full").mkdir()
    (empty / "full" / "letter.txt").write_text("dear", encoding="utf-8")
    assert_one_line(command("train", WORDS, f"--workdir={workdir}"), expected)
    assert [path.name for path in (empty / "full").iterdir()] == ["letter.txt"]


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ((), "--workdir is missing"),
        (("--workdir=nowhere",), "nowhere/config.json does not exist: is nowhere a run directory?"),
        (("--config=configs/recall.py",), "unknown flag 'config'"),
        (("--workdir=nowhere", "now"), "cannot use 'now'"),
    ],
)
def test_a_mistaken_evaluation_is_one_line(args, expected, command, empty):
    assert_one_line(command("evaluate", *args), expected)
    assert not (empty / "nowhere").exists()


def test_a_loss_that_is_no_number_is_one_line(command):
    code, _, err = command(
        "train",
        WORDS,
        "--config.data.held_out=",
        "--config.model.cell=simple_rnn",
        "--config.model.hidden_size=2",
        "--config.optim.name=sgd",
        "--config.optim.learning_rate=3e38",
    )
    assert code == 2
    assert err.startswith("error: at step ") and err.count("\n") == 1
    assert "nothing was saved yet: lower optim.learning_rate, set optim.clip_norm, or allow" in err


def test_overridden_fields_reach_the_run(command, empty):
    code, out, err = command(
        "train",
        f"{WORDS}:faithful",
        "--config.data.held_out=",
        "--config.model.cell=simple_rnn",
        "--config.model.num_layers=1",
        "--config.model.hidden_size=2",
        "--config.model.output_dropout=(0.25,)",
        "--config.train.num_epochs=1",
        "--noconfig.train.dropout_at_test",
    )
    assert (code, err) == (0, ""), err
    assert "written to runs/word_completion-faithful: " in out
    config = read_json(empty / "runs" / "word_completion-faithful" / "config.json")
    assert config["model"]["output_dropout"] == [0.25]
    assert config["model"]["output_kernel_init"] == "normal(1)"  # the variant's
    assert config["train"]["num_epochs"] == 1
    assert config["train"]["dropout_at_test"] is False


def test_exit_codes(monkeypatch, capsys):
    monkeypatch.setattr(flags, "FLAGS", flags.FlagValues())
    monkeypatch.setattr(sys, "argv", ["command"])

    def raising(error):
        def main():
            raise error

        return main

    assert launch(lambda: None) == 0
    assert launch(raising(UserError("no"))) == 2
    assert launch(raising(KeyboardInterrupt())) == 130
    assert launch(raising(KeyboardInterrupt()), "the same command resumes") == 130
    out, err = capsys.readouterr()
    assert (out, err.splitlines()[0]) == ("", "error: no")
    assert err.splitlines()[1:] == ["interrupted", "the same command resumes"]
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        launch(raising(ZeroDivisionError()))


# Devices and the compile cache


@pytest.fixture
def updates(monkeypatch) -> dict:
    """What is set in JAX's configuration, instead of setting it."""
    values = {}
    monkeypatch.setattr(jax.config, "update", values.__setitem__)
    for name in ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    return values


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "/home/me/.cache/seqjax/jax"),
        ({"XDG_CACHE_HOME": ""}, "/home/me/.cache/seqjax/jax"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/seqjax/jax"),
        ({"JAX_COMPILATION_CACHE_DIR": "/a", "XDG_CACHE_HOME": "/cache"}, "/a"),
        ({"JAX_COMPILATION_CACHE_DIR": "", "XDG_CACHE_HOME": "/cache"}, None),
    ],
)
def test_the_compile_cache_is_where_it_was_asked_for(environment, expected, updates, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    start_jax(1)
    assert updates.get("jax_compilation_cache_dir") == expected
    # The programs are small, and most of a small task's time is compiling them.
    assert (updates.get("jax_persistent_cache_min_compile_time_secs") == 0) == bool(expected)


def test_every_core_that_may_be_used_is_a_device(updates, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    for num_devices, expected in ((0, 3), (2, 2)):
        start_jax(num_devices)
        assert updates["jax_num_cpu_devices"] == expected
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    start_jax(0)
    assert updates["jax_num_cpu_devices"] == 6


@pytest.mark.parametrize("wanted", [-1, 10**9])
def test_a_bad_num_devices_is_refused_before_jax_starts(wanted, updates):
    with pytest.raises(UserError, match=f"train.num_devices={wanted} must be at least 0"):
        start_jax(wanted)
    assert updates == {}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("configs/recall.py", "runs/recall"),
        ("configs/mnist_rows.py:gru", "runs/mnist_rows-gru"),
    ],
)
def test_the_default_workdir_is_named_after_the_config(config, expected, empty, monkeypatch):
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, flag_values=values)
    monkeypatch.setattr(seqjax.cli.flags, "FLAGS", values)
    values(["train", f"--config={config}"])
    assert default_workdir() == Path(expected)


# As processes of their own


def start(*args: str, cwd: Path) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"}
    command = [sys.executable, "-m", *args]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["train", "evaluate"])
def test_help_says_what_a_command_does_and_its_flags(name, empty):
    done = start(f"experiments.{name}", "--help", cwd=empty)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"python -m experiments.{name} --" in done.stdout
    assert "--workdir: " in done.stdout
    assert ("--config: " in done.stdout) == (name == "train")


HEAVY = ("tensorflow_datasets", "matplotlib", "tensorboardX", "orbax.checkpoint", "kiwipiepy")


@pytest.mark.parametrize("name", ["train", "evaluate", "benchmark.__main__"])
def test_heavy_packages_are_not_loaded_to_start(name):
    look = f"import sys, experiments.{name}; print([x for x in {HEAVY} if x in sys.modules])"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_a_mistake_is_one_line_of_a_process_too(empty):
    done = start("experiments.train", WORDS, "--config.model.cel=gru", cwd=empty)
    assert_one_line((done.returncode, done.stdout, done.stderr), "did you mean 'model.cell'?")


def test_a_run_is_trained_and_evaluated(empty):
    done = start(
        "experiments.train",
        "--config=configs/recall.py",
        "--config.data.num_distractors=3",
        "--config.data.num_sequences=200",
        "--config.train.batch_size=40",
        "--config.train.num_epochs=2",
        "--config.model.hidden_size=4",
        cwd=empty,
    )
    assert (done.returncode, done.stderr) == (0, "")
    workdir = empty / "runs" / "recall"
    result = read_json(workdir / "result.json")
    assert result["num_epochs"] == 2
    assert len(read_json(workdir / "environment.json")["devices"]) >= 1
    figure = f"accuracy {result['test']['accuracy']:.4f}"
    assert figure in done.stdout and "written to runs/recall: " in done.stdout
    evaluated = start("experiments.evaluate", "--workdir=runs/recall", cwd=empty)
    assert (evaluated.returncode, evaluated.stderr) == (0, "")
    assert figure in evaluated.stdout
    assert read_json(workdir / "result.json") == result
