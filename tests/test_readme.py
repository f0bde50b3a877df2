"""The Python blocks of README.md run, and its commands name files that exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_python_blocks_run_in_order(capsys):
    namespace = {}
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
        if "optax.adam" in block:  # the loop of one's own takes ten lines and learns
            loop = block[block.index("cell, optimizer") :].split("\n")
            assert len([line for line in loop if line]) <= 10
            assert namespace["loss"] < 0.1 < namespace["y"].var() / 2
    printed = capsys.readouterr().out
    assert "parameters" in printed
    assert re.search(r"^loss 2\.\d+ after 1 step$", printed, re.MULTILINE)  # about ln 8


def test_commands_name_configs_and_variants_that_exist():
    names = set(re.findall(r"--config=(configs/\w+\.py)(?::(\w+))?", README))
    assert names
    for path, variant in names:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert not variant or f"def {variant}(config)" in source


def test_entry_points_exist():
    for name in set(re.findall(r"python -m (experiments\.\w+)", README)):
        path = ROOT / name.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists()


def test_links_lead_to_files():
    for target in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / target).exists(), target
