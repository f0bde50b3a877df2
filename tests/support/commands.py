"""Runs entry points in this process, and checks that a mistake is reported in one line."""

import contextlib
import io
import os
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from unittest import mock

import jax
from absl import flags
from ml_collections import config_flags

from seqjax.cli import launch
from support.toys import CONFIGS

ROOT = CONFIGS.parent
KINDS = {
    kind: getattr(flags, f"DEFINE_{kind}") for kind in ("string", "bool", "enum", "integer", "list")
}
define_config = config_flags.DEFINE_config_file


def enter_empty(directory: Path, monkeypatch) -> Path:
    """Makes `directory`, which then holds nothing but the configs, the working directory."""
    (directory / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(directory)
    return directory


def run_command(monkeypatch, capture, name: str, *args: str) -> tuple[int, str, str]:
    """Runs `experiments/NAME.py` in this process; returns (exit code, stdout, stderr)."""
    values = flags.FlagValues()  # flags of this command only
    monkeypatch.setattr(flags, "FLAGS", values)
    for kind, define in KINDS.items():
        monkeypatch.setattr(flags, f"DEFINE_{kind}", partial(define, flag_values=values))
    monkeypatch.setattr(
        config_flags, "DEFINE_config_file", partial(define_config, flag_values=values)
    )
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)  # JAX is running already
    monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *args])
    monkeypatch.delitem(sys.modules, "config_config", raising=False)  # the last config file
    cache = "JAX_COMPILATION_CACHE_DIR"  # which a flag may set
    monkeypatch.setenv(cache, os.environ.get(cache, ""))
    path = ROOT / "experiments" / name
    main = runpy.run_path(str(path / "__main__.py" if path.is_dir() else f"{path}.py"))["main"]
    capture.readouterr()
    code = launch(main)
    return code, *capture.readouterr()


def assert_one_line(outcome: tuple[int, str, str], expected: str) -> None:
    """Asserts exit code 2 and one line on standard error that contains `expected`."""
    code, out, err = outcome
    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.endswith("\n") and err.count("\n") == 1
    assert expected in err


def launch_quietly(main: Callable[[], object]) -> tuple[int, str, str]:
    """Runs a main function that has no flags; returns (exit code, stdout, stderr)."""
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(flags, "FLAGS", flags.FlagValues()),
        mock.patch.object(sys, "argv", ["command"]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        code = launch(main)
    return code, out.getvalue(), err.getvalue()
