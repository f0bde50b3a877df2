"""Keras on the backend that KERAS_BACKEND names: `fit`, and decoding by a compiled step.

What measured fastest: `fit` returns to Python once in `STEPS_PER_CALL` steps, for which Keras has
no option on torch, and TensorFlow compiles with XLA, which Keras by itself does not do for LSTM and
GRU (2 x LSTM(64) took 2.0 ms a step by default, and 0.5 so).
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import keras
import numpy as np
from keras import layers

from experiments.benchmark.inputs import IDS, cell_weights
from experiments.benchmark.peers import LEARNING_RATE, Peer
from experiments.benchmark.workloads import Workload

STEPS_PER_CALL = 16
_LAYERS = {"simple_rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}


def build(
    workload: Workload,
    weights: dict[str, np.ndarray],
    batches: list[dict[str, np.ndarray]],
) -> Peer:
    """The peer after its first step."""
    if workload.kind == "decode":
        return _decoder(workload, weights, batches)
    model = (_make_classifier if workload.kind == "classifier" else _make_seq2seq)(workload)
    copy_weights(workload, weights, model)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=1 if keras.backend.backend() == "torch" else STEPS_PER_CALL,
        jit_compile=_choose_jit(workload),
    )

    @lru_cache(maxsize=1)  # the time to copy data is not the model's
    def repeat(num_steps: int) -> dict[str, np.ndarray]:
        joined = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
        return {
            key: np.tile(x, (num_steps,) + (1,) * (x.ndim - 1)) if num_steps > 1 else x
            for key, x in joined.items()
        }

    def fit(rows: dict[str, np.ndarray]) -> list[float]:
        inputs = {key: rows[key] for key in rows if key != "labels"}
        options = {"batch_size": workload.batch_size, "shuffle": False, "verbose": 0}
        return model.fit(inputs, rows["labels"], **options).history["loss"]

    def run(num_steps: int) -> None:
        fit(repeat(num_steps))

    return Peer(fit(batches[0])[0], run)


def _choose_jit(workload: Workload) -> bool | str:
    """Whether XLA compiles the training step: on TensorFlow where that measured faster."""
    return workload.cell != "simple_rnn" if keras.backend.backend() == "tensorflow" else "auto"


def _make_classifier(workload: Workload) -> Any:
    """Logits of the last step's output."""
    w = workload
    inputs = xs = keras.Input((w.source_length, w.input_size), name="inputs")
    for i in range(w.num_layers):
        sequences = i < w.num_layers - 1
        xs = _LAYERS[w.cell](w.hidden_size, return_sequences=sequences, name=f"layer_{i}")(xs)
    return keras.Model({"inputs": inputs}, layers.Dense(w.num_classes, name="output")(xs))


def _make_seq2seq(workload: Workload) -> Any:
    """Logits at every step of a decoder that starts from the encoder's state."""
    w = workload
    source = keras.Input((w.source_length,), dtype="int32", name="source")
    inputs = keras.Input((w.target_length,), dtype="int32", name="inputs")
    kind = _LAYERS[w.cell]
    xs = layers.Embedding(w.num_classes, w.input_size, name="source_embed")(source)
    _, *state = kind(w.hidden_size, return_state=True, name="encoder")(xs)
    ys = layers.Embedding(w.num_classes, w.input_size, name="target_embed")(inputs)
    ys = kind(w.hidden_size, return_sequences=True, name="decoder")(ys, initial_state=state)
    logits = layers.Dense(w.num_classes, name="output")(ys)
    return keras.Model({"source": source, "inputs": inputs}, logits)


def _make_inference_models(workload: Workload) -> tuple[Any, Any]:
    """The tutorials' two models: source to state; token and state to the next ones."""
    w = workload
    kind = _LAYERS[w.cell]
    source = keras.Input((w.source_length,), dtype="int32", name="source")
    xs = layers.Embedding(w.num_classes, w.input_size, name="source_embed")(source)
    _, *state = kind(w.hidden_size, return_state=True, name="encoder")(xs)
    token = keras.Input((1,), dtype="int32", name="token")
    given = [keras.Input((w.hidden_size,)) for _ in state]
    ys = layers.Embedding(w.num_classes, w.input_size, name="target_embed")(token)
    ys, *after = kind(w.hidden_size, return_state=True, name="decoder")(ys, initial_state=given)
    logits = layers.Dense(w.num_classes, name="output")(ys)
    best = keras.ops.argmax(logits, axis=-1, keepdims=True)
    return keras.Model(source, state), keras.Model([token, *given], [best, *after])


def _decoder(
    workload: Workload, weights: dict[str, np.ndarray], batches: list[dict[str, np.ndarray]]
) -> Peer:
    models = _make_inference_models(workload)
    for model in models:
        copy_weights(workload, weights, model)
    encode, step = map(compile_call, models)

    def generate(source: np.ndarray) -> np.ndarray:
        state = keras.tree.flatten(encode(keras.ops.convert_to_tensor(source)))
        token = keras.ops.full((len(source), 1), IDS.bos_id, dtype="int32")
        tokens = []
        for _ in range(workload.target_length):
            token, *state = step([token, *state])
            tokens.append(token)
        return keras.ops.convert_to_numpy(keras.ops.concatenate(tokens, axis=1))

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            for batch in batches:
                generate(batch["source"])

    return Peer(generate(batches[0]["source"]), run)


def compile_call(model: Any) -> Callable[[Any], Any]:
    """The model's forward pass as the backend compiles one; torch runs it eagerly."""
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(model, jit_compile=True)
    if keras.backend.backend() == "jax":
        import jax

        variables = [x.value for x in model.trainable_variables]
        others = [x.value for x in model.non_trainable_variables]
        compiled = jax.jit(lambda *args: model.stateless_call(*args)[0])
        return lambda inputs: compiled(variables, others, inputs)
    import torch

    return torch.inference_mode()(model)


def copy_weights(workload: Workload, weights: dict[str, np.ndarray], model: Any) -> None:
    """Gives the model's layers our weights; its GRU's gates stand in the order z, r, h."""
    for layer in model.layers:
        if layer.name.endswith("embed"):
            layer.set_weights([weights[layer.name]])
        elif layer.name == "output":
            layer.set_weights([weights["output.kernel"], weights["output.bias"]])
        elif found := cell_weights(weights, layer.name):
            arrays = list(found.values())
            if workload.cell == "gru":
                arrays = [_swap_gates(x) for x in arrays]
                arrays = [*arrays[:2], np.stack(arrays[2:])]
            layer.set_weights(arrays)


def _swap_gates(array: np.ndarray) -> np.ndarray:
    r, z, n = np.split(array, 3, axis=-1)
    return np.concatenate([z, r, n], axis=-1)
