"""The training loop: one straight line from a batch of indices to the optimiser's step."""

import functools
import math
import sys
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup

from model import distributed
from model.interruption import Interruption, out_of_memory_named, require_finite
from model.progress import LOG_STEPS, Progress
from model.states import restore, training_state
from model.utils import return_freed_memory

MIXES = ("sum", "alternate")


class Task(NamedTuple):
    """An objective, the examples it is trained on, and what part it has in a step."""

    objective: nn.Module  # see objectives.py
    rows: np.ndarray  # (N, k) numbers of the sentences of N examples
    labels: np.ndarray | None  # (N,)
    batch_size: int
    weight: float = 1.0  # factor of its loss

    def batch(self, number, seed):
        """The batch of this number, from 0 on, in random order, pass after pass: numbers of examples."""
        epoch, position = divmod(number, self.steps_per_epoch)
        order = random_order(len(self.rows), (*seed, epoch + 1))
        return order[position * self.batch_size :][: self.batch_size]

    @property
    def steps_per_epoch(self):
        return math.ceil(len(self.rows) / self.batch_size)


@functools.lru_cache(maxsize=8)  # of so many tasks made once an epoch, not once a step; of old epochs few are held
def random_order(n, seed):
    """0..n-1 in an order that is the seed's."""
    return np.random.default_rng(seed).permutation(n)


def train(encode, tasks, evaluate, run, settings):
    """Train an encoder in place, from `run`'s state if it has one; in the end it is the one that was best on dev.

    Args:
        encode: a microbatch.Encode, which knows the encoder and the sentences.
        tasks: a list of Task; an epoch is one pass over the first one's examples.
        evaluate: callable encoder -> {"avg": ..., CORRELATIONS...} on dev.
        run: a RunFolder: it keeps log, best checkpoint and states.
        settings: has train.py's flags: mix, epochs, max_steps, lr, warmup_ratio, weight_decay, max_grad_norm,
            eval_steps (also before the first step and after the last), save_steps (also after the last), patience,
            select_by, seed.

    Returns:
        The best evaluation, {"step": ..., "avg": ..., ...}, and the Progress of the whole training.

    Raises:
        RunError: the loss became infinite or not a number, memory ran out, a signal asked to stop.
    """
    encoder = encode.encoder
    turns = len(tasks) if settings.mix == "alternate" else 1  # steps until a task comes again
    steps_per_epoch = turns * tasks[0].steps_per_epoch
    total_steps = settings.max_steps or settings.epochs * steps_per_epoch
    warmup_steps = min(math.ceil(settings.warmup_ratio * total_steps), total_steps - 1)
    objectives = nn.ModuleList(task.objective for task in tasks)
    model = nn.ModuleDict({"encoder": encoder, "objectives": objectives})
    optimizer = torch.optim.AdamW(parameter_groups(model, settings.weight_decay), lr=settings.lr, fused=True)
    schedule = get_linear_schedule_with_warmup(optimizer, warmup_steps, total_steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.broadcast(parameters)
    torch.manual_seed(settings.seed + distributed.rank())  # dropout's
    shown = "cosine_spearman" if settings.select_by == "last" else settings.select_by
    model.train()  # `encode`, which evaluations call, leaves it so

    def evaluate_and_keep(step, best):
        """Evaluate, save the encoder if it is the best so far; (metrics, best)."""
        return_freed_memory()
        metrics = distributed.everyones(evaluate(encoder))[0]
        score = metrics[shown]
        if distributed.rank() == 0:
            tqdm.write(f"step {step}: dev {shown} {score:.2f}", file=sys.stderr)
        # nan (every embedding the same) is never better; the first evaluation is kept whatever it is
        better = best is None or score > best[shown] or (math.isnan(best[shown]) and not math.isnan(score))
        if better or settings.select_by == "last":
            best = {"step": step, **metrics}
            run.save_best(encoder, best)
        return metrics, best

    first_step, done, best, seconds, seen = 1, False, None, 0.0, 0
    if run.state is not None:
        first_step, done, best, seconds, seen = restore(run.state, model, optimizer, schedule)
        run.state = None  # as large as the model and its optimiser
    progress = Progress(run, total_steps, first_step - 1, seconds, seen)
    with progress, Interruption() as interruption, out_of_memory_named(run):
        if best is None:
            metrics, best = evaluate_and_keep(0, None)
            run.log(step=0, epoch=0, **metrics)
            progress.open_window()
        for step in range(first_step, 1 if done else total_steps + 1):
            number, turn = divmod(step - 1, turns)
            loss, examples = 0.0, 0
            for i, task in enumerate(tasks) if turns == 1 else [(turn, tasks[turn])]:
                batch = task.batch(number, seed=(settings.seed, i) if i else (settings.seed,))
                labels = None if task.labels is None else task.labels[batch]
                task_loss = task.weight * task.objective(encode, task.rows[batch], labels)
                task_loss.backward()
                loss += task_loss.detach()  # on the device: fetching it would wait for the GPU
                examples += len(batch)
            distributed.average_gradients(parameters)
            if settings.max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, settings.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step(step, loss, examples, schedule.get_last_lr()[0], best[shown])
            schedule.step()

            done = step == total_steps
            interrupted = interruption.anywhere()
            evaluates, saves = done or step % settings.eval_steps == 0, step % settings.save_steps == 0
            if evaluates or saves or interrupted or step % LOG_STEPS == 0:
                row = progress.close_window()  # fetches the losses from the device, and looks at them
                if evaluates or saves or interrupted:
                    require_finite(parameters, step, run)
                if evaluates:
                    metrics, best = evaluate_and_keep(step, best)
                    row.update(metrics)
                    waited = step // settings.eval_steps - best["step"] // settings.eval_steps  # evaluations
                    done = done or waited == settings.patience
                run.log(step=step, epoch=1 + (step - 1) // steps_per_epoch, **row)
                if saves or done or interrupted:
                    run.save_state(step, training_state(step, done, best, progress, model, optimizer, schedule))
                if interrupted or (done and interruption.anywhere()):  # while it was evaluated for the last time
                    raise interruption.error(step, run)
                if done:
                    break
                progress.open_window()

    encoder.graphs = None  # and with them a step's activations
    run.restore_best(encoder)
    return best, progress


def parameter_groups(model, weight_decay):
    """AdamW's two groups: matrices are decayed; biases and LayerNorm's scales, the vectors, are not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
