"""What a SavedModel answers to raw text, by task: functions of `text` (and `text_pair`), traced into its graph.

All answers have a row for each text, so that TF Serving can compute the texts of several requests together. `truncated` (B,) bool
says whether a text was longer than the model reads. Texts may be empty, of any length, and need not be UTF-8: bytes that are
not are dropped.
"""

from collections.abc import Callable

import tensorflow as tf

from tfkd.tasks.question_answering import NEVER, best_span

from .inference import Student

Answer = Callable[..., dict[str, tf.Tensor]]


def text_names(student: Student) -> tuple[str, ...]:
    """Names of the texts that a student reads."""
    return ("text", "text_pair") if student.pairs else ("text",)


def classification(student: Student) -> Answer:
    """`label` (B,) string, the likeliest class; `scores` (B, C), the probabilities of all."""
    names = tf.constant(student.labels)

    def serve(text, text_pair=None):
        logits, _, truncated = _logits(student, text, text_pair)
        return {"label": tf.gather(names, tf.argmax(logits, axis=-1)), "scores": tf.nn.softmax(logits), "truncated": truncated}

    return serve


def multilabel(student: Student) -> Answer:
    """`labels` (B, C) string, the names of the labels given and empty for the others; `scores` (B, C), their probabilities."""
    names = tf.constant(student.labels)

    def serve(text, text_pair=None):
        logits, _, truncated = _logits(student, text, text_pair)
        return {"labels": tf.where(logits > 0.0, names, ""), "scores": tf.sigmoid(logits), "truncated": truncated}

    return serve


def regression(student: Student) -> Answer:
    """`value` (B,), in the units of the data."""

    def serve(text, text_pair=None):
        logits, _, truncated = _logits(student, text, text_pair)
        return {"value": logits[:, 0], "truncated": truncated}

    return serve


def sentence_embedding(student: Student) -> Answer:
    """`embedding` (B, D), of length 1."""

    def serve(text, text_pair=None):
        logits, _, truncated = _logits(student, text, text_pair)
        return {"embedding": logits, "truncated": truncated}

    return serve


def tagging(student: Student) -> Answer:
    """`words` (B, W) string, split at blanks; `tags` (B, W) string and `scores` (B, W), each tag's probability.

    Words behind the longest input are left out. A word that has no piece has an empty tag. Rows of fewer words than others are
    filled up with empty ones.
    """
    names, room = tf.constant(student.labels), student.max_length - 2

    def serve(text):
        text = tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="ignore")
        words = tf.strings.split(tf.strings.regex_replace(text, "[\v\f]+", ""))  # blanks to TensorFlow; the tokenizer drops them
        pieces = student.tokenizer.located(student.tokenizer.cleaned(words.values))[0]
        counts = words.with_values(pieces.row_lengths()).to_tensor()  # (B, W) pieces of each word
        begins = tf.cumsum(counts, axis=1, exclusive=True)
        seen = tf.sequence_mask(words.row_lengths(), tf.shape(counts)[1]) & (begins < room)  # the first words of each row
        read = seen & (counts > 0)
        rows = words.with_values(pieces).merge_dims(1, 2)[:, :room]  # (B, None)
        ends = tf.ones((rows.nrows(), 1), tf.int32)
        rows = tf.concat([ends * student.tokenizer.cls_id, rows, ends * student.tokenizer.sep_id], axis=1)
        logits = student.logits(_dense(student, rows))  # (B, T, C)
        scores = tf.nn.softmax(tf.gather(logits, tf.where(read, 1 + begins, 0), batch_dims=1))  # (B, W, C)
        most = tf.reduce_max(tf.concat([tf.reduce_sum(tf.cast(seen, tf.int32), axis=1), [0]], axis=0))
        return {
            "words": tf.where(seen, words.to_tensor(), "")[:, :most],
            "tags": tf.where(read, tf.gather(names, tf.argmax(scores, axis=-1)), "")[:, :most],
            "scores": tf.where(read, tf.reduce_max(scores, axis=-1), 0.0)[:, :most],
            "truncated": tf.reduce_sum(counts, axis=1) > room,
        }

    return serve


