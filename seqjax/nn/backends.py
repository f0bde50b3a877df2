"""The backends that run a cell over time, by name: equal results, different speed and memory."""

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from seqjax.errors import unknown_name
from seqjax.nn.cudnn import has_cudnn, unroll_cudnn, why_not_cudnn
from seqjax.nn.fused import unroll_fused
from seqjax.nn.remat import scan_windows
from seqjax.nn.unroll import cast_inputs, unroll

# (cell, params, state, xs, *, mask, reverse, state_scale) -> (last state, outputs), as `unroll`
Unroll = Callable[..., tuple[Any, Any]]


@cache
def find_unroll(backend: str = "auto", remat: bool = False) -> Unroll:
    """Returns the backend of that name, under gradient checkpointing if `remat`.

    Raises UserError for an unknown name.
    """
    if backend not in BACKENDS:
        raise unknown_name("train.backend", backend, BACKENDS)
    return in_windows(BACKENDS[backend]) if remat else BACKENDS[backend]


def unroll_auto(cell, params, state, xs, *, state_scale=None, **options):
    """Runs on cuDNN if it can, else as `unroll_xla`."""
    run = unroll_xla
    if has_cudnn():
        if reason := why_not_cudnn(params, state_scale, cell.compute_dtype):
            _print_once(f"not on cuDNN: {reason}")
        else:
            run = unroll_cudnn
    return run(cell, params, state, xs, state_scale=state_scale, **options)


def unroll_xla(cell, params, state, xs, **options):
    """Runs on `fused`, or on `scan` for a cell that has only a step; can be vmapped."""
    run = unroll_fused if cell.recurrent_matmuls else unroll
    return run(cell, params, state, xs, **options)


BACKENDS: dict[str, Unroll] = {
    "auto": unroll_auto,
    "xla": unroll_xla,
    "scan": unroll,
    "fused": unroll_fused,
    "cudnn": unroll_cudnn,
}


def in_windows(run: Unroll) -> Unroll:
    """Returns the backend in windows of sqrt(T) steps, as `scan_windows` runs them."""

    def unroll_with_remat(cell, params, state, xs, *, mask=None, reverse=False, state_scale=None):
        state, xs, state_scale = cast_inputs(params, state, xs, state_scale)

        def window(state, steps):
            xs, mask = steps
            options = {"mask": mask, "reverse": reverse, "state_scale": state_scale}
            return run(cell, params, state, xs, **options)

        steps = xs, mask
        return scan_windows(window, state, steps, reverse) if len(xs) else window(state, steps)

    return unroll_with_remat


@cache
def _print_once(line: str) -> None:
    print(line, file=sys.stderr)
