"""Hyper-parameters from a config's strings, and numbers that a compiled program takes as arguments.

A spec is `name` or `name(option=value)`, as in `lstm(forget_bias=1.0)`.

Cells, initialisers, optimizers and schedules are all chosen so. A spec carries its own options, so
no config holds a field that the chosen thing does not read.
"""

import ast
import inspect
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from seqjax.errors import UserError, unknown_name


class Traced(float):
    """A float, which stands for an array inside `given`. Whether it is 0 is the same for both."""

    array: Any = None


def value_of(number: Any) -> Any:
    """What to compute with: the array that a `Traced` stands for just now, else the number as a
    float32, so that what is computed from either rounds alike."""
    array = getattr(number, "array", None)
    return np.float32(number) if array is None else array


@contextmanager
def given(numbers: Iterable[tuple[Traced, Any]]) -> Generator[None]:
    """Inside, each of the numbers stands for its array."""
    numbers = list(numbers)
    try:
        for number, array in numbers:
            number.array = array
        yield
    finally:
        for number, _ in numbers:
            number.array = None


LARGEST_INT = 2**31 - 1  # of 32 bits, as dimensions and steps are
LARGEST_FLOAT = 3.4e38  # of 32 bits


class TracedSpec(str):
    """A spec some of whose options are `Traced` numbers instead of those written in it."""

    traced: Mapping[str, Any]

    def __new__(cls, spec: str, traced: Mapping[str, Any]) -> "TracedSpec":
        self = super().__new__(cls, spec)
        self.traced = traced
        return self


def parse_spec(spec: str, what: str = "") -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and keyword options of a spec; raises UserError if it is malformed."""
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            options = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(options) == len(node.keywords):
                options |= getattr(spec, "traced", {})
                return node.func.id, [ast.literal_eval(a) for a in node.args], options
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
        pass
    thing = f"{what} {spec!r}".lstrip()
    raise UserError(f"cannot read {thing}: write `name` or `name(option=value)`")


def from_spec(what: str, spec: str, table: Mapping[str, Callable], **common: Any) -> Any:
    """What `table[name]` makes of a spec's options and of the `common` keywords.

    Raises UserError for an unknown name or an option that the named thing does not have.
    """
    name, args, options = parse_spec(spec, what)
    if name not in table:
        raise unknown_name(what, name, table)
    factory = table[name]
    signature = inspect.signature(factory)
    try:
        bound = signature.bind(*args, **options, **common)
    except TypeError as error:
        listing = ", ".join(p for p in signature.parameters if p not in common) or "none"
        raise UserError(f"{what} {spec!r}: {error}; options of {name}: {listing}") from None
    for option, value in bound.arguments.items():
        if option not in common:
            check_number(f"{what} {spec!r}: {option}", value)
        default = signature.parameters[option].default
        if default is not inspect.Parameter.empty and not _fits(value, default):
            kind = "int" if default is None else type(default).__name__
            raise UserError(f"{what} {spec!r}: {option}={value!r} must be of type {kind}")
        if type(default) is float and type(value) is int:
            bound.arguments[option] = float(value)
    try:
        return factory(*bound.args, **bound.kwargs)
    except ValueError as error:  # a number out of the range that a library allows
        raise UserError(f"{what} {spec!r}: {error}") from None


def check_number(where: str, value: Any, largest: int = LARGEST_INT) -> None:
    """Raises UserError for a number that is none, or that no array can hold."""
    if isinstance(value, int) and abs(value) > largest:
        raise UserError(f"{where}={value} must be at most {largest}")
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:  # nor a NaN
        raise UserError(f"{where}={value} must be a number up to {LARGEST_FLOAT:g}")


def _fits(value: Any, default: Any) -> bool:
    """Whether a value may stand where this default stood: of its type, an int for a float, or for
    a None, which stands for no limit."""
    if callable(value):
        return True
    if default is None:
        return value is None or type(value) is int
    if type(default) is float:
        return isinstance(value, float) or type(value) is int
    return type(value) is type(default)
