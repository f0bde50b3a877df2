"""cafe"""
from seqjax.config import choose_variant, text_pairs_config


def get_config(variant: str = "default"):
    config = text_pairs_config("cafe")
    config.model.embed_size = 128
    config.model.hidden_size = 128
    config.model.bidirectional = True
    config.model.attention = "dot"
    config.data.valid_share = 0.1
    config.data.test_share = 0.1
    config.data.source_vocabulary = "characters"
    config.data.target_vocabulary = "words"
    config.train.num_epochs = 30
    return choose_variant(config, variant, VARIANTS)


VARIANTS = ()
