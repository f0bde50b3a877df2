"""Constraints, sampling and beam search over any `decode_step`."""
