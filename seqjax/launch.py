"""How an entry point starts: flags, devices, compile cache, and errors as one line.

Nothing here may touch a JAX device before `start_jax` has said what the devices are.
"""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from seqjax.errors import UserError, unknown_name
from seqjax.plain_text import one_line
from seqjax.stop_signals import Stopped


def launch(main: Callable[[], object], interrupted: str = "interrupted") -> int:
    """Parses the flags, runs `main` and returns the exit code: 2 after a mistake of the user's,
    130, with the line `interrupted`, after Ctrl-C."""
    logging.set_verbosity(logging.FATAL)  # Orbax narrates, and logs what it then raises
    if {"--help", "-help", "-h"} & set(sys.argv):
        print(sys.modules["__main__"].__doc__)
        print(flags.FLAGS.main_module_help())
        return 0
    try:
        _parse_flags(sys.argv)
        main()
    except UserError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        print(stopped.message, file=sys.stderr)
        return int(stopped.code)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130
    return 0


def start_jax(train: ConfigDict) -> None:
    """Makes every core a device, where the CPU is the device, and turns the compile cache on."""
    if train.num_devices < 0:
        raise UserError(f"train.num_devices={train.num_devices} must be at least 0, which is all")
    can_ask = hasattr(os, "sched_getaffinity")  # the cores that this process may use: Linux only
    cores = len(os.sched_getaffinity(0)) if can_ask else os.cpu_count() or 1
    with suppress(RuntimeError):  # an earlier run in this process has started the devices
        jax.config.update("jax_num_cpu_devices", train.num_devices or cores)
    directory = train.compilation_cache_dir
    if directory == "auto":
        user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        directory = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(
            user_cache / "seqjax" / "jax"
        )
    if directory:
        jax.config.update("jax_compilation_cache_dir", directory)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def default_workdir() -> Path:
    """`runs/NAME` for --config=configs/NAME.py, `runs/NAME-VARIANT` with a variant."""
    path, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    return Path("runs") / (Path(path).stem + (f"-{variant}" if variant else ""))


def _parse_flags(argv: list[str]) -> None:
    """Parses the flags; raises UserError, in one line, where the libraries write fifty."""
    config = _load_config_file(argv) if "config" in flags.FLAGS else None
    if config is not None:
        for name in _overridden(argv):
            _field(config, name)
    try:
        rest = flags.FLAGS(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise unknown_name("flag", error.flagname, flags.FLAGS) from None
    except flags.Error as error:
        reason = str(error).strip().splitlines()[-1]
        missing = re.match(r"flag --(\w+)=None", reason)
        raise UserError(f"--{missing[1]} is missing" if missing else reason) from None
    if rest:
        raise UserError(f"cannot use {rest[0]!r}: flags are written as --name=value")
    if config is not None:
        for name in _overridden(argv):
            wanted, given = _field(config, name), _field(flags.FLAGS.config, name)
            if type(given) is not type(wanted):  # an int field would take True, and keep it
                kind = type(wanted).__name__
                raise UserError(f"--config.{name}={given!r}: {name} is of type {kind}")


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


def _field(config: ConfigDict, name: str) -> object:
    """The field `a.b.c` of a config; raises UserError, with the nearest name, if it has none."""
    value: object = config
    for part in name.split("."):
        if not isinstance(value, ConfigDict) or part not in value:
            raise unknown_name("config field", name, _field_names(config))
        value = value[part]
    if isinstance(value, ConfigDict):
        raise UserError(
            f"--config.{name} is a section: set one of its fields, as --config.{name}.X"
        )
    return value


def _field_names(config: ConfigDict, prefix: str = "") -> list[str]:
    names = []
    for name, value in config.items():
        full = f"{prefix}{name}"
        names += _field_names(value, f"{full}.") if isinstance(value, ConfigDict) else [full]
    return names
