"""How hard the fault tests try, and the table of what they saw."""

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=10, help="SIGKILLs in test_kills.py (10)")
    parser.addoption("--fault-seed", type=int, default=0, help="of the schedule of faults (0)")


def pytest_terminal_summary(terminalreporter) -> None:
    """Rows that tests left with `record_property("fault", "...")`, in order."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = sorted(
        (report.nodeid, value)
        for report in reports
        for name, value in report.user_properties
        if name == "fault"
    )
    if rows:
        terminalreporter.section("faults: what was done, and what came of it")
        for _, row in rows:
            terminalreporter.write_line(row)
