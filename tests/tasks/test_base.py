"""A metric of one's own, which is added to a task."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.texts import make_pairs
from support.toys import read_json, tiny_config

import seqjax.plots
from seqjax.config import text_pairs_config
from seqjax.distributed.mesh import make_mesh
from seqjax.errors import UserError
from seqjax.metrics import Average, softmax
from seqjax.nn.dropout import row_keys
from seqjax.tasks.base import add_metric
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq import make_seq2seq_task
from seqjax.training.fit import fit
from seqjax.training.logger import read_records
from seqjax.training.setup import Evaluator


def confidence(logits, batch) -> Average:
    """The probability of the answer, of rows that are real."""
    weight = batch["weight"]
    return Average(jnp.sum(weight * jax.nn.softmax(logits).max(-1)), jnp.sum(weight))


def test_an_added_metric_is_that_of_all_rows_of_a_split():
    task = add_metric(make_task(tiny_config("recall")), "confidence", confidence)
    evaluator = Evaluator(task.loss_and_metrics, task.predict, 5, make_mesh(1))
    params, rows = jax.jit(task.init)(jax.random.key(0)), task.splits["valid"]
    assert len(rows["symbols"]) == 8  # so that the last of two batches has two rows of no weight
    expected = softmax(np.float64(evaluator.predict(params, rows))).max(-1).mean()
    got = evaluator.metrics(params, rows)
    assert got["confidence"] == pytest.approx(expected, rel=1e-6)  # float32
    assert got.keys() == {"loss", "accuracy", "confidence"}
    assert evaluator.metrics(params, rows, jax.random.key(1)).keys() == {"loss", "accuracy"}


def test_training_does_not_compute_it():
    def refuse(*_):
        raise AssertionError("it is computed")

    plain = make_task(tiny_config("recall"))
    task, step = add_metric(plain, "confidence", refuse), jnp.int32(0)
    params = jax.jit(task.init)(jax.random.key(0))
    batch = dict(task.splits["valid"]) | {"weight": np.ones(8, np.float32)}
    keys = row_keys(jax.random.key(1), 8)
    jaxprs = [
        jax.make_jaxpr(
            lambda params, own=own: dict(own.loss_and_metrics(params, batch, keys, step))
        )
        for own in (task, plain)
    ]
    assert str(jaxprs[0](params)) == str(jaxprs[1](params))
    with pytest.raises(AssertionError, match="it is computed"):
        task.loss_and_metrics(params, batch)


def test_a_run_records_it_and_can_monitor_it(tmp_path, monkeypatch):
    monkeypatch.setattr(seqjax.plots, "save_figure", lambda figure, path: path.touch())
    options = {"monitor": "valid.confidence", "monitor_mode": "min", "num_epochs": 3}
    config = tiny_config("recall", **options, eval_every_epochs=1)
    fit(add_metric(make_task(config), "confidence", confidence), config, tmp_path)
    values = [record["valid"]["confidence"] for record in read_records(tmp_path / "metrics.jsonl")]
    result = read_json(tmp_path / "result.json")
    assert len(set(values)) == 3 and values[result["best_epoch"] - 1] == min(values)
    assert result["valid"]["confidence"] == pytest.approx(min(values), rel=1e-6)  # two programs
    assert 0 < result["test"]["confidence"] < 1


def test_a_metric_that_the_task_has_is_not_replaced():
    with pytest.raises(UserError, match="the task has a metric 'accuracy' already: give another"):
        add_metric(make_task(tiny_config("recall")), "accuracy", confidence)
    task = make_seq2seq_task(make_pairs(), text_pairs_config(""))
    with pytest.raises(UserError, match="the task has a metric 'cross_entropy' already"):
        add_metric(task, "cross_entropy", confidence)
    task = task._replace(corpus_metrics=lambda predict, split, means: {"bleu": 9.0})
    with pytest.raises(UserError, match="the task has a metric 'bleu' already: give another name"):
        add_metric(task, "bleu", confidence).corpus_metrics(None, "train", {})
    assert add_metric(task, "rouge", confidence).corpus_metrics(None, "train", {}) == {"bleu": 9.0}
