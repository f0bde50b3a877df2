"""Dropout x attention of the cafe chatbot: 12 trials of --config=configs/cafe_chatbot.py."""

from seqjax.sweeps.space import product, zipped


def get_sweep():
    rates = [0.0, 0.25, 0.5]
    return product(
        {"model.attention": ["none", "dot", "general", "additive"]},
        zipped(
            {
                "model.input_dropout": [(rate,) for rate in rates],
                "model.decoder_output_dropout": [(rate,) for rate in rates],
            }
        ),
    )
