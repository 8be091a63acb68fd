"""What overlap alone reaches on STS: cosine of TF-IDF vectors, of character 1-3-grams and of words, Spearman x100.

    python -m benchmarks.baselines --idf_data KorSTS/sts-train.tsv --test_data KorSTS/sts-dev.tsv KorSTS/sts-test.tsv

Needs scikit-learn (requirements-test.txt). A sentence encoder below this is not worth running.
"""

import argparse

from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer

from data.errors import one_sentence_errors
from data.sts import read_sts


@one_sentence_errors
def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--idf_data", nargs="+", required=True, metavar="FILE", help="STS files for the idf weights")
    parser.add_argument("--test_data", nargs="+", required=True, metavar="FILE")
    args = parser.parse_args(argv)
    corpus = read_sts(args.idf_data)
    vectorizers = {
        "character 1-3-grams": TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 3)),
        "words": TfidfVectorizer(token_pattern=r"\S+"),
    }
    for name, vectorizer in vectorizers.items():
        vectorizer.fit([*corpus.sentences1, *corpus.sentences2])
        for file in args.test_data:
            pairs = read_sts([file])
            a, b = (vectorizer.transform(sentences) for sentences in (pairs.sentences1, pairs.sentences2))
            cosines = a.multiply(b).sum(axis=1).A1  # rows are normalised
            print(f"{name}, {file}: cosine Spearman {100 * spearmanr(cosines, pairs.scores).statistic:.2f}")


if __name__ == "__main__":
    main()
