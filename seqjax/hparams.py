"""Hyper-parameters: objects chosen by a config's strings, and numbers given to a compiled program.

A spec is a string `name` or `name(option=value)`, such as `lstm(forget_bias=1.0)`. Cells,
initializers, optimizers and schedules are chosen by specs. A spec carries its own options, so a
config has no field that the chosen object would ignore.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from seqjax.errors import UserError, unknown_name


class HParams(NamedTuple):
    """Numbers of a config that the loss takes as arguments instead of its own.

    The trials of a sweep that differ in such numbers share one compiled program. A number that is
    missing here is that of the config the task was made from.
    """

    model: Mapping[str, Any] = {}  # dropout rates by their field in the config's section
    loss: Mapping[str, Any] = {}  # label_smoothing


LARGEST_INT = 2**31 - 1  # dimensions and steps are 32-bit integers
LARGEST_FLOAT = 3.4e38  # the largest float32, rounded down


def parse_spec(spec: str, what: str = "") -> tuple[str, list[Any], dict[str, Any]]:
    """Returns the name, positional options and keyword options of a spec.

    `what` names the kind of object in the message. Raises UserError for a malformed spec.
    """
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            options = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(options) == len(node.keywords):
                return node.func.id, [ast.literal_eval(a) for a in node.args], options
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # the last two: nested too deep
        pass
    thing = f"{what} {spec!r}".lstrip()
    raise UserError(f"cannot read {thing}: write `name` or `name(option=value)`")


def from_spec(what: str, spec: str, table: Mapping[str, Callable], **common: Any) -> Any:
    """Returns `table[name](**options, **common)` for the name and the options of a spec.

    Raises UserError for an unknown name, an option that `table[name]` does not take, and a value of
    the wrong type or out of the range that it allows.
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
    except ValueError as error:  # a library refuses a value out of its range
        raise UserError(f"{what} {spec!r}: {error}") from None


def check_number(where: str, value: Any, largest: int = LARGEST_INT) -> None:
    """Raises UserError for NaN, infinity, or a value beyond 32 bits."""
    if isinstance(value, int) and abs(value) > largest:
        raise UserError(f"{where}={value} must be at most {largest}")
    if isinstance(value, float) and not abs(value) <= LARGEST_FLOAT:  # true of a NaN too
        raise UserError(f"{where}={value} must be a number up to {LARGEST_FLOAT:g}")


def _fits(value: Any, default: Any) -> bool:
    """Returns whether a value has the type of this default.

    An int is accepted for a float, and for None, which means "no limit".
    """
    if callable(value):
        return True
    if default is None:
        return value is None or type(value) is int
    if type(default) is float:
        return isinstance(value, float) or type(value) is int
    return type(value) is type(default)
