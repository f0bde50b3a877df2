"""Length buckets: few shapes, little padding, every row once, and the same results."""

from functools import cache, partial
from itertools import combinations, pairwise

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.oracles import assert_same
from support.texts import batch_of, make_pairs, random_params
from support.toys import linear_config, linear_task, tiny_config

from seqjax.data.batching import bucketed_order
from seqjax.data.bucketing import Buckets, find_buckets
from seqjax.distributed.mesh import WHOLE, make_mesh, shard
from seqjax.errors import UserError
from seqjax.nn.dropout import row_keys
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq import token_metrics
from seqjax.training.epoch import LOOPS, LoopOptions, Place, TrainData
from seqjax.training.fit import fit
from seqjax.training.optimizer import make_optimizer
from seqjax.training.setup import make_setup
from seqjax.training.train_step import init_train_state, make_keys

both_lengths = st.lists(
    st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=40
).map(np.array)


def assert_close(ours, theirs) -> None:
    """Asserts equality of values around 1 up to float32 rounding, since sums differ in length."""
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), ours, theirs)


def num_positions(buckets: Buckets, batch_size: int) -> int:
    """The number of positions in all batches of an epoch, including padding rows."""
    pairs = zip(buckets.lengths, buckets.rows, strict=True)
    return sum(
        -(-len(rows) // batch_size) * batch_size * sum(lengths.values()) for lengths, rows in pairs
    )


@given(rows=both_lengths, most=st.integers(1, 5), batch_size=st.integers(1, 8))
def test_every_row_is_in_the_smallest_bucket_that_it_fits(rows, most, batch_size):
    lengths = {"source": rows[:, 0], "target": rows[:, 1]}
    buckets = find_buckets(lengths, most, batch_size)
    assert 1 <= buckets.num_buckets == len(buckets.rows) <= most
    assert sorted(np.concatenate(buckets.rows)) == list(range(len(rows)))
    for bucket_lengths, members in zip(buckets.lengths, buckets.rows, strict=True):
        for row in members:
            fitting = [
                sum(other.values())
                for other in buckets.lengths
                if other["source"] >= rows[row, 0] and other["target"] >= rows[row, 1]
            ]
            assert bucket_lengths["source"] >= rows[row, 0]
            assert bucket_lengths["target"] >= rows[row, 1]
            assert sum(bucket_lengths.values()) == min(fitting)
    assert find_buckets(lengths, most, batch_size).lengths == buckets.lengths


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30).map(np.array),
    most=st.integers(1, 4),
    batch_size=st.integers(1, 8),
)
def test_no_division_of_the_lengths_has_fewer_positions(lengths, most, batch_size):
    """Compares with every choice of bounds, for one field."""

    def positions(bounds):
        counts = [np.sum((lengths > a) & (lengths <= b)) for a, b in pairwise((0, *bounds))]
        return sum(
            -(-n // batch_size) * batch_size * b for n, b in zip(counts, bounds, strict=True)
        )

    *others, longest = sorted(set(map(int, lengths)))
    best = min(
        positions((*bounds, longest))
        for number in range(most)
        for bounds in combinations(others, number)
    )
    assert num_positions(find_buckets({"x": lengths}, most, batch_size), batch_size) == best


@given(rows=both_lengths)
def test_more_buckets_never_cost_more(rows):
    lengths = {"source": rows[:, 0], "target": rows[:, 1]}
    costs = [num_positions(find_buckets(lengths, most, 4), 4) for most in range(1, 6)]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] == -(-len(rows) // 4) * 4 * (rows[:, 0].max() + rows[:, 1].max())


def some_buckets(num_rows: int = 45) -> Buckets:
    lengths = np.random.default_rng(0).integers(1, 10, num_rows)
    return find_buckets({"x": lengths}, 3, 4)


def test_an_epoch_has_every_row_once_and_batches_of_one_bucket():
    buckets = some_buckets()
    index, weight, number = bucketed_order(jax.random.key(0), buckets, 4, num_devices=3)
    assert index.shape[1] == weight.shape[1] == 6  # padded to a multiple of the devices
    assert sorted(index[weight == 1].tolist()) == list(range(45))
    assert set(weight.flatten().tolist()) == {0.0, 1.0}
    for rows, real, bucket in zip(index, weight, number, strict=True):
        assert set(rows[real == 1].tolist()) <= set(buckets.rows[bucket].tolist())
    assert len(number) == TrainData({"x": np.zeros(45)}, 4, False, buckets).steps_per_epoch
    assert number.tolist() != sorted(number.tolist())  # in random order


def test_the_order_is_a_function_of_the_key():
    orders = [bucketed_order(jax.random.key(k), some_buckets(), 4, 1) for k in (0, 0, 1)]
    assert_same(*orders[:2])
    assert not np.array_equal(orders[0][0], orders[2][0])


@pytest.mark.parametrize("model", [{}, {"attention": "dot", "bidirectional": True}])
def test_what_is_cropped_off_changes_nothing(model):
    """Compares loss, gradients and metrics of a batch, with dropout on."""
    rates = {"input_dropout": (0.3,), "decoder_output_dropout": (0.3,), "token_dropout": 0.3}
    data = {"max_source_length": 11, "max_target_length": 12}
    text = make_pairs(data=data, **rates, **model).text
    params, batch = random_params(text), batch_of(text)
    keys = row_keys(jax.random.key(1), 5)
    lengths = {name: x.tolist() for name, x in text.lengths(batch).items()}
    assert lengths == {"source": [3, 3, 1, 6, 2], "target": [4, 6, 3, 5, 3]}
    cut = find_buckets(text.lengths(batch), 1, 5).crop(batch, 0)
    assert (cut["source"].shape, cut["target"].shape) == ((5, 6), (5, 6))

    def loss(params, batch):
        metrics = token_metrics(text, text.logits(params, batch, keys), batch, 0.1)
        return metrics["loss"].total, (metrics["loss"], metrics["cross_entropy"])

    grad = jax.jit(jax.grad(loss, has_aux=True))
    assert_close(grad(params, cut), grad(params, batch))


def text_loop(kind: str, num_devices: int, is_cropped: bool = True):
    """Returns the loop of a small text model in three buckets, a new state, and steps per epoch."""
    config = tiny_config("cafe_chatbot", num_buckets=3, batch_size=4, num_devices=num_devices)
    setup = make_setup(make_task(config), config)
    buckets = setup.data.buckets
    assert buckets.num_buckets == 3
    if not is_cropped:
        full = {name: x.shape[1] for name, x in setup.data.rows.items()}
        buckets = buckets._replace(lengths=(full,) * 3)
    optimizer = make_optimizer(
        **{**config.optim, "name": "momentum", "learning_rate": 0.1},
        steps_per_epoch=5,
        num_updates=10,
    )
    data = setup.data._replace(buckets=buckets)
    options = LoopOptions(max_steps=20, num_epochs=2)
    loop = LOOPS[kind](setup.task.loss_and_metrics, optimizer, data, setup.mesh, options)
    params = jax.jit(setup.task.init)(jax.random.key(0))
    state = shard(init_train_state(params, optimizer), make_mesh(num_devices), WHOLE)
    return loop, state, data.steps_per_epoch


@cache
def trained(kind: str, num_devices: int, calls=(6,), is_cropped: bool = True):
    loop, state, per_epoch = text_loop(kind, num_devices, is_cropped)
    assert per_epoch == 3
    for num_steps in calls:
        place = Place(*divmod(int(state.step), per_epoch))
        state, _ = loop(state, make_keys(0), place, num_steps)
    return jax.device_get(state.params)


@pytest.mark.slow
def test_training_in_buckets_is_training_at_full_width():
    """Compares two epochs of both loops, on one and two devices."""
    expected = trained("epoch", 1, is_cropped=False)
    for kind, num_devices in (("epoch", 1), ("step", 1), ("epoch", 2)):
        assert_close(trained(kind, num_devices), expected)


def test_the_bits_do_not_depend_on_the_calls():
    assert_same(trained("epoch", 1, calls=(1, 3, 2)), trained("epoch", 1))


def test_a_run_tells_its_shapes_and_its_padding(tmp_path, capsys):
    config = tiny_config("cafe_chatbot", num_buckets=3, batch_size=4)
    fit(make_task(config), config, tmp_path / "run")
    assert "3 length buckets of source + target: " in capsys.readouterr().out


def test_the_share_of_padding_is_that_of_the_rows():
    lengths = {"source": np.array([2, 2, 6]), "target": np.array([1, 3, 9])}
    line = find_buckets(lengths, 2, 1).describe(lengths)
    # 23 positions are real, of 2 (2 + 3) + 15 in two buckets and of 3 * 15 in one.
    assert line == (
        "2 length buckets of source + target: 2 + 3, 6 + 9; "
        "padding 8.0% of all positions, 48.9% in one bucket"
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_buckets": 0}, "train.num_buckets=0 must be at least 1"),
        (
            {"num_buckets": 2, "drop_remainder": True},
            "train.num_buckets=2 needs train.drop_remainder=False: each bucket has a remainder",
        ),
        ({"microbatch_size": -1}, "train.microbatch_size=-1 must be at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    config = tiny_config("cafe_chatbot", **settings)
    with pytest.raises(UserError, match=message):
        make_setup(make_task(config), config)


def test_rows_that_cannot_be_cut_are_refused():
    config = linear_config(num_buckets=2)
    with pytest.raises(
        UserError, match="num_buckets=2: this task does not crop rows to their lengths"
    ):
        make_setup(linear_task(), config)


def test_padding_that_is_read_cannot_be_cut():
    for data, loss in (({"source_padding": "pre"}, {}), ({}, {"mask_padding": False})):
        config = tiny_config("reverse").unlock()
        config.data.update(data)
        config.loss.update(loss)
        assert not make_task(config).lengths
    assert set(make_task(tiny_config("reverse")).lengths) == {"source", "target"}
