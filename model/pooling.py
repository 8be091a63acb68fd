"""How token states (n, length, hidden) become one vector a sentence (n, hidden)."""

POOLINGS = (
    "pooler",  # BERT's pooler: tanh of a dense layer on the last [CLS]; the reference
    "cls",  # the last hidden state of [CLS]
    "mean",  # the mean of the last hidden states over the tokens
    "mean_first_last",  # the mean over the tokens of the first and the last layer's states
    "mean_top2",  # the mean over the tokens of the last two layers' states
)
NEEDS_ALL_LAYERS = ("mean_first_last", "mean_top2")


def pool(outputs, attention_mask, pooling):
    """Sentence vectors from a transformer's outputs.

    Args:
        outputs: a Hugging Face model output with `last_hidden_state` (n, length, hidden), for "pooler"
            `pooler_output` (n, hidden), and for NEEDS_ALL_LAYERS `hidden_states`: the embeddings' output
            followed by every layer's, (n, length, hidden) each.
        attention_mask: (n, length), 1 for a token and 0 for padding.
        pooling: one of POOLINGS. "mean_first_last" averages hidden_states[1] and [-1] as in
            Li et al. 2020 (arXiv:2011.05864) and SimCSE's "avg_first_last"; "mean_top2" [-2] and [-1].

    Returns:
        (n, hidden), not normalised; means are taken in float32.
    """
    if pooling == "pooler":
        return outputs.pooler_output
    if pooling == "cls":
        return outputs.last_hidden_state[:, 0]
    if pooling == "mean":
        return masked_mean(outputs.last_hidden_state, attention_mask)
    first = outputs.hidden_states[1 if pooling == "mean_first_last" else -2]
    return masked_mean((first + outputs.hidden_states[-1]) / 2, attention_mask)


def masked_mean(states, attention_mask):
    """The mean of states (n, length, hidden) over the positions where attention_mask (n, length) is 1: (n, hidden)."""
    mask = attention_mask.unsqueeze(-1).float()  # (n, length, 1)
    return (states.float() * mask).sum(1) / mask.sum(1)
