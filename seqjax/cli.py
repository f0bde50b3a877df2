"""Starts and ends an entry point: parses its flags and prints its errors."""

import io
import os
import re
import sys
import traceback
from collections.abc import Callable
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

from absl import flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict, config_flags

from seqjax.config import check_values, find_field
from seqjax.distributed.devices import COMPILATION_CACHE
from seqjax.distributed.processes import LOST, is_main, leave
from seqjax.errors import (
    TRACEBACK_HINT,
    UserError,
    is_from_user_code,
    one_line,
    require_file,
    run_user_file,
    unknown_name,
)
from seqjax.runs import config_of_run
from seqjax.runs.signals import Stopped

_MAX_LENGTH = 1000  # characters of an error message


def launch(main: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Parses the flags, calls `main` and returns the process's exit code.

    A UserError, and an error of seqjax's own work with files, memory or other processes, is printed
    as one line, after its traceback with --traceback; the exit code is 2. Ctrl-C prints
    `interrupted`; the exit code is 130. All other exceptions are bugs, of seqjax or of a user's
    task or config, and are raised.
    """
    logging.set_verbosity(logging.FATAL)  # Orbax reports progress, and errors that it then raises
    sys.unraisablehook = _unraisable
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # of characters that a terminal does not have
    try:
        if "traceback" not in flags.FLAGS:
            where: Any = {"flag_values": flags.FLAGS, "module_name": sys.argv[0]}
            text = "print the traceback of every error"
            flags.DEFINE_bool("traceback", False, text, **where)
            text = "folder of compiled programs; by default in the user's cache, '' = none"
            flags.DEFINE_string("compilation_cache_dir", None, text, **where)
        if {"--help", "-help", "-h"} & set(sys.argv):
            print(sys.modules["__main__"].__doc__)
            print(flags.FLAGS.main_module_help())
        else:
            _parse_flags(sys.argv)
            if flags.FLAGS.compilation_cache_dir is not None:
                os.environ[COMPILATION_CACHE] = flags.FLAGS.compilation_cache_dir
            main()
        if sys.stdout is not None:  # the parent process may have closed it
            sys.stdout.flush()
    except (UserError, OSError, MemoryError, JaxRuntimeError) as error:
        if not (message := _message(error)):
            raise
        if _wants_traceback(sys.argv):
            _print_traceback(error)
        print(f"error: {_shortened(one_line(message))}", file=sys.stderr)
        _flush_or_discard()
        return leave(2)
    except Stopped as stopped:  # in all processes of the run
        if is_main():
            print(stopped.message, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return leave(130)
    return 0


def user_path(text: str) -> Path:
    """Returns the path that a flag names, with ~ as the home directory.

    Raises UserError for a URL, and for ~ where the home directory is not known.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
        raise UserError(f"{text} is a URL: give a directory or file of a mounted file system")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: the home directory is not known; give the whole path") from None


def default_workdir() -> Path:
    """Returns `runs/NAME` for --config=configs/NAME.py, `runs/NAME-VARIANT` with a variant.

    For the directory of a run it is that directory.
    """
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    if path == config_of_run.__file__:
        return Path(variant)
    return Path("runs") / (Path(path).stem + (f"-{variant}" if variant else ""))


def _parse_flags(argv: list[str]) -> None:
    """Parses the flags; raises UserError, in one line, where the libraries print fifty."""
    argv = [_of_run(arg, before) for arg, before in zip(argv, ["", *argv], strict=False)]
    config = _load_config_file(argv) if "config" in flags.FLAGS else None
    if config is not None:
        for name in _overridden(argv):
            find_field(config, name)
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown_name("flag", error.flagname, flags.FLAGS) from None
    except flags.Error as error:
        missing = re.match(r"flag --(\w+)=None", reason := str(error).strip())
        raise UserError(f"--{missing[1]} is missing" if missing else reason) from None
    except (MemoryError, RecursionError):  # of Python's own parser
        raise UserError(f"cannot read {max(argv, key=len)}: too deeply nested") from None
    if rest:
        raise UserError(f"cannot use {rest[0]!r}: flags are written as --name=value")
    if config is not None:
        for name in _overridden(argv):
            default, value = find_field(config, name), find_field(flags.FLAGS.config, name)
            if type(value) is not type(default):  # otherwise an int field would accept True
                kind = type(default).__name__
                raise UserError(f"--config.{name}={value!r}: {name} is of type {kind}")
        check_values(flags.FLAGS.config.to_dict())


def _of_run(arg: str, before: str) -> str:
    """Returns the argument, or if it is a run's directory the file that reads its config."""
    found = re.fullmatch(r"(--?config=)?(.*)", arg, re.DOTALL)
    assert found
    is_config = found[1] or before in ("--config", "-config")
    if is_config and found[2] and Path(found[2]).is_dir():
        return f"{found[1] or ''}{config_of_run.__file__}:{found[2]}"
    return arg


def _load_config_file(argv: list[str]) -> ConfigDict:
    """Returns the config of --config without the command line's changes."""
    values = re.findall(r"^--?config(?:=|\n)(.*)$", "\n".join(argv), flags=re.MULTILINE)
    if not values:
        raise UserError("--config is missing: give a file, as --config=configs/mnist_rows.py")
    path, *variant = values[-1].split(":", 1)
    if path == config_of_run.__file__:
        return config_of_run.get_config(*variant)
    require_file("config", path)
    config = run_user_file(path, lambda: _get_config(path, variant))
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return a ConfigDict, not {config!r}")
    return config


def _get_config(path: str, variant: list[str]) -> Any:
    """Returns what `get_config` of a file returns. config_flags runs the file again; this time
    its exceptions come without fifty lines about config_flags."""
    module = ModuleType("config_config")
    module.__file__ = path
    sys.modules[module.__name__] = module  # where dataclasses of the file look for it
    SourceFileLoader(module.__name__, path).exec_module(module)
    if not hasattr(module, "get_config"):
        raise UserError("get_config() is missing: write one that returns a ConfigDict")
    return module.get_config(*variant)


def _overridden(argv: list[str]) -> list[str]:
    """Returns the names of the config fields that the command line sets."""
    return [m[1] for m in (re.match(r"--?(?:no)?config\.([^=]*)", arg) for arg in argv) if m]


def _message(error: BaseException) -> str:
    """Returns the line for a mistake of the user's or a limit of the machine, or "" for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if "Gloo" in str(error):  # the library that connects the processes
        return LOST
    if is_from_user_code(error):
        return ""
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{error.strerror or error} {TRACEBACK_HINT}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        remedy = "lower train.batch_size, or the sizes of model and data"
        return f"out of memory: {remedy} ({error}) {TRACEBACK_HINT}"
    return ""


def _wants_traceback(argv: list[str]) -> bool:
    """Returns whether --traceback is given. The flags themselves may not have been parsed."""
    return any(re.fullmatch("--?traceback(=(true|1))?", arg) for arg in argv)


def _print_traceback(error: BaseException) -> None:
    """Prints the traceback, also those of the exceptions that `raise ... from None` hides."""
    link: BaseException | None = error
    while link is not None:
        link.__suppress_context__ = False
        link = link.__cause__ or link.__context__
    traceback.print_exception(error)


def _unraisable(error: Any) -> None:
    """Python's own hook, without what TensorStore's threads print about a save that failed: Orbax
    raises that error too."""
    if "Event loop is closed" not in str(error.exc_value):
        sys.__unraisablehook__(error)


def _shortened(message: str) -> str:
    """Returns the message without its middle if it is long, as with a value of 2,000 characters."""
    return message if len(message) <= _MAX_LENGTH else f"{message[:400]} ... {message[-400:]}"


def _flush_or_discard() -> None:
    """Flushes standard output; on a full disk discards it, so that Python does not at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
