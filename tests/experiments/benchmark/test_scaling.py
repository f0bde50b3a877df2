"""Scaling: the powers by which time and memory grow, and their picture."""

import pytest
from support.toys import assert_picture

from experiments.benchmark.run import BenchmarkRow
from experiments.benchmark.scaling import growth, growth_table, lines_of, save_growth
from experiments.benchmark.table import show
from experiments.benchmark.workloads import BASE, SUITES, split_name

SIZES = (1, 16, 64, 256, 4096)


def rows(axis="num_steps", peer="seqjax:remat", power=0.5, sizes=SIZES):
    return [
        BenchmarkRow(f"{axis}_{size}", "quiet", peer, median_ms=2.0 * size)._replace(
            added_memory_mib=7.0 * size**power
        )
        for size in sizes
    ]


def test_a_workload_is_named_by_its_size():
    for name in ("lengths", "sizes"):
        for workload in SUITES[name].workloads:
            axis, size = split_name(workload.name)
            sizes = {**BASE, axis: size}
            assert sizes == {
                "num_steps": workload.source_length,
                "hidden_size": workload.hidden_size,
                "batch_size": workload.num_rows,
            }


def test_growth_is_the_power():
    found = lines_of(rows(power=2.5), "added_memory_mib")["num_steps", "seqjax:remat"]
    found[0] = (1.0, 1e6)  # what small sizes cost does not matter
    assert growth(found) == pytest.approx(2.5)


def test_the_table_tells_the_powers(tmp_path, capsys):
    died = BenchmarkRow("num_steps_4096", "quiet", "torch", "died: Killed")
    found = [*rows(), *rows(peer="torch", power=1.0), died, *rows("batch_size", sizes=(1, 8))]
    show(growth_table(found))
    shown = capsys.readouterr().out
    # The times of two peers, and the memory of one; two sizes are too few for a power.
    assert shown.count("size ^ 1.00") == 3 and shown.count("size ^ 0.50") == 1
    assert_picture(save_growth(found, tmp_path))
