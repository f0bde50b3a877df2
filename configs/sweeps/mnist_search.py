"""Optuna's search on MNIST: 24 trials of --config=configs/mnist_rows.py:lstm, 8 at a time."""

from seqjax.sweeps.space import Search, choice, integer, log_uniform, uniform


def get_sweep():
    return Search(
        {
            "optim.learning_rate": log_uniform(1e-4, 1e-2),
            "model.hidden_size": choice(64, 96, 128),
            "model.num_layers": integer(1, 2),
            "model.input_dropout": choice((0.0,), (0.2,)),
            "optim.clip_norm": uniform(0.5, 5.0),
        },
        num_trials=24,
        batch_size=8,
    )
