"""The ledger as a table, Markdown, JSON and a page of plots."""

import html
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from experiments.reproduce.figure import Line
from experiments.reproduce.ledger import NUM_FIGURES, Sections
from experiments.reproduce.trials import TrialSet
from experiments.reproduce.verdict import VERDICTS, band
from seqjax.files import write_json, write_text
from seqjax.plots import draw_bands
from seqjax.runs.workdir import environment

_COLUMNS = ("where", "figure", "printed", "`faithful`", "default", "verdict", "note")
HEAD = """\
# Ledger

Figures of the five tutorials beside ours, by `python -m experiments.reproduce{flags}`. R0 to R4
are the tutorials, each with the line of it; the last section lists their weaknesses. Ours is the
median over seeds with its 5 % and 95 % quantiles, of few seeds nearly the least and the greatest;
of curves the median at the printed epochs (the quantiles are in `ledger.json`). Where the default
measures something else it says what, and is not judged by. A line that names a test says where
the project's tests prove it; they are not run here.

- *met*: what was printed is what ours is; or it lies within the band of `faithful`, or of the
  default where there is no other. A curve is judged as one, losses by the mean of their logarithms.
- *bettered*: a whole band lies on the better side; or, of a weakness, the default has it no more.
- *not reproducible as printed*: ours is outside, for a reason that was tested.
- *outside*: ours is outside, and no reason was found true.
- *not measured*: a package is missing. *nothing was printed*: there is nothing to compare.
"""


def cells(line: Line) -> tuple[str, ...]:
    """A line as the texts of its columns."""
    figure = line.figure
    is_curve = bool(figure.epochs)
    printed = "" if figure.printed is None else show_values([figure.printed], is_curve)
    default = show_values(line.default, is_curve and not figure.default_is)
    if default and figure.default_is:
        default = f"{default}: {figure.default_is}"
    ours = show_values(line.faithful, is_curve)
    return figure.source, figure.what, printed, ours, default, line.verdict, line.note


def show_values(values: Sequence[Any], is_curve: bool = False) -> str:
    """Values over seeds: the median with its band, or the most frequent one and its frequency."""
    if not values:
        return ""
    if is_curve:
        return " ".join(map(_number, np.median(np.array(values), axis=0)))
    if len(values) == 1:
        return _show(values[0])
    if isinstance(values[0], bool):
        return f"{sum(values)} of {len(values)}"
    if isinstance(values[0], int | float):
        low, median, high = map(_number, band(values))
        return f"{median} ({low} to {high})"
    [(value, count)] = Counter(values).most_common(1)
    return f"{_show(value)} ({count} of {len(values)})"


def make_tables(sections: Sections) -> list[Table]:
    """A table a section, for a terminal."""
    tables = []
    for title, lines in sections.items():
        table = Table(*_COLUMNS, title=title, title_justify="left")
        for line in lines:
            table.add_row(*cells(line))
        tables.append(table)
    return tables


def make_summary(sections: Sections) -> str:
    """How many lines have which verdict, and how many are unexplained."""
    lines = [line for part in sections.values() for line in part]
    counts = Counter(line.verdict for line in lines)
    unexplained = sum(not line.is_explained for line in lines)
    parts = [f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict]]
    of_all = f" of {NUM_FIGURES}" if len(lines) < NUM_FIGURES else ""
    return f"{len(lines)}{of_all} figures: {', '.join(parts)}; {unexplained} unexplained"


def make_markdown(sections: Sections, study: TrialSet) -> str:
    """ledger.md."""
    parts = [HEAD.format(flags=study.flags), f"{make_summary(sections)}.\n"]
    if any(line.figure.epochs for part in sections.values() for line in part):
        parts.append("![the tutorials' curves over our bands](ledger.png)\n")
    for title, lines in sections.items():
        rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(cells, lines)]
        table = (f"| {' | '.join(map(_as_markdown, row))} |" for row in rows)
        parts.append(f"## {title}\n\n" + "\n".join(table) + "\n")
    if study.used:
        rows = [f"- `{spec.command}`, {study.num_seeds(spec)} seeds" for spec in study.used]
        parts.append("## Runs\n\n" + "\n".join(rows) + "\n")
    return "\n".join(parts)


def make_json(sections: Sections, study: TrialSet) -> dict[str, Any]:
    """ledger.json: every value, of every seed, and what it was found with."""
    runs = [
        {
            "command": spec.command,
            "seeds": study.num_seeds(spec),
            "commits": study.trials(spec).commits,
        }
        for spec in study.used
    ]
    return {
        "environment": environment(),
        "summary": make_summary(sections),
        "runs": runs,
        "sections": {title: [*map(_as_json, lines)] for title, lines in sections.items()},
    }


def show_ledger(sections: Sections) -> None:
    """Prints the tables and the summary."""
    console = Console() if sys.stdout.isatty() else Console(width=180)
    for table in make_tables(sections):
        console.print(table, markup=False)
    print(make_summary(sections))


def save_ledger(sections: Sections, study: TrialSet, directory: Path) -> list[Path]:
    """Writes ledger.md, ledger.json and, where there are curves, ledger.png; where to."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"ledger.{kind}" for kind in ("md", "json", "png")]
    write_text(paths[0], make_markdown(sections, study))
    write_json(paths[1], make_json(sections, study))
    paths[2].unlink(missing_ok=True)  # of other figures
    panels = [_panel(line) for part in sections.values() for line in part if line.figure.epochs]
    if panels:
        draw_bands(panels, paths[2])
    return paths if panels else paths[:2]


def _panel(line: Line) -> tuple[Any, ...]:
    """Title, axis, epochs, what was printed, and bands by name, of a curve."""
    figure = line.figure
    ours = {"faithful": line.faithful} | ({} if figure.default_is else {"default": line.default})
    bands = {name: band(values) for name, values in ours.items() if values}
    return f"{figure.config} ({figure.source})", figure.what, figure.epochs, figure.printed, bands


def _as_json(line: Line) -> dict[str, Any]:
    figure = line.figure
    facts = {"source": figure.source, "config": figure.config, "figure": figure.what}
    if figure.epochs:
        facts["epochs"] = figure.epochs
    return facts | {
        "printed": figure.printed,
        "faithful": _column(line.faithful),
        "default": _column(line.default),
        "default_is": figure.default_is,
        "verdict": line.verdict,
        "note": line.note,
    }


def _column(values: Sequence[Any]) -> dict[str, Any]:
    """The values by seed and, of numbers, their quantiles."""
    found: dict[str, Any] = {"values": [_plain(value) for value in values]}
    try:
        low, median, high = (np.asarray(part).tolist() for part in band(values))
        found |= {"low": low, "median": median, "high": high}
    except (ValueError, TypeError, IndexError):
        pass  # texts, shapes, nothing
    return found


def _plain(value: Any) -> Any:
    """For JSON, which knows no infinity."""
    return None if isinstance(value, float) and math.isinf(value) else value


def _as_markdown(cell: str) -> str:
    """As it stands: no column, no tag, no emphasis; the one code span is ours."""
    return html.escape(cell, quote=False).replace("|", "&#124;").replace("*", "&#42;")


def _show(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return f"({', '.join(map(_show, value))}{',' * (len(value) == 1)})"
    return _number(value) if isinstance(value, int | float) else str(value) or "nothing"


def _number(value: Any) -> str:
    """Four digits are more than any band tells apart."""
    return f"{value:,}" if isinstance(value, int) else f"{float(value):,.4g}"
