"""SentenceEncoder: a transformer and a pooling."""

import functools
from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

from data.errors import UserError
from data.tokenize import Tokens, tokenize
from model import distributed
from model.attention import group
from model.layers import replace_dropout
from model.microbatch import inputs_to_device, pad, to_device
from model.packed import (
    filling,
    lay_in_rows,
    lengths_of,
    make_packable,
    pack,
    position_offset,
    positions,
    states_in_rows,
)
from model.pooling import FIRST_ALONE, NEEDS_ALL_LAYERS, POOLINGS, pool, states_to_pool


class SentenceEncoder(nn.Module):
    """Sentences into vectors.

    Args:
        backbone: a Hugging Face encoder (BertModel, RobertaModel, ...).
        tokenizer: the backbone's.
        pooling: one of model.pooling.POOLINGS.
        max_len: sentences are cut at so many tokens, special tokens included.
        normalize: embeddings get length 1.

    Raises:
        UserError: the backbone cannot do this pooling or has fewer than max_len positions.
    """

    def __init__(self, backbone, tokenizer, pooling="pooler", max_len=50, normalize=False):
        super().__init__()
        check_backbone(backbone, pooling, max_len)
        if pooling != "pooler" and hasattr(backbone, "pooler"):
            backbone.pooler = None  # not computed, not trained, not saved
        replace_dropout(backbone)
        self.bert = backbone  # the name of the published checkpoint's keys
        self.tokenizer = tokenizer
        self.pooling = pooling
        self.max_len = max_len
        self.normalize = normalize
        self._packable = make_packable(backbone)
        self.graphs = None  # of states_in_rows, in a training on a GPU, see graphs.py

    @property
    def device(self):
        return self.bert.device

    @property
    def dim(self):
        """d, the size of an embedding."""
        return self.bert.config.hidden_size

    @property
    def packs(self):
        """Whether micro-batches go through `forward_packed`: where it is possible and faster than `forward`."""
        return self._packable and self._compiled_call_impl is None and self.device.type in ("cpu", "cuda")

    @property
    def packs_in_rows(self):
        """Whether packed sentences lie in many rows instead of one."""
        return self.device.type == "cuda"

    def collate(self, tokens, rows):
        """The faster of the two ways through the transformer: (callable, its arguments) for a micro-batch.

        `rows` are (n,) numbers of the packed sentences `tokens`, sorted by length. The arguments are on the host.
        """
        if self.packs:
            return self.forward_packed, pack(tokens, rows)
        return self, pad(tokens, rows, self.tokenizer.pad_token_id)

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        """(n, length) token ids and mask into (n, d) embeddings."""
        inputs = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        kept = slice(0, 1) if self.pooling in FIRST_ALONE else None
        outputs = self._run_padded(kept, input_ids, attention_mask, **inputs)
        return self._pool(states_to_pool(outputs, self.pooling), attention_mask)

    def forward_packed(self, ids, blocks):
        """Sentences without padding into (n, d) embeddings, where `packs`; the arguments are packed.pack's results."""
        if self.packs_in_rows:
            return self._pool(self._run_in_rows(ids, blocks, self.pooling).unsqueeze(1))
        states = self._run_packed(ids, blocks, self.pooling)
        if self.pooling in FIRST_ALONE:
            return self._pool(states.unsqueeze(1))
        states = states.split([n * length for n, length in blocks])
        return torch.cat([self._pool(block.unflatten(0, size)) for block, size in zip(states, blocks)])

    def token_states(self, ids, shape):
        """The last states of all tokens, for what `collate` gives: (*ids.shape, hidden)."""
        if not isinstance(shape, list):
            return self._run_padded(None, ids, shape).last_hidden_state
        return (self._run_in_rows if self.packs_in_rows else self._run_packed)(ids, shape, None)

    def _run_packed(self, ids, blocks, pooling):
        """States of packed tokens to be pooled: (tokens, hidden), or of the first ones alone; None: the last states."""
        config, device, first_alone = self.bert.config, self.device, pooling in FIRST_ALONE
        lengths = lengths_of(blocks)
        where, real = positions(lengths), len(ids)
        inputs = {"kept": to_device(np.flatnonzero(where == 0), device) if first_alone else None, "blocks": blocks}
        if self.bert.training and config.attention_probs_dropout_prob:
            # what computes products in bf16, oneDNN, makes a kernel for every new shape, and that takes its time
            few_shapes = torch.is_autocast_enabled("cpu")
            inputs["groups"] = group(lengths, config.num_attention_heads, few_shapes)
            extra = filling(real) if few_shapes else 0
            ids, where = F.pad(ids, (0, extra)), np.pad(where, (0, extra))
        where = to_device(where + position_offset(config), device)
        outputs = self._run(input_ids=ids[None], position_ids=where[None], **inputs)
        states = states_to_pool(outputs, pooling)[0]
        return states if first_alone else states[:real]

    def _run_in_rows(self, ids, blocks, pooling):
        """What packed.states_in_rows gives of packed tokens: (n, hidden), or, without pooling, (tokens, hidden)."""
        lengths = lengths_of(blocks)
        starts, slots, rows, width = lay_in_rows(lengths)
        where = positions(lengths)
        places = np.repeat(starts, lengths) + where
        in_rows = np.full((2, rows * width), [[0], [-1]])  # of padding
        in_rows[:, places] = where + position_offset(self.bert.config), np.repeat(slots, lengths)
        where, of_tokens = to_device(in_rows, self.device).view(2, rows, width)
        places = to_device(places, self.device)
        padding = ids.new_full((rows * width,), self.tokenizer.pad_token_id)
        ids = padding.index_copy(0, places, ids).view(rows, width)
        run = functools.partial(states_in_rows, self.bert)
        if self.graphs is not None and self.training and torch.is_grad_enabled():
            run = self.graphs
        if pooling is None:
            return run(ids, where, of_tokens, None, None).index_select(0, places)
        most = None if pooling in FIRST_ALONE else -(-int(slots.max() + 1) // 8) * 8
        kept = starts if most is None else starts // width * most + slots
        kept = to_device(np.pad(kept, (0, filling(len(kept)))), self.device)
        return run(ids, where, of_tokens, kept, pooling, most)[: len(lengths)]

    def _run_padded(self, kept, input_ids, attention_mask, **inputs):
        if self._packable:
            inputs["kept"] = kept
            # else transformers asks the GPU whether anything is padded at all, and waits for the answer
            attention_mask = attention_mask.bool()[:, None, None].expand(-1, -1, attention_mask.shape[1], -1)
        return self._run(input_ids=input_ids, attention_mask=attention_mask, **inputs)

    def _run(self, **inputs):
        # BERT's own pooler, run with it, is not used: what it sees are not sentences, and it is not in float32
        return self.bert(output_hidden_states=self.pooling in NEEDS_ALL_LAYERS, **inputs)

    def _pool(self, states, attention_mask=None):
        """(n, length, hidden) to (n, d), in float32 whatever the precision of the transformer."""
        with torch.autocast(states.device.type, enabled=False):
            pooled = pool(states.float(), attention_mask, self.pooling, getattr(self.bert, "pooler", None))
            return F.normalize(pooled, dim=-1) if self.normalize else pooled

    def tokenize(self, sentences):
        """n strings, as `encode` takes them, into {"input_ids", "attention_mask"}, (n, longest) each.

        The README's `transform`.
        """
        tokens = self._packed(sentences)
        rows = np.arange(len(tokens.lengths))
        input_ids, attention_mask = pad(tokens, rows, self.tokenizer.pad_token_id)
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    @torch.no_grad()
    def encode(self, sentences, device=None, batch_size=64, show_progress=None, split=False):
        """Embeddings for use, without gradient or dropout.

        Batches hold sentences of similar length, whatever the order they are given in.

        Args:
            sentences: n strings (one string counts as a list of one), the mapping that
                `convert_to_tensor` makes, or packed `Tokens`.
            device: moves the encoder there first; None leaves it where it is.
            batch_size: sentences in a forward pass.
            show_progress: a bar on stderr; None shows one for 1,000 sentences or more on a terminal.
            split: under torchrun, each process encodes its share; all must make this call, and all get the result.

        Returns:
            (n, d) float32 tensor on the CPU, in the order of `sentences`.

        Raises:
            TypeError: an item of the list is not a string; names its index.
            ValueError: no token of a row of the mapping counts, or batch_size is below 1.
        """
        if batch_size < 1:
            raise ValueError(f"encode: batch_size is {batch_size}; expected at least 1")
        if device is not None:
            self.to(device)
        tokens = self._packed(sentences)
        n = len(tokens.offsets) - 1
        order = np.argsort(-tokens.lengths, kind="stable")
        mine = distributed.share(order) if split else order
        embeddings = torch.empty(len(mine), self.dim)
        hidden = not show_progress if show_progress is not None else (n < 1000 or distributed.rank() > 0 or None)
        was_training = self.training
        self.eval()
        try:
            with tqdm(total=len(mine), desc="encode", unit="sentence", disable=hidden, leave=False) as bar:
                for start in range(0, len(mine), batch_size):
                    rows = mine[start : start + batch_size]
                    forward, inputs = self.collate(tokens, rows)
                    embeddings[start : start + batch_size] = forward(*inputs_to_device(inputs, self.device))
                    bar.update(len(rows))
        finally:
            self.train(was_training)
        if split:
            embeddings = distributed.gather(embeddings, n)
        return embeddings[torch.from_numpy(np.argsort(order))]

    def _packed(self, sentences):
        """Any form of input that `encode` takes, as Tokens."""
        if isinstance(sentences, Tokens):
            return sentences
        if isinstance(sentences, Mapping):
            mask = sentences["attention_mask"].bool().cpu()
            if not mask.any(1).all():
                raise ValueError(f"encode: attention_mask is 0 throughout row {int(mask.any(1).int().argmin())}")
            offsets = np.concatenate([[0], np.cumsum(mask.sum(1).numpy())])
            return Tokens(sentences["input_ids"].cpu()[mask].numpy(), offsets)
        sentences = [sentences] if isinstance(sentences, str) else list(sentences)
        for i, sentence in enumerate(sentences):
            if not isinstance(sentence, str):
                raise TypeError(f"encode takes strings; item {i} is {sentence!r}")
        return tokenize(sentences, self.tokenizer, self.max_len)


def check_backbone(backbone, pooling, max_len):
    """Raise UserError where a backbone cannot do this pooling or has fewer than max_len positions."""
    family, layers = backbone.config.model_type, backbone.config.num_hidden_layers
    pooler = getattr(backbone, "pooler", None)
    lacking = {
        "pooler": "has no pooler as BERT's" if pooler is None or isinstance(pooler, nn.Linear) else None,  # ALBERT's
        "cls": "has no [CLS] token" if family in ("t5", "mt5") else None,
        **dict.fromkeys(NEEDS_ALL_LAYERS, "has one layer" if layers < 2 else None),
    }
    if pooling not in POOLINGS or lacking.get(pooling):
        reason = f"{type(backbone).__name__} {lacking[pooling]}; " if pooling in POOLINGS else ""
        possible = ", ".join(name for name in POOLINGS if not lacking.get(name))
        raise UserError(f"--pooling {pooling}: {reason}choose one of {possible}")
    longest = max_positions(backbone.config)
    if not 3 <= max_len <= longest:
        raise UserError(f"--max_len {max_len}: this model takes 3 to {longest} tokens")


def max_positions(config):
    """The longest input, in tokens, that a model of this configuration has positions for."""
    positions = getattr(config, "max_position_embeddings", None) or 1_000_000  # relative positions have no limit
    return positions - position_offset(config)
