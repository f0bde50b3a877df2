"""The benchmark: peers compute what we compute, and what fails is a line, not the end."""

import importlib
import json
import subprocess
import sys
from contextlib import nullcontext
from functools import cache
from importlib.resources import files
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from support.commands import assert_one_line, run_command

from experiments.benchmark import run, table
from experiments.benchmark.conditions import find_conditions
from experiments.benchmark.inputs import make_batches, make_weights
from experiments.benchmark.machine import machine_facts
from experiments.benchmark.peers import OURS, PEERS, RATES, ours
from experiments.benchmark.worker import PeerDied, Process
from experiments.benchmark.workloads import (
    MEMORY_PASSES,
    SUITES,
    find_floor,
    num_flops,
    throughput,
    weight_bytes,
)
from seqjax.distributed.devices import num_cores
from seqjax.errors import UserError
from seqjax.metrics import compute_means

pytestmark = pytest.mark.slow

WORKLOADS = {w.name: w for suite in SUITES.values() for w in suite.workloads}
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
LSTM = WORKLOADS["lstm"]._replace(num_rows=2, **SIZES)
FACTS = {
    "import_seconds": 1.0,
    "first_step_seconds": 2.0,
    "reserved_mib": None,
    "version": {"x": "1"},
}


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


def build(peer, workload):
    """Returns the peer in this process, after its first step."""
    for package in PEERS[peer].packages:
        pytest.importorskip(package)
    module = importlib.import_module(f"experiments.benchmark.peers.{PEERS[peer].module}")
    weights, batches = make_weights(workload), make_batches(workload)
    return module.build(workload, weights, batches, **PEERS[peer].options)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("peer", ["flax:nnx", "flax:linen", "keras:jax", "torch"])
def test_a_peer_with_our_weights_has_our_result(peer, name):
    first = build(peer, TINY[name]).first
    if name == "decode":
        assert np.array_equal(first, our_result(name))
        assert first.shape == (2, 12) and first.min() > 2
    else:
        assert first == pytest.approx(our_result(name), rel=1e-5)


@pytest.mark.parametrize("peer", ["seqjax:scan", "seqjax:fused", "seqjax:remat"])
def test_a_backend_has_the_loss_and_the_update_of_another_peer(peer):
    found, expected = (build(name, LSTM) for name in (peer, "flax:linen"))
    assert found.first == pytest.approx(expected.first, rel=1e-5)
    assert found.reserved_mib > 0
    found.run(2)  # the second step is given what the first one returns


def test_a_backend_says_what_it_cannot_run():
    with pytest.raises(UserError, match="computes on cpu, not on an NVIDIA GPU"):
        build("seqjax:cudnn", LSTM)
    with pytest.raises(UserError, match="a classifier of one LSTM layer"):
        build("seqjax:scan", TINY["seq2seq"])


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


def test_the_floor_is_that_of_products_or_of_kernels():
    # Kernels of GRU(5) x 2: 3 x 15, 5 x 15 and twice 5 x 15 above; 12 classes. Four steps read the
    # two recurrent ones, forward and backward.
    kernels, others = 4 * (45 + 3 * 75 + 60), 45 + 75 + 60
    assert weight_bytes(TINY["classifier"]) == (kernels, 4 * (2 * 4 * 2 * 75 + others))
    # Two LSTM(5) over 4 and 3 steps, in 3 batches.
    kernels, others = 4 * (2 * 100 + 2 * 60 + 60), 2 * 60 + 60
    assert weight_bytes(TINY["seq2seq"]) == (kernels, 4 * 3 * (2 * 7 * 100 + others))
    # Two SimpleRNN(5): 4 steps, then 12 tokens with the input kernel and the output each.
    read = 4 * (4 * 25 + 15 + 12 * (25 + 15 + 60))
    assert weight_bytes(TINY["decode"]) == (4 * (2 * 25 + 2 * 15 + 60), read)
    flops = num_flops(TINY["decode"])
    assert find_floor(TINY["decode"], 100.0, 1e9) == (flops / 100, "matmul")
    assert find_floor(TINY["decode"], 1e9, 100.0) == (read / 100, "weights")


