"""The runs that the ledger reads, trained when they are first asked for: all seeds of a config by
one program.

Everything is computed from finished run directories, `NAME-VARIANT/seed-N`; what is there is never
trained again.
"""

import re
import shutil
from collections.abc import Callable, Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError
from seqjax.files import read_json
from seqjax.runs.signals import say
from seqjax.runs.workdir import CONFIG, ENVIRONMENT, RESULT
from seqjax.sweeps.results import LiveTable
from seqjax.sweeps.sweep import GROUPS, divide, train_groups
from seqjax.tasks.base import Task
from seqjax.tasks.registry import make_task
from seqjax.tasks.seq2seq_data import Seq2SeqData
from seqjax.training.fit import restore_best
from seqjax.training.logger import Record, read_records
from seqjax.training.setup import make_setup
from seqjax.training.trials import Trial
from seqjax.typing import Params

# Seeds: fewer of what takes minutes each.
FEW = {"mnist_rows": 5, "cafe_chatbot": 5, "wiki_chatbot": 5}
MANY = 32
_REMEDY = "remove it, or give a new --workdir"

GetConfig = Callable[[str, str], ConfigDict]  # (name, variant) -> config


class Spec(NamedTuple):
    """A config, its variant, and the fields that are set otherwise."""

    config: str
    variant: str = "default"
    changes: tuple[tuple[str, Any], ...] = ()

    @property
    def command(self) -> str:
        """What trains one seed of it."""
        variant = "" if self.variant == "default" else f":{self.variant}"
        fields = [f" --config.{name}={value!r}" for name, value in self.changes]
        command = f"python -m experiments.train --config=configs/{self.config}.py{variant}"
        return f"{command}{''.join(fields)} --config.seed=0"

    @property
    def directory(self) -> str:
        """The name of the directory of its trials."""
        parts = [self.config, self.variant, *(f"{value}" for _, value in self.changes)]
        return re.sub(r"[^\w=.-]+", "_", "-".join(parts))


def train_trials(configs: Sequence[ConfigDict], directory: Path) -> list[Path]:
    """A finished run directory for each config, in order; they differ in their seeds only.

    What is finished is not trained again; the others are trained together, or go on. Raises as
    `train_groups` does, and UserError for a trial that failed or a directory of another config.
    """
    workdirs = [directory / f"seed-{config.seed}" for config in configs]
    trials = [Trial(*pair) for pair in zip(configs, workdirs, strict=True)]
    for trial in trials:
        if trial.has_ended and read_json(trial.directory / CONFIG) != as_json(trial.config):
            raise UserError(f"{trial.directory} holds a run of another config: {_REMEDY}")
    if left := [trial for trial in trials if not trial.has_ended]:
        say(f"{directory.name}: {len(left)} of {len(trials)} seeds to train, in one program")
        whole = divide(trials, 1, directory / GROUPS)  # goes on also where it began to end
        groups = whole if whole[0].workdir.exists() else divide(left, 1, directory / GROUPS)
        with LiveTable(lambda: left, directory / GROUPS) as table:
            train_groups(groups, table.look)
        shutil.rmtree(directory / GROUPS)
    for trial in trials:
        if reason := trial.failure():
            raise UserError(f"{trial.directory} failed: {reason}; {_REMEDY}")
    return workdirs


class Trials:
    """The finished trials of one config, by seed."""

    def __init__(self, configs: Sequence[ConfigDict], workdirs: Sequence[Path]):
        self.configs, self.workdirs = configs, workdirs

    @cached_property
    def results(self) -> list[dict[str, Any]]:
        """Each one's result.json."""
        return [read_json(workdir / RESULT) for workdir in self.workdirs]

    @cached_property
    def records(self) -> list[list[Record]]:
        """Each one's metrics.jsonl."""
        return [read_records(workdir / "metrics.jsonl") for workdir in self.workdirs]

    @cached_property
    def commits(self) -> list[str]:
        """Of seqjax, where they were trained in a checkout."""
        found = (read_json(workdir / ENVIRONMENT).get("commit") for workdir in self.workdirs)
        return sorted({commit for commit in found if commit})

    @cached_property
    def task(self) -> Task:
        """The task of all trials, which differ in their seeds only."""
        return make_task(self.configs[0], self.workdirs[0])

    @property
    def pairs(self) -> Seq2SeqData:
        """The texts and the model of trials of text pairs."""
        return self.task.data

    @cached_property
    def reply(self) -> Callable[..., Any]:
        """`TextToText.replies`, compiled once for all trials and questions."""
        return jax.jit(self.pairs.text.replies)

    @cached_property
    def logits(self) -> Callable[..., Any]:
        """`TextToText.logits`, likewise."""
        return jax.jit(self.pairs.text.logits)

    @cached_property
    def params(self) -> list[Params]:
        """Each one's best weights."""
        both = zip(self.configs, self.workdirs, strict=True)
        return [restore_best(make_setup(self.task, config), workdir)[0] for config, workdir in both]


class TrialSet:
    """Configs, tasks and trials, each made once, when a figure first asks for it."""

    def __init__(self, get_config: GetConfig, directory: Path, most_seeds: int = MANY):
        self.directory, self.most_seeds = directory, most_seeds
        self._get_config = get_config
        self.used: list[Spec] = []  # of which there are trials
        self.flags = ""  # what the command chose, in words
        # Caches of this study's own, not of the class.
        self.task: Callable[[Spec], Task] = cache(lambda spec: make_task(self.config(spec)))
        self.trials: Callable[[Spec], Trials] = cache(self._train)

    def pairs(self, spec: Spec) -> Seq2SeqData:
        """The texts and the model of a spec of text pairs."""
        return self.task(spec).data

    def config(self, spec: Spec, seed: int = 0) -> ConfigDict:
        """The locked config of a spec."""
        config = self._get_config(spec.config, spec.variant)
        config.update_from_flattened_dict(dict(spec.changes))
        config.seed = seed
        return config.lock()

    def num_seeds(self, spec: Spec) -> int:
        """How many trials a spec has."""
        return min(self.most_seeds, FEW.get(spec.config, MANY))

    def _train(self, spec: Spec) -> Trials:
        configs = [self.config(spec, seed) for seed in range(self.num_seeds(spec))]
        workdirs = train_trials(configs, self.directory / spec.directory)
        self.used.append(spec)
        return Trials(configs, workdirs)
