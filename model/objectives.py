"""What a training step encodes, and which loss the embeddings meet.

An objective is a module, called as objective(encode, rows, labels) -> scalar loss. `rows` (B, k) are numbers of the k
sentences of each example, `labels` (B,) what the data say of it, or None; `encode` is a microbatch.Encode. What an
objective learns besides the encoder (a classifier, a head) are its parameters; they serve training alone and are not
in the checkpoint.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from data.errors import UserError
from model.losses import contrastive_loss, cosent_loss, cosine_regression_loss, symmetric_contrastive_loss
from model.microbatch import to_device

MASKED_SHARE = 0.15  # of the tokens are guessed: 8 of 10 hidden, 1 replaced, 1 left (Devlin et al. 2019, section 3.1)


class Objective(nn.Module):
    """A loss on embeddings, at one or several sizes.

    Args:
        dims: sizes d at which embeddings are cut; the loss is the sum over them. More than one is Matryoshka
            Representation Learning (Kusupati et al. 2022, arXiv:2205.13147, equation 1, all weights 1).
        temperature: what cosines are divided by, in the contrastive ones.

    Attributes:
        reads: the kind of data, see data.tasks.KINDS.
    """

    reads = None

    def __init__(self, dims, temperature=None):
        super().__init__()
        self.dims, self.temperature = dims, temperature

    def forward(self, encode, rows, labels=None):
        columns = encode(rows.T.reshape(-1)).chunk(rows.shape[1])  # k of (B, d)
        if labels is not None:
            labels = to_device(labels.astype(np.float32), columns[0].device)  # mps has no float64
        return sum(self.loss([column[:, :dim] for column in columns], rows, labels) for dim in self.dims)

    def loss(self, columns, rows, labels):
        """The loss of k (B, dim) embeddings, of what `forward` was called with."""
        raise NotImplementedError


class SimCSE(Objective):
    """Supervised SimCSE: rows of premise, entailment, contradiction, and more contradictions if there are any.

    Args:
        same: (number of sentences,) int, equal where token ids are equal; then candidates that equal a row's anchor
            or positive are no negatives of it. None leaves them in, as published.
    """

    reads = "triplets"

    def __init__(self, dims, temperature, hard_negative_weight=1.0, same=None):
        super().__init__(dims, temperature)
        self.hard_negative_weight, self.same = hard_negative_weight, same

    def loss(self, columns, rows, labels):
        anchors, positives, *negatives = columns
        left_out = self._left_out(rows)
        if left_out is not None:
            left_out = to_device(left_out, anchors.device)
        return contrastive_loss(anchors, positives, negatives, self.temperature, self.hard_negative_weight, left_out)

    def _left_out(self, rows):
        """(B, candidates) bool, or None where every candidate counts."""
        batch, k = rows.shape
        candidates = rows[:, 1:].T.reshape(-1)
        left_out = np.zeros((batch, len(candidates)), dtype=bool)
        for column in range(3, k):  # examples with fewer negatives than others repeat theirs
            repeated = (rows[:, 2:column] == rows[:, column : column + 1]).any(1)
            left_out[:, (column - 1) * batch : column * batch] = repeated
        if self.same is not None:
            same = self.same[candidates][None, :]
            left_out |= (same == self.same[rows[:, 1]][:, None]) | (same == self.same[rows[:, 0]][:, None])
            np.fill_diagonal(left_out, False)  # a row's own positive
        return left_out if left_out.any() else None


class UnsupervisedSimCSE(Objective):
    """Unsupervised SimCSE: a sentence and itself under another dropout mask.

    Gao, Yao and Chen 2021 (arXiv:2104.08821), section 3. As published, embeddings go through a tanh layer in training
    only (section 6, pooling methods).
    """

    reads = "sentences"

    def __init__(self, dims, temperature):
        super().__init__(dims, temperature)
        self.head = nn.Sequential(nn.Linear(max(dims), max(dims)), nn.Tanh())

    def forward(self, encode, rows, labels=None):
        return super().forward(encode, rows.repeat(2, axis=1))

    def loss(self, columns, rows, labels):
        layer, dim = self.head[0], columns[0].shape[1]
        first, second = (F.linear(x, layer.weight[:dim, :dim], layer.bias[:dim]).tanh() for x in columns)
        return contrastive_loss(first, second, [], self.temperature)


class Pairs(Objective):
    """In-batch contrastive learning from pairs of paraphrases, in both directions."""

    reads = "pairs"

    def loss(self, columns, rows, labels):
        return symmetric_contrastive_loss(*columns, self.temperature)


class SBERTNLI(Objective):
    """Sentence-BERT's classification objective: softmax over (u, v, |u - v|), three classes.

    Reimers and Gurevych 2019 (arXiv:1908.10084), section 3. Each size of `dims` has a classifier of its own.
    """

    reads = "labelled pairs"

    def __init__(self, dims, temperature=None):
        super().__init__(dims)
        self.classifiers = nn.ModuleDict({str(dim): nn.Linear(3 * dim, 3) for dim in dims})

    def loss(self, columns, rows, labels):
        u, v = columns
        logits = self.classifiers[str(u.shape[1])](torch.cat([u, v, (u - v).abs()], dim=1))
        return F.cross_entropy(logits, labels.long())


class STS(Objective):
    """Sentence-BERT's regression objective: cosines to score / 5."""

    reads = "scored pairs"

    def loss(self, columns, rows, labels):
        return cosine_regression_loss(*columns, labels / 5)


