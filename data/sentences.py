"""Plain sentences and pairs of sentences."""

from data.errors import UserError
from data.nli import NLI
from data.sts import SCORED
from data.tables import Layout, Table

SENTENCES = Layout((("sentence", "text", "sentence1", "query", "question"),))
PAIRS = Layout(
    (
        ("sentence1", "text1", "anchor", "query", "question", "premise", "sent0"),
        ("sentence2", "text2", "positive", "pos", "answer", "entailment", "sent1"),
    )
)


def read_sentences(path, encoding="utf-8", columns=None, dropped=None):
    """The sentences of a text file (one a line, blank lines left out) or of one column of a table: a list of strings.

    A file whose name tells no format is text; arguments and errors are those of `Table`.
    """
    table = Table(path, {"sentences": SENTENCES}, encoding, columns, dropped, default=".txt")
    return [sentence for (sentence,) in table.rows()]


def read_pairs(path, encoding="utf-8", columns=None, dropped=None):
    """Pairs of sentences that belong together: a list of (sentence1, sentence2); the rest as `read_sentences`.

    Raises:
        UserError: as there, or a column of labels or scores says that not all pairs do, and `columns` names none.
    """
    table = Table(path, {"pairs": PAIRS}, encoding, columns, dropped)
    judged = [name for name in table.header or () if name in (*NLI.columns[2], *SCORED.columns[2])]
    if judged and not columns:
        raise UserError(
            f"{path}: its column {judged[0]!r} says that not all pairs belong together; take another objective, or "
            "name the two columns with --columns"
        )
    return [tuple(values) for values in table.rows()]
