"""Ours, through the public code: models as `functional`, the compiled epoch, greedy decoding."""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from ml_collections import ConfigDict

from experiments.benchmark.inputs import cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload
from seqjax.data.bucketing import RowLengths, find_buckets
from seqjax.decoding.constraints import DecodeOptions
from seqjax.decoding.sampling import greedy
from seqjax.distributed.choices import choose, find_shape
from seqjax.distributed.devices import COMPILATION_CACHE, start_jax
from seqjax.distributed.mesh import WHOLE, make_mesh, shard
from seqjax.losses import cross_entropy
from seqjax.metrics import Metrics, compute_means
from seqjax.models.classifier import Classifier
from seqjax.models.seq2seq import Seq2Seq
from seqjax.nn.layers import functional
from seqjax.training.epoch import START, LoopOptions, Place, TrainData, make_epoch_loop
from seqjax.training.optimizer import make_optimizer
from seqjax.training.train_step import LossAndMetrics, init_train_state, make_keys
from seqjax.typing import Batch, Params, SpecialIds

_MAX_STEPS = 20_000  # of a call
_NUM_BUCKETS = 8  # of the corpus
_PAD = SpecialIds().pad_id


def build(
    workload: Workload,
    weights: dict[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
) -> Peer:
    """The peer after its first step."""
    # No compile cache: the peers have none either, and the first step's time is reported.
    os.environ[COMPILATION_CACHE] = ""
    start_jax(0)
    params = params_of(workload, weights)
    if workload.kind == "decode":
        return _decoder(workload, params, batches)
    return _trainer(workload, make_measure(workload), params, batches)


def make_measure(workload: Workload) -> LossAndMetrics:
    """What is trained on: the mean cross-entropy over all labels of real rows."""
    return _classifier(workload) if workload.kind == "classifier" else _seq2seq(workload)


def _trainer(
    workload: Workload,
    measure: LossAndMetrics,
    params: Params,
    batches: list[dict[str, np.ndarray]],
) -> Peer:
    rows = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    open_fields = ConfigDict({"num_devices": 0, "microbatch_size": 0})
    choice = choose(find_shape(params, rows, workload.batch_size), open_fields)
    mesh = make_mesh(choice.num_devices)
    optimizer = make_optimizer(
        name="adam",
        learning_rate=LEARNING_RATE,
        schedule="constant",
        clip_norm=0.0,
        clip_value=0.0,
        accumulate_steps=1,
        ema_decay=0.0,
        steps_per_epoch=1,
        num_updates=1,
    )
    trained_on, buckets = measure, None
    if workload.kind == "corpus":
        trained_on = _seq2seq(workload, masked=True)
        rows, lengths = _cut_rows(rows)
        buckets = find_buckets(lengths, _NUM_BUCKETS, workload.batch_size)
    data = TrainData(rows, workload.batch_size, False, buckets)
    per_step = data.steps_per_epoch
    options = LoopOptions(_MAX_STEPS, num_epochs=1, microbatch_size=choice.microbatch_size)
    loop = make_epoch_loop(trained_on, optimizer, data, mesh, options)
    state = shard(init_train_state(params, optimizer), mesh, WHOLE)
    keys = make_keys(0)
    if per_step > 1:  # the loop shuffles: its first batch is not the peers'
        ones = np.ones(workload.batch_size, np.float32)
        loss = compute_means(jax.jit(measure)(params, {**batches[0], "weight": ones}, None))["loss"]
        state, _ = loop(state, keys, START, 1)
    else:
        state, log = loop(state, keys, START, 1)
        loss = float(log.metrics["loss"].total[0] / log.metrics["loss"].weight[0])

    def run(num_steps: int) -> None:
        nonlocal state
        left = num_steps * per_step
        while left:
            place = Place(*divmod(int(state.step), per_step))
            state, _ = loop(state, keys, place, min(left, _MAX_STEPS))
            left -= min(left, _MAX_STEPS)
        jax.block_until_ready(state)

    return Peer(loss, run)


def _cut_rows(rows: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], RowLengths]:
    """The texts with their padding behind them, and how many tokens they have."""
    source = rows["source"]
    order = np.argsort(source == _PAD, axis=1, kind="stable")
    rows = {**rows, "source": np.take_along_axis(source, order, axis=1)}
    real = {
        name: np.maximum(1, np.sum(rows[name] != _PAD, axis=1)) for name in ("source", "labels")
    }
    return rows, real | {"inputs": real["labels"]}


