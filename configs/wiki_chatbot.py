"""Korean questions of general knowledge: bidirectional LSTM(256), attention, one embedding for all.

    for seed in 0 1 2 3 4; do python -m experiments.train --config=configs/wiki_chatbot.py \\
        --config.seed=$seed --workdir=runs/wiki-$seed; done

Intent accuracy, the share of replies that answer the question's fact, on 211 held-out paraphrases:
0.882 (0.863 to 0.910; 5 seeds). Baselines on the same: the answer of the training question that is
nearest by TF-IDF of character n-grams 0.877, the most frequent answer 0.000. The margin over the
nearest question is small: with thirteen paraphrases a fact, most questions have a close neighbour.
Trains in 265 s on two CPU cores.

`faithful`, 5 seeds: after 100 epochs no reply is the very answer, not of a training question
either; accuracy on those counting padding 67.6 % (61.7 to 72.8), of real tokens 44.4 %. These
figures, and those of the default, are of `python -m experiments.reproduce`.
"""

from seqjax.config import choose_variant, text_pairs_config


def get_config(variant: str = "default"):
    config = text_pairs_config("wiki")
    config.model.embed_size = 256
    config.model.hidden_size = 256
    config.model.bidirectional = True
    config.model.attention = "general"
    # An answer repeats words of its question: what is learnt of a word serves both sides.
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
    """As the tutorial: 50 units, words, nothing masked, rmsprop."""
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
