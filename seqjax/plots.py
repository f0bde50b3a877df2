"""Draws pictures of runs and predictions as PNG files.

Only this module imports Matplotlib, and only when it draws something.
"""

import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np

from seqjax.errors import brief

HANGUL_FONT = "NanumGothic"  # from the package koreanize-matplotlib
MAX_TICKS = 20
WIDE = 30.0  # times the smallest of some numbers is the largest: their axis is logarithmic
MAX_STEPS, MAX_LABEL = 100, 40  # tokens and characters that are drawn, to bound the picture's size


def draw_curves(records: Sequence[Mapping[str, Any]], metrics: Sequence[str], path: Path) -> None:
    """Draws one panel per metric with one line per split; `records` are those of metrics.jsonl."""
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
    """Draws a confusion matrix with its counts; only errors are coloured, not the diagonal."""
    figure, axes = make_figure(1, 1, width=6.5, height=6.0)
    axis = axes.flat[0]
    errors = np.where(np.eye(len(counts), dtype=bool), 0, counts)
    image = axis.imshow(errors, cmap="Reds")
    # Counts of more classes would be unreadable and slow to draw.
    legible = counts if len(counts) <= 30 else counts[:0]
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
    """Draws a sheet of misclassified images [N, H, W], each with its label and the prediction."""
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure, axes = make_figure(rows, columns, width=1.3 * columns, height=1.55 * rows)
    for axis in axes.flat:
        axis.axis("off")
    for axis, image, label, prediction in zip(axes.flat, images, labels, predicted, strict=False):
        axis.imshow(image, cmap="gray_r")
        axis.set_title(make_label(f"{label}, read {prediction}"), fontsize=8)
    save_figure(figure, path)


def draw_steps(
    tables: Sequence[np.ndarray],
    steps: Sequence[Sequence[str]],
    classes: Sequence[str],
    path: Path,
) -> None:
    """Draws the class probabilities after every step, one panel per sequence with table [T, C].

    `steps` holds the label of each row of a table, `classes` that of each column.
    """
    tables = [table[:MAX_STEPS] for table in tables]
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
    # The lowest panel of each column shows the classes.
    for axis in axes.flat[max(0, len(tables) - columns) : len(tables)]:
        axis.set_xticks(range(len(classes)), classes, fontsize=7)
    save_figure(figure, path)


def draw_attention(maps: Sequence[Any], path: Path) -> None:
    """Draws one panel per AttentionMap, with reply tokens as rows and source tokens as columns."""
    maps = [
        attention._replace(
            weights=attention.weights[:MAX_STEPS, :MAX_STEPS],
            source=_labels(attention.source),
            target=_labels(attention.target),
        )
        for attention in maps
    ]
    columns = min(2, len(maps))
    rows = -(-len(maps) // columns)
    width = 0.34 * max(len(attention.source) for attention in maps) + 1.6
    height = 0.3 * max(len(attention.target) for attention in maps) + 1.0
    figure, axes = make_figure(rows, columns, width=width * columns, height=height * rows)
    for axis in axes.flat[len(maps) :]:
        axis.axis("off")
    for axis, (weights, source, target) in zip(axes.flat, maps, strict=False):
        axis.imshow(weights, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(source)), source, fontsize=8, rotation=60)
        axis.set_yticks(range(len(target)), target, fontsize=8)
    save_figure(figure, path)


def draw_lengths(
    sources: Sequence[int], targets: Sequence[int], max_source: int, max_target: int, path: Path
) -> None:
    """Draws histograms of text lengths in tokens, and the lengths to which texts are padded."""
    figure, axes = make_figure(1, 2, width=11.0, height=4.0)
    sides = (("source", sources, max_source), ("target", targets, max_target))
    for axis, (name, lengths, max_length) in zip(axes.flat, sides, strict=True):
        axis.hist(lengths, bins=np.arange(max(*lengths, max_length) + 2) - 0.5)
        axis.axvline(max_length, color="black", linestyle="--", label=f"padded to {max_length}")
        axis.set(xlabel=f"{name} length [tokens]", ylabel="texts")
        axis.legend()
    save_figure(figure, path)


