"""Models: NNX modules from sequences to logits. Imports: layers, stack, dropout."""
