"""Scaling: every size under every backend, its power, its picture and its file."""

import json

import pytest
from support.toys import assert_picture

from experiments.benchmark import scaling
from experiments.benchmark.scaling import (
    Point,
    growth,
    measure_scaling,
    save_scaling,
    scaling_table,
)
from experiments.benchmark.table import show


def points(axis="num_steps", backend="fused", power=0.5):
    return [
        Point(axis, size, backend, 2.0 * size, size, 3.0 * size, 7.0 * size**power, 1.0, 9.0)
        for size in (1, 16, 64, 256, 4096)
    ]


def test_growth_is_the_power():
    assert growth(points(), "median_ms") == pytest.approx(1.0)
    assert growth(points(power=2.5), "temporary_mib") == pytest.approx(2.5)


def test_every_size_is_measured_under_every_backend(monkeypatch):
    monkeypatch.setattr(scaling, "_TURN_SECONDS", 0.001)
    monkeypatch.setattr(scaling, "BASE", {"num_steps": 4, "hidden_size": 3, "batch_size": 2})
    said = []
    found = measure_scaling({"num_steps": (4, 64), "hidden_size": (5,)}, 2, said.append)
    assert said == ["num_steps 4", "num_steps 64", "hidden_size 5"]
    assert [p[:3] for p in found] == [
        (axis, size, backend)
        for axis, size in (("num_steps", 4), ("num_steps", 64), ("hidden_size", 5))
        for backend in ("scan", "fused", "remat")
    ]
    for point in found:
        assert 0 < point.min_ms <= point.median_ms <= point.max_ms
        sizes = {**scaling.BASE, point.axis: point.size}
        t, h, b = sizes.values()
        flops = 3 * 2 * t * b * (28 + h) * 4 * h
        assert point.gflops == pytest.approx(flops / point.median_ms / 1e6)
    memory = {(p.size, p.backend): p.temporary_mib for p in found if p.axis == "num_steps"}
    assert memory[64, "remat"] < memory[64, "fused"]


def test_the_table_tells_the_powers(tmp_path, capsys):
    found = points() + points(backend="scan", power=1.0) + points("batch_size")[:2]
    show(scaling_table(found))
    shown = capsys.readouterr().out
    assert shown.count("size ^ 1.00") == 3 and shown.count("size ^ 0.50") == 1
    assert "8,192" in shown and "grows as" in shown
    paths = save_scaling(found, tmp_path / "new")
    assert_picture(paths[1])
    saved = json.loads(paths[0].read_text())
    assert saved["base"] == scaling.BASE and len(saved["points"]) == 12
    assert saved["points"][0]["median_ms"] == 2.0
