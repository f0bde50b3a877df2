"""Sizes that the tests of `nn/` share, so that equal programs are compiled once."""

B, T, I, H = 4, 6, 3, 5  # noqa: E741 - batch, time, input, hidden
