"""A sweep whose trials Optuna proposes, a batch at a time.

Optuna's samplers propose, and one program trains a batch of proposals. Several machines, each with
a directory of its own, may share a study by its storage.
"""

import hashlib
import json
import math
import shutil
import socket
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seqjax.config import as_json, differing_fields, with_tuples
from seqjax.errors import UserError, brief
from seqjax.files import read_json, write_json
from seqjax.runs.workdir import lock_workdir
from seqjax.sweeps.report import LiveTable
from seqjax.sweeps.results import Entry, objective, read_outcome, shared_objective
from seqjax.sweeps.space import Changes, Distribution, Search
from seqjax.sweeps.sweep import (
    GROUPS,
    SWEEP,
    Executor,
    check_same,
    end_sweep,
    make_entry,
    train_all,
)
from seqjax.sweeps.vectorized import group_key

PROPOSALS = "proposals.json"
KIND, OWNER = "sweep", "directory"  # Optuna's user attributes: of a study, of a trial
_MAX_REASON = 300  # characters

TrialBatch = dict[int, Changes]  # trials that are trained together, by the study's numbers


def run_search(
    config: ConfigDict,
    search: Search,
    directory: Path,
    executor: Executor,
    num_workers: int = 1,
    *,
    storage: str = "",
    study: str = "seqjax",
) -> list[Entry]:
    """Trains proposals until the study has as many trials as the search asks for; this machine's.

    `storage` is `sqlite:///FILE` or `journal:FILE`, by default a journal in the directory. What is
    proposed follows from the config's seed and the trials before; with a `storage`, which others
    may share, also from the host and the directory. Raises UserError, before anything is asked, for
    a search that the config does not take, without Optuna, for a storage that cannot be used, and
    for a study or a directory of another sweep.
    """
    configs = [config, *search.tried(config)]
    shared_objective(configs)
    for tried in configs:
        group_key(tried)  # for its complaints
    space = {name: list(own) for name, own in search.space.items()}
    kind = json.loads(json.dumps({"config": as_json(config), "space": space}))
    with lock_workdir(directory):
        here = (directory / SWEEP, kind | {"storage": storage, "study": study})
        if begun := here[0].exists():
            check_same(*here)
        owner = f"{socket.gethostname()}:{directory.resolve()}" if storage else ""
        storage = storage or f"journal:{directory / 'study.log'}"
        shared = Study(search.space, storage, study, kind, config, owner)
        if not begun:
            check_same(*here)
        entries: list[Entry] = []
        for batch in _batches(shared, search, directory / PROPOSALS):
            own = [make_entry(config, changes, directory, n) for n, changes in batch.items()]
            if not all(entry.trial.has_ended for entry in own):
                with LiveTable([entry.trial for entry in own]) as table:
                    train_all(own, directory, executor, table, num_workers)
                shutil.rmtree(directory / GROUPS, ignore_errors=True)
            for number, entry in zip(batch, own, strict=True):
                shared.tell(number, entry)
            entries += own
        if entries:
            end_sweep(entries, directory)
        else:
            print(
                f"study {study!r} has its {search.num_trials} trials: none is left for {directory}"
            )
    return entries


def _batches(shared: "Study", search: Search, path: Path) -> Iterator[TrialBatch]:
    """What was proposed before, then what is proposed now, noted in the file before it is given."""
    saved = read_json(path) if path.exists() else []
    noted = [{number: dict(with_tuples(own)) for number, own in batch} for batch in saved]
    shared.check(noted)
    yield from noted
    while batch := shared.propose(search, {number for batch in noted for number in batch}):
        noted.append(batch)
        write_json(path, [[[n, list(own.items())] for n, own in batch.items()] for batch in noted])
        yield batch


