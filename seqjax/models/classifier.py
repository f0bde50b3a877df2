"""Models of a sequence that predict one class, or a tag at every step."""

from collections.abc import Mapping
from typing import Any

from flax import nnx

from seqjax.nn.layers import Dense
from seqjax.nn.stack import make_stack
from seqjax.typing import Features, Lengths, Logits, RowKeys


class Classifier(nnx.Module):
    """A stack and a dense layer, which maps the output at the last valid step to logits."""

    def __init__(
        self,
        *,
        num_classes: int,
        output_kernel_init: str,
        output_bias_init: str,
        compute_dtype: str = "float32",
        rngs: nnx.Rngs,
        **stack: Any,  # options of make_stack
    ):
        self.stack = make_stack(compute_dtype=compute_dtype, rngs=rngs, **stack)
        self.output = Dense(
            self.stack.output_size,
            num_classes,
            kernel_init=output_kernel_init,
            bias_init=output_bias_init,
            compute_dtype=compute_dtype,
            rngs=rngs,
        )

    def __call__(
        self,
        xs: Features,
        *,
        lengths: Lengths | None = None,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> Logits:
        """Returns logits `[B, C]`; `keys` and `rates` are as in `Stack`."""
        return self.output(self.stack(xs, lengths=lengths, keys=keys, rates=rates).last)

    def every_step(self, xs: Features, *, lengths: Lengths | None = None) -> Logits:
        """Returns logits `[B, T, C]` for every prefix of the sequence."""
        return self.output(self.stack(xs, lengths=lengths).sequence)


class Tagger(Classifier):
    """A stack and a dense layer, which maps the output at every step to logits."""

    def __call__(
        self,
        xs: Features,
        *,
        lengths: Lengths | None = None,
        keys: RowKeys | None = None,
        rates: Mapping[str, Any] | None = None,
    ) -> Logits:
        """Returns logits `[B, T, C]`, which have no meaning at padded steps.

        `keys` and `rates` are as in `Stack`.
        """
        return self.output(self.stack(xs, lengths=lengths, keys=keys, rates=rates).sequence)
