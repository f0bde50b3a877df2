"""The layers: which folder may import which, which library is imported where, and how large files
and folders may be."""

from collections import Counter, defaultdict
from pathlib import Path

import pytest
from support.source_files import ROOT, SOURCE_FILES, imports

# From the top down: each room of seqjax/, and what it may import besides itself. A module that
# stands alone may import those named before it in LIBRARY; every room below may import all of it.
LIBRARY = [
    "typing",
    "errors",
    "hparams",
    "files",
    "metrics",
    "losses",
    "parameters",
    "plots",
    "config",
]
ROOMS = {
    "nn": "",
    "data": "",
    "decoding": "",
    "distributed": "",
    "models": "nn data decoding",
    "runs": "distributed",
    "inference": "nn data decoding models",
    "tasks": "nn data decoding distributed models inference",
    "training": "nn data distributed runs tasks",
    "cli": "distributed runs",
    "sweeps": "nn data distributed runs tasks training",
    "serving": "distributed runs inference tasks training",
}
LIBRARIES = {  # where alone each of these is imported
    "flax": ("seqjax/nn/", "seqjax/models/", "experiments/benchmark/peers/"),
    "matplotlib": ("seqjax/plots.py",),
    "orbax": ("seqjax/runs/",),
    "gradio": ("seqjax/serving/",),
    "ray": ("seqjax/sweeps/",),
    "optuna": ("seqjax/sweeps/",),
    "safetensors": ("seqjax/runs/",),
}
MOST_LINES, MOST_FILES = 400, 12
SOURCES = [path for path in SOURCE_FILES if path.name != "__init__.py"]


def place_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def may_import(room: str) -> list[str]:
    if room in LIBRARY:
        return LIBRARY[: LIBRARY.index(room)]
    return LIBRARY + ROOMS[room].split()


@pytest.mark.parametrize("path", SOURCES, ids=place_of)
def test_imports_point_up(path):
    top, *rest = path.relative_to(ROOT).with_suffix("").parts
    names = [name.split(".") for name in imports(path)]
    rooms = {name[1] for name in names if name[0] == "seqjax"}
    if top == "seqjax":
        assert rest[0] in ROOMS or rest[0] in LIBRARY, f"give {rest[0]} a place in this file"
        assert rooms <= {rest[0], *may_import(rest[0])}
        assert not {name[0] for name in names} & {"configs", "experiments", "tests"}
    if top == "configs":
        assert {tuple(name[:3]) for name in names if name[0] == "seqjax"} <= {
            ("seqjax", "config", "base_config"),
            ("seqjax", "config", "choose_variant"),
            ("seqjax", "config", "text_pairs_config"),
            ("seqjax", "sweeps", "space"),
        }


def test_rooms_import_only_rooms_above_them():
    order = list(ROOMS)
    for room, allowed in ROOMS.items():
        assert all(order.index(other) < order.index(room) for other in allowed.split())


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_library_is_imported_where_it_belongs(library):
    users = {
        place_of(p) for p in SOURCE_FILES if library in {name.split(".")[0] for name in imports(p)}
    }
    assert users and all(user.startswith(LIBRARIES[library]) for user in users)


def test_files_are_short_and_folders_are_small():
    lengths = {place_of(p): len(p.read_text(encoding="utf-8").splitlines()) for p in SOURCE_FILES}
    assert {name: length for name, length in lengths.items() if length > MOST_LINES} == {}
    files = Counter(path.parent for path in SOURCES)
    assert {place_of(folder): n for folder, n in files.items() if n > MOST_FILES} == {}
    drawers = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}
    assert not drawers & {path.name for path in SOURCE_FILES}


def test_a_package_says_what_it_is_and_holds_no_code():
    for path in (ROOT / "seqjax").rglob("__init__.py"):
        text = path.read_text(encoding="utf-8")
        assert text.startswith('"""') and not list(imports(path)), place_of(path)


def test_no_two_files_import_each_other():
    modules = {place_of(p).removesuffix(".py").replace("/", "."): p for p in SOURCES}
    graph = defaultdict(set)
    for name, path in modules.items():
        graph[name] = {
            prefix
            for other in imports(path)
            for prefix in (other, other.rpartition(".")[0])
            if prefix in modules and prefix != name
        }
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, f"a circle: {' -> '.join((*above, name))}"
        if name not in done:
            for other in graph[name]:
                visit(other, (*above, name))
            done.add(name)

    for name in modules:
        visit(name, ())
