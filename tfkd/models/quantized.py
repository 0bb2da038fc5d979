"""A student that computes as an int8 file of it will, and learns from that: quantization-aware training."""

import math

import keras
import numpy as np
from keras import ops

from tfkd.layers import activation as activations
from tfkd.layers.fake_quantization import fake_quantize, fake_quantize_kernel
from tfkd.layers.head import ClassificationHead, RegressionHead
from tfkd.layers.token_head import SpanHead, TokenHead

MASKED_SCORE = -20.0
"""What padded keys score: -1e4 would stretch 256 values over all that is between. e^-20 is 2e-9."""

UNIT = (0.0, 1.0)
PROBABILITY = (0.0, 255.0 / 256.0)
TANH = (-1.0, 127.0 / 128.0)
"""The ranges that TensorFlow Lite prescribes for what softmax and tanh answer with."""

SMALLEST = 1e-12
"""Below every variance that matters, and far enough from 0 for the derivative of 1 / sqrt(x) to be a number."""

HEADS = (ClassificationHead, RegressionHead, TokenHead, SpanHead)
"""The heads whose computation is known here."""


@keras.saving.register_keras_serializable(package="tfkd")
class QuantizedTransformer(keras.Model):
    """A `TransformerWithHead` whose every operation rounds its result to 8 bits, and its weights, as integer kernels do.

    Called, it answers with logits. Every intermediate result has a name and a range of its own; ranges are observed on training
    examples, and then learned along with the weights (Esser et al. 2020, arXiv:1902.08153; on a logarithmic scale, as Jain et
    al. 2019, arXiv:1903.08066, so that no end of one ever changes its sign). There is no dropout: the rounding is noise enough.

    `forward` is the computation itself, for whatever is to be done with intermediate results: training rounds them, observing
    looks at them, and an exporter writes their ranges down.

    Arguments:
        student: the model to train; its weights are trained in place.
        pace: how much faster than weights the logarithms of ranges are learned: 50 at a rate of 5e-5 is 0.25 % a step.
        names: of the intermediate results in order; default: found by going through the model once.

    Raises:
        ValueError: a head whose computation is not known here.
    """

    # ---------------------------------------------------------------- layers

    def __init__(self, student: keras.Model, pace: float = 50.0, names: list[str] | None = None, **kwargs):
        super().__init__(**{"dtype": "float32", **kwargs})
        if type(student.head) not in HEADS:
            known = ", ".join(head.__name__ for head in HEADS)
            raise ValueError(f"a {type(student.head).__name__} cannot be quantized; only {known} can")
        self.student, self.pace = student, pace
        self.names = list(names or self._find_names())
        self.build()

    def build(self, input_shape=None):
        if self.built:
            return

        def vector(name, start, trainable):
            return self.add_weight(name=name, shape=(len(self.names),), initializer=start, trainable=trainable)

        self.low, self.high = vector("low", keras.initializers.Constant(-1.0), False), vector("high", "ones", False)
        self.low_change, self.high_change = vector("low_change", "zeros", True), vector("high_change", "zeros", True)
        self.built = True

    def _find_names(self) -> list[str]:
        found = []

        def mark(name, values, fixed=None):
            if fixed is None:
                found.append(name)
            return values

        token = np.zeros((1, 2), "int32")
        self.forward({"token_ids": token, "padding_mask": token + 1, "segment_ids": token}, mark)
        return found

    @property
    def encoder(self):
        return self.student.encoder

    @property
    def head(self):
        return self.student.head

    @property
    def ranges(self) -> dict[str, tuple]:
        """Name -> lowest and highest value, scalars."""
        low = self.low * ops.exp(self.pace * self.low_change)
        high = self.high * ops.exp(self.pace * self.high_change)
        return {name: (low[index], high[index]) for index, name in enumerate(self.names)}

    def observe(self, batches) -> None:
        """Sets every range to the mean, over batches of inputs, of the smallest and of the largest value there.

        A range that has no width, as of a result that is always 0, gets one of 1.
        """
        lows, highs = [], []
        for inputs in batches:
            found = {}

            def mark(name, values, fixed=None, found=found):
                if fixed is None:
                    found[name] = (float(ops.min(values)), float(ops.max(values)))
                return values

            self.forward(inputs, mark)
            low, high = np.array([found[name] for name in self.names]).T
            lows.append(np.minimum(low, 0.0))
            highs.append(np.maximum(high, 0.0))
        low, high = np.mean(lows, axis=0), np.mean(highs, axis=0)
        self.low.assign(low)
        self.high.assign(np.where(high - low > 0.0, high, 1.0))
        self.low_change.assign(np.zeros(len(self.names)))
        self.high_change.assign(np.zeros(len(self.names)))

    # ---------------------------------------------------------------- graph

    def call(self, inputs, training=None):
        """A batch's inputs -> logits, float32."""
        ranges = self.ranges

        def mark(name, values, fixed=None):
            return fake_quantize(values, *(ranges[name] if fixed is None else fixed))

        return self.forward(inputs, mark, fake_quantize_kernel)

    def inner(self, inputs, names, training=None):
        """`logits`, which is all that has a meaning outside."""
        if unknown := set(names) - {"logits"}:
            raise ValueError(f"a quantized student has logits, but no inner tensor {sorted(unknown)[0]!r}")
        return {"logits": self(inputs, training=training)}

    def forward(self, inputs, mark, kernels=lambda kernel: kernel):
        """The student's computation, every operation by itself.

        Arguments:
            mark: `mark(name, values, fixed=None)` is asked what becomes of an intermediate result; `fixed` is its range where
                that is not to be learned.
            kernels: what becomes of the matrices of dense layers.
        """
        mask = mark("mask", ops.cast(inputs["padding_mask"], "float32"), UNIT)
        over_keys = ops.expand_dims(ops.expand_dims(mask, 1), 1)  # (B, 1, 1, T)
        fill = mark("fill", mark("padding", 1.0 - over_keys, UNIT) * MASKED_SCORE, (MASKED_SCORE, 0.0))
        hidden = self._embed(inputs, mark)
        last = len(self.encoder.blocks) - 1
        for index, block in enumerate(self.encoder.blocks):
            first_only = index == last and self.head.first_only
            hidden = _block(block, hidden, over_keys, fill, first_only, Marker(mark, f"block_{index}_"), kernels)
        if self.encoder.final_norm is not None:
            hidden = _normalize(self.encoder.final_norm, hidden, Marker(mark, "final_"))
        return self._score(hidden, mask, mark, kernels)

    def _embed(self, inputs, mark):
        embedding, ids = self.encoder.embedding, inputs["token_ids"]
        hidden = mark("tokens", ops.take(embedding.token_table, ids, axis=0))  # (B, T, D)
        table = embedding.position_table if embedding.position == "learned" else ops.convert_to_tensor(embedding.waves)
        if embedding.segments:
            segments = inputs.get("segment_ids")
            rows = embedding.segment_table[0] if segments is None else ops.take(embedding.segment_table, segments, axis=0)
            hidden = mark("segments", hidden + mark("segment_rows", rows))
        hidden = mark("embeddings", hidden + mark("positions", table[: ops.shape(ids)[1]]))
        return hidden if embedding.layer_norm is None else _normalize(embedding.layer_norm, hidden, Marker(mark, "embedding_"))

    def _score(self, hidden, mask, mark, kernels):
        """(B, T, D) -> logits, (B, C) or (B, T, C)."""
        head = self.head
        if isinstance(head, ClassificationHead):
            hidden = _pool(head, hidden, mask, mark)
            if head.hidden_dense is not None:
                dense = mark("head_dense", _affine(hidden, head.hidden_dense.kernel, head.hidden_dense.bias, kernels))
                fixed = TANH if head.hidden == "tanh" else None
                hidden = mark("head_activation", activations.get(head.hidden)(dense), fixed)
        logits = mark("logits", _affine(hidden, head.output_dense.kernel, head.output_dense.bias, kernels))
        if isinstance(head, RegressionHead):
            return mark("answer", head.mean + mark("deviations", head.deviation * logits))
        if isinstance(head, SpanHead):
            over_classes = ops.expand_dims(mask, -1)  # (B, T, 1)
            fill = mark("fill_classes", mark("padding_classes", 1.0 - over_classes, UNIT) * MASKED_SCORE, (MASKED_SCORE, 0.0))
            return mark("answer", mark("kept_logits", logits * over_classes) + fill)
        return logits

    # ---------------------------------------------------------------- config

    def get_config(self):
        student = keras.saving.serialize_keras_object(self.student)
        return {**super().get_config(), "student": student, "pace": self.pace, "names": list(self.names)}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "student": keras.saving.deserialize_keras_object(config["student"])})


