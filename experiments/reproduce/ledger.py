"""The whole ledger: which figures, judged in what order."""

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.reproduce.figure import Figure, Line, judge
from experiments.reproduce.figures import SECTIONS
from experiments.reproduce.trials import MANY, GetConfig, TrialSet
from seqjax.errors import UserError, unknown_name

NAMES = tuple(dict.fromkeys(f.config for figures in SECTIONS.values() for f in figures))

NUM_FIGURES = sum(map(len, SECTIONS.values()))

Sections = dict[str, list[Line]]  # by title


def choose_figures(names: Sequence[str]) -> dict[str, list[Figure]]:
    """The figures of these configs, or all; raises UserError for a name that is none."""
    for name in names:
        if name not in NAMES:
            raise unknown_name("name in --only", name, NAMES)
    wanted = names or NAMES
    found = {title: [f for f in SECTIONS[title] if f.config in wanted] for title in SECTIONS}
    return {title: figures for title, figures in found.items() if figures}


def reproduce(
    names: Sequence[str],
    get_config: GetConfig,
    directory: Path,
    most_seeds: int = MANY,
    say: Callable[[str], None] = lambda line: None,
) -> tuple[Sections, TrialSet]:
    """Every chosen figure, measured and judged, and the study that it was measured in.

    What is not yet trained in `directory` is trained; raises UserError where it cannot be.
    """
    figures = choose_figures(names)
    if most_seeds < 1:
        raise UserError(f"--seeds={most_seeds} must be at least 1")
    study = TrialSet(get_config, directory, most_seeds)
    study.flags = f" --only={','.join(names)}" * bool(names)
    study.flags += f" --seeds={most_seeds}" * (most_seeds < MANY)
    sections: Sections = {}
    for title, part in figures.items():
        say(title)
        sections[title] = [judge(figure, study) for figure in part]
    return sections, study
