"""What ends a training early: signals, memory that does not suffice, weights that are not numbers."""

import contextlib
import os
import shlex
import signal
import sys
import threading

import torch

from data.errors import RunError, is_out_of_memory
from model import distributed


class Interruption:
    """A context that notes SIGTERM (Slurm, `kill`) and SIGINT (Ctrl-C), for the step that is running to be the last.

    A second SIGINT is obeyed at once. A second SIGTERM is not: under Slurm both it and torchrun send one.
    """

    def __init__(self):
        self.number = 0
        self._before = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *exception):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.number = number
        again = ""
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
            again = "; once more stops now"
        # print could be what was interrupted
        os.write(2, f"\n{signal.Signals(number).name}: stopping after this step{again}\n".encode())

    def anywhere(self):
        """The number of a signal that this process or another one of the run received, else 0."""
        return distributed.largest(self.number)

    def error(self, step, run):
        """The RunError to raise when the state after `step` is saved."""
        number = self.anywhere()
        command = shlex.join(["python", *sys.orig_argv[1:], *([] if "--resume" in sys.orig_argv else ["--resume"])])
        if distributed.world_size() > 1:
            command = "the same torchrun command, with --resume"
        saved = f"stopped by {signal.Signals(number).name} after step {step}, its state saved in {run.path}"
        error = RunError(f"{saved}; go on with: {command}")
        error.exit_code = 128 + number  # as shells have it
        return error


def require_finite(parameters, step, run):
    """Raise RunError where a weight is infinite or not a number: neither state nor best checkpoint may hold it."""
    if not torch.stack([p.isfinite().all() for p in parameters]).all():
        raise RunError(
            f"weights are infinite or not numbers after step {step}; try --max_grad_norm 1 or a smaller --lr; "
            f"{run.states.last_words()}"
        )


@contextlib.contextmanager
def out_of_memory_named(run):
    """A context that turns running out of memory into a RunError that says what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(
            "out of memory; give --cache_gradients (a resumed run may, too), fewer --micro_batch_tokens with it, "
            f"or a smaller --batch_size; {run.states.last_words()}"
        ) from None