class Marker:
    """A `mark` that puts something before every name."""

    def __init__(self, mark, prefix: str):
        self.mark, self.prefix = mark, prefix

    def __call__(self, name, values, fixed=None):
        return self.mark(self.prefix + name, values, fixed)


def _block(block, hidden, mask, fill, first_only: bool, mark, kernels):
    """A `TransformerBlock`: (B, T, D) -> (B, T, D), or (B, 1, D) where position 0 alone is read."""
    source = _normalize(block.attention_norm, hidden, Marker(mark, "attention_")) if block.pre_norm else hidden
    attended = _attend(block.attention, source, mask, fill, first_only, mark, kernels)
    hidden = mark("attention_sum", (hidden[:, :1] if first_only else hidden) + attended)
    if not block.pre_norm:
        hidden = _normalize(block.attention_norm, hidden, Marker(mark, "attention_"))
    source = _normalize(block.feed_forward_norm, hidden, Marker(mark, "feed_forward_")) if block.pre_norm else hidden
    expand, contract = block.feed_forward.expand, block.feed_forward.contract
    fed = mark("expand", _affine(source, expand.kernel, expand.bias, kernels))
    fed = mark("activation", block.feed_forward.function(fed))
    hidden = mark("sum", hidden + mark("contract", _affine(fed, contract.kernel, contract.bias, kernels)))
    return hidden if block.pre_norm else _normalize(block.feed_forward_norm, hidden, Marker(mark, "feed_forward_"))


