"""A finished run, ready to be talked to. Imports: config, fit, respond, tasks."""

from pathlib import Path

import jax

from seqjax.abstain import load_abstention
from seqjax.errors import UserError
from seqjax.fit import restore_best
from seqjax.launch import start_jax
from seqjax.respond import Responder
from seqjax.run_directory import load_run_config
from seqjax.setup import make_setup
from seqjax.stop_signals import say
from seqjax.tasks.text_pairs import task_of_pairs
from seqjax.text_pairs import load_text_pairs


def load_responder(workdir: Path, abstain: bool = True) -> Responder:
    """The best weights of a run of text pairs, answering; one that never abstains on request.

    Raises UserError for a directory that holds no run, or one of another kind.
    """
    config = load_run_config(workdir, say)
    if config.task != "text_pairs":
        raise UserError(f"{workdir} is a run of {config.task}: only one of text_pairs can answer")
    start_jax(config.train)
    pairs = load_text_pairs(config, workdir)
    params, _ = restore_best(make_setup(task_of_pairs(pairs, config), config), workdir)
    responder = Responder(pairs, jax.device_get(params))
    responder.abstention = load_abstention(workdir) if abstain else None
    return responder
