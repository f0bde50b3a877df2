"""The project's source files and their imports."""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCE_FILES = sorted(
    p for top in ("seqjax", "experiments", "configs") for p in (ROOT / top).rglob("*.py")
)


def imports(path: Path) -> Iterator[str]:
    """Yields the full names of everything that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path.name}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
