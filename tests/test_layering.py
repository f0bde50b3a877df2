"""Imports point up one ordered list of modules; files stay short."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    ["errors", "processes", "brief_stderr", "memory", "files", "plain_text", "argmax"],
    ["array_types", "special_ids", "spec", "traced", "initializers"],
    ["cell", "cells", "unroll", "fused", "cudnn", "backends"],
    ["dropout", "layers", "stack", "attention", "models"],
    ["constraints", "decode", "beam"],
    ["metrics", "losses", "parameters", "packing", "pictures", "data", "optim", "task"],
    ["scheduled_sampling", "text_model", "text_metrics", "text_pairs"],
    ["nearest", "abstain", "respond", "tasks"],
    ["mesh", "train", "loops", "evaluate"],
    ["config", "fingerprint", "checkpoint", "run_directory"],
    ["progress", "report", "stop_signals", "setup", "weights"],
    ["diagnose", "training", "fit", "launch"],
    ["members", "trial", "group_position", "group", "search_space"],
    ["outcomes", "sweep_files", "sweep_pictures", "sweep_tables"],
    ["chunks", "worker", "ray_tasks", "executors", "sweep_report", "sweep", "optuna_search"],
    ["load_run", "chat", "page", "exchange"],
    ["benchmark"],
    ["ledger"],
]
ORDER = [name for row in ROWS for name in row]
DATA = (
    "data",
    "errors",
    "files",
    "argmax",
    "array_types",
    "special_ids",
    "spec",
    "metrics",
)  # all of seqjax that the data may know
FILES = sorted((ROOT / "seqjax").rglob("*.py"))
HOUSE = [p for top in ("seqjax", "experiments", "configs") for p in (ROOT / top).rglob("*.py")]


def imports(path):
    """Full names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_up(path):
    own = path.relative_to(ROOT / "seqjax").with_suffix("").parts[0]
    assert own in (*ORDER, "__init__"), f"give {own} a place in ORDER"
    names = [name.split(".") for name in imports(path)]
    for other in {name[1] for name in names if name[0] == "seqjax"} - {own}:
        above = DATA if own == "data" else ORDER[: ORDER.index(own)]
        assert other in above, f"{own} imports {other}"
    tops = {name[0] for name in names}
    assert not tops & {"configs", "experiments", "tests"}
    knows_flax = own in ("layers", "stack", "attention", "models") or path.parent.name == "peers"
    assert "flax" not in tops or knows_flax
    assert "matplotlib" not in tops or own in ("pictures", "sweep_pictures")


def test_configs_know_configs_only():
    for path in (ROOT / "configs").rglob("*.py"):
        known = {"seqjax.sweeps.space" if path.parent.name == "sweeps" else "seqjax.config"}
        assert {name.rpartition(".")[0] for name in imports(path)} <= known, path.name


def test_files_are_short_and_none_is_a_drawer():
    lengths = {path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in HOUSE}
    assert {name: length for name, length in lengths.items() if length > 260} == {}
    assert not {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"} & set(lengths)
