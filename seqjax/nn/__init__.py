"""Cells, unrolling over time and its backends, layers, stacks, attention and dropout."""
