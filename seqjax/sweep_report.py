"""What a sweep leaves behind at its end. Imports: outcomes, sweep_files, sweep_pictures."""

import math
from collections.abc import Sequence
from pathlib import Path

from seqjax.files import whole_file, write_text
from seqjax.outcomes import (
    Entry,
    Objective,
    Outcome,
    best_of,
    read_outcome,
    shared_objective,
    told_counts,
    value_in,
    varied,
)
from seqjax.sweep_files import best_config, summary_csv, trials_csv, trials_jsonl
from seqjax.sweep_pictures import draw_sweep


def save_report(entries: Sequence[Entry], directory: Path) -> list[Path]:
    """Writes `trials.jsonl`, `trials.csv`, `summary.csv` and, of trials that finished, `best.py`
    and `sweep.png`; where to. Raises UserError for a damaged trial, and for trials that cannot be
    compared."""
    by = shared_objective(entry.trial.config for entry in entries)
    outcomes = [read_outcome(entry) for entry in entries]
    texts = {
        "trials.jsonl": trials_jsonl(outcomes, by),
        "trials.csv": trials_csv(outcomes),
        "summary.csv": summary_csv(outcomes, by),
    }
    best = best_of(outcomes, by)
    if best is not None:
        texts["best.py"] = best_config(best, outcomes, by, directory / "best.py")
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / name for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        write_text(path, text)
    if best is not None:
        paths.append(directory / "sweep.png")
        with whole_file(paths[-1]) as beside:
            _draw(outcomes, best, by, beside)
    return paths


def _draw(outcomes: Sequence[Outcome], best: Outcome, by: Objective, path: Path) -> None:
    """Draws the trials whose objective is a finite number."""
    drawn = [one for one in outcomes if one.value is not None and math.isfinite(one.value)]
    fields = [name for name in varied([one.entry for one in outcomes]) if name != "seed"]
    draw_sweep(
        {name: [value_in(one.entry, name) for one in drawn] for name in fields},
        by.name,
        [one.value for one in drawn if one.value is not None],
        by.sign,
        next(i for i, one in enumerate(drawn) if one is best),
        told_counts(outcomes),
        path,
    )
