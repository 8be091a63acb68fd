"""A batch's sentences through the encoder in micro-batches of a bounded size, so that (almost) no padding is computed.

The batch itself stays random and whole: its loss and its gradients are those of the padded batch.
"""

import numpy as np
import torch
from torch.utils.checkpoint import checkpoint

from model import distributed
from model.graphs import Graphs
from model.packed import states_in_rows
from model.utils import autocast, return_freed_memory

SHORTEST = 0.75  # of a padded micro-batch's longest sentence: no more than a quarter of it is padding


def cut_by_length(lengths, max_tokens, padded=True):
    """Cut sentences that are sorted by length, longest first, into micro-batches of at most `max_tokens` tokens.

    Args:
        lengths: (n,) tokens of each sentence, not increasing.
        max_tokens: bound on a micro-batch's tokens, padding included; a sentence longer than that is alone.
        padded: whether sentences are padded to the micro-batch's longest; then they are of similar length, too.

    Returns:
        A list of slices of the n sentences, in order (memory that does not suffice shows at once).
    """
    cuts, start, n = [], 0, len(lengths)
    ends = np.cumsum(lengths)
    while start < n:
        if padded:
            similar = np.searchsorted(-lengths, -SHORTEST * lengths[start], side="right")
            stop = min(start + max_tokens // max(1, lengths[start]), similar)
        else:
            stop = np.searchsorted(ends, ends[start] - lengths[start] + max_tokens, side="right")
        stop = max(start + 1, int(stop))
        cuts.append(slice(start, stop))
        start = stop
    return cuts


def default_micro_batch_tokens(device):
    """A good size of a micro-batch (benchmarks/README.md). A GPU's host needs a pass to be worth its launches."""
    return 65_536 if device.type == "cuda" else 8192


def pad(tokens, rows, pad_id):
    """Rows (n,) of packed tokens as (input_ids, attention_mask), both (n, longest) int64."""
    lengths = tokens.lengths_of(rows)
    columns = np.arange(lengths.max(initial=0))
    mask = columns < lengths[:, None]  # (n, longest)
    input_ids = np.full(mask.shape, pad_id, dtype=np.int64)
    input_ids[mask] = tokens.ids[(tokens.offsets[rows][:, None] + columns)[mask]]
    return torch.from_numpy(input_ids), torch.from_numpy(mask.astype(np.int64))


def to_device(array, device):
    """An array, or the host's tensor, on `device`; to a GPU from pinned memory, so that the host need not wait.

    The host is a step ahead of the GPU, so the next micro-batch is gathered and copied while this one computes.
    """
    tensor = torch.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def inputs_to_device(inputs, device):
    """What SentenceEncoder.collate gives to a callable, its tensors on `device`."""
    return [to_device(x, device) if isinstance(x, torch.Tensor) else x for x in inputs]


class Encode:
    """How a training step's sentences go through the encoder: micro-batches, processes, precision, memory.

    Args:
        encoder: a SentenceEncoder, in whatever mode the caller set.
        tokens: packed sentences.
        max_tokens: size of a micro-batch, see cut_by_length.
        cache_gradients: forget activations and compute them again, micro-batch by micro-batch, when the loss's
            gradients arrive, with the same dropout: the memory of one micro-batch, the same gradients (a GPU may round
            them otherwise). This is gradient caching (Gao et al. 2021, arXiv:2101.06983) by way of PyTorch's activation
            checkpointing.
        precision: "fp32" or "bf16", see autocast.
    """

    def __init__(self, encoder, tokens, max_tokens, cache_gradients=False, precision="fp32"):
        self.encoder, self.tokens, self.max_tokens = encoder, tokens, max_tokens
        self.cache_gradients, self.precision = cache_gradients, precision
        encoder.graphs = None
        if encoder.device.type == "cuda":
            # cuDNN plans attention anew for every shape, and with a mask can give NaN (pytorch/pytorch#196678)
            torch.backends.cuda.enable_cudnn_sdp(False)
            torch.cuda.set_device(encoder.device)  # graphs are recorded on the current one
            if torch.version.cuda is not None and not cache_gradients:  # not AMD's; not twice what they begin once
                encoder.graphs = Graphs(encoder.bert, states_in_rows)

    def autocast(self):
        return autocast(self.precision, self.encoder.device)

    def __call__(self, rows):
        """Embeddings of sentences, with their graph; with several processes each encodes its share.

        `rows` are (n,) numbers of sentences, repeats allowed; of those the result is (n, d) float32, on every process.
        """
        order = np.argsort(-self.tokens.lengths_of(rows), kind="stable")
        mine, device = distributed.share(order), self.encoder.device
        encoded = mine if len(mine) else order[:1]  # more processes than sentences: every one has a graph all the same
        cuts = self._cut(rows[encoded])
        embeddings = torch.cat([self._run(*self.encoder.collate(self.tokens, rows[encoded[cut]])) for cut in cuts])
        if self.encoder.packs_in_rows and len(cuts) > 1:
            embeddings = embeddings[to_device(np.argsort(np.concatenate(cuts)), device)]
        embeddings = distributed.gather(embeddings[: len(mine)], len(rows))  # in the order of `order`
        return embeddings[to_device(np.argsort(order), device)]

    def token_states(self, rows, hide):
        """Last states of the tokens that `hide` chose in this process's share of the sentences, with their graph.

        Args:
            rows: (n,) numbers of sentences.
            hide: callable ids -> (ids as the encoder is to see them, bool of the same shape: the chosen tokens), all on
                the host: a GPU that is asked what was chosen has to finish first.

        Yields:
            ((m, hidden) states, (m,) ids as they were) for each micro-batch.
        """
        order = np.argsort(-self.tokens.lengths_of(rows), kind="stable")
        mine, device = distributed.share(order), self.encoder.device
        mine = rows[mine if len(mine) else order[:1]]
        for cut in self._cut(mine):
            _, (ids, shape) = self.encoder.collate(self.tokens, mine[cut])
            hidden, chosen = hide(ids)
            chosen = chosen.flatten().nonzero().squeeze(1)
            states = self._run(self.encoder.token_states, (hidden, shape))
            yield states.flatten(0, -2)[to_device(chosen, device)], to_device(ids.flatten()[chosen], device)

    def _cut(self, rows):
        """Which of the sentences `rows`, sorted by length, go into each micro-batch: a list of (k,) arrays."""
        lengths, numbers = self.tokens.lengths_of(rows), np.arange(len(rows))
        if not (self.encoder.packs and self.encoder.packs_in_rows):
            return [numbers[cut] for cut in cut_by_length(lengths, self.max_tokens, padded=not self.encoder.packs)]
        # of all lengths in each: short sentences fill the rows that long ones leave open
        n = min(len(rows), -(-int(lengths.sum()) // self.max_tokens))
        return [numbers[first::n] for first in range(n)]

    def _run(self, forward, inputs):
        inputs = inputs_to_device(inputs, self.encoder.device)
        with self.autocast():
            if not self.cache_gradients:
                return forward(*inputs)

            def lean(*inputs):
                return_freed_memory()
                return forward(*inputs)

            return checkpoint(lean, *inputs, use_reentrant=False)
