"""One line of the ledger: what was printed, how ours is measured and judged."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.reproduce.trials import TrialSet
from experiments.reproduce.verdict import OUTSIDE, UNMEASURED, UNREPRODUCIBLE, Rule, fixed, same
from seqjax.errors import UserError

Measure = Callable[[TrialSet], list[Any]]  # our values: one a seed, or one in all


class Explanation(NamedTuple):
    """Why a figure is outside, and whether that was found true."""

    told: str
    is_true: bool
    verdict: str = UNREPRODUCIBLE  # where it is true


class Figure(NamedTuple):
    """What a tutorial printed or fixed, and how seqjax answers it."""

    source: str  # the tutorial and the line of it, as "R3:106"
    config: str  # in configs/, by which --only finds it; or "layers"
    what: str  # with its unit
    printed: Any  # a number, text, tuple of them, or None
    faithful: Measure
    rule: Rule = same
    default: Measure = lambda study: []
    default_is: str = ""  # what the default measures, where it is not the same: then not judged by
    epochs: tuple[int, ...] = ()  # of a curve's points
    note: str = ""
    why: Callable[[TrialSet], Explanation] | None = None  # asked for where the rule says outside


def lines_of(config: str) -> Callable[..., Figure]:
    """`Figure` for one config: the other fields in their order."""
    return lambda source, *fields, **more: Figure(source, config, *fields, **more)


def weaknesses_of(config: str) -> Callable[..., Figure]:
    """(where, what is wrong, how ours shows that it is mended, ...) -> figure."""

    def weakness(
        source: str,
        what: str,
        default: Measure,
        faithful: Measure = lambda study: [],
        rule: Rule = fixed,
        **more: Any,
    ) -> Figure:
        return Figure(source, config, what, None, faithful, rule, default, **more)

    return weakness


class Line(NamedTuple):
    """A figure with what was found."""

    figure: Figure
    faithful: list[Any]
    default: list[Any]
    verdict: str
    note: str

    @property
    def is_explained(self) -> bool:
        """False where ours is outside, and nothing that was tested says why."""
        return self.verdict != OUTSIDE or TESTED in self.note


TESTED, REFUTED = "tested: ", "refuted: "


def judge(figure: Figure, study: TrialSet) -> Line:
    """Measures ours, training what is not yet trained; what needs a missing package says so."""
    try:
        faithful, default = figure.faithful(study), figure.default(study)
        comparable = [] if figure.default_is else default
        verdict, note = figure.rule(figure.printed, faithful, comparable), figure.note
        if verdict == OUTSIDE and figure.why:
            told, is_true, other = figure.why(study)
            verdict = other if is_true else OUTSIDE
            told = f"{TESTED if is_true else REFUTED}{told}"
            note = f"{note}; {told}" if note else told
    except UserError as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        return Line(figure, [], [], UNMEASURED, str(error))
    return Line(figure, faithful, default, verdict, note)
