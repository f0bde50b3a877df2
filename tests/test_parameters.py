"""Parameter counts of the reference systems' models, which are counted without making them."""

import importlib.util
import io
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console

from seqjax.nn.layers import Bidirectional, Dense, Embed, Recurrent, functional
from seqjax.nn.stack import Stack
from seqjax.parameters import (
    LayerSize,
    count_parameters,
    layer_sizes,
    parameter_shapes,
    parameter_table,
)
from seqjax.tasks.registry import make_task

CONFIGS = Path(__file__).parents[1] / "configs"
BEFORE = "gru(reset_after=False)"


def shapes_of(make_module):
    return parameter_shapes(functional(make_module)[0])


def config_of(name, variant="default"):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(variant)


@pytest.mark.parametrize(
    "cell, input_size, hidden_size, count",
    [
        ("lstm", 5, 3, 108),  # the LSTM(3) on 5 features of the tutorial on return_sequences
        ("lstm", 4, 3, 96),
        ("lstm", 5, 7, 364),
        ("lstm", 10, 5, 320),
        ("lstm", 4, 8, 416),
        (BEFORE, 4, 3, 72),
        ("gru", 4, 3, 81),
        (BEFORE, 10, 9, 540),
        (BEFORE, 9, 6, 288),
        ("gru", 10, 9, 567),
        ("gru", 9, 6, 306),
        ("lstm", 50, 50, 20_200),
        ("lstm", 128, 512, 1_312_768),
        ("simple_rnn", 28, 128, 20_096),
        ("lstm", 26, 64, 23_296),
        ("lstm", 64, 64, 33_024),
        ("simple_rnn", 41, 128, 21_760),
        ("lstm", 23, 32, 7_168),
        ("lstm", 24, 32, 7_296),
    ],
)
def test_one_layer(cell, input_size, hidden_size, count):
    shapes = shapes_of(lambda rngs: Recurrent(cell, input_size, hidden_size, rngs=rngs))
    assert count_parameters(shapes) == count
    both = shapes_of(lambda rngs: Bidirectional(cell, input_size, hidden_size, rngs=rngs))
    assert count_parameters(both) == 2 * count  # 832 for the tutorial's LSTM(8)


@pytest.mark.parametrize(
    "sizes, num_classes, counts",
    [
        ([("lstm", 4, 3)], 3, [96, 12]),
        ([(BEFORE, 4, 3)], 3, [72, 12]),
        ([("lstm", 10, 5)], 1, [320, 6]),
        ([("lstm", 10, 5), ("lstm", 5, 7)], 1, [320, 364, 8]),
        ([(BEFORE, 10, 9), (BEFORE, 9, 6)], 3, [540, 288, 21]),
        ([("lstm", 26, 64), ("lstm", 64, 64)], 26, [23_296, 33_024, 1_690]),
    ],
)
def test_models_of_several_layers(sizes, num_classes, counts):
    params = {
        "stack": shapes_of(lambda rngs: Stack([Recurrent(*size, rngs=rngs) for size in sizes])),
        "output": shapes_of(lambda rngs: Dense(sizes[-1][-1], num_classes, rngs=rngs)),
    }
    assert [layer.count for layer in layer_sizes(params)] == counts
    assert count_parameters(params) == sum(counts)  # 108, 84, 326, 692, 849 and 58,010


@pytest.mark.parametrize(
    "name, variant, count",
    [
        ("mnist_rows", "default", 21_386),
        ("word_completion", "default", 58_010),
        ("svo_tagging", "default", 108),
        ("svo_tagging", "gru", 84),
        ("word_translation", "faithful", 48_809),
        ("sentence_translation", "faithful", 15_256),
    ],
)
def test_models_of_the_configs(name, variant, count):
    task = make_task(config_of(name, variant))
    shapes = parameter_shapes(task.init)
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in jax.tree.leaves(shapes))
    assert count_parameters(shapes) == count


def test_nothing_is_allocated():
    size = 1_000_000  # a recurrent kernel of 16 terabytes
    shapes = shapes_of(lambda rngs: Recurrent("lstm", size, size, rngs=rngs))
    assert count_parameters(shapes) == 4 * (size + size + 1) * size


@pytest.fixture
def mixed():
    def stack(rngs):
        layers = [
            Recurrent("gru", 16, 9, rngs=rngs),
            Bidirectional("simple_rnn", 9, 6, rngs=rngs),
        ]
        return Stack(layers)

    return {
        "embed": shapes_of(lambda rngs: Embed(1_000, 16, rngs=rngs)),
        "stack": shapes_of(stack),
        "output": {"kernel": np.zeros((12, 3), np.float32), "bias": np.zeros(3, np.float16)},
    }


def test_sizes_by_layer(mixed):
    gru = {"w_x": (16, 27), "w_h": (9, 27), "b_x": (27,), "b_h": (27,)}
    rnn = {"w_x": (9, 6), "w_h": (6, 6), "b": (6,)}
    assert list(layer_sizes(mixed)) == [
        LayerSize("embed", {"embedding": (1_000, 16)}, 16_000, 64_000),
        LayerSize("stack.layer_0", gru, 729, 2_916),
        LayerSize("stack.layer_1.backward", rnn, 96, 384),
        LayerSize("stack.layer_1.forward", rnn, 96, 384),
        LayerSize("output", {"kernel": (12, 3), "bias": (3,)}, 39, 150),
    ]


def test_the_table_has_one_row_a_layer(mixed):
    console = Console(record=True, width=150, file=io.StringIO())
    console.print(parameter_table(mixed))
    lines = [line.split("│") for line in console.export_text().replace("┃", "│").splitlines()]
    rows = [[cell.strip() for cell in cells[1:-1]] for cells in lines if len(cells) > 2]
    assert rows == [
        ["layer", "shapes", "count", "bytes"],
        ["embed", "embedding (1000, 16)", "16,000", "64,000"],
        ["stack.layer_0", "b_h (27,)  b_x (27,)  w_h (9, 27)  w_x (16, 27)", "729", "2,916"],
        ["stack.layer_1.backward", "b (6,)  w_h (6, 6)  w_x (9, 6)", "96", "384"],
        ["stack.layer_1.forward", "b (6,)  w_h (6, 6)  w_x (9, 6)", "96", "384"],
        ["output", "bias (3,)  kernel (12, 3)", "39", "150"],
        ["total", "", "16,960", "67,834"],
    ]
