"""Cell x hidden size x learning rate on MNIST: 18 trials of --config=configs/mnist_rows.py."""

from seqjax.sweeps.space import product


def get_sweep():
    return product(
        {
            "model.cell": ["simple_rnn", "lstm", "gru"],
            "model.hidden_size": [64, 128],
            "optim.learning_rate": [0.0003, 0.001, 0.003],
        }
    )
