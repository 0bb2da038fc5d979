"""TF-IDF with logistic regression on the quickstart's split, the teacher's bar: `python benchmarks/tfidf.py`."""

import pathlib
import sys

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from tfkd.data.sources import open_source  # noqa: E402 a program of the checkout, run from anywhere


def main() -> None:
    source = open_source(builtin="docstrings")
    splits = {split: list(source.examples(split)) for split in source.splits}
    texts = {split: [row["text"] for row in rows] for split, rows in splits.items()}
    labels = {split: [row["label"] for row in rows] for split, rows in splits.items()}
    print(f"{'words':>8} {'case':>6} {'C':>4} {'validation':>11} {'test':>7}")
    for longest in (1, 2):
        for lowercase in (True, False):
            vectorizer = TfidfVectorizer(ngram_range=(1, longest), lowercase=lowercase, sublinear_tf=True)
            train = vectorizer.fit_transform(texts["train"])
            for c in (1, 10):
                model = LogisticRegression(C=c, max_iter=300).fit(train, labels["train"])
                scores = [model.score(vectorizer.transform(texts[split]), labels[split]) for split in ("validation", "test")]
                case = "folded" if lowercase else "kept"
                print(f"{f'1 to {longest}':>8} {case:>6} {c:>4} {scores[0]:>11.2%} {scores[1]:>7.2%}", flush=True)


if __name__ == "__main__":
    main()
