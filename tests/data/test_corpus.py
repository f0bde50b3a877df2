"""Corpora: splits share no source, depend on the seed alone, and keep labels with their pairs."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seqjax.data.parallel_text import (
    SHIPPED,
    SHIPPED_LABELS,
    load_corpus,
    read_labels,
    read_pairs,
)
from seqjax.errors import UserError


def load(pairs=(), **options):
    """The splits of pairs, or of a corpus."""
    fields = {"name": "", "labels": "", "form": "lines", "source_column": "", "target_column": ""}
    numbers = {"valid_share": 0.0, "test_share": 0.0, "train_size": 0, "split_seed": 0}
    file = {"encoding": "utf-8", "max_megabytes": 1.0}
    return load_corpus(pairs=pairs, **fields | file | numbers | options)


def rows_of(split):
    return list(zip(split.sources, split.targets, strict=True))


# Pairs whose sources recur and whose targets are numbered, so that each pair is distinct.
corpora = st.lists(st.integers(0, 8), min_size=8, max_size=16).map(
    lambda sources: [(f"q{source}", f"a{i}") for i, source in enumerate(sources)]
)
shares = st.sampled_from([0.0, 0.1, 0.25, 0.4])


@given(pairs=corpora, valid=shares, test=shares, seed=st.integers(0, 3))
def test_parts_are_all_pairs_in_file_order_and_share_no_source(pairs, valid, test, seed):
    num_sources = len(dict(pairs))
    if round(valid * num_sources) + round(test * num_sources) >= num_sources:
        return
    splits = load(pairs, valid_share=valid, test_share=test, split_seed=seed)
    sources = {name: set(split.sources) for name, split in splits.items()}
    assert sum(map(len, sources.values())) == len(set().union(*sources.values())) == num_sources
    for split, share in (("valid", valid), ("test", test)):
        assert len(sources.get(split, ())) == round(share * num_sources)
    assert Counter(row for split in splits.values() for row in rows_of(split)) == Counter(pairs)
    for split in splits.values():
        assert rows_of(split) == [pair for pair in pairs if pair[0] in split.sources]
        assert split.labels == []


def test_the_split_is_a_function_of_the_seed_alone():
    pairs = [(f"q{i}", f"a{i}") for i in range(30)]
    options = {"valid_share": 0.2, "test_share": 0.2, "train_size": 9}
    first, again, other = (load(pairs, **options, split_seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert all(first[split] != other[split] for split in ("train", "valid", "test"))


@given(pairs=corpora, size=st.integers(1, 40))
def test_train_size_limits_the_training_pairs_only(pairs, size):
    whole = load(pairs, test_share=0.25)
    some = load(pairs, test_share=0.25, train_size=size)
    assert some.get("test") == whole.get("test")
    kept, rest = rows_of(some["train"]), iter(rows_of(whole["train"]))
    assert len(kept) == min(size, len(whole["train"].sources))
    assert all(pair in rest for pair in kept)  # in order


def test_labels_follow_their_pairs(tmp_path):
    path = tmp_path / "labels.txt"
    pairs = [(f"q{i % 11}", f"a{i}") for i in range(20)]
    path.write_text("".join(f"label of a{i}\n" for i in range(20)), encoding="utf-8")
    splits = load(pairs, labels=str(path), valid_share=0.2, test_share=0.2, train_size=6)
    assert [len(splits[split].labels) > 0 for split in ("train", "valid", "test")] == [True] * 3
    for split in splits.values():
        assert split.labels == [f"label of {target}" for target in split.targets]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_pairs_come_once_and_no_answer_has_two_labels(name):
    pairs = read_pairs(name)
    assert len(pairs) == len(set(pairs))
    labels = read_labels("", name, len(pairs))
    assert len(labels) == (len(pairs) if name in SHIPPED_LABELS else 0)
    intents = {}
    for label, (_, answer) in zip(labels, pairs, strict=bool(labels)):
        assert intents.setdefault(answer, label) == label
    assert all(count > 1 for count in Counter(labels).values())


def test_pairs_in_a_config_have_no_corpus_labels():
    assert load((("hi", "안녕"),), name="cafe")["train"].labels == []
    assert load(name="words")["train"].labels == []


PAIRS = (("a", "b"), ("c", "d"), ("e", "f"))


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"valid_share": 1.0}, r"data.valid_share=1.0 must be in \[0, 1\)"),
        ({"test_share": -0.1}, r"data.test_share=-0.1 must be in \[0, 1\)"),
        ({"valid_share": 0.5, "test_share": 0.5}, "cannot hold out 4 of 3 rows"),
        ({"train_size": -1}, "data.train_size=-1 must be at least 0"),
        ({"split_seed": -1}, "data.split_seed=-1"),
        ({"pairs": ()}, "cannot read the pairs "),
        ({"pairs": (("a", " "),)}, "pair 1: the target is empty"),
        ({"pairs": ("ab",)}, "pair 1: 'ab' is not two texts"),
        ({"labels": "nowhere.txt"}, "nowhere.txt"),
    ],
)
def test_a_corpus_that_cannot_be_is_one_line(options, complaint):
    with pytest.raises(UserError, match=complaint) as caught:
        load(**{"pairs": PAIRS} | options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("x\ny\n", "2 labels, 0 of them empty, for 3 pairs; write one line per pair"),
        ("x\n\ny\n", "3 labels, 1 of them empty, for 3 pairs"),
        ("", "0 labels"),
    ],
)
def test_labels_that_do_not_fit_are_one_line(text, complaint, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=complaint) as caught:
        read_labels(str(path), "", 3)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
