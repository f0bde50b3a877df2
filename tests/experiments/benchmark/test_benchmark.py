"""The benchmark: peers compute what we compute, and what fails is a line, not the end."""

import importlib
import json
import os
import subprocess
import sys
from functools import cache
from importlib.resources import files

import jax
import numpy as np
import pytest
from support.commands import assert_one_line, run_command

from experiments.benchmark import run, table
from experiments.benchmark.inputs import make_batches, make_weights
from experiments.benchmark.peers import OURS, PEERS, ours
from experiments.benchmark.process import PeerDied, Process
from experiments.benchmark.workloads import WORKLOADS, num_flops, throughput
from seqjax.errors import UserError
from seqjax.metrics import compute_means

pytestmark = pytest.mark.slow

SIZES = {"batch_size": 2, "hidden_size": 5, "source_length": 4, "input_size": 3, "num_classes": 12}
# Every cell, layer and kind once: compiling is what takes time here.
TINY = {
    "classifier": WORKLOADS["stacked"]._replace(cell="gru", num_rows=2, **SIZES),
    "seq2seq": WORKLOADS["seq2seq"]._replace(num_rows=6, target_length=3, **SIZES),
    "decode": WORKLOADS["decode_32"]._replace(
        cell="simple_rnn", num_rows=2, target_length=12, **SIZES
    ),
}
GRU = WORKLOADS["gru"]._replace(num_rows=2, **SIZES)
FACTS = {"import_seconds": 1.0, "first_step_seconds": 2.0, "version": {"x": "1"}}


@cache
def our_result(name):
    """Our loss, or our tokens; without the loop, which takes long to compile."""
    workload = TINY[name]
    weights, batches = make_weights(workload), make_batches(workload)
    if workload.kind == "decode":
        return ours.build(workload, weights, batches).first
    params, measure = ours.params_of(workload, weights), ours.make_measure(workload)
    batch = jax.device_put({**batches[0], "weight": np.ones(2, np.float32)})
    return compute_means(measure(params, batch, None))["loss"]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("peer", ["flax:nnx", "flax:linen", "keras:jax", "torch"])
def test_a_peer_with_our_weights_has_our_result(peer, name):
    for package in PEERS[peer].packages:
        pytest.importorskip(package)
    module = importlib.import_module(f"experiments.benchmark.peers.{PEERS[peer].module}")
    weights, batches = make_weights(TINY[name]), make_batches(TINY[name])
    first = module.build(TINY[name], weights, batches).first
    if name == "decode":
        assert np.array_equal(first, our_result(name))
        assert first.shape == (2, 12) and first.min() > 2
    else:
        assert first == pytest.approx(our_result(name), rel=1e-5)


def test_the_corpus_is_whole():
    labels = files("seqjax.data") / "corpora" / "cafe" / "intents.txt"
    assert WORKLOADS["cafe"].num_rows == len(labels.read_text().splitlines())
    batches = make_batches(WORKLOADS["cafe"])
    assert len(batches) == WORKLOADS["cafe"].num_batches == 114
    assert {batch["source"].shape for batch in batches} == {(32, 64)}
    assert {batch["labels"].shape for batch in batches} == {(32, 64)}
    assert max(batch["labels"].max() for batch in batches) < 2000
    tokens = batches[0]["labels"][0]
    assert tokens[0] > 3 and 2 in tokens and tokens[-1] == 0  # a text, its end, padding
    assert np.array_equal(batches[0]["inputs"][0, 1:], tokens[:-1])
    assert np.array_equal(batches[-1]["source"][4:], batches[0]["source"][:28])  # filled up


def test_every_bias_and_its_place_count():
    weights = make_weights(GRU)
    biases = [x for name, x in weights.items() if ".b" in name]
    assert len(biases) == 3 and all(np.abs(x).min() > 0 for x in biases)
    assert all(len(np.unique(x)) == x.size for x in biases)


def test_flops_are_those_of_the_products():
    # 2 x GRU(5) over 4 steps of 3 features, then 12 classes; 2 rows, 3 passes.
    by_hand = 2 * 3 * 2 * (4 * (3 * 15 + 5 * 15 + 5 * 15 + 5 * 15) + 5 * 12)
    assert num_flops(TINY["classifier"]) == by_hand
    # LSTM(5) over 4 steps and over 3 more, each of these with 12 words; 3 batches of 2 rows.
    assert num_flops(TINY["seq2seq"]) == 2 * 3 * 6 * ((4 + 3) * (3 * 20 + 5 * 20) + 3 * 5 * 12)
    # 5 units, forward only.
    assert num_flops(TINY["decode"]) == 2 * 2 * ((4 + 12) * (3 * 5 + 5 * 5) + 12 * 5 * 12)
    assert throughput(TINY["seq2seq"]) == (18, "tokens")
    assert throughput(GRU) == (2, "examples")


