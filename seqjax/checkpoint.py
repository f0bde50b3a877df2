"""Checkpoints of a run, through Orbax. Imports: errors.

Each one is whole: the train state, the best parameters so far and the run's progress. So the newest
is all that resuming needs, and the one before it can stand in.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

NUM_KEPT = 2


class Checkpoints:
    """The checkpoints in one directory, by epoch; saving goes on in the background."""

    def __init__(self, directory: Path, read_only: bool = False):
        import orbax.checkpoint as ocp  # a second of imports: only where it is used

        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            directory.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else NUM_KEPT, read_only=read_only
            ),
        )

    def save(self, epoch: int, arrays: Any, progress: dict[str, Any]) -> None:
        """Starts saving a nest of arrays and a JSON object under the epoch's number."""
        args = self._ocp.args
        host = jax.tree.map(np.asarray, jax.device_get(arrays))
        self._manager.save(
            epoch,
            args=args.Composite(arrays=args.StandardSave(host), progress=args.JsonSave(progress)),
        )

    def restore(self, like: Any) -> tuple[Any, dict[str, Any]] | None:
        """The newest checkpoint's arrays, shaped `like`, and its progress; None without one."""
        epoch = self._manager.latest_step()
        if epoch is None:
            return None
        args = self._ocp.args
        host = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like)
        restored: Any = self._manager.restore(
            epoch,
            args=args.Composite(arrays=args.StandardRestore(host), progress=args.JsonRestore()),
        )
        return restored.arrays, restored.progress

    def close(self) -> None:
        """Waits for the last save; a save that failed in the background raises here."""
        self._manager.wait_until_finished()
        self._manager.close()
