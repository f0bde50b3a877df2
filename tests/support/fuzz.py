"""Hostile values for every field of every config, small configs to try them on, damaged files."""

import copy
import functools
import inspect
import json
import runpy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from hypothesis import strategies as st

from seqjax.data.tokenizers import TOKENIZERS
from seqjax.data.vocabulary import _FORMAT, _VERSION, _sha256
from seqjax.errors import one_line
from seqjax.models import scheduled_sampling, text_to_text
from seqjax.nn import initializers
from seqjax.nn.cells import CELLS
from seqjax.training import optimizer
from support.toys import CONFIGS, tiny_config

VARIANTS = [
    f"{path.stem}-{variant}"
    for path in sorted(CONFIGS.glob("*.py"))
    for variant in (
        "default",
        *(change.__name__ for change in runpy.run_path(str(path)).get("VARIANTS", ())),
    )
]

NUMBERS = ("nan", "inf", "-inf", "-1", "0", "-0.0", "0.5", "1e-320", "1e308", "1e400", "2.5")
HUGE = (str(2**31 - 1), str(2**31), str(2**63), str(10**9), str(10**30), "9" * 5000)
TEXTS = (
    "",
    " ",
    "x",
    "x" * 100_000,
    "가🙂",
    "\u202e",
    "a\nb",
    "\x1b[2J",
    "\0",
    "None",
    "True",
    "é" * 300,
)
PATHS = (".", "..", "/", "/dev/null", "no/such/file.txt", "\0.txt", "a" * 300 + ".txt", "loop.txt")
SPECS = (
    "lstm(",
    "lstm)",
    "lstm()()",
    "gru(lstm(gru()))",
    "f(x=f(x=1))",
    "__import__('os')",
    "gru(**{})",
    "gru(*[1])",
    "gru(1, 2, 3, 4, 5, 6)",
    "lambda: 0",
    "(" * 300,
    "f(" + "(" * 150 + ")" * 150 + ")",
    "-" * 20_000 + "1",
    "adam(b1=1e400)",
    "a.b",
    "greedy(max_length=3)",
)
TUPLES = ("()", "(1,)", "(0.1,0.2,0.3)", "('a',)", "(nan,)", "(None,)", "((),)", "(True,)")
TUPLES += ("(('a','b'),)", "('ab',)", "(('a',),)", "((1,2),)", "(-0.5,)", "{}", "[0.5]", "{'a': 1}")
HOSTILE = (*NUMBERS, *HUGE, *TEXTS, *PATHS, *SPECS, *TUPLES)

TABLES: dict[str, Mapping] = {
    "model.cell": CELLS,
    "model.kernel_init": initializers._TABLE,
    "model.output_bias_init": initializers._TABLE,
    "optim.name": optimizer.OPTIMIZERS,
    "optim.schedule": optimizer.SCHEDULES,
    "data.source_vocabulary": TOKENIZERS,
    "loss.scheduled_sampling": scheduled_sampling.PROBABILITIES,
    "decode.decoder": text_to_text.DECODERS,
}
OPTIONS = (
    "-1",
    "0",
    "1e400",
    "-1e400",
    "1e-320",
    "10**9",
    str(2**31),
    str(10**30),
    "'a'",
    "None",
    "()",
    "True",
)
OPTIONS += ("-1e400+1e400", "2.5", "'\\0'", "{}", "b'a'", "1j")
ALIASES = {  # other words by which errors name a field
    "model.cell": ("initializer",),
    "data.pairs": ("pair 1",),
    "data.source_column": ("name both columns",),
    "data.target_column": ("name both columns",),
}


def specs(field: str) -> Iterator[str]:
    """Yields specs for the field: each of its names, with each option set to a hostile value."""
    table = TABLES.get(field, {})
    for name, factory in table.items() - {("kiwi", table.get("kiwi")), ("okt", table.get("okt"))}:
        for option in inspect.signature(factory).parameters:
            yield from (f"{name}({option}={value})" for value in OPTIONS)


def leaves(config: Mapping, prefix: str = "") -> Iterator[str]:
    """Yields the full names of a config's fields."""
    for name, value in config.items():
        if isinstance(value, Mapping) or hasattr(value, "items"):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def small_config(variant: str):
    """Returns the shipped config `NAME-VARIANT` made small; one of pairs reads `few.tsv`."""
    config = tiny_config(*variant.split("-"))
    if config.task == "text_pairs":
        config.data.update(name="few.tsv", form="tsv", pairs=())
    return config


