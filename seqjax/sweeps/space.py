"""The trials of a sweep as changes to a config.

A sweep is a list of changes, each a dict from a field's path, such as "optim.learning_rate", to its
value. `product` combines what the other functions return:

    product(seeds(3), {"model.cell": ["lstm", "gru"]}, zipped({"model.num_layers": [1, 2],
            "model.output_dropout": [(0.5,), (0.5, 0.0)]}))
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from seqjax.config import change_fields, plain_value
from seqjax.errors import UserError, require

MAX_TRIALS = 10_000

Changes = dict[str, Any]
Grid = Mapping[str, Any]  # of a field a list of all its values
Number = int | float


class Distribution(NamedTuple):
    """Where a field's value comes from in `random`, or in a `Search`."""

    kind: str  # log_uniform, uniform, integer, choice
    options: tuple[Any, ...]  # the bounds, both included, or the values

    def sample(self, rng: np.random.Generator) -> Any:
        """One value, a plain Python one."""
        if self.kind == "choice":
            return self.options[rng.integers(len(self.options))]
        low, high = self.options
        if self.kind == "integer":
            return int(rng.integers(low, high + 1))
        if self.kind == "log_uniform":
            return float(np.exp(rng.uniform(math.log(low), math.log(high))))
        return float(rng.uniform(low, high))


def uniform(low: Number, high: Number) -> Distribution:
    """Floats, all alike."""
    return _between("uniform", float, low, high)


def log_uniform(low: Number, high: Number) -> Distribution:
    """Floats whose logarithm is uniform: as many below the geometric mean as above."""
    return _between("log_uniform", float, low, high)


def integer(low: Number, high: Number) -> Distribution:
    """Integers from `low` to `high`."""
    return _between("integer", int, low, high)


def _between(kind: str, as_type: type[Number], low: Any, high: Any) -> Distribution:
    if kind == "log_uniform" and not low > 0:
        raise UserError(f"{kind}({low}, {high}): both bounds must be above 0")
    if not low < high:
        raise UserError(f"{kind}({low}, {high}): the first bound must be below the second")
    if (as_type(low), as_type(high)) != (low, high):
        raise UserError(f"{kind}({low}, {high}): both bounds must be of type {as_type.__name__}")
    return Distribution(kind, (as_type(low), as_type(high)))


def choice(*values: Any) -> Distribution:
    """One of the values."""
    if not values:
        raise UserError("choice() needs at least one value")
    return Distribution("choice", plain_value(values))


class Search(NamedTuple):
    """Trials that a sampler proposes, a batch at a time, by what it has seen of the ones before."""

    space: Mapping[str, Distribution]
    num_trials: int
    batch_size: int = 8  # proposals that are trained together

    def tried(self, config: ConfigDict) -> list[ConfigDict]:
        """The config with each choice and each bound, one at a time.

        Raises UserError for what it does not take, and for a search that cannot be begun.
        """
        for name, number in (("num_trials", self.num_trials), ("batch_size", self.batch_size)):
            if type(number) is not int or number < 1:
                raise UserError(f"Search({name}={number!r}): give a whole number of at least 1")
        check_num_trials(self.num_trials)
        if not isinstance(self.space, Mapping) or not self.space:
            raise UserError(f"Search({self.space!r}): give a dict of at least one field's choice")
        tries = [(n, value) for n, own in self.space.items() for value in _known(n, own).options]
        return [change_fields(config, {name: value}) for name, value in tries]


def seeds(number: int | str) -> list[Changes]:
    """The seeds 0, 1, ..., `number` of them; raises UserError unless it is a whole number."""
    require("the number of seeds", number, f"{number}".isdecimal(), "a whole number")
    return product({"seed": range(int(number))})


def product(*parts: Sequence[Changes] | Grid) -> list[Changes]:
    """Every combination of what the parts may be: sweeps, or grids of values by field."""
    sweeps: list[Sequence[Changes]] = []
    for part in parts:
        if isinstance(part, Mapping):
            sweeps += [_each(name, values) for name, values in part.items()]
        else:
            sweeps.append(part)
    check_num_trials(math.prod(len(sweep) for sweep in sweeps))
    trials: list[Changes] = [{}]
    for sweep in sweeps:
        trials = [_joined(trial, changes) for trial in trials for changes in sweep]
    return trials


def zipped(grid: Grid) -> list[Changes]:
    """The first values of all fields together, then the second ones, and so on."""
    lengths = {name: len(values) for name, values in grid.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"zipped() needs as many values of each field: {told}")
    columns = [_each(name, values) for name, values in grid.items()]
    return [{k: v for one in row for k, v in one.items()} for row in zip(*columns, strict=True)]


def random(number: int, space: Mapping[str, Any], seed: int = 0) -> list[Changes]:
    """So many draws, each of all fields, by the seed alone."""
    check_num_trials(number)
    rng = np.random.default_rng(seed)
    return [{name: _known(name, d).sample(rng) for name, d in space.items()} for _ in range(number)]


def _each(name: str, values: Any) -> list[Changes]:
    """One field's values, as plain Python has them."""
    if isinstance(values, str) or not hasattr(values, "__len__"):
        raise UserError(f"the sweep gives {name} {values!r}: give a list of values")
    check_num_trials(max(1, len(values)))
    return [{name: plain_value(value)} for value in values]


def _known(name: str, distribution: Any) -> Distribution:
    if not isinstance(distribution, Distribution):
        raise UserError(f"the sweep draws {name} from {distribution!r}: give log_uniform or choice")
    return distribution


def _joined(a: Changes, b: Changes) -> Changes:
    if twice := a.keys() & b.keys():
        raise UserError(f"the sweep sets {min(twice)} twice: leave it out of one part")
    return a | b


def check_num_trials(number: int) -> None:
    """Raises UserError unless a sweep may have so many trials."""
    if not 1 <= number <= MAX_TRIALS:
        raise UserError(f"a sweep of {number:,} trials: it needs between 1 and {MAX_TRIALS:,}")