def test_a_worker_obeys_and_ends(monkeypatch):
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    with Process(OURS, TINY["seq2seq"], {}) as process:
        facts = process.start()
        assert facts["loss"] == pytest.approx(our_result("seq2seq"), rel=1e-5)
        assert facts["first_step_seconds"] > 0 and set(facts["version"]) == {"jax", "flax"}
        assert 0 < process.ask(steps=3)["seconds"] < 10
        last = process.ask(stop=True)
        assert 0 < last["added_memory_mib"] < last["peak_memory_mib"] < 5000
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
    monkeypatch.setattr(run, "_TURN_SECONDS", 0.01)
    peers = ["seqjax:cudnn", "seqjax:scan"]
    (row, scan), rates = run.measure_workload(LSTM, peers, 1, lambda line: None)
    assert row.note.startswith("died: seqjax.errors.UserError: train.backend=cudnn: this machine")
    assert row.median_ms is None
    assert scan.note == "not compared: ours did not run"
    assert scan.floor_ms > 0 and 0 < scan.reserved_mib < scan.added_memory_mib
    assert set(rates) == {"matmul", "memory"} and min(rates.values()) > 0


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
            return {"peak_memory_mib": 100.0, "added_memory_mib": 60.0}
        seconds = self.speed[self.workload.kind if self.peer == RATES else self.peer]
        if seconds is None and self.log.count(self.peer) > 1:
            raise PeerDied("Killed")
        return {"seconds": (seconds or 1.0) * order["steps"]}


@pytest.fixture
def fakes(monkeypatch):
    """Peers of known speed; the class holds what they do."""
    speed = {"matmul": 1.0, "memory": 2.0}
    kind = type("Fakes", (FakeProcess,), {"log": [], "speed": speed, "facts": {}})
    monkeypatch.setattr(run, "Process", kind)
    monkeypatch.setattr(run, "MATRIX_SIZE", 32)
    return kind


def measure(peers, conditions=("quiet",), num_rounds=3):
    return run.run_benchmark([GRU], peers, conditions, num_rounds, lambda line: None)


def test_rounds_are_interleaved(fakes):
    fakes.speed |= {OURS: 2.0, "flax:nnx": 3.0}
    report = measure([OURS, "flax:nnx"])
    names = [RATES, RATES, OURS, "flax:nnx"]
    ended = [f"{name} closed" for name in reversed(names)]
    assert fakes.log == [*names, *names * 3, *names, *ended]
    assert [row.median_ms for row in report.rows] == [2000, 3000]
    assert report.best == {"quiet": {"gru": (pytest.approx(2 / 3), "flax:nnx")}}
    assert report.rows[1].per_second == pytest.approx(2 / 3)
    rates = report.rates["quiet"]["gru"]
    size = weight_bytes(GRU)[0] // 12
    assert rates == {"matmul": 2 * 32**3, "memory": 12 * size * MEMORY_PASSES / 2}
    floor, of = find_floor(GRU, rates["matmul"], rates["memory"])
    assert (report.rows[1].floor_ms, report.rows[1].floor_of) == (floor * 1e3, of)


def test_turns_take_about_a_second(fakes):
    fakes.speed |= {OURS: 0.01}
    found = run.Running(fakes(OURS, GRU, {}))
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
    assert report.best["quiet"]["gru"] == (0.4, "flax:linen")  # a faster one computes otherwise
    assert fakes.log.count("flax:nnx") == 2  # no other turn after its death


def test_other_tokens_are_told():
    assert run.difference({"tokens_digest": "a"}, {"tokens_digest": "a"}) == ""
    assert "other tokens" in run.difference({"tokens_digest": "b"}, {"tokens_digest": "a"})
    assert run.difference({"loss": 1.00009}, {"loss": 1.0}) == ""