def test_a_worker_obeys_and_ends(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    with Process(OURS, TINY["seq2seq"]) as process:
        facts = process.start()
        assert facts["loss"] == pytest.approx(our_result("seq2seq"), rel=1e-5)
        assert facts["first_step_seconds"] > 0 and set(facts["version"]) == {"jax", "flax"}
        assert 0 < process.ask(steps=3)["seconds"] < 10
        assert 50 < process.ask(stop=True)["peak_memory_mib"] < 5000
        with pytest.raises(PeerDied, match="ended with code 0"):
            process.ask(steps=1)


def test_only_answers_reach_the_output():
    code = """
        import os, sys
        from experiments.benchmark.worker import answer, take_stdout
        answers = take_stdout()
        print("noise")
        os.system("echo noise")
        answer(answers, {"seconds": 1})
    """.replace("\n        ", "\n")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == '{"seconds": 1}\n' and done.stderr.split() == ["noise", "noise"]


def test_a_dying_peer_is_a_line(monkeypatch):
    monkeypatch.setattr(run, "MATRIX_SIZE", 32)
    broken = TINY["classifier"]._replace(cell="no_such_cell")
    (row,), _ = run.measure_workload(broken, ["flax:linen"], 1, lambda line: None)
    assert row.note == "died: KeyError: 'no_such_cell'" and row.median_ms is None


class FakeProcess(Process):
    """A process that answers at once, as `facts` and `speed` (seconds a step) tell."""

    log: list
    speed: dict
    facts: dict

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.log.append(f"{self.peer} closed")

    def start(self):
        return FACTS | {"loss": 2.5} | self.facts.get(self.peer, {})

    def ask(self, **order):
        self.log.append(self.peer)
        if "stop" in order:
            return {"peak_memory_mib": 100.0}
        seconds = self.speed[self.peer]
        if seconds is None and self.log.count(self.peer) > 1:
            raise PeerDied("Killed")
        return {"seconds": (seconds or 1.0) * order["steps"]}


@pytest.fixture
def fakes(monkeypatch):
    """Peers of known speed; the class holds what they do."""
    kind = type("Fakes", (FakeProcess,), {"log": [], "speed": {}, "facts": {}})
    monkeypatch.setattr(run, "Process", kind)
    monkeypatch.setattr(run, "MATRIX_SIZE", 32)
    return kind


def measure(peers, num_rounds=3):
    return run.run_benchmark([GRU], peers, num_rounds, lambda line: None)


def test_rounds_are_interleaved(fakes):
    fakes.speed |= {OURS: 2.0, "flax:nnx": 3.0}
    report = measure([OURS, "flax:nnx"])
    started, turns = [OURS, "flax:nnx"], [OURS, "flax:nnx"] * 3
    assert fakes.log == [*started, *turns, OURS, "flax:nnx", "flax:nnx closed", f"{OURS} closed"]
    assert [row.median_ms for row in report.rows] == [2000, 3000]
    assert report.ratios == {"gru": 1.5}
    assert report.rows[1].per_second == pytest.approx(2 / 3)
    share = num_flops(GRU) / 3.0 / (report.matmul_gflops * 1e9)
    assert report.rows[1].matmul_share == pytest.approx(share)


def test_turns_take_about_a_second(fakes):
    fakes.speed |= {OURS: 0.01}
    found = run.Running(fakes(OURS, GRU))
    found.start()
    assert found.num_steps == 100


def test_what_fails_has_a_line_and_no_ratio(fakes, monkeypatch):
    absent = PEERS["torch"]._replace(packages=("no_such_package",))
    monkeypatch.setitem(PEERS, "torch", absent)
    fakes.speed |= {OURS: 2.0, "keras:jax": 1.0, "flax:nnx": None, "flax:linen": 5.0}
    fakes.facts["keras:jax"] = {"loss": 2.501}
    peers = [OURS, "torch", "keras:jax", "flax:nnx", "flax:linen"]
    report = measure(peers)
    assert [row.note for row in report.rows] == [
        "",
        "not installed: no_such_package (pip install -e '.[bench]')",
        "other result: first loss 2.501, ours 2.5",
        "died: Killed",
        "",
    ]
    assert report.ratios == {"gru": 2.5}  # a faster one computes something else
    assert fakes.log.count("flax:nnx") == 2  # no other turn after its death


def test_other_tokens_are_told():
    assert run.difference({"tokens_digest": "a"}, {"tokens_digest": "a"}) == ""
    assert "other tokens" in run.difference({"tokens_digest": "b"}, {"tokens_digest": "a"})
    assert run.difference({"loss": 1.00009}, {"loss": 1.0}) == ""


def test_the_report_has_a_ratio_for_each_workload(fakes, tmp_path, capsys):
    fakes.speed |= {OURS: 2.0, "flax:linen": 3.0, "keras:jax": None}
    report = measure([OURS, "flax:linen", "keras:jax"])
    table.show_report(report)
    shown = capsys.readouterr().out
    assert "gru: ours takes 0.67 of the best peer's time" in shown
    assert "keras:jax: died: Killed" in shown
    paths = table.save_benchmark(report, tmp_path / "new")
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.png"]
    saved = json.loads(paths[0].read_text())
    assert saved["best_peer_over_ours"] == {"gru": 1.5} and saved["cores"] == os.cpu_count()
    assert [row["peer"] for row in saved["rows"]] == [OURS, "flax:linen", "keras:jax"]
    assert paths[1].read_bytes().startswith(b"\x89PNG")


def test_names_that_are_none(monkeypatch, capsys):
    with pytest.raises(UserError, match="unknown workload 'ltsm': did you mean 'lstm'"):
        run.find_workloads(["gru", "ltsm"])
    with pytest.raises(UserError, match="unknown peer 'keras': did you mean"):
        run.find_peers(["keras"])
    with pytest.raises(UserError, match="--rounds=0"):
        run.run_benchmark([], [], 0, print)
    assert run.find_peers(["torch"]) == [OURS, "torch"]
    assert run.find_peers([]) == list(PEERS)
    assert run.find_workloads([]) == list(WORKLOADS.values())
    outcome = run_command(monkeypatch, capsys, "benchmark", "--workloads=lstm,grus")
    assert_one_line(outcome, "unknown workload 'grus': did you mean 'gru'?")
