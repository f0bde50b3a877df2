"""How an entry point starts and ends: flags, and errors as one line."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags, logging
from jax.errors import JaxRuntimeError
from ml_collections import ConfigDict, config_flags

from seqjax.config import check_values, find_field
from seqjax.distributed.processes import LOST, is_main, leave
from seqjax.errors import UserError, one_line, unknown_name
from seqjax.runs.signals import Stopped

MAX_LINE = 1000  # characters of an error


def launch(main: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Parses the flags, runs `main` and returns the exit code: 2, with a line, after a mistake of
    the user's or where the machine lacks something; 130, with `interrupted`, after Ctrl-C."""
    logging.set_verbosity(logging.FATAL)  # Orbax narrates, and logs what it then raises
    sys.unraisablehook = _unraisable
    try:
        if {"--help", "-help", "-h"} & set(sys.argv):
            print(sys.modules["__main__"].__doc__)
            print(flags.FLAGS.main_module_help())
        else:
            _parse_flags(sys.argv)
            main()
        if sys.stdout is not None:  # it was closed by whoever started this
            sys.stdout.flush()
    except (UserError, OSError, MemoryError, JaxRuntimeError) as error:
        if not (told := _told(error)):
            raise
        print(f"error: {_brief(one_line(told))}", file=sys.stderr)
        _drop_output()
        return leave(2)
    except Stopped as stopped:  # and so have all processes
        if is_main():
            print(stopped.message, file=sys.stderr)
        return stopped.exit_code
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return leave(130)
    return 0


def default_workdir() -> Path:
    """`runs/NAME` for --config=configs/NAME.py, `runs/NAME-VARIANT` with a variant."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / (Path(path).stem + (f"-{variant}" if variant else ""))


def _parse_flags(argv: list[str]) -> None:
    """Parses the flags; raises UserError, in one line, where the libraries write fifty."""
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
    except (MemoryError, RecursionError):  # Python's own parser gave up
        raise UserError(f"cannot read {max(argv, key=len)}: too deeply nested") from None
    if rest:
        raise UserError(f"cannot use {rest[0]!r}: flags are written as --name=value")
    if config is not None:
        for name in _overridden(argv):
            wanted, given = find_field(config, name), find_field(flags.FLAGS.config, name)
            if type(given) is not type(wanted):  # an int field would take True, and keep it
                kind = type(wanted).__name__
                raise UserError(f"--config.{name}={given!r}: {name} is of type {kind}")
        check_values(flags.FLAGS.config.to_dict())


def _load_config_file(argv: list[str]) -> ConfigDict:
    """The config of --config as its file has it."""
    values = re.findall(r"^--?config(?:=|\n)(.*)$", "\n".join(argv), flags=re.MULTILINE)
    if not values:
        raise UserError("--config is missing: give a file, as --config=configs/mnist_rows.py")
    path = Path(values[-1].partition(":")[0])
    if not path.is_file():
        there = ", ".join(sorted(map(str, path.parent.glob("*.py")))) or "no .py file"
        raise UserError(f"config file {path} does not exist: in {path.parent} is {there}")
    try:
        config = config_flags.config_flags.ConfigFileFlagParser("config").parse(values[-1])
    except Exception as error:  # whatever a person's own config file may raise
        # config_flags puts the whole traceback into the message; its last line says what is wrong.
        reason = str(error).strip().splitlines()[-1].removeprefix("seqjax.errors.UserError: ")
        raise UserError(f"{path}: {reason}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() must return a ConfigDict, not {config!r}")
    return config


def _overridden(argv: list[str]) -> list[str]:
    """The names of the config fields that the command line sets."""
    return [m[1] for m in (re.match(r"--?(?:no)?config\.([^=]*)", arg) for arg in argv) if m]


def _told(error: BaseException) -> str:
    """What a person is told of their mistake, or of what the machine lacks; "" of our mistakes."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{error.strerror or error}"
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
        return f"out of memory: lower train.batch_size, or the sizes of model and data ({error})"
    return LOST if "Gloo" in str(error) else ""  # which connects the processes


def _unraisable(error: Any) -> None:
    """Python's own hook, but for what TensorStore's threads print of a save that has failed, which
    Orbax also raises."""
    if "Event loop is closed" not in str(error.exc_value):
        sys.__unraisablehook__(error)


def _brief(message: str) -> str:
    """The message without its middle, if a value of thousands of characters stands there."""
    return message if len(message) <= MAX_LINE else f"{message[:400]} ... {message[-400:]}"


def _drop_output() -> None:
    """Where nothing can be written, on a full disk, leaves nothing for Python to try at exit."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