def test_every_condition_has_a_share(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_own=1")
    begun = []
    monkeypatch.setattr(run, "busy_processes", lambda n: begun.append(n) or nullcontext([]))
    fakes.speed |= {OURS: 2.0, "seqjax:scan": 1.0, "flax:linen": 3.0, "keras:tensorflow": None}
    monkeypatch.setitem(PEERS, "keras:tensorflow", PEERS["keras:tensorflow"]._replace(packages=()))
    seen = {}
    start = fakes.start

    def notes(self):
        seen.setdefault(self.peer, []).append(dict(self.environment))
        return start(self)

    monkeypatch.setattr(fakes, "start", notes)
    peers = [OURS, "seqjax:scan", "flax:linen", "keras:tensorflow"]
    report = measure(peers, ["quiet", "busy", "avx2"])
    assert begun == [0, 2, 0]
    (before, beside, _), always = seen["flax:linen"], {"JAX_TRACEBACK_FILTERING": "off"}
    assert before == beside == always
    flags = "--xla_own=1 --xla_cpu_max_isa=AVX2 --xla_cpu_experimental_ynn_fusion_type="
    assert seen["flax:linen"][2] == always | {"XLA_FLAGS": flags, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert seen[RATES] == [seen["flax:linen"][i] for i in (0, 0, 1, 1, 2, 2)]
    assert {name: found["gru"].share for name, found in report.best.items()} == dict.fromkeys(
        ("quiet", "busy", "avx2"),
        pytest.approx(2 / 3),  # our own backends are no peers
    )
    table.show(table.make_table(report))
    assert table.shares_table(report).splitlines() == [
        "| workload | quiet | busy | avx2 |",
        "| --- | --- | --- | --- |",
        "| gru | 0.67 | 0.67 | 0.67 |",
    ]
    paths = table.save_benchmark(report, machine_facts(), tmp_path / "new")
    assert [path.name for path in paths] == ["benchmark.json", "benchmark.md", "benchmark.png"]
    saved = json.loads(paths[0].read_text())
    assert saved["share_of_best_peer"]["busy"]["gru"] == {
        "share": pytest.approx(2 / 3),
        "peer": "flax:linen",
    }
    assert saved["machine"]["cores"] == num_cores() and saved["machine"]["processor"]
    assert saved["machine"]["versions"]["jax"] == jax.__version__
    assert [row["peer"] for row in saved["rows"]] == peers * 3
    text = paths[1].read_text()
    assert "keras:tensorflow: died: Killed" in text and "gru, avx2" in text
    assert paths[2].read_bytes().startswith(b"\x89PNG")


def test_a_busy_condition_whose_process_died_has_no_share(fakes, monkeypatch):
    died = SimpleNamespace(poll=lambda: -15)
    monkeypatch.setattr(run, "busy_processes", lambda n: nullcontext([died]))
    fakes.speed |= {OURS: 2.0, "flax:linen": 3.0}
    report = measure([OURS, "flax:linen"], ["busy"])
    assert report.best == {}
    assert {row.note for row in report.rows} == {"not compared: a busy process has died"}


def test_names_that_are_none():
    suite = SUITES["tasks"]
    with pytest.raises(UserError, match="unknown workload 'ltsm': did you mean 'lstm'"):
        run.find_workloads(["gru", "ltsm"], suite)
    with pytest.raises(UserError, match="unknown peer 'keras': did you mean"):
        run.find_peers(["keras"], suite)
    with pytest.raises(UserError, match="--rounds=0"):
        run.run_benchmark([], [], [], 0, print)
    with pytest.raises(UserError, match="unknown condition 'bussy': did you mean 'busy'"):
        find_conditions(["bussy"], ["avx2"])
    with pytest.raises(UserError, match="this processor is not known to have AVX2"):
        find_conditions(["avx2"], ["asimd"])
    assert find_conditions(["avx2", "quiet"], ["avx2"]) == ["quiet", "avx2"]
    assert run.find_peers(["torch"], suite) == [OURS, "torch"]
    assert run.find_workloads([], suite) == list(suite.workloads)
    for suite in SUITES.values():
        assert run.find_peers([], suite) == list(suite.peers) and set(suite.peers) <= set(PEERS)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workloads=lstm,grus"], "unknown workload 'grus': did you mean 'gru'?"),
        (["--suite=lengths", "--workloads=lstm"], "unknown workload 'lstm': known: num_steps_1024"),
        (["--suite=lengths", "--record"], "--record and --compare are for --suite=tasks"),
        (["--compile", "--condition=busy"], "--condition cannot be used with --compile"),
        (["--compile", "--workloads=mnist_row"], "unknown config 'mnist_row': did you mean"),
    ],
)
def test_flags_that_do_not_go_together_are_one_line(flags, message, monkeypatch, capsys):
    assert_one_line(run_command(monkeypatch, capsys, "benchmark", *flags), message)