def _attend(attention, source, mask, fill, first_only: bool, mark, kernels):
    """A `MultiHeadSelfAttention`, query, key and value as products of their own, the scale in the query's weights."""
    width, heads, size = attention.width, attention.heads, attention.size
    scale = 1.0 / math.sqrt(size)

    def part(index, values, factor=1.0):  # (B, T, D) -> (B, H, T, d)
        columns = slice(index * width, (index + 1) * width)
        kernel, bias = attention.kernel[:, columns] * factor, attention.bias[columns] * factor
        made = mark(("query", "key", "value")[index], _affine(values, kernel, bias, kernels))
        shape = ops.shape(made)
        return ops.transpose(ops.reshape(made, (shape[0], shape[1], heads, size)), (0, 2, 1, 3))

    query, key, value = part(0, source[:, :1] if first_only else source, scale), part(1, source), part(2, source)
    scores = mark("scores", ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))))  # (B, H, Q, T)
    scores = mark("masked_scores", mark("kept_scores", scores * mask) + fill)
    context = mark("context", ops.matmul(mark("probabilities", ops.softmax(scores, axis=-1), PROBABILITY), value))
    shape = ops.shape(context)
    context = ops.reshape(ops.transpose(context, (0, 2, 1, 3)), (shape[0], shape[2], width))
    return mark("attended", _affine(context, attention.output_kernel, attention.output_bias, kernels))


def _normalize(layer, values, mark):
    """gamma (x - mean) / sqrt(variance + epsilon) + beta over the last axis, in the steps that TensorFlow Lite takes."""
    mean = mark("mean", ops.mean(values, axis=-1, keepdims=True))
    squares = mark("squares", ops.square(values - mean))
    variance = mark("variance", ops.mean(squares, axis=-1, keepdims=True))
    # Of 256 variances the smallest is 0, whose root has no reciprocal; integer kernels answer with the largest they know.
    lifted = ops.maximum(mark("lifted", variance + layer.epsilon), SMALLEST)
    root = mark("root", ops.rsqrt(lifted))
    scale = mark("scale", root * mark("gamma", layer.gamma))
    shift = mark("shift", mark("beta", layer.beta) - mark("scaled_mean", mean * scale))
    return mark("normalized", mark("scaled", values * scale) + shift)


def _pool(head, hidden, mask, mark):
    """(B, T, D) -> (B, D)."""
    if head.first_only:
        return hidden[:, 0]
    over_width = ops.expand_dims(mask, -1)  # (B, T, 1)
    total = mark("pooled_sum", ops.sum(mark("pooled_part", hidden * over_width), axis=1))
    count = mark("pooled_count", ops.maximum(ops.sum(over_width, axis=1), 1.0))
    return mark("pooled", total / count)


def _affine(values, kernel, bias, kernels):
    """x W + b."""
    return ops.matmul(values, kernels(kernel)) + bias
