"""Pictures of sweeps: what trials differ in, and what came of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from seqjax.plots import make_figure, make_label, save_figure

_WIDE = 30.0  # times the least is the greatest: such numbers lie on a logarithmic axis
MOST_TICKS = 20
MOST_VALUES = 8  # that are all written beside an axis of numbers
APART = 0.035  # of an axis, from one of its labels to the next
FAN = 0.07  # of an axis, over which lines through the same place are fanned out
WIDEST = 40.0  # inches
_BEST_STYLE = {"color": "tab:red", "label": "the one in best.py", "zorder": 3}


class Scale(NamedTuple):
    """One coordinate of all trials. Things that are no numbers lie at 0, 1, ... in their order."""

    name: str
    places: np.ndarray
    things: Sequence[str] = ()
    is_log: bool = False

    @property
    def label(self) -> str:
        return f"{self.name}\n(log)" if self.is_log else self.name

    @property
    def kind(self) -> str:
        return "log" if self.is_log else "linear"


def make_scale(name: str, values: Sequence[Any]) -> Scale:
    """The scale of a field's values, one a trial."""
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in values):
        places = np.array(values, float)
        is_log = places.min() > 0 and places.max() > _WIDE * places.min()
        return Scale(make_label(name), places, (), bool(is_log))
    things = {repr(value): value for value in values}
    try:
        order = sorted(things, key=things.__getitem__)
    except TypeError:  # of several types
        order = sorted(things)
    places = np.array([order.index(repr(value)) for value in values], float)
    return Scale(make_label(name), places, [make_label(str(things[key])) for key in order])


def draw_sweep(
    varied: Mapping[str, Sequence[Any]],
    objective: str,
    values: Sequence[float],
    sign: int,
    best: int,
    title: str,
    path: Path,
) -> None:
    """The objective of trials, all finite: over seeds, against a field, or joined to all fields.

    The sign is 1 where more is better, else -1; `best` is the trial to be marked.
    """
    goal = make_scale(objective, values)
    goal = goal._replace(is_log=goal.is_log and sign < 0)  # a loss, not a share
    scales = [make_scale(name, column) for name, column in varied.items()]
    if len(scales) > 1:
        figure = _draw_parallel([*scales, goal], sign, best)
    else:
        figure = _draw_scatter(*scales, goal, best) if scales else _draw_strip(goal, best)
    figure.suptitle(title)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    save_figure(figure, path)


def _draw_strip(goal: Scale, best: int) -> Any:
    """A dot a trial, beside one another only to be seen, with the median and the middle 90 %."""
    figure, axes = make_figure(1, 1, width=6.5, height=2.8)
    axis = axes.flat[0]
    heights = np.arange(len(goal.places)) * 0.618 % 1  # evenly, however many there are
    low, median, high = np.percentile(goal.places, (5, 50, 95))
    axis.axvspan(low, high, color="tab:blue", alpha=0.12, label="5 to 95 %")
    axis.axvline(median, color="tab:blue", label=f"median {median:.4g}")
    axis.scatter(goal.places, heights, color="tab:blue", alpha=0.7, s=24)
    axis.scatter(goal.places[best], heights[best], **_BEST_STYLE, s=40)
    axis.set(xlabel=goal.label, xscale=goal.kind, yticks=[], ylim=(-0.15, 1.15))
    return figure


def _draw_scatter(scale: Scale, goal: Scale, best: int) -> Any:
    """A dot a trial, and a line at the median of those at the same place."""
    figure, axes = make_figure(1, 1, width=7.0, height=4.6)
    axis = axes.flat[0]
    axis.scatter(scale.places, goal.places, alpha=0.6, s=24, label="a trial")
    there = np.unique(scale.places)
    if len(there) < len(scale.places):
        medians = [np.median(goal.places[scale.places == place]) for place in there]
        axis.plot(there, medians, "k_" if scale.things else "k_-", markersize=18, label="median")
    axis.scatter(scale.places[best], goal.places[best], **_BEST_STYLE, s=40)
    axis.set(xlabel=scale.label, ylabel=goal.label, yscale=goal.kind)
    if scale.things:
        every = -(-len(scale.things) // MOST_TICKS)
        crowded = sum(map(len, scale.things[::every])) > 60
        axis.set_xticks(range(0, len(scale.things), every), scale.things[::every], fontsize=8)
        if crowded:
            axis.tick_params("x", rotation=40)
            for text in axis.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
        axis.margins(x=0.5 / len(scale.things))
    else:
        axis.set_xscale(scale.kind)
    axis.grid(alpha=0.3)
    return figure


def _draw_parallel(scales: Sequence[Scale], sign: int, best: int) -> Any:
    """A line a trial from field to field and to the objective; those that share a value side by
    side there, the better above the worse."""
    from matplotlib.collections import LineCollection

    figure, axes = make_figure(1, 1, width=min(WIDEST, 2.2 * len(scales)), height=5.0)
    axis, across = axes.flat[0], range(len(scales))
    heights = np.stack([_unit(scale, scale.places) for scale in scales], axis=1)
    goodness = heights[:, -1] if sign > 0 else 1 - heights[:, -1]
    order = np.argsort(goodness, kind="stable")  # the best on top
    ranks = np.argsort(order) / max(len(order) - 1, 1)
    for x, scale in enumerate(scales[:-1]):
        if len(np.unique(scale.places)) < len(order):
            heights[:, x] += FAN * (ranks - 0.5)
    lines = [np.column_stack([across, heights[i]]) for i in order]
    shades = LineCollection(lines, array=goodness[order], cmap="viridis_r", alpha=0.7)
    shades.set_clim(-0.1, 1)  # the palest is not seen on white
    axis.add_collection(shades)
    axis.plot(across, heights[best], **_BEST_STYLE, linewidth=3)
    for x, scale in enumerate(scales):
        axis.axvline(x, color="black", linewidth=0.8)
        for height, text in _marks(scale):
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
            axis.text(x + 0.03, height, text, va="center", fontsize=8, bbox=box, zorder=4)
    axis.set(xlim=(-0.1, len(scales) - 0.5), ylim=(-FAN, 1 + FAN), yticks=[])
    axis.set_xticks(across, [scale.label for scale in scales])
    axis.spines[:].set_visible(False)
    axis.plot([], [], color="indigo", label="the better, the darker")
    return figure


def _unit(scale: Scale, places: np.ndarray) -> np.ndarray:
    """From 0 for the scale's least place to 1 for its greatest."""
    ends = np.array([scale.places.min(), scale.places.max()])
    if scale.is_log:
        places, ends = np.log(places), np.log(ends)
    return (places - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0 * places + 0.5


def _marks(scale: Scale) -> list[tuple[float, str]]:
    """What is written beside an axis, and at which height."""
    places = np.unique(scale.places)
    if not scale.things and len(places) > MOST_VALUES:
        space = np.geomspace if scale.is_log else np.linspace
        places = space(places[0], places[-1], 5)
    marks: list[tuple[float, str]] = []
    for place, height in zip(places, _unit(scale, places), strict=True):
        if not marks or height - marks[-1][0] > APART:
            marks.append((height, scale.things[int(place)] if scale.things else f"{place:.4g}"))
    return marks
