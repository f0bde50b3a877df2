"""Tasks: rows and labels as they should be, padding without influence, pictures that show."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict
from support.toys import assert_picture, few_digits, tiny_config

from seqjax.config import text_pairs_config
from seqjax.data import images
from seqjax.data.images import load_mnist
from seqjax.data.text_files import TAGS, load_tagged_sentences, load_words, word_ids
from seqjax.distributed.mesh import make_mesh
from seqjax.errors import UserError
from seqjax.hparams import HParams
from seqjax.metrics import compute_means
from seqjax.nn.dropout import row_keys
from seqjax.tasks import base, mnist_rows, recall, word_completion
from seqjax.tasks import tagging as tagging_task
from seqjax.tasks.registry import TASKS, make_task
from seqjax.training.setup import Evaluator

PICTURES = {  # of each config, and what else is written
    "mnist_rows": {"confusion.png", "misread.png"},
    "recall": set(),
    "reverse": {"lengths.png", "attention.png", "abstention.json"},
    "svo_tagging": {"steps.png"},
    "word_translation": {"lengths.png", "abstention.json"},
    "word_completion": {"steps.png"},
}


@pytest.fixture
def few_images(monkeypatch):
    monkeypatch.setattr(images, "load_mnist", few_digits)


@pytest.fixture
def seen_inputs(monkeypatch):
    """The arrays that tasks give to their models, which are none: their logits are all zero."""
    inputs = []

    def fake_functional(make_module):
        def bind(params):
            def module(xs, *, lengths=None, keys=None, rates=None):
                inputs.append(np.asarray(xs))
                return jnp.zeros((*xs.shape[:1], 3)) + params["w"]

            return module

        return lambda key: {"w": jnp.zeros(())}, bind

    monkeypatch.setattr(base, "functional", fake_functional)
    return inputs


def fresh_params(task, seed: int = 0):
    return jax.jit(task.init)(jax.random.key(seed))


def full_batch(task, split: str, num_rows: int | None = None) -> dict:
    rows = {name: jnp.asarray(value[:num_rows]) for name, value in task.splits[split].items()}
    return rows | {"weight": jnp.ones(len(next(iter(rows.values()))))}


@pytest.mark.parametrize("name", PICTURES)
def test_a_task_measures_predicts_and_shows(name, tmp_path, few_images):
    task = make_task(tiny_config(name))
    params = fresh_params(task)
    evaluator = Evaluator(task.loss_and_metrics, task.predict, 8, make_mesh(1))
    for key in (None, jax.random.key(0)):
        metrics = evaluator.metrics(params, task.splits["train"], key)
        assert {"loss", task.main_metric} <= set(metrics)
        assert all(np.isfinite(value) for value in metrics.values())
        # Weights are fresh: the loss is about that of guessing.
        assert metrics["loss"] < 4
        assert 0 <= metrics["accuracy"] <= metrics.get("top5_accuracy", 1.0) <= 1
    for split, rows in task.splits.items():
        assert len({len(value) for value in rows.values()}) == 1, split
    lines = task.show_examples(
        params, lambda split: evaluator.predict(params, task.splits[split]), tmp_path
    )
    assert lines and all(line and "\n" not in line for line in lines)
    assert {path.name for path in tmp_path.iterdir()} == PICTURES[name]
    for picture in tmp_path.glob("*.png"):
        assert_picture(picture)


@pytest.mark.parametrize("name", sorted(PICTURES.keys() - {"word_translation"}))  # as reverse
def test_hparams_replace_the_numbers_of_the_config(name, few_images):
    """A task whose loss forgot one would train all trials of a sweep with the first one's."""

    def task_with(value: float):
        config = tiny_config(name).unlock()
        for field in make_task(config).hparams:
            section, option = field.split(".")
            is_tuple = isinstance(config[section][option], tuple)
            config[section][option] = (value,) if is_tuple else value
        return make_task(config.lock())

    some, other = task_with(0.2), task_with(0.5)
    params, batch = fresh_params(some), full_batch(some, "train", 2)
    keys, step = row_keys(jax.random.key(1), 2), jnp.int32(0)

    @jax.jit
    def loss(hparams):
        return some.loss_and_metrics(params, batch, keys, step, hparams)["loss"].total

    def hparams(values: dict[str, float]) -> HParams:
        arrays = HParams({}, {})
        for field, value in values.items():
            section, option = field.split(".")
            getattr(arrays, section)[option] = jnp.float32(value)
        return arrays

    before = dict.fromkeys(some.hparams, 0.2)
    expected = jax.jit(lambda: other.loss_and_metrics(params, batch, keys, step)["loss"].total)()
    replaced = loss(hparams(dict.fromkeys(some.hparams, 0.5)))
    np.testing.assert_allclose(replaced, expected, rtol=1e-6)  # float32, two programs
    for field in some.hparams:
        assert loss(hparams(before | {field: 0.5})) != loss(hparams(before)), field


