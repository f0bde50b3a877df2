"""The one exception for mistakes that a person can mend. Imports nothing of seqjax."""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Bad input. The message is one line: the thing, the place and the remedy.

    Entry points print it without a traceback and exit with code 2; from Python it is a ValueError.
    """


MAX_LISTED = 12  # names that still fit on the line beside the nearest one


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """The error for a name that is in no table: the nearest name that is, and what there is."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1)
    hints = [f"did you mean {nearest[0]!r}?"] if nearest else []
    if not nearest or len(known) <= MAX_LISTED:
        hints.append(f"known: {', '.join(known)}")
    return UserError(f"unknown {what} {name!r}: {' '.join(hints)}")
