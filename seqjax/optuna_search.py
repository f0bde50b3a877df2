"""A sweep whose trials Optuna proposes, a batch at a time. Imports: sweep.

Optuna's samplers propose, and one program trains a batch of proposals. Several machines, each with
a directory of its own, may share a study by its storage.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from seqjax.config import as_json, with_tuples
from seqjax.errors import UserError
from seqjax.files import read_json, write_json
from seqjax.outcomes import Entry, objective, read_outcome
from seqjax.run_directory import held
from seqjax.search_space import Changes, Distribution, Search
from seqjax.sweep import SWEEP, Executor, check_same, end_sweep, make_entry, train_all
from seqjax.sweep_tables import LiveTable

PROPOSALS = "proposals.json"


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

    `storage` is `sqlite:///FILE` or `journal:FILE`, by default a journal in the directory. Raises
    UserError without Optuna, for a storage that it cannot use, and for a directory of another
    sweep.
    """
    with held(directory):
        space = {name: list(own) for name, own in search.space.items()}
        check_same(directory / SWEEP, {"config": as_json(config), "space": space, "study": study})
        shared = Study(search.space, storage or f"journal:{directory / 'study.log'}", study, config)
        own = _read_proposals(directory)
        while True:
            entries = [make_entry(config, changes, directory, n) for n, changes in own.items()]
            with LiveTable([entry.trial for entry in entries]) as table:
                train_all(entries, directory, executor, table, num_workers)
            for number, entry in zip(own, entries, strict=True):
                shared.tell(number, entry)
            wanted = min(search.batch_size, search.num_trials - shared.num_trials())
            if wanted <= 0:
                break
            own |= shared.ask(wanted)
            write_json(directory / PROPOSALS, [[n, list(c.items())] for n, c in own.items()])
        end_sweep(entries, directory)
    return entries


def _read_proposals(directory: Path) -> dict[int, Changes]:
    path = directory / PROPOSALS
    if not path.exists():
        return {}
    return {number: dict(with_tuples(own)) for number, own in read_json(path)}


class Study:
    """An Optuna study of this space; trials are known by its numbers."""

    def __init__(
        self, space: Mapping[str, Distribution], storage: str, name: str, config: ConfigDict
    ):
        try:
            import optuna
        except ImportError:
            raise UserError("this sweep needs Optuna: pip install -e '.[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna, self._space = optuna, space
        try:
            self._study = optuna.create_study(
                storage=self._open(storage),
                study_name=name,
                load_if_exists=True,
                direction="maximize" if objective(config).sign > 0 else "minimize",
                sampler=optuna.samplers.TPESampler(seed=config.seed),
            )
        except Exception as error:  # of the storage's own library
            reason = str(error).strip().splitlines()[0]
            raise UserError(
                f"--storage={storage} cannot be used ({reason}): give sqlite:///FILE or "
                "journal:FILE"
            ) from None

    def num_trials(self) -> int:
        """How many there are, by whomever and in whatever state."""
        return len(self._study.get_trials(deepcopy=False))

    def ask(self, number: int) -> dict[int, Changes]:
        """So many proposals."""
        distributions = {name: self._distribution(own) for name, own in self._space.items()}
        trials = [self._study.ask(distributions) for _ in range(number)]
        return {
            trial.number: {name: self._value(name, value) for name, value in trial.params.items()}
            for trial in trials
        }

    def tell(self, number: int, entry: Entry) -> None:
        """What a trial has reached, once."""
        value = read_outcome(entry).value
        if value is None:
            state = self._optuna.trial.TrialState.FAIL
            self._study.tell(number, state=state, skip_if_finished=True)
        else:
            self._study.tell(number, value, skip_if_finished=True)

    def _open(self, storage: str) -> Any:
        kind, _, path = storage.partition(":")
        if kind == "journal":
            journal = self._optuna.storages.journal
            return self._optuna.storages.JournalStorage(journal.JournalFileBackend(path))
        if kind != "sqlite":
            raise UserError(f"unknown kind {kind!r}")
        return storage

    def _distribution(self, own: Distribution) -> Any:
        distributions = self._optuna.distributions
        if own.kind == "choice":  # Optuna keeps strings and numbers only
            return distributions.CategoricalDistribution([repr(value) for value in own.options])
        if own.kind == "integer":
            return distributions.IntDistribution(*own.options)
        return distributions.FloatDistribution(*own.options, log=own.kind == "log_uniform")

    def _value(self, name: str, value: Any) -> Any:
        own = self._space[name]
        if own.kind == "choice":
            return next(option for option in own.options if repr(option) == value)
        return value
