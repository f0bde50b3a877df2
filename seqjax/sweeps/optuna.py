"""A sweep whose trials Optuna proposes, a batch at a time.

Its study, which all workers share, is the list of its trials. A worker without a group to train
tells the study the results so far and asks for a batch.
"""

import time
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from seqjax.config import as_json
from seqjax.errors import UserError, brief
from seqjax.runs.workdir import lock_workdir
from seqjax.sweeps import sweep
from seqjax.sweeps.results import LiveTable, read_outcome, shared_objective
from seqjax.sweeps.space import Changes, Distribution, Search
from seqjax.training.programs import group_key
from seqjax.training.trials import Trial

IDENTITY, BATCH = "sweep", "batch"  # user attributes: of a study, of a trial


def run_search(
    config: ConfigDict,
    search: Search,
    directory: Path,
    *,
    num_groups: int = 1,
    storage: str = "",
    study: str = "seqjax",
    workers: sweep.Workers | None = None,
) -> list[Trial]:
    """Trains proposals that no other worker trains until the search has its number of trials.

    `storage` is `sqlite:///FILE` or `journal:FILE`, by default a journal in the directory; the
    other options are those of `run_sweep`. The proposals of a single worker follow from the
    config's seed. Raises UserError, before anything is asked, for a search or a storage that cannot
    be used, and for a study or directory of another sweep.
    """
    configs = [config, *search.tried(config)]
    shared_objective(configs)
    for tried in configs:
        group_key(tried)  # for its errors
    space = {name: list(own) for name, own in search.space.items()}
    settings = {"config": as_json(config), "space": space, "storage": storage, "study": study}
    with sweep.begin_sweep(directory, settings, num_groups) as saved:
        shared = Study(config, search, directory, saved)
    groups = directory / sweep.GROUPS
    with LiveTable(lambda: [*chain(*shared.batches())], groups) as table:
        if workers:
            workers(table.look)
        while True:
            with lock_workdir(directory, sweep.LOCK_SECONDS):  # none is half proposed
                batches = shared.batches()
            parts = [sweep.divide(batch, saved["num_groups"], groups) for batch in batches]
            if sweep.train_groups([*chain(*parts)], table.look, wait=False):
                continue
            with lock_workdir(directory, sweep.LOCK_SECONDS):
                trials = [*chain(*shared.batches())]
                shared.tell(trials)
                if len(trials) > sum(map(len, batches)) or shared.propose():
                    continue
            if all(trial.has_ended for trial in trials):
                break
            table.look()
            time.sleep(sweep.POLL_SECONDS)
    sweep.end_sweep(trials, directory)
    return trials


class Study:
    """An Optuna study: each of its trials is the trial of that number of the sweep.

    A trial has the number of its batch as soon as it is proposed in whole: one without, which a
    kill left behind, does not count. The methods need the lock of the directory; without it
    `batches` may lack trials of the last one.
    """

    def __init__(self, config: ConfigDict, search: Search, directory: Path, saved: Any):
        try:
            import optuna
        except ImportError:
            raise UserError("this sweep needs Optuna: pip install -e '.[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._config, self._search = optuna, config, search
        self._storage = saved["storage"] or f"journal:{directory / 'study.log'}"
        self._directory, name, identity = directory, saved["study"], saved["id"]
        self._made: dict[int, Trial] = {}
        mode = "maximize" if shared_objective([config]).sign > 0 else "minimize"
        with self._storage_errors():
            self._study = optuna.create_study(
                storage=self._open(), study_name=name, load_if_exists=True, direction=mode
            )
            is_lost = IDENTITY not in self._study.user_attrs and (directory / sweep.TRIALS).exists()
            if self._study.user_attrs.get(IDENTITY, identity) != identity or is_lost:
                raise UserError(
                    f"study {name!r} in {self._storage} is not that of {directory}: give another "
                    "--study or --workdir, or restore the storage from a copy"
                )
            self._study.set_user_attr(IDENTITY, identity)

    def batches(self) -> list[list[Trial]]:
        """Returns the trials that were proposed so far, by any worker."""
        found: dict[int, list[Trial]] = {}
        for trial in self._trials():
            if BATCH in trial.user_attrs:
                if (number := trial.number) not in self._made:
                    own = self._config, self._changes(trial.params), self._directory, number
                    self._made[number] = sweep.make_trial(*own)
                found.setdefault(trial.user_attrs[BATCH], []).append(self._made[number])
        return [*found.values()]

    def tell(self, trials: list[Trial]) -> None:
        """Tells the study the results of the trials that have ended."""
        told, states = self._trials(), self._optuna.trial.TrialState
        for trial in trials:
            number = int(trial.name)
            if trial.has_ended and not told[number].state.is_finished():
                value = read_outcome(trial).value
                state = states.FAIL if value is None else states.COMPLETE
                with self._storage_errors():
                    self._study.tell(number, value, state)

    def propose(self) -> bool:
        """Adds the next batch to the study; returns False if the study is full."""
        batches, search = self.batches(), self._search
        left = min(search.batch_size, search.num_trials - sum(map(len, batches)))
        distributions = {name: self._distribution(own) for name, own in search.space.items()}
        with self._storage_errors():
            for _ in range(left):
                self._study.sampler = self._sampler(len(self._trials()))
                self._study.ask(distributions).set_user_attr(BATCH, len(batches))
        return left > 0

    def _open(self) -> Any:
        kind, _, path = self._storage.partition(":")
        if kind == "journal":
            journal = self._optuna.storages.journal
            return self._optuna.storages.JournalStorage(journal.JournalFileBackend(path))
        if not self._storage.startswith("sqlite:///"):
            raise ValueError(f"unknown kind {kind!r}")
        return self._storage

    def _trials(self) -> list[Any]:
        with self._storage_errors():
            return self._study.get_trials(deepcopy=False)

    def _sampler(self, number: int) -> Any:
        """Returns the sampler that proposes the trial of that number."""
        [seed] = np.random.SeedSequence([self._config.seed, number]).generate_state(1).tolist()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)

    def _distribution(self, own: Distribution) -> Any:
        distributions = self._optuna.distributions
        if own.kind == "choice":  # Optuna keeps strings and numbers only
            return distributions.CategoricalDistribution([repr(value) for value in own.options])
        if own.kind == "integer":
            return distributions.IntDistribution(*own.options)
        return distributions.FloatDistribution(*own.options, log=own.kind == "log_uniform")

    def _changes(self, params: Mapping[str, Any]) -> Changes:
        known = {n: {repr(x): x for x in own.options} for n, own in self._search.space.items()}
        return {n: known[n][x] if isinstance(x, str) else x for n, x in params.items()}

    @contextmanager
    def _storage_errors(self) -> Generator[None]:
        """A context in which whatever the storage's library raises is one UserError."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            reason = f"{error} ".splitlines()[0].strip() or type(error).__name__
            raise UserError(
                f"--storage={self._storage} cannot be used ({brief(reason, most=300)}): give "
                "sqlite:///FILE or journal:FILE where it can be written; the same command resumes"
            ) from None
