"""How work is divided: the rule beside measured times, the user's file, the config's own fields."""

import json

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toys import linear_config, linear_task

from seqjax.config import base_config
from seqjax.distributed import choices
from seqjax.distributed.choices import (
    Choice,
    Shape,
    choices_file,
    choose,
    choose_by_rule,
    save_choice,
)
from seqjax.distributed.devices import has_avx512
from seqjax.errors import UserError
from seqjax.training.setup import task_shape

OPEN = base_config("").train
# Milliseconds of a train step on one device and on two (AMD EPYC with AVX-512, two cores, 32 rows
# at once or all, medians of five turns): (batch size, time steps, width), with AVX-512, limited to
# AVX2. Of configs, only with AVX-512.
MEASURED = [
    ((8, 64, 512), (69.3, 53.1), (106, 99.2)),
    ((32, 64, 512), (222, 212), (354, 372)),
    ((128, 64, 512), (743, 719), (1470, 1210)),
    ((10, 3, 64), (0.073, 0.357), (0.089, 0.368)),
    ((32, 28, 128), (2.51, 1.74), (4.22, 3.15)),
    ((64, 28, 128), (4.93, 3.06), (8.01, 6.01)),
    ((512, 28, 128), (39.2, 22.6), (63.4, 45.1)),
    ((32, 64, 256), (19.9, 13.1), (30.7, 25.6)),
    ((128, 64, 256), (93.2, 50.1), (124, 96.6)),
    ((8, 64, 128), (1.61, 1.31), (3.65, 2.31)),
    ((16, 64, 128), (2.90, 2.02), (5.04, 3.75)),
    ((64, 64, 64), (4.26, 2.59), (6.61, 4.39)),
    ((64, 64, 512), (101, 88.3), (199, 182)),
    ((32, 64, 1024), (208, 238), (416, 483)),
    ((32, 10, 64), (1.26, 2.08), None),  # reverse
    ((32, 65, 512), (189, 168), None),  # cafe_chatbot:faithful
    ((64, 28, 256), (97.4, 94.7), None),  # wiki_chatbot
]
MOST_LOST = 1.12  # of the best time: the worst that the rule may choose of these


@pytest.fixture(autouse=True)
def own_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def on_two_cores(monkeypatch, avx512: bool) -> None:
    monkeypatch.setattr(jax, "device_count", lambda: 2)
    monkeypatch.setattr(choices, "has_avx512", lambda: avx512)


@pytest.mark.parametrize("avx512", [True, False])
def test_the_rule_takes_the_faster_number_of_devices(avx512, monkeypatch):
    on_two_cores(monkeypatch, avx512)
    for sizes, *times in MEASURED:
        if found := times[0 if avx512 else 1]:
            chosen = choose_by_rule(Shape(*sizes, num_parameters=1))
            assert found[chosen.num_devices - 1] <= MOST_LOST * min(found), sizes


@given(st.builds(Shape, *[st.integers(1, 5000)] * 4), st.integers(1, 64), st.booleans())
def test_the_rule_can_be_followed(shape, available, avx512):
    with pytest.MonkeyPatch.context() as patch:
        on_two_cores(patch, avx512)
        patch.setattr(jax, "device_count", lambda: available)
        choice = choose_by_rule(shape)
    assert 1 <= choice.num_devices <= min(available, shape.batch_size)
    assert choice.microbatch_size >= 1


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            Choice(1, 32, "rule"),
            "1 device, gradients of 32 rows of a device at once (by rule)",
        ),
        (Choice(8, 0, "rule"), "8 devices, gradients of all rows of a device at once (by rule)"),
        (
            Choice(2, 1, "measurement"),
            "2 devices, gradients of 1 row of a device at once (by measurement)",
        ),
    ],
)
def test_a_choice_is_told(choice, line):
    assert choice.describe() == line


def test_accelerators_share_each_batch(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert choose_by_rule(Shape(1, 1, 1, 1)) == Choice(jax.device_count(), 0, "rule")


@pytest.mark.parametrize(
    ("flags", "xla_flags", "expected"),
    [
        ({"avx2", "avx512f"}, "", True),
        ({"avx2", "avx512f"}, "--xla_cpu_max_isa=AVX2", False),
        ({"avx2", "avx512f"}, "--a=b --xla_cpu_max_isa=AVX512 --c", True),
        ({"avx2"}, "", False),
    ],
)
def test_xla_may_be_kept_from_using_avx512(flags, xla_flags, expected, monkeypatch):
    monkeypatch.setattr("seqjax.distributed.devices.cpu_flags", lambda: flags)
    monkeypatch.setenv("XLA_FLAGS", xla_flags)
    assert has_avx512() == expected


def test_what_was_measured_is_chosen_for_shapes_of_its_class_only(monkeypatch):
    measured = Choice(3, 5, "measurement")
    shape = Shape(64, 28, 128, 80_000)
    save_choice(shape, measured)
    save_choice(Shape(64, 28, 1024, 80_000), Choice(1, 1, "measurement"))
    assert choose(shape, OPEN) == choose(Shape(70, 25, 120, 90_000), OPEN) == measured
    other = Shape(128, 28, 128, 80_000)
    assert choose(other, OPEN) == choose_by_rule(other)
    monkeypatch.setattr(choices, "has_avx512", lambda: not has_avx512())  # another machine
    assert choose(shape, OPEN) == choose_by_rule(shape)


def test_fields_of_the_config_come_first_and_then_what_a_run_kept():
    shape = task_shape(linear_task(), linear_config())
    assert shape == Shape(7, 6, 3, 21)  # rows; features as steps; classes; kernel and bias
    save_choice(shape, Choice(3, 5, "measurement"))
    kept = Choice(2, 4, "rule")
    assert choose(shape, OPEN, kept) == kept
    assert choose(shape, OPEN, Choice(99, 4, "rule")) == Choice(3, 5, "measurement")  # too many
    own = linear_config(num_devices=1, microbatch_size=0).train
    assert choose(shape, own, kept) == Choice(1, 4, "rule")
    own = linear_config(num_devices=1, microbatch_size=6).train
    assert choose(shape, own, kept) == Choice(1, 6, "config")


@pytest.mark.parametrize(
    "found", ["[1]", '{"a": 1}', '{"a": {"b": {"num_devices": 0, "microbatch_size": 1}}}', "{"]
)
def test_a_damaged_file_is_told(found):
    choices_file().parent.mkdir(parents=True)
    choices_file().write_text(found, encoding="utf-8")
    with pytest.raises(UserError, match=r"choices\.json is damaged"):
        choose(Shape(1, 1, 1, 1), OPEN)


def test_the_file_keeps_what_was_measured_elsewhere():
    save_choice(Shape(1, 1, 1, 1), Choice(1, 2, "measurement"))
    found = json.loads(choices_file().read_text())
    found["another machine"] = {"batch_size 1": {"num_devices": 7, "microbatch_size": 0}}
    choices_file().write_text(json.dumps(found), encoding="utf-8")
    save_choice(Shape(1, 1, 1, 1), Choice(2, 3, "measurement"))
    again = json.loads(choices_file().read_text())
    assert again["another machine"] == found["another machine"] and len(again) == 2
    assert choose(Shape(1, 1, 1, 1), OPEN) == Choice(2, 3, "measurement")