class CoSENT(Objective):
    """Cosines in the order of the scores."""

    reads = "scored pairs"

    def loss(self, columns, rows, labels):
        return cosent_loss(*columns, labels)


class MaskedLM(nn.Module):
    """Masked language modelling: hidden tokens are guessed, by BERT's head with the word embeddings as output.

    Devlin et al. 2019 (arXiv:1810.04805), section 3.1. The loss is the mean over a process's own guesses.

    Args:
        encoder: the SentenceEncoder to be trained; its tokenizer says what is never hidden.

    Raises:
        UserError: the tokenizer has no mask token.
    """

    reads = "sentences"

    def __init__(self, encoder):
        super().__init__()
        tokenizer = encoder.tokenizer
        if tokenizer.mask_token_id is None:
            raise UserError("mlm: this model's tokenizer has no mask token; train it with other objectives")
        self.mask_id, self.vocabulary = tokenizer.mask_token_id, len(tokenizer)
        self.special = torch.tensor(sorted(tokenizer.all_special_ids))
        size = encoder.bert.get_input_embeddings().weight.shape[1]  # ELECTRA's and ALBERT's may be below `dim`
        self.transform = nn.Sequential(nn.Linear(encoder.dim, size), nn.GELU(), nn.LayerNorm(size))
        self.bias = nn.Parameter(torch.zeros(self.vocabulary))

    def forward(self, encode, rows, labels=None):
        states, targets = zip(*encode.token_states(rows[:, 0], self.hide))
        with encode.autocast():
            logits = self.logits(encode.encoder, torch.cat(states))
        targets = torch.cat(targets)
        return F.cross_entropy(logits.float(), targets, reduction="sum") / max(1, len(targets))

    def logits(self, encoder, states):
        """(n, vocabulary) of n tokens' last states."""
        embeddings = encoder.bert.get_input_embeddings().weight[: self.vocabulary]
        return F.linear(self.transform(states), embeddings, self.bias)

    def hide(self, ids):
        """Token ids of any shape as (ids with some hidden, bool of the same shape: those guessed), all on the host."""
        guessed = (torch.rand(ids.shape) < MASKED_SHARE) & ~torch.isin(ids, self.special)
        fate = torch.rand(ids.shape)
        hidden = torch.where(guessed & (fate < 0.8), self.mask_id, ids)
        random = torch.randint(self.vocabulary, ids.shape)
        return torch.where(guessed & (fate >= 0.9), random, hidden), guessed


OBJECTIVES = {
    "simcse": SimCSE,
    "simcse-unsup": UnsupervisedSimCSE,
    "pairs": Pairs,
    "sbert-nli": SBERTNLI,
    "sts": STS,
    "cosent": CoSENT,
    "mlm": MaskedLM,
}


def make_objective(name, encoder, tokens, dims, temperature, hard_negative_weight, mask_duplicates):
    """One of OBJECTIVES for an encoder and the packed sentences it will see, on the encoder's device.

    Raises:
        UserError: the tokenizer has no mask token (mlm).
    """
    if name == "mlm":
        objective = MaskedLM(encoder)
    elif name == "simcse":
        same = same_tokens(tokens) if mask_duplicates else None
        objective = SimCSE(dims, temperature, hard_negative_weight, same)
    else:
        objective = OBJECTIVES[name](dims, temperature)
    return objective.to(encoder.device)


def same_tokens(tokens):
    """(n,) numbers of n packed sentences, equal where their token ids are equal."""
    numbers = {}
    bounds = zip(tokens.offsets[:-1].tolist(), tokens.offsets[1:].tolist())
    return np.array([numbers.setdefault(tokens.ids[a:b].tobytes(), len(numbers)) for a, b in bounds])
