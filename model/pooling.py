"""How token states (n, length, hidden) become one vector a sentence (n, hidden)."""

POOLINGS = (
    "pooler",  # BERT's pooler: tanh of a dense layer on the last [CLS]; the reference
    "cls",  # the last hidden state of [CLS]
    "mean",  # the mean of the last hidden states over the tokens
    "mean_first_last",  # the mean over the tokens of the first and the last layer's states
    "mean_top2",  # the mean over the tokens of the last two layers' states
)
FIRST_ALONE = ("pooler", "cls")  # these look at nothing but the last layer's [CLS]
NEEDS_ALL_LAYERS = ("mean_first_last", "mean_top2")


def states_to_pool(outputs, pooling):
    """The states that are pooled, (n, length, hidden).

    Args:
        outputs: a Hugging Face model output with `last_hidden_state` and, for NEEDS_ALL_LAYERS, `hidden_states`: the
            embeddings' output followed by every layer's, (n, length, hidden) each.
        pooling: one of POOLINGS. "mean_first_last" takes the mean of hidden_states[1] and [-1] as in Li et al. 2020
            (arXiv:2011.05864) and SimCSE's "avg_first_last"; "mean_top2" of [-2] and [-1].
    """
    if pooling not in NEEDS_ALL_LAYERS:
        return outputs.last_hidden_state
    first = outputs.hidden_states[1 if pooling == "mean_first_last" else -2]
    return (first + outputs.hidden_states[-1]) / 2


def pool(states, attention_mask, pooling, pooler=None):
    """Sentence vectors (n, hidden), not normalised, from token states.

    Args:
        states: (n, length, hidden); for "pooler" and "cls" only [CLS], the first, is looked at.
        attention_mask: (n, length), 1 for a token and 0 for padding; None where nothing is padded.
        pooling: one of POOLINGS.
        pooler: the backbone's, (n, length, hidden) -> (n, hidden), for "pooler".
    """
    if pooling == "pooler":
        return pooler(states)
    if pooling == "cls":
        return states[:, 0]
    if attention_mask is None:
        return states.mean(1)
    weights = attention_mask.to(states.dtype)
    weights = weights / weights.sum(1, keepdim=True)
    return (weights.unsqueeze(1) @ states).squeeze(1)  # (n, 1, length) @ (n, length, hidden)
