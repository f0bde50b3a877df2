"""A sequence to one class at every step: part-of-speech tags."""

from seqjax.array_types import Features, Lengths, Logits, RowKeys
from seqjax.models.classifier import Classifier


class Tagger(Classifier):
    """A stack's output at every step, through a dense layer to logits."""

    def __call__(
        self, xs: Features, *, lengths: Lengths | None = None, keys: RowKeys | None = None
    ) -> Logits:
        """Logits `[B, T, C]`; those of padding mean nothing."""
        return self.output(self.stack(xs, lengths=lengths, keys=keys).sequence)
