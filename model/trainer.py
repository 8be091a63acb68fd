"""The training loop: one straight line from a batch of indices to the optimiser's step."""

import math
import sys

import numpy as np
import torch
from tqdm import tqdm

from data.errors import RunError
from model import distributed
from model.interruption import Interruption
from model.microbatch import encode_rows
from model.progress import LOG_STEPS, Progress
from model.utils import autocast


def train(
    encoder,
    tokens,
    examples,
    objective,
    evaluate,
    run,
    *,
    epochs,
    max_steps=None,
    batch_size,
    lr,
    warmup_ratio,
    weight_decay,
    max_grad_norm=None,
    eval_steps,
    save_steps,
    patience=None,
    select_by,
    seed,
    micro_batch_tokens,
    cache_gradients=False,
    precision="fp32",
):
    """Train `encoder` in place, from `run`'s state if it has one; in the end it is the one that was best on dev.

    Args:
        tokens: packed token ids of the distinct sentences.
        examples: (N, sentences an example has) int array of indices into `tokens`.
        objective: callable (encode, batch) -> loss, see objectives.py.
        evaluate: callable encoder -> {"avg": ..., CORRELATIONS...} on dev.
        run: a RunFolder: it keeps log, best checkpoint and states.
        max_steps: steps to train for instead of `epochs`; the learning rate ends at 0 there.
        max_grad_norm: gradients of a larger norm are scaled down to it.
        eval_steps: evaluate every so many steps; also before the first step and after the last.
        save_steps: save a state every so many steps; also after the last.
        patience: stop after so many evaluations without a better score.
        select_by: the key of `evaluate`'s result that the best checkpoint maximises.
        micro_batch_tokens, cache_gradients: speed and memory, see encode_rows. The loss is the whole batch's whatever
            they are; only which dropout mask meets which sentence depends on the first.
        precision: "bf16" runs the transformer under autocast; weights, pooling and loss are float32 in any case.

    Returns:
        The best evaluation, {"step": ..., "avg": ..., ...}, and the Progress of the whole training.

    Raises:
        RunError: the loss became infinite or not a number, memory ran out, a signal asked to stop (Interrupted).
    """
    steps_per_epoch = math.ceil(len(examples) / batch_size)
    total_steps = max_steps or epochs * steps_per_epoch
    warmup_steps = min(math.ceil(warmup_ratio * total_steps), total_steps - 1)
    optimizer = torch.optim.AdamW(parameter_groups(encoder, weight_decay), lr=lr, fused=True)
    schedule = linear_schedule(optimizer, warmup_steps, total_steps)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    distributed.broadcast(parameters)
    torch.manual_seed(seed + distributed.rank())  # dropout's
    encoder.train()  # `encode`, which evaluations call, leaves it so

    def encode(rows):
        with autocast(precision, encoder.device):
            return encode_rows(encoder, tokens, rows, micro_batch_tokens, cache_gradients)

    def evaluate_and_keep(step, best):
        """Evaluate, save the encoder if it is the best so far; (metrics, best)."""
        metrics = distributed.everyones(evaluate(encoder))[0]
        score = metrics[select_by]
        if distributed.rank() == 0:
            tqdm.write(f"step {step}: dev {select_by} {score:.2f}", file=sys.stderr)
        # nan (every embedding the same) is never better; the first evaluation is kept whatever it is
        if best is None or score > best[select_by] or (math.isnan(best[select_by]) and not math.isnan(score)):
            best = {"step": step, **metrics}
            run.save_best(encoder, best)
        return metrics, best

    first_step, done, best, seconds = 1, False, None, 0.0
    if run.state is not None:
        first_step, done, best, seconds = restore(run.state, encoder, optimizer, schedule)
    progress = Progress(run, first_step, total_steps, batch_size, len(examples), seconds)
    if best is None:
        metrics, best = evaluate_and_keep(0, None)
        run.log(step=0, epoch=0, **metrics)

    with progress, Interruption() as interruption, out_of_memory_named(run):
        for step in range(first_step, 1 if done else total_steps + 1):
            epoch, position = divmod(step - 1, steps_per_epoch)
            if position == 0 or step == first_step:
                order = np.random.default_rng([seed, epoch + 1]).permutation(len(examples))
            batch = examples[order[position * batch_size :][:batch_size]]  # (B, sentences an example has)
            loss = objective(encode, batch)
            loss.backward()
            distributed.average_gradients(parameters)
            if max_grad_norm is not None:
                torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step(step, loss.detach(), schedule.get_last_lr()[0], len(batch), best[select_by])
            schedule.step()

            done = step == total_steps
            interrupted = interruption.anywhere()
            evaluates, saves = done or step % eval_steps == 0, step % save_steps == 0
            if evaluates or saves or interrupted or step % LOG_STEPS == 0:
                row = progress.close_window()  # fetches the losses from the device, and looks at them
                if evaluates or saves or interrupted:
                    require_finite(parameters, step, run)
                if evaluates:
                    metrics, best = evaluate_and_keep(step, best)
                    row.update(metrics)
                    done = done or (
                        patience is not None and step // eval_steps - best["step"] // eval_steps >= patience
                    )
                run.log(step=step, epoch=epoch + 1, **row)
                if saves or done or interrupted:
                    run.save_state(step, training_state(step, done, best, progress, encoder, optimizer, schedule))
                if done:
                    break
                if interrupted:
                    raise interruption.error(step, run)
                progress.open_window()

    run.restore_best(encoder)
    return best, progress


def training_state(step, done, best, progress, encoder, optimizer, schedule):
    """All that `restore` needs to go on as if nothing had happened."""
    random = {"cpu": torch.get_rng_state()}
    if encoder.device.type != "cpu":
        random["device"] = torch.get_device_module(encoder.device).get_rng_state()
    return {
        "step": step,
        "done": done,
        "best": best,
        "seconds": progress.seconds,
        "encoder": encoder.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": distributed.everyones(random),  # of every process
    }


def restore(state, encoder, optimizer, schedule):
    """Undo `training_state`: (first step to do, done, best, seconds so far)."""
    encoder.load_state_dict(state["encoder"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    random = state["random"][distributed.rank()]
    torch.set_rng_state(random["cpu"])
    if "device" in random:
        torch.get_device_module(encoder.device).set_rng_state(random["device"])
    return state["step"] + 1, state["done"], state["best"], state["seconds"]


def require_finite(parameters, step, run):
    """Raise RunError where a weight is infinite or not a number: neither state nor best checkpoint may hold it."""
    if not torch.stack([p.isfinite().all() for p in parameters]).all():
        raise RunError(
            f"weights are infinite or not numbers after step {step}; try --max_grad_norm 1 or a smaller --lr; "
            f"{run.states.last_words()}"
        )


class out_of_memory_named:
    """A context that turns running out of memory into a RunError that says what to do."""

    def __init__(self, run):
        self.run = run

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
            raise RunError(
                "out of memory; give --cache_gradients (a resumed run may, too), fewer --micro_batch_tokens with it, "
                f"or a smaller --batch_size; {self.run.states.last_words()}"
            ) from None


def parameter_groups(encoder, weight_decay):
    """AdamW's two groups: matrices are decayed; biases and LayerNorm's scales, the vectors, are not."""
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def linear_schedule(optimizer, warmup_steps, total_steps):
    """The learning rate from 0 up to its value over `warmup_steps`, then linearly down to 0 at `total_steps`."""

    def factor(step):
        if step < warmup_steps:
            return step / warmup_steps
        return (total_steps - step) / max(1, total_steps - warmup_steps)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
