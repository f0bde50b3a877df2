"""wiki"""

from seqjax.config import choose_variant, text_pairs_config


def get_config(variant: str = "default"):
    config = text_pairs_config("wiki")
    config.model.embed_size = 128
    config.model.hidden_size = 128
    config.model.bidirectional = True
    config.model.attention = "dot"
    config.data.valid_share = 0.1
    config.data.test_share = 0.1
    config.data.source_vocabulary = "unigram(size=1500)"
    config.data.target_vocabulary = "whitespace"
    config.train.num_epochs = 40
    return choose_variant(config, variant, VARIANTS)


def faithful(config):
    """As the tutorial: 50 units, words, nothing masked, rmsprop."""
    config.model.embed_size = 50
    config.model.hidden_size = 50
    config.model.bidirectional = False
    config.model.attention = "none"
    config.data.valid_share = 0.0
    config.data.test_share = 0.2
    config.data.source_vocabulary = "words(unknown=False)"
    config.data.target_vocabulary = "words(unknown=False)"
    config.loss.mask_padding = False
    config.optim.name = "rmsprop"
    config.train.batch_size = 128
    config.train.num_epochs = 100
    config.train.monitor = "epoch"


VARIANTS = (faithful,)
