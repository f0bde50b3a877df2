"""Speed beside Keras, PyTorch and Flax: the same weights, the same data, the same machine."""