def _classifier(workload: Workload) -> LossAndMetrics:
    _, bind = functional(
        lambda rngs: Classifier(
            input_size=workload.input_size,
            num_classes=workload.num_classes,
            output_dropout=0.0,
            rngs=rngs,
            **_stack(workload),
        )
    )

    def measure(params: Params, batch: Batch, keys: Any, **_: Any) -> Metrics:
        logits = bind(params)(batch["inputs"])
        return {"loss": cross_entropy(logits, batch["labels"], batch["weight"])}

    return measure


def _seq2seq(workload: Workload, masked: bool = False) -> LossAndMetrics:
    """Padding counts, as the peers count it, unless `masked`."""
    bind = _bind_seq2seq(workload)

    def measure(params: Params, batch: Batch, keys: Any, **_: Any) -> Metrics:
        source, labels = batch["source"], batch["labels"]
        logits = bind(params).teacher_forced(
            source, (source != _PAD) | (not masked), batch["inputs"]
        )
        weight = batch["weight"][:, None] * ((labels != _PAD) | (not masked))
        return {"loss": cross_entropy(logits, labels, weight)}

    return measure


def _decoder(workload: Workload, params: Params, batches: list[dict[str, np.ndarray]]) -> Peer:
    bind, length = _bind_seq2seq(workload), workload.target_length
    options = DecodeOptions(max_length=length, min_length=length - 1)

    @jax.jit
    def generate(params: Params, source: Int[Array, "B S"]) -> Int[Array, "B T"]:
        model = bind(params)
        state = model.encode(source, jnp.ones_like(source, bool))
        return greedy(model.decode_step, state, options).tokens

    params, data = jax.device_put((params, [batch["source"] for batch in batches]))

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for source in data:
                generate(params, source).block_until_ready()

    return Peer(np.asarray(generate(params, data[0])), run)


def _bind_seq2seq(workload: Workload) -> Any:
    options: dict[str, Any] = {
        **_stack(workload),
        "source_vocab_size": workload.num_classes,
        "target_vocab_size": workload.num_classes,
        "embed_size": workload.input_size,
        "attention": "none",
        "input_feeding": False,
        "share_embeddings": False,
        "tie_output": False,
        "token_dropout": 0.0,
        "encoder_output_dropout": 0.0,
        "decoder_output_dropout": 0.0,
    }
    return functional(lambda rngs: Seq2Seq(rngs=rngs, **options))[1]


def _stack(workload: Workload) -> dict[str, Any]:
    return {
        "cell": workload.cell,
        "hidden_size": workload.hidden_size,
        "num_layers": workload.num_layers,
        "bidirectional": False,
        "input_dropout": 0.0,
        "state_dropout": 0.0,
        "kernel_init": "glorot_uniform",
        "recurrent_init": "orthogonal",
        "output_kernel_init": "glorot_uniform",
        "output_bias_init": "zeros",
    }


def params_of(workload: Workload, weights: dict[str, np.ndarray]) -> Params:
    """The weights as the models' nested dict."""
    output = {"kernel": weights["output.kernel"], "bias": weights["output.bias"]}
    params: dict[str, Any] = {"output": output}
    if workload.kind == "classifier":
        layers = [f"layer_{i}" for i in range(workload.num_layers)]
        params["stack"] = {name: {"weights": cell_weights(weights, name)} for name in layers}
    else:
        params |= {x: {"embedding": weights[x]} for x in ("source_embed", "target_embed")}
        for side in ("encoder", "decoder"):
            params[side] = {"layer_0": {"weights": cell_weights(weights, side)}}
    return jax.tree.map(jnp.array, params)