class Study:
    """An Optuna study of this space; trials are known by its numbers.

    A trial has an owner, the directory that asked for it, as soon as it is proposed in whole: one
    without, which a kill left behind, does not count.
    """

    def __init__(
        self,
        space: Mapping[str, Distribution],
        storage: str,
        name: str,
        kind: Mapping[str, Any],
        config: ConfigDict,
        owner: str,
    ):
        try:
            import optuna
        except ImportError:
            raise UserError("this sweep needs Optuna: pip install -e '.[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space, self._storage = optuna, space, storage
        self._seed, self._owner = config.seed, owner
        self._told = f"study {name!r} in {storage}"
        direction = "maximize" if objective(config).sign > 0 else "minimize"
        with _storage_errors(storage):
            self._study = optuna.create_study(
                storage=self._open(storage),
                study_name=name,
                load_if_exists=True,
                direction=direction,
            )
            if not self._trials() and KIND not in self._study.user_attrs:
                self._study.set_user_attr(KIND, kind)
            same = self._study.user_attrs.get(KIND) == kind
            if not same or self._study.direction.name.lower() != direction:
                differ = differing_fields(self._study.user_attrs.get(KIND, {}), kind)
                raise UserError(
                    f"{self._told} is of another sweep ({brief(', '.join(differ), _MAX_REASON)}): "
                    "give another --study, or the config and the space that it was begun with"
                )

    def check(self, noted: Sequence[TrialBatch]) -> None:
        """Raises UserError unless the study has these trials."""
        with _storage_errors(self._storage):
            known = {trial.number: self._changes(trial.params) for trial in self._trials()}
        for number, changes in (item for batch in noted for item in batch.items()):
            if known.get(number) != changes:
                raise UserError(
                    f"{self._told} does not have trial {number} as this sweep noted it: restore "
                    "the storage from a copy, or give a new --workdir"
                )

    def propose(self, search: Search, noted: set[int]) -> TrialBatch:
        """The next trials, none if the study is full; first those that a kill left unnoted."""
        running = self._optuna.trial.TrialState.RUNNING
        with _storage_errors(self._storage):
            trials = [trial for trial in self._trials() if OWNER in trial.user_attrs]
            own = [trial for trial in trials if trial.user_attrs[OWNER] == self._owner]
            batch = {
                trial.number: self._changes(trial.params)
                for trial in own
                if trial.state == running and trial.number not in noted
            }
            distributions = {name: self._distribution(d) for name, d in self._space.items()}
            wanted = min(search.batch_size - len(batch), search.num_trials - len(trials))
            for number in range(len(own), len(own) + wanted):
                self._study.sampler = self._sampler(number)
                trial = self._study.ask(distributions)
                trial.set_user_attr(OWNER, self._owner)
                batch[trial.number] = self._changes(trial.params)
        return batch

    def tell(self, number: int, entry: Entry) -> None:
        """What a trial has reached, once."""
        value = read_outcome(entry).value
        with _storage_errors(self._storage):
            if value is None or math.isnan(value):
                state = self._optuna.trial.TrialState.FAIL
                self._study.tell(number, state=state, skip_if_finished=True)
            else:
                self._study.tell(number, value, skip_if_finished=True)

    def _open(self, storage: str) -> Any:
        kind, _, path = storage.partition(":")
        if kind == "journal":
            journal = self._optuna.storages.journal
            return self._optuna.storages.JournalStorage(journal.JournalFileBackend(path))
        if not storage.startswith("sqlite:///"):
            raise ValueError(f"unknown kind {kind!r}")
        return storage

    def _trials(self) -> list[Any]:
        return self._study.get_trials(deepcopy=False)

    def _sampler(self, number: int) -> Any:
        """What proposes the trial of that number among the owner's."""
        source = json.dumps([self._seed, self._owner, number]).encode()
        seed = int.from_bytes(hashlib.sha256(source).digest()[:4])
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
        return {name: self._value(name, value) for name, value in params.items()}

    def _value(self, name: str, value: Any) -> Any:
        own = self._space[name]
        if own.kind == "choice":
            return next(option for option in own.options if repr(option) == value)
        return value


@contextmanager
def _storage_errors(storage: str) -> Generator[None]:
    """A context in which whatever the storage's library raises is one UserError."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = brief(f"{error} ".splitlines()[0].strip() or type(error).__name__, _MAX_REASON)
        raise UserError(
            f"--storage={storage} cannot be used ({reason}): give sqlite:///FILE or journal:FILE "
            "where it can be written; the same command resumes"
        ) from None
