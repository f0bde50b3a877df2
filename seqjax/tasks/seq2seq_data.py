"""The data and the model of a sequence-to-sequence task, loaded as its config says."""

from pathlib import Path
from typing import Any, NamedTuple

from seqjax.data.parallel_text import Split, load_corpus
from seqjax.data.vocabulary import Vocabulary
from seqjax.decoding.constraints import DecodeOptions
from seqjax.errors import UserError, keywords
from seqjax.inference.calibration import Abstention
from seqjax.inference.responder import Responder
from seqjax.inference.text_metrics import Answers, answers_by_intent
from seqjax.models.seq2seq import Seq2Seq
from seqjax.models.text_to_text import TextToText
from seqjax.nn.stack import make_stack
from seqjax.parameters import check_memory
from seqjax.tasks.base import RUN_OPTIONS, check_section, model_options
from seqjax.typing import Params

VOCABULARY, SOURCE_VOCABULARY = "vocabulary.json", "source_vocabulary.json"
_LOSS_FIELDS = ("label_smoothing", "scheduled_sampling", "mask_padding")
# The arguments of Seq2Seq and make_stack that no config gives.
_PASSED_TO_MODEL = (
    *("source_vocab_size", "target_vocab_size", "rngs", *RUN_OPTIONS),
    *("input_size", "output_dropout", "reads", "part"),
)


class Seq2SeqData(NamedTuple):
    """The data and the model that training and chat share."""

    splits: dict[str, Split]
    answers: Answers  # by intent, of all splits; empty without labels
    text: TextToText
    ask: tuple[str, ...]  # questions without answers, to be tried at the end

    def save_fitted(self, directory: Path) -> list[Path]:
        """Writes the vocabularies and returns their paths."""
        vocabularies = {directory / VOCABULARY: self.text.target}
        if self.text.source is not self.text.target:
            vocabularies[directory / SOURCE_VOCABULARY] = self.text.source
        for path, vocabulary in vocabularies.items():
            vocabulary.save(path)
        return list(vocabularies)

    def responder(self, params: Params, abstention: Abstention | None = None) -> Responder:
        """Returns a responder, which answers single texts with these parameters."""
        return Responder(self.text, self.splits["train"], self.answers, params, abstention)


def load_seq2seq_data(config, directory: Path | None = None) -> Seq2SeqData:
    """Returns the data and the model of a config.

    Vocabularies are read from the run in `directory` if it has them. Raises UserError for data that
    cannot be used, for a trained run without its vocabulary, and for missing or unknown fields.
    """
    passed = ("directory", "model", "decode", "loss")
    check_section(config, "data", keywords(_make_pairs, load_corpus, passed=passed))
    check_section(config, "model", keywords(Seq2Seq, make_stack, passed=_PASSED_TO_MODEL))
    of_decoder = keywords(DecodeOptions, passed=("max_length", "ids"))
    check_section(config, "decode", {"decoder": True} | of_decoder)
    check_section(config, "loss", dict.fromkeys(_LOSS_FIELDS, True))
    sections: dict[str, Any] = {name: dict(config[name]) for name in ("decode", "loss")}
    return _make_pairs(directory, model_options(config), **sections, **config.data)


def _make_pairs(
    directory: Path | None,
    model: dict[str, Any],
    *,
    decode: dict[str, Any],
    loss: dict[str, Any],
    source_vocabulary: str,
    target_vocabulary: str,
    max_source_length: int,
    max_target_length: int,
    source_padding: str,
    vocab_size: int,
    boundaries: bool,
    ask: tuple[Any, ...],
    pairs: tuple[Any, ...],
    **corpus: Any,
) -> Seq2SeqData:
    if not all(isinstance(question, str) for question in ask):
        raise UserError(f"data.ask={ask!r} must hold texts: write ('question', ...)")
    if not all(isinstance(pair, tuple) and all(isinstance(t, str) for t in pair) for pair in pairs):
        raise UserError("data.pairs must hold pairs of texts: write (('source', 'target'), ...)")
    splits = load_corpus(pairs=pairs, **corpus)
    train = splits["train"]
    source, target = _vocabularies((source_vocabulary, target_vocabulary), train, directory)
    longest_source = max(1, *(len(source.encode(text)) for text in train.sources))
    longest_target = max(1, *(len(target.encode(text)) for text in train.targets)) + 2 * boundaries
    text = TextToText(
        source,
        target,
        model,
        max_source_length=_length("source", max_source_length, longest_source, len(train.sources)),
        max_target_length=_length("target", max_target_length, longest_target, len(train.targets)),
        source_padding=source_padding,
        vocab_size=vocab_size,
        boundaries=boundaries,
        **decode,
        **{name: value for name, value in loss.items() if name != "label_smoothing"},
    )
    return Seq2SeqData(splits, answers_by_intent(splits.values()), text, ask)


def _length(side: str, wanted: int, longest: int, num_texts: int) -> int:
    """Returns the number of tokens to which texts are padded.

    Raises UserError for a negative number and for more than fits into memory.
    """
    field = f"data.max_{side}_length={wanted}"
    if wanted < 0:
        raise UserError(f"{field} must be at least 0, which is the longest of the training texts")
    num_bytes = 32 * num_texts * (length := wanted or longest)
    check_memory(num_bytes, f"{field}, {length} tokens a text,", "set a lower one")
    return length


def _vocabularies(
    specs: tuple[str, str], train: Split, directory: Path | None
) -> tuple[Vocabulary, Vocabulary]:
    """Returns the vocabularies of the source and the target, twice the same if specs[1] is ""."""
    shared = not specs[1]
    if directory and (directory / VOCABULARY).exists():
        target = Vocabulary.load(directory / VOCABULARY)
        return target if shared else Vocabulary.load(directory / SOURCE_VOCABULARY), target
    if directory and (directory / "checkpoints").exists():
        raise UserError(
            f"{directory / VOCABULARY} is gone: restore it, or train in a new --workdir"
        )
    if shared:
        both = Vocabulary.fit(specs[0], [*train.sources, *train.targets])
        return both, both
    return Vocabulary.fit(specs[0], train.sources), Vocabulary.fit(specs[1], train.targets)
