"""Eight CPU devices, Keras on JAX, nobody's compile cache touched, repeatable hypotheses."""

import contextlib
import os
import signal
import tempfile

import hypothesis
import jax
import pytest

_cache = tempfile.TemporaryDirectory()  # of the entry points that tests start; gone at the end
os.environ |= {
    "JAX_COMPILATION_CACHE_DIR": _cache.name,
    "JAX_PLATFORMS": "cpu",
    "KERAS_BACKEND": "jax",
}
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_compilation_cache", False)

# A shell's "&" starts the tests deaf to Ctrl-C, and so what they start: tests press it.
with contextlib.suppress(ValueError):  # not in the main thread
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)

hypothesis.settings.register_profile(
    "seqjax", max_examples=20, deadline=None, derandomize=True, database=None
)
hypothesis.settings.load_profile("seqjax")


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
