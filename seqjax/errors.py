"""The one exception for mistakes that a person can mend, and text made fit for one line."""

import difflib
import unicodedata
from collections.abc import Iterable

# What ends a line, steers a terminal, or turns the direction of what follows (bidi controls, which
# are of category Cf with the joiners that scripts and emoji need).
STEERING = ("Cc", "Cs", "Zl", "Zp")
TURNING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def one_line(text: str) -> str:
    """The text with blanks for what would end a line, steer a terminal, or reorder the text."""
    return "".join(" " if unicodedata.category(c) in STEERING or c in TURNING else c for c in text)


def brief(text: str, most: int) -> str:
    """The text on one line, cut after so many characters."""
    text = one_line(text)
    return text if len(text) <= most else f"{text[:most]}…"


class UserError(ValueError):
    """Bad input. The message is one line: the thing, the place and the remedy.

    Entry points print it without a traceback and exit with code 2; from Python it is a ValueError.
    """


def require(field: str, value: object, holds: bool, wanted: str) -> None:
    """Raises UserError, "`field`=`value` must be `wanted`", unless `holds`."""
    if not holds:
        raise UserError(f"{field}={value} must be {wanted}")


MAX_LISTED = 12  # names that still fit on the line beside the nearest one


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table: the nearest name that is, and what there is."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hints = [f"did you mean {nearest[0]!r}?"] if nearest else []
    if not nearest or len(known) <= MAX_LISTED:
        hints.append(f"known: {', '.join(known)}")
    return UserError(f"unknown {what} {name!r}: {' '.join(hints)}")
