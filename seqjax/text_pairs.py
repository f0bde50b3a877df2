"""Text pairs as a config describes them: the data by split and the model between the texts.

Imports: data.corpus, data.vocabulary, text_metrics, text_model.
"""

from pathlib import Path
from typing import NamedTuple

from seqjax.data.corpus import Part, load_corpus
from seqjax.data.vocabulary import Vocabulary
from seqjax.errors import UserError
from seqjax.text_metrics import Answers, answers_by_intent
from seqjax.text_model import TextModel

VOCABULARY, SOURCE_VOCABULARY = "vocabulary.json", "source_vocabulary.json"


class TextPairs(NamedTuple):
    """What chat and training need of a config alike."""

    parts: dict[str, Part]
    answers: Answers  # by intent, of all splits; empty without labels
    text: TextModel
    ask: tuple[str, ...]  # questions without answers, to be tried at the end

    def save(self, directory: Path) -> None:
        """Writes the vocabularies."""
        self.text.target.save(directory / VOCABULARY)
        if self.text.source is not self.text.target:
            self.text.source.save(directory / SOURCE_VOCABULARY)


def load_text_pairs(config, directory: Path | None = None) -> TextPairs:
    """The data and the model of a config; vocabularies come from the run in `directory`, if there.

    Raises UserError for data that cannot be used, and for a trained run without its vocabulary.
    """
    data, loss = dict(config.data), dict(config.loss)
    loss.pop("label_smoothing")
    specs = data.pop("source_vocabulary"), data.pop("target_vocabulary")
    ask = data.pop("ask")
    lengths = ("max_source_length", "max_target_length")
    text_options = {
        name: data.pop(name) for name in (*lengths, "source_padding", "vocab_size", "boundaries")
    }
    parts = load_corpus(**data)
    train = parts["train"]
    source, target = _vocabularies(specs, train, directory)
    longest = (
        max(1, *(len(source.encode(text)) for text in train.sources)),
        max(1, *(len(target.encode(text)) for text in train.targets))
        + 2 * text_options["boundaries"],
    )
    for name, length in zip(lengths, longest, strict=True):
        text_options[name] = text_options[name] or length
    model, decode = dict(config.model), dict(config.decode)
    text = TextModel(source, target, model, decode, **text_options, **loss)
    return TextPairs(parts, answers_by_intent(parts.values()), text, ask)


def _vocabularies(
    specs: tuple[str, str], train: Part, directory: Path | None
) -> tuple[Vocabulary, Vocabulary]:
    """Source's and target's; one for both where the target's spec is ""."""
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
