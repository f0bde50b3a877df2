"""Writes a run's metrics to the terminal, metrics.jsonl, steps.jsonl and TensorBoard.

A record is `{"epoch": 3, "step": 324, "learning_rate": ..., "train": {...}, "valid": {...}}` with
the metrics of each split that was evaluated. A step's line is `{"step": 120, "epoch": 2, ...}` with
the metrics of its batch. Times are shown but not recorded, so that a resumed run has the same
records and lines as a run that was never stopped.
"""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
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

from seqjax.errors import one_line
from seqjax.files import json_text, write_text

Record = Mapping[str, Any]

METRICS, STEPS = "metrics.jsonl", "steps.jsonl"
EXAMPLES = ".examples"  # how the event file of a run's sample predictions ends
PLACES = ("epoch", "step")  # the fields of records and lines that say where they belong
FLUSH_SECONDS = 10.0  # a flush of event files waits for the disk, so it is not done at each event
NUM_PLAIN_LINES = 20  # lines of progress that a run prints if the output is not a terminal


class MetricLogger:
    """Writes a run's records to its directory and shows them as they come. A context manager.

    `records` are those that a resumed run's checkpoint holds, and `step` is the step from which the
    run goes on. Without a terminal, a line is printed every `log_every_epochs` epochs; 0 prints
    about `NUM_PLAIN_LINES` lines in all.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        records: Sequence[Record],
        step: int,
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
        # The files are rewritten: a resumed run repeats what was written after its checkpoint.
        write_text(workdir / METRICS, _text(records))
        self._lines = (workdir / METRICS).open("a", encoding="utf-8")
        self._steps = StepsFile(workdir / STEPS, step)
        # The event files too: a killed run's lack the events that were not flushed yet.
        for events in workdir.glob("events.out.*"):
            events.unlink()
        self._events = make_event_writer(workdir)
        self._events.add_records(records)
        self._events.add_steps(self._steps.lines)
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
        self._lines.write(_text(records))
        self._lines.flush()
        self._events.add_records(records)
        self._events.add_scalars({"examples_per_second": speed}, records[-1]["step"])
        self._show(records[-1], speed, now)

    def add_steps(self, lines: Sequence[Record]) -> None:
        """Writes the lines of new steps to steps.jsonl and TensorBoard."""
        self._steps.add(lines)
        self._events.add_steps(lines)

    def _show(self, record: Record, speed: float, now: float) -> None:
        parts = []
        for split in ("train", "valid"):
            if split in record:
                names = ("loss", self.main_metric)
                metrics = [f"{name} {_shown(record[split][name])}" for name in names]
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


class StepsFile:
    """A file of one line a step, of which a run that goes on from `step` keeps those up to it.

    `lines` are those kept. The file exists if it has a line.
    """

    def __init__(self, path: Path, step: int):
        self.path = path
        self.lines = [line for line in _intact_lines(path) if line["step"] <= step]
        if self.lines:
            write_text(path, _text(self.lines))
        else:
            path.unlink(missing_ok=True)

    def add(self, lines: Sequence[Record]) -> None:
        """Writes new lines, which are in the file when this returns."""
        if lines:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(_text(lines))


class EventWriter:
    """An event file in a directory. Returned by `make_event_writer`.

    All values of a step are one event, and events are written by the calling thread: the background
    thread of tensorboardX's own writers takes several times as long, and holds up the caller.
    """

    def __init__(self, tensorboardx: Any, directory: Path, suffix: str):
        self._summary, self._event = tensorboardx.summary, tensorboardx.proto.event_pb2.Event
        prefix = str(directory / "events")
        self._file = tensorboardx.event_file_writer.EventsWriter(prefix, suffix)
        self._flushed_at = time.monotonic()

    def add_records(self, records: Iterable[Record]) -> None:
        """Adds the metrics of records as `loss/train`, and their other numbers by name."""
        for record in records:
            scalars = {name: record[name] for name in record if name not in PLACES}
            for split, metrics in record.items():
                if isinstance(metrics, Mapping):
                    scalars |= {f"{metric}/{split}": mean for metric, mean in metrics.items()}
            self.add_scalars(scalars, record["step"])

    def add_steps(self, lines: Iterable[Record]) -> None:
        """Adds the numbers of steps as `step/loss`."""
        for line in lines:
            scalars = {f"step/{name}": value for name, value in line.items() if name not in PLACES}
            self.add_scalars(scalars, line["step"])

    def add_scalars(self, scalars: Mapping[str, Any], step: int) -> None:
        """Adds those values that are finite numbers."""
        value, numbers = self._summary.Summary.Value, _finite_numbers(scalars)
        self._add([value(tag=name, simple_value=x) for name, x in numbers.items()], step)

    def add_hparams(self, config: Mapping[str, Any], result: Mapping[str, Any], step: int) -> None:
        """Adds the fields of a config, and the numbers of a result, for the HParams plugin."""
        fields = {
            name: value if isinstance(value, bool | int | float | str) else repr(value)
            for name, value in _flatten(config).items()
        }
        metrics = _finite_numbers(_flatten(result))
        for summary in self._summary.hparams(fields, metrics):
            self._add(summary.value, 0)
        self.add_scalars(metrics, step)  # where the plugin looks for them

    def add_text(self, name: str, lines: Iterable[str], step: int) -> None:
        """Adds lines as a code block, because Markdown would join them and drop characters."""
        block = "\n".join(f"    {one_line(line)}" for line in lines)
        self._add(self._summary.text(name, block).value, step)

    def add_picture(self, path: Path, step: int) -> None:
        """Adds a PNG file under its stem; raises OSError if there is none or it is damaged."""
        from PIL import Image

        with Image.open(path) as picture:
            (width, height), channels = picture.size, len(picture.getbands())
        summary = self._summary.Summary
        image = summary.Image(
            height=height,
            width=width,
            colorspace=channels,
            encoded_image_string=path.read_bytes(),
        )
        self._add([summary.Value(tag=path.stem, image=image)], step)

    def _add(self, values: Sequence[Any], step: int) -> None:
        now, summary = time.monotonic(), self._summary.Summary(value=values)
        self._file.write_event(self._event(wall_time=time.time(), step=step, summary=summary))
        if now - self._flushed_at > FLUSH_SECONDS:
            self._file.flush()
            self._flushed_at = now

    def close(self) -> None:
        self._file.close()


def make_event_writer(directory: Path, suffix: str = "") -> EventWriter:
    """Returns the writer of a new event file, whose name is the time in seconds and the suffix.

    tensorboardX imports torch if it is installed, which takes seconds, only to recognise torch's
    tensors. Unless torch has been imported already, it is hidden from tensorboardX.
    """
    hidden = "torch" not in sys.modules
    if hidden:
        sys.modules["torch"] = None  # ty: ignore[invalid-assignment]
    try:
        import tensorboardX
    finally:
        if hidden:
            del sys.modules["torch"]
    return EventWriter(tensorboardX, directory, suffix)


def write_log(
    directory: Path,
    records: Sequence[Record],
    step_lines: Sequence[Record],
    config: Mapping[str, Any] | None = None,
    result: Mapping[str, Any] | None = None,
) -> None:
    """Writes what a run has logged, with its config and result for TensorBoard, all at once."""
    write_text(directory / METRICS, _text(records))
    if step_lines:
        write_text(directory / STEPS, _text(step_lines))
    with contextlib.closing(make_event_writer(directory)) as events:
        events.add_records(records)
        events.add_steps(step_lines)
        if config is not None:
            events.add_hparams(config, result or {}, records[-1]["step"] if records else 0)


def add_examples(
    directory: Path, lines: Sequence[str], pictures: Iterable[Path], step: int
) -> None:
    """Adds sample predictions, and those pictures that exist, to the event files of a run."""
    # Without a suffix it could have the name of the run's own file, and replace it.
    with contextlib.closing(make_event_writer(directory, EXAMPLES)) as events:
        if lines:
            events.add_text("examples", lines, step)
        for path in pictures:
            with contextlib.suppress(OSError):  # the run is complete without its pictures
                events.add_picture(path, step)


def read_records(path: Path) -> list[Record]:
    """Returns the records of a metrics.jsonl file, or the lines of a steps.jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _intact_lines(path: Path) -> list[Record]:
    """Returns the lines of a steps.jsonl file, if there is one; a kill may have torn the last."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError, RecursionError):
            lines.append(json.loads(text))
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def _text(lines: Iterable[Record]) -> str:
    return "".join(f"{json_text(line)}\n" for line in lines)


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.4f}"


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the values of nested dicts by their full names, such as `optim.learning_rate`."""
    flat = {}
    for name, value in tree.items():
        nested = isinstance(value, Mapping)
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


def _finite_numbers(values: Mapping[str, Any]) -> dict[str, float]:
    return {n: float(x) for n, x in values.items() if isinstance(x, Real) and math.isfinite(x)}
