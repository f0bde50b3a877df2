"""Errors: fields that nothing reads are named, and whose code raised an exception is known."""

import json
from typing import Any

import numpy as np
import pytest
from flax import nnx

import experiments
import seqjax.errors
from seqjax.errors import UserError, check_keywords, is_library, keywords


def inner(*, size: int, cell: str, depth: int = 1):
    pass


class Outer(nnx.Module):
    """A class whose own signature says nothing, like all modules of Flax."""

    def __init__(self, *, width: int, size: int = 3, **options: Any):
        inner(size=size, **options)


def test_keywords_include_those_of_inner_functions():
    assert keywords(inner) == {"size": True, "cell": True, "depth": False}
    expected = {"width": True, "size": False, "cell": True, "depth": False}
    assert keywords(Outer, inner) == expected
    assert keywords(Outer, inner, passed=("size", "cell")) == {"width": True, "depth": False}
    assert keywords(inner, Outer) == keywords(inner)  # it hands nothing on


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("size", "cell"), None),
        (("size", "cell", "depth"), None),
        (("size", "cel"), "config.model.cel is not read by the task toy: did you mean 'cell'?"),
        (("size",), "config.model.cell is missing: the task toy reads it"),
        (("size", "cell", "x"), "config.model.x is not read by the task toy: known: cell, depth"),
    ],
)
def test_a_field_that_nothing_reads_is_named(names, message):
    def check():
        check_keywords("model", names, keywords(inner), "the task toy")

    if message is None:
        check()
    else:
        with pytest.raises(UserError) as caught:
            check()
        assert message in str(caught.value)


def test_a_library_is_neither_seqjax_nor_a_file_of_the_users():
    debian = "/usr/lib/python3/dist-packages/yaml/loader.py"
    assert all(map(is_library, (json.__file__, np.__file__, debian, "<frozen runpy>")))
    others = (
        seqjax.errors.__file__,
        f"{experiments.__path__[0]}/train.py",
        __file__,
        "mine.py",
        "<string>",
    )
    assert not any(map(is_library, others))
