"""The last letter of a four-letter word from its first three."""

from seqjax.config import base_config, choose_variant


def get_config(variant: str = "default"):
    config = base_config("word_completion")
    config.model.hidden_size = 64
    config.model.num_layers = 2
    config.model.output_dropout = (0.5, 0.0)
    # Larger than usual: thirty steps are few, and these words must be told apart in all of them.
    config.model.kernel_init = "normal(0.7)"
    config.model.output_kernel_init = "normal(0.7)"
    config.data = {
        "name": "tutorial",  # ten words; or common, or a .txt file of one word a line
        "held_out": "common",  # words never trained on; "" for none
        "valid_share": 0.0,
        "test_share": 0.0,
        "split_seed": 0,
    }
    config.optim.learning_rate = 0.01
    config.train.batch_size = 10
    config.train.num_epochs = 30
    config.train.monitor = "epoch"  # ten words leave nothing to choose weights by
    config.train.checkpoint_every_epochs = 30
    config.train.num_devices = 1  # too small to share: two cores would wait for each other
    return choose_variant(config, variant, VARIANTS)


def faithful(config):
    """As the tutorial: TF1's initial weights and Adam, and figures with dropout still alive."""
    config.model.kernel_init = "joined_glorot_uniform"
    config.model.recurrent_init = "joined_glorot_uniform"
    config.model.output_kernel_init = "normal(1)"
    config.model.output_bias_init = "normal(1)"
    config.optim.name = "keras_adam(eps=1e-8)"
    config.train.dropout_at_test = True


def large(config):
    """566 common words, split; the tutorial's ten are held out."""
    config.data.name = "common"
    config.data.held_out = "tutorial"
    config.data.valid_share = 0.15
    config.data.test_share = 0.15
    config.optim.learning_rate = 0.003
    config.train.batch_size = 32
    config.train.num_epochs = 60
    config.train.monitor = "valid.loss"


VARIANTS = (faithful, large)
