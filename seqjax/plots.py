"""Pictures of runs and predictions, as PNG files.

Matplotlib is imported here and in `sweeps/plots.py` alone, and only when something is drawn.
"""

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from seqjax.errors import brief

HANGUL = "NanumGothic"  # a font, of koreanize-matplotlib
MOST_STEPS, LONGEST_LABEL = 100, 40  # of a text, so that no picture is larger than it can be


def draw_curves(records: Sequence[Mapping[str, Any]], metrics: Sequence[str], path: Path) -> None:
    """One panel a metric, one line a split, over epochs. Records are those of metrics.jsonl."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = make_figure(1, len(metrics), width=5.5 * len(metrics), height=4.0)
    for axis, metric in zip(axes.flat, metrics, strict=True):
        for split in ("train", "valid"):
            points = [(r["epoch"], r[split][metric]) for r in records if metric in r.get(split, {})]
            if points:
                marker = "o" if len(points) < 40 else ""
                axis.plot(*zip(*points, strict=True), label=split, marker=marker, markersize=3)
        axis.set(xlabel="epoch", ylabel="loss [nats]" if metric == "loss" else metric)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def draw_confusion(counts: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion matrix with its counts; the colour leaves the diagonal out, to show errors."""
    figure, axes = make_figure(1, 1, width=6.5, height=6.0)
    axis = axes.flat[0]
    errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    image = axis.imshow(errors, cmap="Reds")
    legible = counts if len(counts) <= 30 else counts[:0]  # more would be slow, and a blur
    for (row, column), count in np.ndenumerate(legible):
        dark = errors[row, column] > 0.6 * max(errors.max(), 1)
        color = "white" if dark else "black"
        axis.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    ticks = range(len(names))
    axis.set(xlabel="predicted", ylabel="label", xticks=ticks, yticks=ticks)
    axis.set_xticklabels([make_label(name) for name in names])
    axis.set_yticklabels([make_label(name) for name in names])
    figure.colorbar(image, ax=axis, label="errors", shrink=0.8)
    save_figure(figure, path)


def draw_misread(
    images: np.ndarray, labels: Sequence[str], predicted: Sequence[str], path: Path
) -> None:
    """A sheet of images [N, H, W], each with its label and what was read instead."""
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure, axes = make_figure(rows, columns, width=1.3 * columns, height=1.55 * rows)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, wrong in zip(axes.flat, images, labels, predicted, strict=False):
        axis.imshow(image, cmap="gray_r")
        axis.set_title(make_label(f"{label}, read {wrong}"), fontsize=8)
    save_figure(figure, path)


