"""The training loop: one straight line from a batch of indices to the optimiser's step."""

import functools
import math
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

from data.errors import RunError
from model.metrics import CORRELATIONS
from model.microbatch import encode_rows

LOG_STEPS = 10  # how often the loss is fetched from the device, shown and logged
LOG_COLUMNS = ["step", "epoch", "loss", "lr", "examples_per_second", "avg", *CORRELATIONS]


def train(
    encoder,
    tokens,
    examples,
    objective,
    evaluate,
    run,
    *,
    epochs,
    batch_size,
    lr,
    warmup_ratio,
    weight_decay,
    eval_steps,
    select_by,
    seed,
    micro_batch_tokens,
):
    """Train `encoder` in place; the run folder receives the log and the checkpoint that is best on dev.

    Args:
        tokens: packed token ids of the distinct sentences.
        examples: (N, sentences an example has) int array of indices into `tokens`.
        objective: callable (encode, batch) -> loss, see objectives.py.
        evaluate: callable encoder -> {"avg": ..., CORRELATIONS...} on dev.
        run: a RunFolder, or anything with `log` and `save_best`.
        eval_steps: evaluate every so many steps; also before the first step and after the last.
        select_by: the key of `evaluate`'s result that the best checkpoint maximises.
        micro_batch_tokens: padded tokens of one forward pass: speed and memory. The loss is the whole batch's whatever
            it is; only which dropout mask meets which sentence depends on it.

    Returns:
        The best evaluation, {"step": ..., "avg": ..., ...}.

    Raises:
        RunError: the loss became infinite or not a number.
    """
    optimizer = torch.optim.AdamW(parameter_groups(encoder, weight_decay), lr=lr, fused=True)
    steps_per_epoch = math.ceil(len(examples) / batch_size)
    total_steps = epochs * steps_per_epoch
    warmup_steps = min(math.ceil(warmup_ratio * total_steps), total_steps - 1)
    schedule = linear_schedule(optimizer, warmup_steps, total_steps)
    encode = functools.partial(encode_rows, encoder, tokens, max_tokens=micro_batch_tokens)

    def evaluate_and_keep(step, best):
        """Evaluate, save the encoder if it is the best so far; (metrics, best)."""
        metrics = evaluate(encoder)
        score = metrics[select_by]
        tqdm.write(f"step {step}: dev {select_by} {score:.2f}", file=sys.stderr)
        # nan (every embedding the same) is never better; the first evaluation is kept whatever it is
        if best is None or score > best[select_by] or (math.isnan(best[select_by]) and not math.isnan(score)):
            best = {"step": step, **metrics}
            run.save_best(encoder, best)
        return metrics, best

    encoder.train()  # `encode`, which evaluations call, leaves it so
    metrics, best = evaluate_and_keep(0, None)
    run.log(step=0, epoch=0, **metrics)
    step, losses, examples_since, since = 0, [], 0, time.perf_counter()
    with tqdm(total=epochs * len(examples), desc="train", unit="example", disable=None) as bar:
        for epoch in range(1, epochs + 1):
            order = np.random.default_rng([seed, epoch]).permutation(len(examples))
            for start in range(0, len(examples), batch_size):
                batch = examples[order[start : start + batch_size]]  # (B, sentences an example has)
                loss = objective(encode, batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                step_lr = schedule.get_last_lr()[0]
                schedule.step()

                step += 1
                losses.append(loss.detach())  # on the device: fetching it would wait for the GPU
                examples_since += len(batch)
                bar.update(len(batch))
                row = {}
                if step % LOG_STEPS == 0 or step == total_steps:
                    mean_loss = torch.stack(losses).mean().item()
                    if not math.isfinite(mean_loss):
                        raise RunError(
                            f"the loss is {mean_loss} at step {step}; try a smaller --lr or more --warmup_ratio"
                        )
                    rate = examples_since / (time.perf_counter() - since)
                    row = {"loss": mean_loss, "lr": step_lr, "examples_per_second": rate}
                    bar.set_postfix(loss=f"{mean_loss:.4f}", dev=f"{best[select_by]:.2f}")
                    losses, examples_since, since = [], 0, time.perf_counter()
                if step % eval_steps == 0 or step == total_steps:
                    began = time.perf_counter()
                    metrics, best = evaluate_and_keep(step, best)
                    row.update(metrics)
                    since += time.perf_counter() - began  # the rate is training's
                if row:
                    run.log(step=step, epoch=epoch, **row)
    return best


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
