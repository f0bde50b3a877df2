"""Text from anywhere, fit to be shown on one line. Imports nothing of seqjax."""

import unicodedata

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