def draw_steps(
    tables: Sequence[np.ndarray],
    steps: Sequence[Sequence[str]],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Probabilities after every step, one panel a sequence: table [T, C], a row a step."""
    tables = [table[:MOST_STEPS] for table in tables]
    columns = 2 if len(classes) > 10 else 3
    rows = -(-len(tables) // columns)
    width = max(2.2, 0.22 * len(classes)) + 0.8
    height = 0.34 * max(map(len, tables)) + 0.7
    figure, axes = make_figure(rows, columns, width=width * columns, height=height * rows + 0.3)
    figure.suptitle("probability of each class after every step")
    for axis in axes.flat[len(tables) :]:
        axis.axis("off")
    for axis, table, names in zip(axes.flat, tables, steps, strict=False):
        axis.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks([])
        axis.set_yticks(range(len(table)), _labels(names), fontsize=8)
    for axis in axes.flat[max(0, len(tables) - columns) : len(tables)]:  # the last of each column
        axis.set_xticks(range(len(classes)), classes, fontsize=7)
    save_figure(figure, path)


def draw_attention(looks: Sequence[Any], path: Path) -> None:
    """One panel a reply: a row for each of its tokens, a column for each of the source's."""
    looks = [
        look._replace(
            weights=look.weights[:MOST_STEPS, :MOST_STEPS],
            source=_labels(look.source),
            target=_labels(look.target),
        )
        for look in looks
    ]
    columns = min(2, len(looks))
    rows = -(-len(looks) // columns)
    width = 0.34 * max(len(look.source) for look in looks) + 1.6
    height = 0.3 * max(len(look.target) for look in looks) + 1.0
    figure, axes = make_figure(rows, columns, width=width * columns, height=height * rows)
    for axis in axes.flat[len(looks) :]:
        axis.axis("off")
    for axis, look in zip(axes.flat, looks, strict=False):
        axis.imshow(look.weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(look.source)), look.source, fontsize=8, rotation=60)
        axis.set_yticks(range(len(look.target)), look.target, fontsize=8)
    save_figure(figure, path)


def draw_lengths(
    sources: Sequence[int], targets: Sequence[int], most_source: int, most_target: int, path: Path
) -> None:
    """How many texts have how many tokens, and the length to which all are padded or cut."""
    figure, axes = make_figure(1, 2, width=11.0, height=4.0)
    sides = (("source", sources, most_source), ("target", targets, most_target))
    for axis, (name, lengths, most) in zip(axes.flat, sides, strict=True):
        axis.hist(lengths, bins=np.arange(max(*lengths, most) + 2) - 0.5)
        axis.axvline(most, color="black", linestyle="--", label=f"padded to {most}")
        axis.set(xlabel=f"{name} length [tokens]", ylabel="texts")
        axis.legend()
    save_figure(figure, path)


def draw_bars(groups: Mapping[str, Mapping[str, float]], unit: str, own: str, path: Path) -> None:
    """One panel a group, a bar for each name, `own` in another colour."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    height = 0.3 * max(map(len, groups.values())) + 1.1
    figure, axes = make_figure(rows, columns, width=5.5 * columns, height=height * rows)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, (title, values) in zip(axes.flat, groups.items(), strict=False):
        colors = ["tab:orange" if name == own else "tab:blue" for name in values]
        bars = axis.barh([make_label(name) for name in values], list(values.values()), color=colors)
        axis.bar_label(bars, fmt="%.3g", padding=2)
        axis.margins(x=0.12)  # room for the numbers
        axis.invert_yaxis()
        axis.set(title=make_label(title), xlabel=unit)
    save_figure(figure, path)


def draw_scaling(
    panels: Mapping[tuple[str, str], Mapping[str, Sequence[tuple[float, float]]]], path: Path
) -> None:
    """Panels by what their axes are called, three a row, with a line for each name; logarithmic."""
    rows = -(-len(panels) // 3)
    figure, axes = make_figure(rows, 3, width=13.0, height=3.6 * rows)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, ((x, y), lines) in zip(axes.flat, panels.items(), strict=False):
        for name, points in lines.items():
            axis.plot(*zip(*points, strict=True), label=make_label(name), marker="o", markersize=3)
        axis.set(xlabel=make_label(x), ylabel=make_label(y), xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def draw_bands(panels: Sequence[tuple[Any, ...]], path: Path) -> None:
    """A panel for each (title, axis, epochs, printed curve, bands by name), three a row.

    A band is (low, median, high), curves all; losses have a logarithmic axis.
    """
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = make_figure(rows, columns, width=5.0 * columns, height=3.6 * rows)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (title, unit, epochs, printed, bands) in zip(axes.flat, panels, strict=False):
        for name, (low, median, high) in bands.items():
            (line,) = axis.plot(epochs, median, label=make_label(name))
            axis.fill_between(epochs, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
        axis.plot(epochs, printed, label="printed", color="black", marker="o", markersize=3)
        axis.set(title=make_label(title), xlabel="epoch", ylabel=make_label(unit))
        axis.set_yscale("log" if max(printed) > 1 else "linear")  # a loss, or an accuracy
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def _labels(texts: Sequence[str]) -> list[str]:
    """One for each step that is shown."""
    return [make_label(text) for text in texts[:MOST_STEPS]]


def make_label(text: str) -> str:
    """The text as it is to be read: "$" would begin a formula, and a newline a second line."""
    return brief(text, LONGEST_LABEL).replace("$", r"\$")


def make_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches and its axes [rows, columns], with a font that has Hangul."""
    from matplotlib import font_manager, rcParams
    from matplotlib.figure import Figure  # not pyplot: no window system

    if HANGUL not in rcParams["font.family"]:
        # To import the package would set its font for all letters, and fails from Python 3.12 on.
        package = distribution("koreanize-matplotlib")
        font = package.locate_file(f"koreanize_matplotlib/fonts/{HANGUL}.ttf")
        font_manager.fontManager.addfont(str(font))
        rcParams["font.family"] = ["DejaVu Sans", HANGUL]  # for what the first one lacks
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a PNG file, whatever the path ends in."""
    with warnings.catch_warnings():  # characters that no font has are drawn as boxes
        warnings.filterwarnings("ignore", "Glyph .* missing|Matplotlib currently does not support")
        figure.savefig(path, dpi=120, format="png")
