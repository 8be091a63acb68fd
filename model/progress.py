"""What a training shows while it runs: a bar, and what goes into the log's rows."""

import math
import sys
import time

import torch
from tqdm import tqdm

from data.errors import RunError
from model import distributed
from model.metrics import CORRELATIONS

LOG_STEPS = 10  # how often the losses are fetched from the device, shown and logged
LOG_COLUMNS = ["step", "epoch", "loss", "lr", "examples_per_second", "avg", *CORRELATIONS]


class Progress:
    """The bar, and the window of steps since the last row of the log. A context: the bar ends with it.

    Args:
        run: the RunFolder, whose states an error message names.
        total_steps, steps: of the whole training, and those that the run that is resumed has taken.
        seconds, examples: of training so far, evaluations and saving not counted.

    Attributes:
        seconds, examples: of the whole training, up to the last closed window.
    """

    def __init__(self, run, total_steps, steps, seconds, examples):
        self.run, self.seconds, self.examples = run, seconds, examples
        hidden = None if distributed.rank() == 0 else True  # None: where stderr is no terminal
        self.bar = tqdm(total=total_steps, initial=steps, desc="train", unit="step", disable=hidden)

    def __enter__(self):
        self.open_window()
        return self

    def __exit__(self, *exception):
        self.bar.close()

    def open_window(self):
        self.losses, self.window_examples, self.since = [], 0, time.perf_counter()

    def step(self, step, loss, examples, lr, best_score):
        """Note one step; its loss stays on the device, because fetching it would wait for the GPU."""
        self.losses.append(loss)
        self.window_examples += examples
        self.bar.update()
        self.last_step, self.lr, self.best_score = step, lr, best_score

    def close_window(self):
        """The window's part of a row of the log.

        Raises:
            RunError: a loss is infinite or not a number; names its step.
        """
        losses = torch.stack(self.losses).tolist()  # waits for the device
        seconds = time.perf_counter() - self.since
        for step, loss in zip(range(self.last_step - len(losses) + 1, self.last_step + 1), losses):
            if not math.isfinite(loss):
                raise RunError(
                    f"the loss is {loss} at step {step}; try a smaller --lr, more --warmup_ratio or --max_grad_norm 1; "
                    f"{self.run.states.last_words()}"
                )
        self.seconds += seconds
        self.examples += self.window_examples
        mean, speed = math.fsum(losses) / len(losses), self.window_examples / seconds
        shown = {"loss": f"{mean:.4f}", "lr": f"{self.lr:.1e}", "dev": f"{self.best_score:.2f}"}
        self.bar.set_postfix(**shown, examples_per_s=f"{speed:,.0f}")
        return {"loss": mean, "lr": self.lr, "examples_per_second": speed}


def peak_memory(device):
    """(megabytes at most so far, of what) of the GPU, else of the process."""
    if device.type == "cuda":
        # reserved, not allocated: CUDA graphs keep memory that counts as free between their recordings
        return torch.cuda.max_memory_reserved(device) / 2**20, "GPU memory"
    try:
        import resource
    except ImportError:  # Windows
        return math.nan, "memory"
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, "memory"
