"""Korean questions of general knowledge: bidirectional LSTM(256), attention, one embedding.

    for seed in 0 1 2 3 4; do python -m experiments.train --config=configs/wiki_chatbot.py \\
        --config.seed=$seed --workdir=runs/wiki-$seed; done

Intent accuracy (the share of replies that state the fact that the question asks for) on 211
held-out paraphrases is 0.886 (0.872 to 0.886; 5 seeds). Two baselines reach 0.877 (the answer to
the most similar training question, by TF-IDF of character n-grams) and 0.000 (the most frequent
answer). The margin over the first is small: with thirteen paraphrases of each fact, most questions
have a close neighbour. Training takes 265 s on two CPU cores.

`faithful`, 5 seeds: after 100 epochs no reply is exactly right, not even to a training question. On
training questions the accuracy is 64.7 % (61.9 to 65.5) counting padding and 39.4 % on real tokens.
`python -m experiments.reproduce` reproduces these figures and those of the default.
"""

from seqjax.config import choose_variant, text_pairs_config


def get_config(variant: str = "default"):
    config = text_pairs_config("wiki")
    config.model.embed_size = 256
    config.model.hidden_size = 256
    config.model.bidirectional = True
    config.model.attention = "general"
    # An answer repeats words of its question, so both sides share what is learnt about a word.
    config.model.share_embeddings = True
    config.model.tie_output = True
    config.model.token_dropout = 0.3
    config.model.input_dropout = (0.3,)
    config.model.encoder_output_dropout = (0.2,)
    config.model.decoder_output_dropout = (0.5,)
    config.data.valid_share = 0.1
    config.data.test_share = 0.1
    config.data.source_vocabulary = "unigram(size=2500)"
    config.optim.learning_rate = 3e-3
    config.optim.schedule = "cosine"
    config.train.batch_size = 64
    config.train.num_epochs = 60
    config.train.monitor = "valid.sequence_accuracy"  # a fact has one answer: right or wrong
    config.train.monitor_mode = "max"
    return choose_variant(config, variant, VARIANTS)


def faithful(config):
    """As in the tutorial: 50 units, words as tokens, padding not masked, rmsprop."""
    config.model.embed_size = 50
    config.model.hidden_size = 50
    config.model.bidirectional = False
    config.model.attention = "none"
    config.model.share_embeddings = False
    config.model.tie_output = False
    config.model.token_dropout = 0.0
    config.model.input_dropout = (0.0,)
    config.model.encoder_output_dropout = (0.0,)
    config.model.decoder_output_dropout = (0.0,)
    config.data.valid_share = 0.0
    config.data.test_share = 0.2
    config.data.source_vocabulary = "words(unknown=False)"
    config.data.target_vocabulary = "words(unknown=False)"
    config.loss.mask_padding = False
    config.optim.name = "rmsprop"
    config.optim.learning_rate = 1e-3
    config.optim.schedule = "constant"
    config.train.batch_size = 128
    config.train.num_epochs = 100
    config.train.monitor = "epoch"
    config.train.monitor_mode = "min"


VARIANTS = (faithful,)