def draw_bars(
    groups: Mapping[str, Mapping[str, float]], unit: str, highlighted: str, path: Path
) -> None:
    """Draws one panel per group with one bar per name; the highlighted name has its own colour."""
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    height = 0.3 * max(map(len, groups.values())) + 1.1
    figure, axes = make_figure(rows, columns, width=5.5 * columns, height=height * rows)
    for axis in axes.flat[len(groups) :]:
        axis.axis("off")
    for axis, (title, values) in zip(axes.flat, groups.items(), strict=False):
        colors = ["tab:orange" if name == highlighted else "tab:blue" for name in values]
        bars = axis.barh([make_label(name) for name in values], list(values.values()), color=colors)
        labels = [f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" for value in values.values()]
        axis.bar_label(bars, labels, padding=2)
        axis.margins(x=0.12)  # room for the numbers
        axis.invert_yaxis()
        axis.set(title=make_label(title), xlabel=unit)
    save_figure(figure, path)


def draw_scaling(
    panels: Mapping[tuple[str, str], Mapping[str, Sequence[tuple[float, float]]]], path: Path
) -> None:
    """Draws one panel per (x label, y label), three in a row, with one line per name.

    A name has the same colour in all panels. Both axes are logarithmic.
    """
    names = dict.fromkeys(name for lines in panels.values() for name in lines)
    colors = {name: f"C{number}" for number, name in enumerate(names)}
    rows = -(-len(panels) // 3)
    figure, axes = make_figure(rows, 3, width=13.0, height=3.6 * rows)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, ((x, y), lines) in zip(axes.flat, panels.items(), strict=False):
        for name, points in lines.items():
            style = {"color": colors[name], "marker": "o", "markersize": 3}
            axis.plot(*zip(*points, strict=True), label=make_label(name), **style)
        axis.set(xlabel=make_label(x), ylabel=make_label(y), xscale="log", yscale="log")
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def draw_bands(panels: Sequence[tuple[Any, ...]], path: Path) -> None:
    """Draws one panel per (title, y label, epochs, printed curve, bands by name), three in a row.

    A band is three curves: (low, median, high). The y axis of a loss is logarithmic.
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
        axis.set_yscale("log" if max(printed) > 1 else "linear")  # accuracies are at most 1
        axis.grid(alpha=0.3)
        axis.legend()
    save_figure(figure, path)


def draw_against(
    columns: Mapping[str, Sequence[Any]],
    values: Sequence[float],
    label: str,
    marked: int,
    title: str,
    path: Path,
) -> None:
    """Draws values against the entries of each column, with medians where entries repeat.

    Columns of numbers are scatter plots; the others have a strip for each entry. The value at the
    position `marked` is the best one. Axes of positive numbers over a wide range are logarithmic.
    """
    ys = np.array(values, float)
    width = max(5.0, 3.6 * len(columns))
    figure, axes = make_figure(1, len(columns), width=width, height=4.2)
    for axis, (name, column) in zip(axes.flat, columns.items(), strict=True):
        names = list(dict.fromkeys(map(str, column)))
        are_numbers = all(type(x) in (int, float) for x in column)
        xs = np.array([x if are_numbers else names.index(str(x)) for x in column], float)
        axis.scatter(xs, ys, alpha=0.6, s=24, label="trial")
        if len(there := np.unique(xs)) < len(xs):
            medians = [np.median(ys[xs == x]) for x in there]
            axis.plot(there, medians, "k_", markersize=18, label="median")
        axis.scatter(xs[marked], ys[marked], color="tab:red", s=40, label="best", zorder=3)
        axis.set(xlabel=make_label(name), ylabel=make_label(label), yscale=_scale_of(ys))
        if are_numbers:
            axis.set_xscale(_scale_of(xs))
        else:
            every = -(-len(names) // MAX_TICKS)
            ticks = [make_label(text) for text in names[::every]]
            axis.set_xticks(range(0, len(names), every), ticks, fontsize=8, rotation=30)
            axis.margins(x=0.5 / len(names))
        axis.grid(alpha=0.3)
    figure.suptitle(make_label(title, 100))
    pairs = [zip(*axis.get_legend_handles_labels(), strict=True) for axis in axes.flat]
    handles = {label: handle for pair in pairs for handle, label in pair}
    place = "outside lower center"
    figure.legend(handles.values(), handles.keys(), loc=place, ncols=3, frameon=False)
    save_figure(figure, path)


def _scale_of(values: np.ndarray) -> str:
    return "log" if values.min() > 0 and values.max() > WIDE * values.min() else "linear"


def _labels(texts: Sequence[str]) -> list[str]:
    """Returns the labels of the steps that are drawn."""
    return [make_label(text) for text in texts[:MAX_STEPS]]


def make_label(text: str, most: int = MAX_LABEL) -> str:
    """Returns the text on one line, cut to so many characters, with "$" escaped.

    Matplotlib would read "$" as the beginning of a formula.
    """
    return brief(text, most).replace("$", r"\$")


def make_figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    """Returns a figure and its axes [rows, columns], with a font that has Hangul.

    Sizes are in inches.
    """
    from matplotlib import font_manager, rcParams
    from matplotlib.figure import Figure  # unlike pyplot, it needs no window system

    if HANGUL_FONT not in rcParams["font.family"]:
        # Importing the package would set its font for all letters, and fails from Python 3.12 on.
        package = distribution("koreanize-matplotlib")
        font = package.locate_file(f"koreanize_matplotlib/fonts/{HANGUL_FONT}.ttf")
        font_manager.fontManager.addfont(str(font))
        rcParams["font.family"] = ["DejaVu Sans", HANGUL_FONT]  # the second is for missing glyphs
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Any, path: Path) -> None:
    """Writes the figure as a PNG file, whatever the path ends in."""
    with warnings.catch_warnings():  # a character that no font has is drawn as a box
        warnings.filterwarnings("ignore", "Glyph .* missing|Matplotlib currently does not support")
        figure.savefig(path, dpi=120, format="png")