def test_every_task_has_a_test_above():
    assert {tiny_config(name).task for name in PICTURES} == set(TASKS)


def test_an_unknown_task_is_one_line_with_the_nearest_name():
    with pytest.raises(UserError, match="unknown task 'recal': did you mean 'recall'"):
        make_task(ConfigDict({"task": "recal"}))


# mnist_rows


def load_images(**options):
    data = {"name": "mnist", "valid_size": 5_000, "split_seed": 0}
    return images.load_images(**data | options, tfds_data_dir="", tfds_manual_dir="")


def test_mnist_has_55000_5000_and_10000_images_as_shipped():
    splits, names = load_images()
    assert names == [str(digit) for digit in range(10)]
    sizes = {split: rows["image"].shape for split, rows in splits.items()}
    assert sizes == {
        "train": (55_000, 28, 28),
        "valid": (5_000, 28, 28),
        "test": (10_000, 28, 28),
    }
    shipped = load_mnist()
    np.testing.assert_array_equal(splits["test"]["image"], shipped["x_test"])
    np.testing.assert_array_equal(splits["test"]["label"], shipped["y_test"])
    # Sums of pixels and labels: nothing of the 60,000 is lost or there twice.
    for name, x in (("image", shipped["x_train"]), ("label", shipped["y_train"])):
        parts = [splits[split][name] for split in ("train", "valid")]
        assert sum(part.sum(dtype=np.int64) for part in parts) == x.sum(dtype=np.int64)
    assert splits["train"]["label"].dtype == np.int32


def test_validation_images_depend_on_the_seed_alone(few_images):
    source = few_digits()
    valid = []
    for seed in (0, 0, 1):
        splits, _ = load_images(valid_size=10, split_seed=seed)
        numbers = {split: rows["image"][:, 0, 0] for split, rows in splits.items()}
        assert sorted([*numbers["train"], *numbers["valid"]]) == list(range(24))
        for split in ("train", "valid"):
            np.testing.assert_array_equal(splits[split]["image"], source["x_train"][numbers[split]])
            np.testing.assert_array_equal(splits[split]["label"], numbers[split] % 10)
        np.testing.assert_array_equal(splits["test"]["image"], source["x_test"])
        valid.append(tuple(numbers["valid"]))
    assert valid[0] == valid[1] != valid[2]


def test_models_read_rows_of_pixels_between_0_and_1(few_images, seen_inputs):
    task = make_task(tiny_config("mnist_rows"))
    batch = full_batch(task, "test")
    batch["image"] = batch["image"].at[0, 0, 1].set(255).at[0, 0, 2].set(0)
    task.predict(task.init(jax.random.key(0)), batch)
    (xs,) = seen_inputs
    assert xs.dtype == np.float32 and (xs[0, 0, 1], xs[0, 0, 2]) == (1.0, 0.0)
    np.testing.assert_allclose(xs * 255, batch["image"], rtol=1e-6)  # one float32 division


