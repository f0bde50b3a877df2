"""The speed history: what is appended, what is read, and which rows are named."""

from experiments.benchmark.history import append_records, compare, make_records, read_records
from experiments.benchmark.run import Best, Report

MACHINE = {"processor": "X", "cores": 2, "versions": {"jax": "0.10"}, "flags": []}


def records(share, workload="lstm", condition="quiet", peer="torch", **machine):
    report = Report([], {condition: {workload: Best(share, peer)}}, {})
    return make_records(report, MACHINE | machine)


def read(path):
    said = []
    return read_records(path, said.append), said


def test_records_come_back(tmp_path):
    path = tmp_path / "cache" / "history.jsonl"
    assert read(path) == ([], [])
    append_records(path, records(0.5) + records(0.6, condition="busy"))
    append_records(path, records(0.7, "gru"))
    found, said = read(path)
    assert [record["best"] for record in found] == [
        {"lstm": (0.5, "torch")},
        {"lstm": (0.6, "torch")},
        {"gru": (0.7, "torch")},
    ]
    assert found[1]["condition"] == "busy" and said == []
    assert '"versions": {"jax": "0.10"}' in path.read_text()


def test_a_damaged_line_is_told_and_skipped(tmp_path):
    path = tmp_path / "history.jsonl"
    append_records(path, records(0.5))
    whole = path.read_bytes()
    damaged = [b"\xff\x00", b"[]", b"{}", b'{"best": 3}', whole.replace(b"0.5", b"null").strip()]
    path.write_bytes(b"\n".join([*damaged, whole[:40]]))  # the last line was cut off
    append_records(path, records(0.6))
    found, said = read(path)
    assert [record["best"]["lstm"].share for record in found] == [0.6]
    assert said == [f"{path}, line {n}: damaged, skipped" for n in range(1, 7)]


def test_rows_that_fell_by_more_than_a_tenth_are_named():
    old = [*records(0.7), *records(0.5), *records(0.8, "gru"), *records(0.9, condition="busy")]
    old[1]["date"] = "2026-01-02"
    new = records(0.551) + records(0.87, "gru") + records(0.99, condition="busy", peer="keras:jax")
    (line,) = compare(old, new)
    assert line == (
        "lstm, quiet: slower: ours takes 0.55 of the time of torch; it took 0.50 of that of torch "
        "at 2026-01-02"
    )
    assert compare(old, new[1:]) == ["none of 2 rows is more than 10 % slower than recorded"]


def test_other_machines_do_not_count():
    nothing = ["nothing to compare with: there is no record of this machine (--record)"]
    for other in ({"processor": "Y"}, {"cores": 4}, {"condition": "busy"}, {"workload": "gru"}):
        assert compare(records(0.1, **other), records(0.9)) == nothing
