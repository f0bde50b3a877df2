"""Files: bounded when read, whole when written, and never one that is run as code."""

import ast
import json
import math
import os
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.source_files import SOURCE_FILES, imports

import seqjax.files
from seqjax.errors import UserError
from seqjax.files import (
    MAX_LINE,
    check_line,
    json_text,
    read_bounded,
    read_json,
    read_text_file,
    sha256,
    whole_file,
    write_json,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.binary(max_size=40), limit=st.integers(1, 45))
def test_a_file_is_read_whole_or_refused(data, limit, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "any"
    path.write_bytes(data)
    if len(data) <= limit:
        assert read_bounded(path, limit / 1e6 + 1e-9, "cut it") == data
    else:
        with pytest.raises(UserError, match="any is larger than .* MB: cut it$"):
            read_bounded(path, limit / 1e6 + 1e-9, "cut it")


@pytest.mark.parametrize("megabytes", [0.0, -1.0, float("inf"), float("nan")])
def test_a_bound_is_a_number_above_0(megabytes, tmp_path):
    with pytest.raises(UserError, match="^data.max_megabytes=.* must be a number above 0$"):
        read_text_file(tmp_path, megabytes)


def test_what_has_no_end_is_not_read_to_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    sent = []

    def write():
        with (tmp_path / "pipe").open("wb", buffering=0) as pipe:
            try:
                while True:
                    sent.append(pipe.write(bytes(1000)))
            except BrokenPipeError:
                pass

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(UserError, match="pipe is larger than 0.01 MB: raise data.max_megabytes"):
        read_text_file(tmp_path / "pipe", 0.01)
    writer.join(10)
    assert not writer.is_alive()
    assert sum(sent) < 1e6  # what a pipe holds, and no more than was asked for


def test_a_line_has_an_end():
    check_line("mine, line 1", "x" * MAX_LINE)
    with pytest.raises(UserError, match="^mine, line 1: longer than 131,072 characters; break it"):
        check_line("mine, line 1", "x" * (MAX_LINE + 1))


@given(value=values)
def test_json_comes_back(value, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "any.json"
    write_json(path, value)
    assert read_json(path) == json.loads(json.dumps(value))
    assert [file.name for file in path.parent.iterdir()] == ["any.json"]


def refuse(name):
    raise AssertionError(f"{name} is no JSON")


def test_numbers_that_json_lacks_are_null(tmp_path):
    value = {
        "loss": math.nan,
        "valid": {"perplexity": math.inf, "accuracy": 0.5},
        "list": [1, -math.inf, (np.float32(np.nan), np.float32(0.25))],
        "numpy": [np.float64(np.inf), np.int32(7), np.bool_(True)],
        "NaN": "NaN",
    }
    expected = {
        "loss": None,
        "valid": {"perplexity": None, "accuracy": 0.5},
        "list": [1, None, [None, 0.25]],
        "numpy": [None, 7, True],
        "NaN": "NaN",
    }
    assert json.loads(json_text(value), parse_constant=refuse) == expected
    assert "\n" not in json_text(value)  # a line of metrics.jsonl
    write_json(tmp_path / "any.json", value)
    text = (tmp_path / "any.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == expected
    assert text.startswith('{\n  "loss": null,\n')


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "any.json does not exist"),
        (b"", "any.json is damaged: Expecting value"),
        (b"{\xff", "any.json is damaged: 'utf-8' codec"),
        (b"[" * 200_000, "any.json is damaged: maximum recursion depth"),
        (b'"' + b"x" * 2_000 + b'"', "any.json is larger than 0.001 MB: it is not a file of a run"),
    ],
)
def test_a_json_file_that_says_nothing_is_one_line(data, message, tmp_path, monkeypatch):
    if data is not None:
        (tmp_path / "any.json").write_bytes(data)
    if data and b"xx" in data:
        monkeypatch.setattr(seqjax.files, "MAX_JSON_MEGABYTES", 0.001)
    with pytest.raises(UserError, match=message) as caught:
        read_json(tmp_path / "any.json")
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"^cannot read .*: Is a directory$"):
        read_json(tmp_path)


def test_a_file_that_cannot_be_written_whole_stays_as_it_was(tmp_path):
    path = tmp_path / "any.json"
    write_json(path, 1)
    before = sha256(path)
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    with pytest.raises(KeyboardInterrupt), whole_file(path) as beside:
        beside.write_text("half", encoding="utf-8")
        raise KeyboardInterrupt
    assert sha256(path) == before
    assert [file.name for file in tmp_path.iterdir()] == ["any.json"]


def test_a_digest_is_that_of_all_bytes(tmp_path):
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"  # FIPS 180-2
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256(tmp_path / "abc") == sha256([b"abc"]) == sha256([b"a", memoryview(b"bc")])
    assert sha256([b"abc"]) == expected


# Reading these formats runs what is in them.
CODE = {"pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "torch"}


@pytest.mark.parametrize("path", SOURCE_FILES, ids=lambda path: path.name)
def test_no_file_is_ever_run_as_code(path):
    is_peer = path.parent.name == "peers"  # of the benchmark: builds models of torch, loads no file
    code = CODE - {"torch"} if is_peer else CODE
    assert not {name.split(".")[0] for name in imports(path)} & code
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in {"eval", "exec", "compile", "__import__"}, name
            if name in ("np.load", "numpy.load"):
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("allow_pickle") == "False"