def write_small(directory: Path) -> None:
    """Writes the file that `small_config` reads, a config file of it, and a link to itself."""
    pairs = tiny_config("reverse").data.pairs
    lines = "".join(f"{source}\t{target}\n" for source, target in pairs)
    (directory / "few.tsv").write_text(lines, encoding="utf-8")
    (directory / "small.py").write_text("from support.fuzz import small_config as get_config\n")
    (directory / "loop.txt").symlink_to("loop.txt")


def is_named(field: str, value: str, line: str, names: Iterable[str]) -> bool:
    """Returns whether an error names the field, its value, or a field that conflicts with it."""
    if not one_line(value).strip():
        return True  # the value cannot be seen in a message
    shown = (value, repr(value), one_line(value))
    marks = (field.split(".")[-1], *(text[:20] for text in shown), value.split("(")[0], *names)
    marks += ALIASES.get(field, ())
    return any(mark.strip() and mark in line for mark in marks)


# Files

GOOD = {
    "csv": 'Q,A,label\n"hello, you",hi,1\nbye,"see ""you""",2\n가나,"두\n줄",3\n',
    "tsv": "hello\thi\nbye\tsee you\n가나\t다\n",
    "lines": "hello\nhi\n\nbye\nsee you\n가나\n다\n",
    "words": "word\nlove\ntree\n",
    "tagged": "cats/S eat/V fish/O\ndogs/S run/V\n",
}
NASTY = [
    b'"',
    b"\0",
    b"\xff",
    b"\xef\xbb\xbf",
    b"\r",
    b"\r\n",
    b"\n",
    b"\n\n",
    b",",
    b"\t",
    b"/",
    b"\x1b",
]
NASTY += [
    "\u2028".encode(),
    "가".encode("cp949"),
    "hi\n".encode("utf-16"),
    b"x" * 200_000,
    b"word\n",
    b"",
]


@st.composite
def damaged(draw, good: bytes) -> bytes:
    """Draws the bytes with one to three places replaced."""
    data = good
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.integers(start, min(len(data), start + 20)))
        data = data[:start] + draw(st.sampled_from(NASTY) | st.binary(max_size=4)) + data[end:]
    return data


DEEP = "[" * 100_000
NO_OBJECTS = (
    "",
    "\0",
    "null",
    "3",
    '"x"',
    "[]",
    "[{}]",
    "NaN",
    DEEP,
    '{"a":' * 50_000,
    "9" * 5000,
    "\ufeff{}",
)
WRONG = (None, -1, 2**70, float("nan"), "x\0y", [], [[]], {}, {"a": {}}, True, 0.5, "lstm(")


def damaged_objects(text: str) -> Iterator[str]:
    """Yields the text of a JSON object cut off, replaced, and with fields removed or changed."""
    yield from NO_OBJECTS
    yield from (text[: len(text) * part // 7] for part in range(1, 7))
    whole = json.loads(text)
    yield json.dumps(whole | {"a.b": 1})
    for path in [[name] for name in whole] + [name.split(".") for name in leaves(whole)]:
        for replaces in (False, True):
            changed = copy.deepcopy(whole)
            *sections, name = path
            section = functools.reduce(dict.__getitem__, sections, changed)
            if replaces:
                section[name] = WRONG[(len(".".join(path)) * 5 + 1) % len(WRONG)]
            else:
                del section[name]
            yield json.dumps(changed)


def forged_vocabularies(text: str) -> Iterator[str]:
    """Yields vocabulary files that are not the run's, each with a digest that fits its content."""
    for spec, model in (
        ("characters", ["a", "b"]),
        ("characters", ["a", "a", "b", "b"]),
        ("characters", list(reversed(json.loads(text)["model"]))),
        ("characters", [1, None, 2.5]),
        ("characters", {"a": 1}),
        ("characters", None),
        ("characters", [["a"]]),
        ("words(", []),
        ("nothing", []),
        (3, []),
        ("byte_bpe", {"model": {"vocab": {"a": 10**30, "b": 10**30}}}),
        ("unigram(size=9)", {"model": {"vocab": [["a", -1], ["b"]]}}),
    ):
        value = {"format": _FORMAT, "version": _VERSION, "spec": spec, "model": model}
        yield json.dumps(value | {"sha256": _sha256(value)})
