"""cafe"""

from seqjax.config import choose_variant, text_pairs_config


def get_config(variant: str = "default"):
    config = text_pairs_config("cafe")
    config.model.embed_size = 256
    config.model.hidden_size = 256
    config.model.bidirectional = True
    config.model.attention = "general"
    config.model.token_dropout = 0.2
    config.model.input_dropout = (0.5,)
    config.model.decoder_output_dropout = (0.5,)
    config.data.valid_share = 0.1
    config.data.test_share = 0.1
    config.data.source_vocabulary = "unigram(size=1500)"
    config.data.target_vocabulary = "whitespace"
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.train.batch_size = 64
    config.train.num_epochs = 25
    config.train.patience = 10
    return choose_variant(config, variant, VARIANTS)


def faithful(config):
    """As the tutorial: Okt's words, 2,000 of them, on both sides, 64 positions, nothing masked, of
    which most are padding; 399 training pairs. Needs the extra `okt`."""
    config.model.embed_size = 128
    config.model.hidden_size = 512
    config.model.bidirectional = False
    config.model.attention = "none"
    config.model.token_dropout = 0.0
    config.model.input_dropout = (0.0,)
    config.model.decoder_output_dropout = (0.0,)
    config.data.valid_share = 0.0
    config.data.test_share = 0.2
    config.data.train_size = 399
    config.data.source_vocabulary = 'words(num_words=1997, unknown=False, analyzer="okt")'
    config.data.target_vocabulary = ""
    config.data.max_source_length = 64
    config.data.max_target_length = 65
    config.data.source_padding = "pre"
    config.data.vocab_size = 2000
    config.loss.mask_padding = False
    config.optim.name = "keras_adam"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.train.batch_size = 32
    config.train.num_epochs = 200
    config.train.monitor = "epoch"
    config.train.patience = 0


VARIANTS = (faithful,)