def test_without_validation_there_is_no_such_split(few_images):
    splits, _ = load_images(valid_size=0)
    assert set(splits) == {"train", "test"}


def test_an_unknown_image_set_is_refused():
    with pytest.raises(UserError, match="unknown data.name 'mnits': write mnist, or tfds:NAME"):
        load_images(name="mnits")


def test_tfds_images_become_rows_with_all_channels(monkeypatch):
    image = np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3)
    rows = {"image": image, "label": np.arange(6) % 2}
    sets = images.ImageSets({"train": rows, "test": rows}, ["cat", "dog"])
    monkeypatch.setattr(images, "load_tfds", lambda name, *, data_dir, manual_dir: sets)
    splits, names = load_images(name="tfds:pets", valid_size=2)
    assert names == ["cat", "dog"]
    assert {split: part["image"].shape for split, part in splits.items()} == {
        "train": (4, 4, 15),
        "valid": (2, 4, 15),
        "test": (6, 4, 15),
    }
    np.testing.assert_array_equal(splits["test"]["image"], image.reshape(6, 4, 15))


def test_misread_images_are_counted_and_named(tmp_path):
    rows = {"image": few_digits()["x_test"], "label": np.arange(16) % 10}
    said = rows["label"].copy()
    said[[0, 10]] = 7  # both zeros
    said[3] = 5
    logits = np.eye(10)[said]
    names = [f"<{digit}>" for digit in range(10)]
    lines = mnist_rows.show_errors(rows, logits, names, tmp_path)
    assert lines[0].startswith("3 of 16 misread")
    assert lines[1].strip() == "<0> read as <7>: 2 times"
    assert lines[2].strip().startswith("<3> read as <5>: 1 time")
    assert len(lines) == 3
    lines = mnist_rows.show_errors(rows, np.eye(10)[rows["label"]], names, tmp_path)
    assert lines[0].startswith("0 of 16 misread") and len(lines) == 1


# recall


def test_recall_asks_for_the_first_symbol(monkeypatch):
    def perfect(make_module):
        return lambda key: {"w": jnp.zeros(())}, lambda params: lambda xs, **_: 9 * xs[:, 0]

    monkeypatch.setattr(base, "functional", perfect)
    task = make_task(tiny_config("recall"))
    measure = jax.jit(lambda batch: dict(task.loss_and_metrics({}, batch, None)))
    for split in ("train", "valid", "test"):
        assert compute_means(measure(full_batch(task, split)))["accuracy"] == 1.0


def test_recalls_sequences_are_a_function_of_the_seed():
    options = dict(num_symbols=4, num_distractors=6, num_sequences=50)
    first, again, other = (recall.make_sequences(**options, split_seed=s) for s in (0, 0, 1))
    assert {split: rows["symbols"].shape for split, rows in first.items()} == {
        "train": (30, 7),
        "valid": (10, 7),
        "test": (10, 7),
    }
    assert set(np.unique(first["train"]["symbols"])) == set(range(4))
    np.testing.assert_array_equal(first["test"]["symbols"], again["test"]["symbols"])
    assert not np.array_equal(first["test"]["symbols"], other["test"]["symbols"])


@pytest.mark.parametrize("field", ["num_symbols", "num_distractors", "num_sequences", "split_seed"])
def test_recalls_numbers_have_limits(field):
    config = tiny_config("recall")
    config.data[field] = -1
    with pytest.raises(UserError, match=f"data.{field}=-1"):
        make_task(config)


def test_recall_has_a_test_split_even_of_few_sequences(tmp_path):
    options = dict(num_symbols=2, num_distractors=0, split_seed=0)
    splits = recall.make_sequences(**options, num_sequences=5)
    assert {split: len(rows["symbols"]) for split, rows in splits.items()} == {
        "train": 3,
        "valid": 1,
        "test": 1,
    }
    with pytest.raises(UserError, match="data.num_sequences=4"):  # show needs a test split
        recall.make_sequences(**options, num_sequences=4)


