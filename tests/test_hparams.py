"""Specs: `name(option=value)` in a string, and the one line that says what is wrong with one."""

import keyword

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.errors import UserError
from seqjax.hparams import from_spec, parse_spec

names = st.from_regex(r"[a-z_][a-z_0-9]{0,8}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name)
)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
finite = scalars.filter(lambda value: repr(value) not in ("inf", "-inf"))
values = finite | st.lists(finite, max_size=3) | st.tuples(finite, finite)


@given(names, st.lists(values, max_size=3), st.dictionaries(names, values, max_size=3))
def test_a_written_spec_is_read_back(name, args, options):
    written = [*map(repr, args), *(f"{key}={value!r}" for key, value in options.items())]
    assert parse_spec(f" {name}( {', '.join(written)} ) ") == (name, args, options)


@given(names)
def test_a_bare_name_has_no_options(name):
    assert parse_spec(name) == parse_spec(f"{name}()") == (name, [], {})


def make(size, *, shift=0, shared=0):
    return size, shift, shared


def test_options_and_common_keywords_reach_the_factory():
    table = {"make": make}
    assert from_spec("thing", "make(3)", table, shared=7) == (3, 0, 7)
    assert from_spec("thing", "make(size=3, shift=-2)", table) == (3, -2, 0)
    assert from_spec("thing", "make", table, size=[1]) == ([1], 0, 0)


@pytest.mark.parametrize(
    "spec",
    [
        "",
        " ",
        "3",
        "'make'",
        "make(",
        "make)",
        "make(3",
        "make 3",
        "make=3",
        "make; make",
        "a.make(3)",
        "make(3)(4)",
        "make(size)",
        "make(size=size)",
        "make(size=1+x)",
        "make(size=open('x'))",
        "make(*[1, 2])",
        "make(**{'size': 3})",
        "make(size=1, size=2)",
        "make\nmake",
        "make(\x00)",
        "lambda: 3",
    ],
)
def test_what_is_no_spec_is_refused_in_one_line(spec):
    with pytest.raises(UserError, match="^cannot read .*: write `name` or ") as caught:
        parse_spec(spec)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("maek(3)", "unknown thing 'maek': did you mean 'make'? known: make, other"),
        ("xyz", "unknown thing 'xyz': known: make, other"),
        (
            "make(1, shfit=1)",
            "thing 'make(1, shfit=1)': got an unexpected keyword argument 'shfit'; "
            "options of make: size, shift",
        ),
        (
            "make(1, 2)",
            "thing 'make(1, 2)': too many positional arguments; options of make: size, shift",
        ),
        ("make", "thing 'make': missing a required argument: 'size'; options of make: size, shift"),
        (
            "other(1)",
            "thing 'other(1)': multiple values for argument 'shared'; options of other: none",
        ),
    ],
)
def test_errors_name_the_thing_and_the_remedy(spec, message):
    table = {"make": make, "other": lambda shared: shared}
    with pytest.raises(UserError) as caught:
        from_spec("thing", spec, table, shared=7)
    assert str(caught.value) == message


def test_a_spec_may_not_set_what_its_user_sets():
    with pytest.raises(UserError, match="'shared'; options of make: size, shift"):
        from_spec("thing", "make(1, shared=2)", {"make": make}, shared=7)


def test_an_error_inside_the_factory_is_not_hidden():
    def broken():
        raise TypeError("a bug")

    with pytest.raises(TypeError, match="a bug"):
        from_spec("thing", "broken", {"broken": broken})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("make(1e400)", "size=inf must be a number up to"),
        ("make(4294967296)", "size=4294967296 must be at most 2147483647"),
        ("make(1, limit=2.5)", "limit=2.5 must be of type int"),
        ("make(1, rate='x')", "rate='x' must be of type float"),
        (f"make({'-' * 20_000}1)", "cannot read thing 'make(---"),  # too deep for Python's parser
    ],
)
def test_an_option_of_another_kind_is_named(spec, message):
    def make(size, limit=None, rate=0.5):
        return size, limit, rate

    with pytest.raises(UserError) as caught:
        from_spec("thing", spec, {"make": make})
    assert message in str(caught.value)
    assert from_spec("thing", "make(1, 2, 3)", {"make": make}) == (1, 2, 3.0)
    assert isinstance(from_spec("thing", "make(1, rate=3)", {"make": make})[2], float)
