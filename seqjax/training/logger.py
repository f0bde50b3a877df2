"""Writes a run's metrics to the terminal, metrics.jsonl and TensorBoard.

A record is `{"epoch": 3, "step": 324, "learning_rate": ..., "train": {...}, "valid": {...}}` with
the metrics of each split that was evaluated. Times are shown but not recorded, so that a resumed
run has the same records as a run that was never stopped.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from seqjax.files import write_text

Record = Mapping[str, Any]

NUM_PLAIN_LINES = 20  # lines of progress that a run prints if the output is not a terminal


class MetricLogger:
    """Writes a run's records to its directory and shows them as they come. A context manager.

    `records` are those that a resumed run's checkpoint holds. Without a terminal, a line is printed
    every `log_every_epochs` epochs; 0 prints about `NUM_PLAIN_LINES` lines in all.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        records: Sequence[Record],
        num_epochs: int,
        rows_per_epoch: int,
        main_metric: str,
        log_every_epochs: int = 0,
    ):
        self.num_epochs, self.rows_per_epoch, self.main_metric = (
            num_epochs,
            rows_per_epoch,
            main_metric,
        )
        self._log_every = log_every_epochs or -(-num_epochs // NUM_PLAIN_LINES)
        first_epoch = records[-1]["epoch"] if records else 0
        path = workdir / "metrics.jsonl"
        # The file is rewritten: a resumed run repeats what was written after its checkpoint.
        write_text(path, "".join(map(_line, records)))
        self._lines = path.open("a", encoding="utf-8")
        # The event files too: a killed run's may lack the last events, written in the background.
        for events in workdir.glob("events.out.*"):
            events.unlink()
        self._events = make_event_writer(workdir)
        for record in records:
            self._add_scalars(record)
        self._console = Console(highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[summary]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._bar = self._progress.add_task(
            "", total=num_epochs, completed=first_epoch, summary="compiling"
        )
        self._start = self._last = time.perf_counter()
        self._first_epoch = self._shown_epoch = first_epoch

    def __enter__(self) -> "MetricLogger":
        self._progress.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._progress.stop()
        self._events.close()
        self._lines.close()

    def say(self, message: Any) -> None:
        """Prints a message above the progress bar."""
        self._console.print(message)

    def add(self, records: Sequence[Record]) -> None:
        """Writes and shows new records, one an epoch; only the last one may hold "valid"."""
        now = time.perf_counter()
        speed = self.rows_per_epoch * len(records) / (now - self._last)
        self._last = now
        self._lines.write("".join(map(_line, records)))
        self._lines.flush()
        for record in records:
            self._add_scalars(record)
        self._events.add_scalar("examples_per_second", speed, records[-1]["step"])
        self._show(records[-1], speed, now)

    def _add_scalars(self, record: Record) -> None:
        for name, value in record.items():
            if isinstance(value, Mapping):
                for metric, mean in value.items():
                    self._events.add_scalar(f"{metric}/{name}", mean, record["step"])
        self._events.add_scalar("learning_rate", record["learning_rate"], record["step"])

    def _show(self, record: Record, speed: float, now: float) -> None:
        parts = []
        for split in ("train", "valid"):
            if split in record:
                metrics = [f"{m} {record[split][m]:.4f}" for m in ("loss", self.main_metric)]
                parts.append(f"{split} {' '.join(metrics)}")
        summary = f"{'  '.join(parts)}  {speed:,.0f} examples/s"
        epoch = record["epoch"]
        self._progress.update(self._bar, completed=epoch, summary=summary)
        every = self._log_every
        due = epoch == self.num_epochs or epoch // every > self._shown_epoch // every
        if not self._console.is_terminal and due:
            self._shown_epoch = epoch
            done = epoch - self._first_epoch
            left = (now - self._start) / done * (self.num_epochs - epoch)
            self._console.print(f"epoch {epoch}/{self.num_epochs}  {summary}  {left:.0f} s left")


def make_event_writer(directory: Path) -> Any:
    """Returns tensorboardX's `SummaryWriter` of a directory.

    tensorboardX imports torch if it is installed, which takes seconds, only to recognise torch's
    tensors. Unless torch has been imported already, it is hidden from tensorboardX.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # ty: ignore[invalid-assignment]
    try:
        from tensorboardX import SummaryWriter
    finally:
        if hidden:
            del sys.modules["torch"]
    return SummaryWriter(str(directory))


def read_records(path: Path) -> list[Record]:
    """Returns the records of a metrics.jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"
