"""A finished run, ready to be talked to."""

from pathlib import Path

import jax

from seqjax.distributed.devices import start_jax
from seqjax.errors import UserError
from seqjax.inference.calibration import load_abstention
from seqjax.inference.responder import Responder
from seqjax.runs.signals import say
from seqjax.runs.workdir import load_run_config
from seqjax.tasks.seq2seq import make_seq2seq_task
from seqjax.tasks.seq2seq_data import load_seq2seq_data
from seqjax.training.fit import restore_best
from seqjax.training.setup import make_setup


def load_responder(workdir: Path, abstain: bool = True) -> Responder:
    """The best weights of a run of text pairs, answering; one that never abstains on request.

    Raises UserError for a directory that holds no run, or one of another kind.
    """
    config = load_run_config(workdir, say)
    if config.task != "text_pairs":
        raise UserError(f"{workdir} is a run of {config.task}: only one of text_pairs can answer")
    start_jax(config.train)
    pairs = load_seq2seq_data(config, workdir)
    params, _ = restore_best(make_setup(make_seq2seq_task(pairs, config), config), workdir)
    abstention = load_abstention(workdir) if abstain else None
    return pairs.responder(jax.device_get(params), abstention)
