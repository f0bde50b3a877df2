"""UserError, the exception for mistakes that the user can fix; where other exceptions come from;
and text made safe to print on one line."""

import difflib
import inspect
import sysconfig
import traceback
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

# Categories of characters that end a line or control a terminal.
_CONTROLS = ("Cc", "Cs", "Zl", "Zp")
# Bidi controls change the direction of the text after them. Their category, Cf, also holds the
# joiners that scripts and emoji need.
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_MAX_LISTED = 12  # names that still fit on one line beside the nearest name
TRACEBACK_HINT = "(--traceback shows where)"


class UserError(ValueError):
    """A mistake in a config, a flag or a file, whose message is one line: thing, place, remedy.

    Entry points print the message without a traceback and exit with code 2; in Python it is an
    ordinary ValueError.
    """


def one_line(text: str) -> str:
    """Returns the text with spaces in place of line ends, terminal controls and bidi controls."""
    return "".join(" " if unicodedata.category(c) in _CONTROLS or c in _BIDI else c for c in text)


def brief(text: str, most: int) -> str:
    """Returns the text on one line, cut off after `most` characters."""
    text = one_line(text)
    return text if len(text) <= most else f"{text[:most]}…"


def require(field: str, value: object, holds: bool, expected: str) -> None:
    """Raises UserError, "`field`=`value` must be `expected`", unless `holds`."""
    if not holds:
        raise UserError(f"{field}={value} must be {expected}")


def require_file(what: str, path: str) -> None:
    """Raises UserError, with the Python files in its folder, unless the file exists."""
    if not Path(path).is_file():
        folder = Path(path).parent
        files = ", ".join(sorted(map(str, folder.glob("*.py")))) or "no .py file"
        raise UserError(f"{what} file {path} does not exist: in {folder} is {files}")


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """Returns the error for a name that is not known, which shows the nearest known names."""
    return UserError(f"unknown {what} {name!r}: {_nearest(name, known)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hints = [f"did you mean {nearest[0]!r}?"] if nearest else []
    if not nearest or len(known) <= _MAX_LISTED:
        hints.append(f"known: {', '.join(known)}")
    return " ".join(hints)


# The fields of a config that functions read as keywords


def keywords(*functions: Callable, passed: Collection[str] = ()) -> dict[str, bool]:
    """Returns the keywords that a config may give to functions: name -> whether it is required.

    A function with `**options` hands them on to the next function. `passed` names the arguments
    that the caller passes itself.
    """
    names: dict[str, bool] = {}
    for function in functions:
        # Not the signature of a class itself: that of an nnx.Module is (*args, **kwargs).
        function = function.__init__ if isinstance(function, type) else function
        parameters = inspect.signature(function).parameters.values()
        for p in parameters:
            if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD):
                names.setdefault(p.name, p.default is p.empty)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return {name: required for name, required in names.items() if name not in {"self", *passed}}


def check_keywords(
    section: str, names: Collection[str], known: Mapping[str, bool], reader: str
) -> None:
    """Raises UserError for a field of a config's section that `reader` does not read or that it
    lacks; `known` is what `keywords` returns."""
    for name in names:
        if name not in known:
            place = f"config.{section}.{name}"
            raise UserError(f"{place} is not read by {reader}: {_nearest(name, known)}")
    for name, is_required in known.items():
        if is_required and name not in names:
            raise UserError(f"config.{section}.{name} is missing: {reader} reads it")


# Whose code raised an exception


def is_library(filename: str) -> bool:
    """Returns whether a source file is Python's or an installed package's other than seqjax."""
    path = Path(filename)
    if _is_seqjax(filename):
        return False
    places = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib")]
    return (
        filename.startswith("<frozen ")
        or not {"site-packages", "dist-packages"}.isdisjoint(path.parts)
        or any(path.is_relative_to(place) for place in places)
    )


def is_from_user_code(error: BaseException) -> bool:
    """Returns whether the user's own code raised an exception, and not seqjax.

    The innermost frame outside libraries decides: when `open` fails in a user's task, that frame is
    the task's; when it fails as a checkpoint is written, that frame is seqjax's.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not is_library(frame.filename):
            return not _is_seqjax(frame.filename)
    return False


def run_user_file(path: str, run: Callable[[], Any]) -> Any:
    """Returns `run()`, which executes a Python file of the user's, such as a config.

    An exception of the file's own code keeps its traceback, from the file's first frame on. A
    UserError, a syntax error and other exceptions become a UserError that names the file.
    """
    try:
        return run()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:
        frames = error.__traceback__
        while frames and not _is_user_file(frames.tb_frame.f_code.co_filename):
            frames = frames.tb_next
        if frames is not None:
            error.__traceback__ = frames
            raise
        if isinstance(error, SyntaxError) and error.text:
            reason = f"line {error.lineno}: {error.msg}: {error.text.strip()}"
            raise UserError(f"{path}, {reason}") from error
        raise UserError(f"{path}: {type(error).__name__}: {error} {TRACEBACK_HINT}") from error


def _is_seqjax(filename: str) -> bool:
    package = Path(__file__).parent
    folders = package, package.with_name("experiments")
    return any(Path(filename).is_relative_to(folder) for folder in folders)


def _is_user_file(filename: str) -> bool:
    return not (is_library(filename) or _is_seqjax(filename))
