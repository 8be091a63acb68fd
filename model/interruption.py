"""SIGTERM (Slurm, `kill`) and SIGINT (Ctrl-C) end a training after the step that is running, with its state saved."""

import os
import shlex
import signal
import sys
import threading

from data.errors import RunError
from model import distributed


class Interrupted(RunError):
    """A signal asked the training to stop, and it did. Exit code 128 + the signal's number, as shells have it."""

    def __init__(self, message, number):
        super().__init__(message)
        self.exit_code = 128 + number


class Interruption:
    """A context that notes the two signals instead of dying of them; the second one is obeyed at once."""

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
        signal.signal(number, self._before[number])
        print(f"{signal.Signals(number).name}: stopping after this step; once more stops now", file=sys.stderr)

    def anywhere(self):
        """The number of a signal that this process or another one of the run received, else 0."""
        return distributed.largest(self.number)

    def error(self, step, run):
        number = self.anywhere()
        several = ["torchrun", "--standalone", "--nproc_per_node", os.environ.get("LOCAL_WORLD_SIZE", "")]
        command = several if distributed.world_size() > 1 else ["python"]
        resume = [] if "--resume" in sys.argv else ["--resume"]
        return Interrupted(
            f"stopped by {signal.Signals(number).name} after step {step}, its state saved in {run.path}; go on with: "
            + shlex.join([*command, *sys.argv, *resume]),
            number,
        )
