"""Translates six English words into Korean, letter by letter: SimpleRNN(128), 100 epochs.

    for seed in $(seq 0 31); do python -m experiments.train --config=configs/word_translation.py \\
        --config.seed=$seed --workdir=runs/words-$seed; done

Encoder and decoder are a SimpleRNN(128) each. All six words are right with 32 of 32 seeds, decoded
one letter after the other without dropout; the tutorial feeds padding, as long as the word, instead
of the letters that the decoder has predicted. Replies to words that it was not taught (seed 0,
score in nats): wodr -> 단어 (-0.01), loev -> 사랑 (0.00), abcd -> 소녀 (0.00). By the score alone,
all three would be trusted. Confidence also counts how similar a question is to the six words: a
chat gives none of the three replies with any of the 32 seeds.

`faithful`, 32 seeds: all six words are right with every seed, also with dropout switched on. Median
loss at epochs 1, 6, 11, ..., 46, and that of the tutorial's single run:
    ours      3.776 0.459 0.165 0.078 0.020 0.012 0.004 0.003 0.003 0.002
    tutorial  3.790 0.276 0.172 0.068 0.025 0.008 0.002 0.005 0.001 0.001
`large`, 5 seeds: all 140 training pairs are right but none of 30 unseen ones, because a word does
not show how other words translate. A run takes 6 s on two CPU cores.
"""

from seqjax.config import choose_variant, text_pairs_config


def get_config(variant: str = "default"):
    config = text_pairs_config("tutorial_words")
    config.model.cell = "simple_rnn"
    config.model.embed_size = 0
    config.model.hidden_size = 128
    config.data.ask = ("wodr", "loev", "abcd")
    config.optim.learning_rate = 0.01
    config.train.batch_size = 6
    config.train.num_epochs = 100
    config.train.eval_every_epochs = 5
    config.train.monitor = "epoch"  # six words leave none for validation
    config.train.checkpoint_every_epochs = 100
    return choose_variant(config, variant, VARIANTS)


def faithful(config):
    """As in the tutorial: dropout on the decoder, TF1's initial weights and Adam, 41 symbols, and a
    decoder that is fed padding instead of its own predictions."""
    config.model.kernel_init = "joined_glorot_uniform"
    config.model.recurrent_init = "joined_glorot_uniform"
    config.model.decoder_output_dropout = (0.5,)
    config.data.vocab_size = 41
    config.decode.decoder = "fed_padding"
    config.optim.name = "keras_adam(eps=1e-8)"
    config.train.dropout_at_test = True


def large(config):
    """200 common words, split into training, validation and test."""
    config.data.name = "words"
    config.data.valid_share = 0.15
    config.data.test_share = 0.15
    config.model.cell = "lstm"
    config.model.embed_size = 64
    config.train.batch_size = 32
    config.train.num_epochs = 60
    config.train.eval_every_epochs = 1
    config.train.monitor = "epoch"  # the validation loss is lowest before any pair is learnt


VARIANTS = (faithful, large)