def question_answering(student: Student) -> Answer:
    """`answer` (B,) string, of 30 pieces at most, as it stands in the context; `score` (B,), its start's and its end's together;
    `none_score` (B,), the same for no answer: where questions may have none, there is none if it is the larger of the two.

    `text` is the question, `text_pair` the context, whose end is cut off where it is too long: `truncated`.
    """

    def serve(text, text_pair):
        logits, features, truncated = _logits(student, text, text_pair)
        second = features["segment_ids"]  # (B, T)
        last_piece = tf.reduce_sum(features["padding_mask"], axis=1, keepdims=True) - 1  # [SEP]
        inside = (second == 1) & (tf.range(tf.shape(second)[1]) < last_piece)
        scores = tf.where(inside[..., tf.newaxis], logits, NEVER)
        first, last = best_span(scores)
        begins = tf.reduce_sum((1 - second) * features["padding_mask"], axis=1)  # (B,), where the context does
        found = tf.reduce_any(inside, axis=1)
        score = tf.gather(scores[..., 0], first, batch_dims=1) + tf.gather(scores[..., 1], last, batch_dims=1)
        answer = _cut(student, text_pair, tf.maximum(first - begins, 0), tf.maximum(last - begins, 0))
        return {
            "answer": tf.where(found, answer, ""),
            "score": tf.where(found, score, NEVER),
            "none_score": tf.reduce_sum(logits[:, 0], axis=-1),
            "truncated": truncated,
        }

    return serve


ANSWERS: dict[str, Callable[[Student], Answer]] = {
    "classification": classification,
    "multilabel": multilabel,
    "regression": regression,
    "sentence_embedding": sentence_embedding,
    "tagging": tagging,
    "question_answering": question_answering,
}
"""The tasks that have an answer to raw text."""


def _logits(student: Student, text: tf.Tensor, text_pair: tf.Tensor | None) -> tuple[tf.Tensor, dict[str, tf.Tensor], tf.Tensor]:
    """Texts (B,) -> what the head answers, the features (B, T) by name, and whether a text was cut (B,)."""
    tokenizer, longest = student.tokenizer, student.max_length
    features = tokenizer.padded(text, text_pair, max_length=longest)
    # One piece more than the model reads: the texts that fill it are the ones that were cut. It takes 0.08 ms of 0.5 (the
    # quickstart's student); taking the piece off again, to tokenize once, no less.
    truncated = tokenizer(text, text_pair, max_length=longest + 1)["token_ids"].row_lengths() > longest
    return student.logits({name: features[name] for name in student.inputs}), features, truncated


def _dense(student: Student, rows: tf.RaggedTensor) -> dict[str, tf.Tensor]:
    """Pieces (B, None) as inputs (B, T)."""
    lengths = rows.row_lengths()
    width = tf.reduce_max(tf.concat([lengths, [3]], axis=0))  # 3: an empty batch has no longest text
    ids = rows.to_tensor(student.tokenizer.pad_id, shape=tf.stack([tf.size(lengths, tf.int64), width]))
    return {"token_ids": ids, "padding_mask": tf.sequence_mask(lengths, width, dtype=tf.int32)}


def _cut(student: Student, texts: tf.Tensor, first: tf.Tensor, last: tf.Tensor) -> tf.Tensor:
    """Texts (B,), and the first and last of some of their pieces (B,) -> the characters that these came from, (B,) strings.

    Cleaning works on each character by itself, so the bytes that are left of each tell where a cleaned text's bytes came from.
    Where a word is too long to be tokenized, and stands for nothing, that is not so: then the answer is in its cleaned form.
    """
    texts = tf.strings.unicode_transcode(texts, "UTF-8", "UTF-8", errors="ignore")
    cleaned = student.tokenizer.cleaned(texts)
    _, starts, ends = student.tokenizer.located(cleaned)
    start, end = _at(starts, first), _at(ends, last)  # bytes of the cleaned text
    characters = tf.strings.unicode_split(texts, "UTF-8")  # (B, None)
    left = tf.strings.length(student.tokenizer.cleaned(characters.values))
    upto = tf.cumsum(tf.pad(characters.with_values(left).to_tensor(), [[0, 0], [0, 1]]), axis=1)  # (B, M + 1) bytes
    counts = tf.cast(characters.row_lengths(), tf.int32)

    def through(byte):
        """How many characters end at a byte or before it; those of which nothing is left belong to the one before."""
        return tf.minimum(tf.searchsorted(upto, byte[:, tf.newaxis], side="right")[:, 0], counts)

    begin = through(start)
    stop = tf.minimum(tf.maximum(through(end - 1) + 1, through(end)), counts)
    original = tf.strings.substr(texts, begin, tf.maximum(stop - begin, 0), unit="UTF8_CHAR")
    known = upto[:, -1] == tf.strings.length(cleaned)
    return tf.where(known, original, tf.strings.substr(cleaned, start, tf.maximum(end - start, 0)))


def _at(rows: tf.RaggedTensor, places: tf.Tensor) -> tf.Tensor:
    """The value at one place of each row (B, None), as int32; 0 in a row that ends before it."""
    return tf.gather(tf.pad(tf.cast(rows.to_tensor(), tf.int32), [[0, 0], [0, 1]]), places, batch_dims=1)