# word_completion


def words_of(rows) -> list[str]:
    letters = np.concatenate([rows["letters"], rows["target"][:, None]], axis=1)
    return ["".join(chr(ord("a") + letter) for letter in word) for word in letters]


@given(valid=st.sampled_from([0.0, 0.15, 0.5]), seed=st.integers(0, 5))
def test_words_are_split_whole_and_the_held_out_ones_are_others(valid, seed):
    splits = word_completion.load_split_words(
        name="common",
        held_out="tutorial",
        valid_share=valid,
        test_share=0.2,
        max_megabytes=1.0,
        split_seed=seed,
    )
    words = {split: words_of(rows) for split, rows in splits.items()}
    held_out = words.pop("held_out")
    assert sorted(chain.from_iterable(words.values())) == sorted(load_words("common"))
    assert len(words.get("valid", [])) == round(valid * 566)
    assert held_out == load_words("tutorial")  # none of which is common


def test_held_out_words_leave_out_what_is_trained_on(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("wood\nmoon\nkiss\n", encoding="utf-8")
    shares = dict(valid_share=0.0, test_share=0.0, split_seed=0)
    options = dict(name="tutorial", max_megabytes=1.0, **shares)
    splits = word_completion.load_split_words(**options, held_out=str(path))
    assert words_of(splits["held_out"]) == ["moon"]
    assert words_of(splits["train"]) == load_words("tutorial")
    assert set(word_completion.load_split_words(**options, held_out="")) == {"train"}
    for text in ("wood\nkiss\n", "sun\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=r"held_out=.* has no other words as long as 'word'"):
            word_completion.load_split_words(**options, held_out=str(path))


def test_completions_say_what_is_right(tmp_path):
    splits = {"train": {"letters": np.array([[2, 0], [3, 14]]), "target": np.array([19, 6])}}
    logits = np.zeros((2, 2, 26))
    logits[:, 1, 19] = 9  # "t", which makes "cat" and, wrongly, "dot"
    lines = word_completion.show_completions(splits, lambda split: logits, tmp_path)
    assert lines[0] == "train:"
    assert "ca_ -> cat" in lines[1] and lines[1].endswith("right")
    assert "do_ -> dot" in lines[2] and lines[2].endswith("wrong, dog")


# svo_tagging


@pytest.fixture(scope="module")
def tagging():
    config = tiny_config("svo_tagging").copy_and_resolve_references().unlock()
    config.model.bidirectional = True  # whose backward half meets the padding first
    config.model.output_dropout = (0.3,)
    return make_task(config)


def test_padding_changes_neither_loss_nor_gradient_nor_logits(tagging):
    batch = full_batch(tagging, "held_out", 6)
    assert len(set(batch["length"].tolist())) > 1
    keys = jax.random.split(jax.random.key(1), 6)

    @jax.jit
    def everything(params, batch):
        def loss(params):
            metrics = tagging.loss_and_metrics(params, batch, keys)
            return metrics["loss"].total, metrics

        return jax.grad(loss, has_aux=True)(params), tagging.predict(params, batch)

    # What stands in the padding must not matter either: words, unknown words, other tags.
    pad = jnp.array([[2, 0, 1]] * 6)
    padded = batch | {name: jnp.hstack([batch[name], pad]) for name in ("word", "tag")}
    params = fresh_params(tagging)
    (grads, metrics), logits = everything(params, batch)
    (padded_grads, padded_metrics), padded_logits = everything(params, padded)
    width = batch["word"].shape[1]
    real = np.arange(width) < np.asarray(batch["length"])[:, None]
    np.testing.assert_allclose(padded_logits[:, :width][real], logits[real], rtol=1e-6, atol=1e-6)
    # Float32 sums, fused otherwise for the other shape.
    close = jax.tree.map(
        lambda x, y: np.allclose(x, y, rtol=1e-5, atol=1e-6),
        (padded_grads, padded_metrics),
        (grads, metrics),
    )
    assert all(jax.tree.leaves(close)), close


def test_unknown_words_are_zero_vectors_and_known_ones_one_hot(seen_inputs):
    task = make_task(tiny_config("svo_tagging"))
    ids = word_ids(load_tagged_sentences("tutorial"))
    held_out = task.splits["held_out"]
    task.predict(task.init(jax.random.key(0)), held_out)
    (xs,) = seen_inputs
    assert xs.shape == (*held_out["word"].shape, len(ids))
    np.testing.assert_array_equal(xs.sum(axis=-1), held_out["word"] > 0)
    np.testing.assert_array_equal(
        xs.argmax(axis=-1)[held_out["word"] > 0] + 1, held_out["word"][held_out["word"] > 0]
    )


@given(seed=st.integers(0, 5))
def test_sentence_splits_are_disjoint_and_complete(seed):
    sentences = tagging_task.load_split_sentences(
        name="everyday",
        held_out="tutorial",
        valid_share=0.15,
        test_share=0.15,
        max_megabytes=1.0,
        split_seed=seed,
    )
    assert {split: len(part) for split, part in sentences.items()} == {
        "train": 252,
        "valid": 54,
        "test": 54,
        "held_out": 2,
    }
    parts = (sentences[split] for split in ("train", "valid", "test"))
    assert sorted(chain.from_iterable(parts)) == sorted(load_tagged_sentences("everyday"))


def test_test_words_can_be_unknown():
    task = make_task(tiny_config("svo_tagging", "large"))
    sentences = tagging_task.load_split_sentences(**tiny_config("svo_tagging", "large").data)
    trained = {word for words, _ in sentences["train"] for word in words}
    unknown = 0
    for split, part in sentences.items():
        rows = task.splits[split]
        for row, (words, tags) in enumerate(part):
            ids = rows["word"][row, : len(words)]
            assert [number > 0 for number in ids] == [word in trained for word in words]
            assert [TAGS[tag] for tag in rows["tag"][row, : len(tags)]] == list(tags)
            unknown += sum(ids == 0) if split == "test" else 0
    assert unknown > 0
    assert task.splits["train"]["word"].min(where=task.splits["train"]["word"] > 0, initial=9) > 0


def test_shown_tags_are_counted(tmp_path):
    sentences = {"train": [(("cats", "eat", "fish"), ("S", "V", "O"))]}
    logits = 9 * np.eye(3)[[[0, 1, 1, 2]]]  # the fourth step is padding
    lines = tagging_task.show_tags(sentences, lambda split: logits, tmp_path)
    assert lines[0] == "train:"
    assert "cats/S 1.00 eat/V 1.00 fish/V 1.00" in lines[1]
    assert lines[1].endswith("(2 of 3 right)")
    assert_picture(tmp_path / "steps.png")


@pytest.mark.parametrize("name", ["mnist_rows", "recall", "svo_tagging", "word_completion"])
def test_a_field_of_another_type_is_named(name):
    for field in tiny_config(name).data:
        config = tiny_config(name).to_dict()
        config["data"][field] = None
        with pytest.raises(UserError, match=f"data.{field}=None is not of type "):
            make_task(ConfigDict(config))


def test_data_larger_than_memory_is_refused_at_once():
    config = tiny_config("recall").to_dict()
    config["data"]["num_sequences"] = 10**12
    with pytest.raises(UserError, match="this machine has .* GB: lower data.num_sequences or "):
        make_task(ConfigDict(config))
    pairs = text_pairs_config("tutorial_words").to_dict()
    pairs["data"]["max_source_length"] = 10**12
    with pytest.raises(UserError, match="data.max_source_length=1000000000000, .* takes "):
        make_task(ConfigDict(pairs))
