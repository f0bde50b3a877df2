"""Pictures: PNG files that are not empty, for data of every size, and that show differences."""

import matplotlib.text
import numpy as np
import pytest
from support.toys import assert_picture

import seqjax.plots
from seqjax.errors import one_line
from seqjax.inference.responder import AttentionMap
from seqjax.plots import (
    draw_attention,
    draw_confusion,
    draw_curves,
    draw_lengths,
    draw_misread,
    draw_steps,
)

rng = np.random.default_rng(0)


def make_records(num_epochs: int, every: int = 1) -> list[dict]:
    """Records with validation metrics in every `every`-th epoch."""
    return [
        {"epoch": epoch, "train": {"loss": 1 / epoch, "accuracy": 0.5}}
        | ({} if epoch % every else {"valid": {"loss": 2 / epoch, "accuracy": 0.25}})
        for epoch in range(1, num_epochs + 1)
    ]


@pytest.mark.parametrize("records", [make_records(1), make_records(60, 100)])
def test_curves(records, tmp_path):
    draw_curves(records, ("loss", "accuracy"), tmp_path / "curves.png")
    assert_picture(tmp_path / "curves.png")


@pytest.mark.parametrize("num_classes", [2, 5])
def test_confusion(num_classes, tmp_path):
    counts = rng.integers(9, size=(num_classes, num_classes))
    names = [f"class {i}" for i in range(num_classes)]
    draw_confusion(counts, names, tmp_path / "some.png")
    draw_confusion(np.diag(counts.diagonal()), names, tmp_path / "none.png")
    for name in ("some.png", "none.png"):
        assert_picture(tmp_path / name)
    assert (tmp_path / "some.png").read_bytes() != (tmp_path / "none.png").read_bytes()


@pytest.mark.parametrize("num_images", [1, 9])
def test_misread_images(num_images, tmp_path):
    images = rng.integers(256, size=(num_images, 8, 8), dtype=np.uint8)
    draw_misread(images, ["4"] * num_images, ["9"] * num_images, tmp_path / "misread.png")
    assert_picture(tmp_path / "misread.png")


def test_no_misread_image_is_an_empty_sheet(tmp_path):
    draw_misread(np.zeros((0, 8, 8)), [], [], tmp_path / "misread.png")
    assert (tmp_path / "misread.png").stat().st_size > 0


@pytest.mark.parametrize("lengths", [(1,), (4, 3, 2, 5, 1)])
def test_steps(lengths, tmp_path):
    tables = [rng.dirichlet(np.ones(3), size=length) for length in lengths]
    steps = [[f"step {i}" for i in range(length)] for length in lengths]
    draw_steps(tables, steps, ("S", "V", "O"), tmp_path / "steps.png")
    assert_picture(tmp_path / "steps.png")


def look(source: str, target: str) -> AttentionMap:
    weights = rng.dirichlet(np.ones(len(source)), size=len(target))
    return AttentionMap(weights, list(source), list(target))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_attention(count, tmp_path):
    looks = [look("▁라떼▁있어요?", "네, 有-é가"), look("x", "y"), look("여▁는▁시간", "z")]
    draw_attention(looks[:count], tmp_path / "attention.png")  # a missing glyph is a warning
    assert_picture(tmp_path / "attention.png")


# A formula, half a formula, an escape, control characters, a right-to-left override, a lone
# surrogate, and characters that no font has.
HOSTILE = ["$x^2$", "$\\frac{", "\\$ $ \\", "a\nb\x00\x1b[2J", "\u202ex", "\ud800", "😀\uffff", ""]


def drawn(monkeypatch, draw, *arguments) -> list[str]:
    """The texts of the picture as they are drawn."""
    texts = []

    def collect(figure, path):
        save(figure, path)
        for text in figure.findobj(matplotlib.text.Text):
            shown, is_math = text._preprocess_math(text.get_text())
            assert not is_math
            texts.append(shown)

    save = seqjax.plots.save_figure
    monkeypatch.setattr(seqjax.plots, "save_figure", collect)
    draw(*arguments)
    return texts


def test_texts_are_shown_as_they_are_written(tmp_path, monkeypatch):
    table, path = np.eye(len(HOSTILE)), tmp_path / "any.png"
    images = np.zeros((len(HOSTILE), 4, 4))
    seen = [one_line(text) for text in HOSTILE]
    for draw, *arguments in (
        (draw_attention, [AttentionMap(table, HOSTILE, HOSTILE)]),
        (draw_steps, [table], [HOSTILE], ["a"] * len(HOSTILE)),
        (draw_confusion, table.astype(int), HOSTILE),
    ):
        texts = drawn(monkeypatch, draw, *arguments, path)
        monkeypatch.undo()
        assert set(seen) <= set(texts)
        assert_picture(path)
    titles = drawn(monkeypatch, draw_misread, images, HOSTILE, HOSTILE, path)
    assert {f"{text}, read {text}" for text in seen} <= set(titles)


def test_a_picture_of_a_long_text_shows_its_beginning(tmp_path, monkeypatch):
    tokens = [f"{i}" for i in range(5000)]
    tokens[1] = "x" * 9999
    table = np.ones((5000, 5000), np.float32) / 5000
    for draw, *arguments in (
        (draw_attention, [AttentionMap(table, tokens, tokens)]),
        (draw_steps, [table[:, :3]], [tokens], ["a", "b", "c"]),
    ):
        texts = drawn(monkeypatch, draw, *arguments, tmp_path / "long.png")
        monkeypatch.undo()
        assert {"99", "x" * 40 + "…"} <= set(texts)
        assert "100" not in texts
        assert_picture(tmp_path / "long.png")


def test_hangul_is_drawn_letter_by_letter(tmp_path):
    for name, letters in (("a.png", "가나다"), ("b.png", "가나라"), ("c.png", "가나다")):
        same = AttentionMap(np.eye(3), list(letters), list("abc"))
        draw_attention([same], tmp_path / name)
    a, b, c = ((tmp_path / name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert a == c != b


@pytest.mark.parametrize("lengths", [[1], [0, 3, 3, 12]])
def test_lengths(lengths, tmp_path):
    draw_lengths(lengths, lengths[::-1], 5, 14, tmp_path / "lengths.png")
    assert_picture(tmp_path / "lengths.png")


def test_equal_data_make_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        draw_curves(make_records(3), ("loss",), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
