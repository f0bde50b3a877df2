"""Specs: `name` or `name(option=value)` in a config's string, as in `lstm(forget_bias=1.0)`.

Cells, initialisers, optimizers and schedules are all chosen so. A spec carries its own options, so
no config holds a field that the chosen thing does not read.
"""

import ast
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from seqjax.errors import UserError, unknown_name


def parse_spec(spec: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Name, positional and keyword options of a spec; raises UserError if it is malformed."""
    try:
        node = ast.parse(spec.strip(), mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            options = {k.arg: ast.literal_eval(k.value) for k in node.keywords if k.arg}
            if len(options) == len(node.keywords):
                return node.func.id, [ast.literal_eval(a) for a in node.args], options
    except (SyntaxError, ValueError):
        pass
    raise UserError(f"cannot read {spec!r}: write `name` or `name(option=value)`")


def from_spec(what: str, spec: str, table: Mapping[str, Callable], **common: Any) -> Any:
    """What `table[name]` makes of a spec's options and of the `common` keywords.

    Raises UserError for an unknown name or an option that the named thing does not have.
    """
    name, args, options = parse_spec(spec)
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
        default = signature.parameters[option].default
        if default is not inspect.Parameter.empty and not _fits(value, default):
            kind = type(default).__name__
            raise UserError(f"{what} {spec!r}: {option}={value!r} must be of type {kind}")
    try:
        return factory(*args, **options, **common)
    except ValueError as error:  # a number out of the range that a library allows
        raise UserError(f"{what} {spec!r}: {error}") from None


def _fits(value: Any, default: Any) -> bool:
    """Whether a value may stand where this default stood: of its type, or an int for a float."""
    if default is None or callable(value):
        return True
    return type(value) is type(default) or (type(default) is float and type(value) is int)
