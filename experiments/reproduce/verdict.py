"""How a printed figure is judged by ours over seeds. Imports nothing of seqjax.

A rule takes what was printed and our values, one a seed, of `faithful` and of the default, where
that measures the same; it says MET, BETTERED or OUTSIDE. What is outside needs an explanation; one
that was tested, and holds, says more: that nobody can reproduce it as printed.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

MET, BETTERED, OUTSIDE = "met", "bettered", "outside"
UNREPRODUCIBLE = "not reproducible as printed"
UNMEASURED, UNPRINTED = "not measured", "nothing was printed"
VERDICTS = (MET, BETTERED, OUTSIDE, UNREPRODUCIBLE, UNMEASURED, UNPRINTED)

# (printed, our values of `faithful`, of the default) -> verdict
Rule = Callable[[Any, Sequence[Any], Sequence[Any]], str]


class Band(NamedTuple):
    """Values over seeds: their 5 %, 50 % and 95 % quantiles."""

    low: Any
    median: Any
    high: Any


def band(values: Sequence[Any]) -> Band:
    """The quantiles, of curves at every point."""
    return Band(*np.quantile(np.asarray(values, float), (0.05, 0.5, 0.95), axis=0))


def same(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: every value is the very one that was printed."""
    return MET if all(value == printed for value in (*faithful, *default)) else OUTSIDE


def to_two_digits(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: every value is the one that was printed, as far as two digits say."""
    return MET if all(abs(value - printed) <= 0.005 for value in faithful) else OUTSIDE


def holds(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: every check holds."""
    return MET if all((*faithful, *default)) else OUTSIDE


def fixed(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Bettered: `faithful` has the weakness, where it is asked, and the default has not."""
    values = (*faithful, *default)
    return BETTERED if values and all(values) else OUTSIDE


def reported(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Bettered: the figure that was missing is there, of every seed, beside what was shown."""
    there = len(default) > 0 and np.all(np.isfinite(np.asarray(default, float)))
    return BETTERED if all(faithful) and there else OUTSIDE


def varies(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Bettered: what was told of one run is told of several, which differ."""
    return BETTERED if len(set(default)) > 1 else OUTSIDE


def nearly_all(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Bettered: with at least 95 % of the seeds the share is 1."""
    return BETTERED if default and np.mean(np.asarray(default, float) == 1) >= 0.95 else OUTSIDE


def vanishes(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Bettered: `faithful` has some of it, and the default none, or at most with 5 % of seeds."""
    there, gone = np.asarray(faithful, float), np.asarray(default, float)
    return BETTERED if np.all(there > 0) and np.mean(gone > 0) <= 0.05 else OUTSIDE


def none_left(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Bettered: the default has none of it."""
    return BETTERED if not any(default) else OUTSIDE


def occurs(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: at least 5 % of the seeds of `faithful` give what was printed."""
    return MET if sum(value == printed for value in faithful) >= 0.05 * len(faithful) else OUTSIDE


def usually(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: at least half of the seeds of `faithful` give what was printed."""
    return MET if sum(value == printed for value in faithful) >= 0.5 * len(faithful) else OUTSIDE


def at_least(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: every value is what was printed, or more."""
    return MET if all(value >= printed for value in faithful) else OUTSIDE


def in_size(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """Met: of numbers drawn without a seed, what was printed is none of the 1 % most extreme."""
    return MET if 0.005 <= np.mean(np.asarray(faithful) > printed) <= 0.995 else OUTSIDE


def unprinted(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
    """There is nothing that ours could be judged by."""
    return UNPRINTED


def within(better: str = "", score: Callable[[Any], float] = float) -> Rule:
    """Met: the print lies within the 5-95 % band of `faithful`, or of the default where there is
    no other. Bettered: that band, or the default's, lies wholly on the better side of the print,
    which is "lower" or "higher" or, for "", neither. Curves are compared by their `score`."""
    sign = {"lower": 1, "higher": -1, "": 0}[better]

    def rule(printed: Any, faithful: Sequence[Any], default: Sequence[Any]) -> str:
        ends = [band([score(v) for v in values]) for values in (faithful, default) if values]
        wanted = score(printed)
        beyond = [  # above 0: the whole band is better than the print; below: worse
            sign * (wanted - (b.high if sign >= 0 else b.low)) for b in ends
        ]
        inside = ends[0].low <= wanted <= ends[0].high
        if not inside and beyond[0] <= 0:
            return OUTSIDE
        return BETTERED if max(beyond) > 0 else MET

    return rule


def mean_log(curve: Sequence[float]) -> float:
    """A curve of losses as one number, in which every epoch weighs alike."""
    return float(np.mean([math.log(max(value, 1e-12)) for value in curve]))


def root_mean_square(values: Any) -> float:
    """The size of some numbers, whatever their signs."""
    return float(np.sqrt(np.mean(np.square(np.asarray(values, float)))))


lower = within("lower")
higher = within("higher")
alike = within()
lower_curve = within("lower", mean_log)
higher_curve = within("higher", lambda curve: float(np.mean(curve)))
