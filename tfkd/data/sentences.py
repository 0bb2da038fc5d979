"""Single sentences to be put into vectors, and pairs of them whose likeness people have judged."""

import numpy as np

from tfkd.data.target import NUMBERS, Target, byte_column


class Sentences(Target):
    """No answer to learn: y (B,) is zeros. Pairs come apart, into a row a sentence; a judgement of each pair is for measuring.

    Without `text_pair` every example is one sentence, to learn from. With it an example gives two rows, and with `label` too
    a number says how alike the two are, in any unit: vectors are measured by how their cosines rank.

    In a store: `example` (R,), and `label` (R,) float32, the pair's number, NaN where there is none.
    """

    kind = "sentences"
    labelled = False
    defaults = {"text": "text", "text_pair": None, "label": None}
    holds = {"label": ("a number", (*NUMBERS, "text"))}
    named = False
    pairs = False

    def __init__(self, **arguments):
        super().__init__(**arguments)
        self.keys = ("label",) if "label" in self.columns else ()

    def label(self, cells):
        from tfkd.data.targets import number  # which knows this kind too

        return {"label": number(cells["label"], self.columns["label"])} if self.keys else {}

    def is_unlabelled(self, cell):
        return cell == -1

    def encode(self, examples, tokenizer, max_length):
        import tensorflow as tf

        sides = [key for key in self.texts if key in self.columns]
        texts = [example[key].encode() for example in examples for key in sides]
        pieces = tokenizer(tf.constant(texts, tf.string, [len(texts)]), max_length=max_length)["token_ids"]
        labels = np.array([example.get("label", np.nan) for example in examples], "float32")
        return {
            "token_ids": (pieces.values.numpy(), pieces.row_lengths().numpy()),
            "text": byte_column(texts),
            "label": np.repeat(labels, len(sides)),
            "example": np.repeat(np.arange(len(examples), dtype="int32"), len(sides)),
        }

    def batch(self, store, rows, length, random):
        return store.gather(rows, length), np.zeros(len(rows), "int32"), (rows >= 0).astype("float32")

    def truth(self, store):
        """`labels` (R,) each row's pair's number, and `example` (R,), the pair."""
        return {"labels": np.array(store.column("label")), "example": np.array(store.column("example"))}

    def told(self, store, row):
        value = float(store.column("label")[row])
        return None if np.isnan(value) else float(f"{value:.7g}")

    def describe(self, store):
        judged = np.isfinite(store.column("label")).all() and store.rows > 0
        return "targets", "none: the teacher's vectors" + (", measured on judged pairs" if judged else "")
