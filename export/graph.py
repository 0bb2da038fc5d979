"""The student's computation written anew for serving: the same numbers from the same weights, in the order that runtimes like.

Dropout is gone and the mask is made once. What else was done, as the time of one request in LiteRT relative to the layers as
Keras calls them, all positions in every block (2 layers of width 128 at length 32; 6 of width 384 at length 64; float32 and
dynamic int8; processor time of one thread, AVX-512 with VNNI):

    the last block at position 0 alone, where the head reads no other    0.67, 0.75;  0.88, 0.88
    query, key and value as products of their own too, because the       0.42, 0.31;  0.73, 0.54
        fused one needs a transposition in five dimensions
    keys and values of the last block never made (`FirstPositionBlock`)  0.37, 0.29;  0.72, 0.52

TensorFlow gains too, against the layers with their shortcut: 0.54 and 0.76 for one text, 0.74 and 0.94 for 32.

The attention scale is multiplied into the query's weights, which saves an operator a block and under 2 %. No more than noise:
the mask added to the scores instead of replacing them, layer normalization spelled in three other ways, tensors without the
batch axis, keys transposed early. Without any GELU, or any layer normalization, the time would fall by another 2 to 5 %.
"""

import keras
import tensorflow as tf

from tfkd.layers import activation as activations

SETTINGS = {"vocabulary_size", "layers", "width", "heads", "feed_forward", "max_positions", "segments", "activation", "norm"}
SETTINGS |= {"position", "dropout", "attention_dropout", "embedding_dropout", "token_dropout", "epsilon", "masked_score"}
SETTINGS |= {"initializer_range"}
"""The settings of an encoder that this file knows. One more must be thought of here too, or it would be left out."""


class InferenceGraph(tf.Module):
    """Answers what `model(inputs, training=False)` answers, for any batch and length, fixed or not.

    Arguments:
        model: a `TransformerWithHead` in float32.
        masked_score: replaces the scores of padded keys, and what a head answers to padding; default: the model's own.
        int8_table: keeps the token vectors as int8 with a float32 scale each, for converters that leave tables as they are.

    Raises:
        ValueError: the encoder has a setting that this file does not know.
    """

    def __init__(self, model: keras.Model, masked_score: float | None = None, int8_table: bool = False):
        super().__init__(name="student")
        config, embedding = model.encoder.config, model.encoder.embedding
        if unknown := set(config) - SETTINGS:
            raise ValueError(f"export.graph does not know the encoder's {', '.join(sorted(unknown))}")
        self.masked_score = config["masked_score"] if masked_score is None else masked_score
        self.token_table, self.token_scale = embedding.token_table.value, None
        if int8_table:
            self.token_table, self.token_scale = in_int8(self.token_table)
        self.position_table = embedding.position_table.value if config["position"] == "learned" else tf.constant(embedding.waves)
        self.segment_table = embedding.segment_table.value if config["segments"] else None
        self.embedding_norm = Normalization(embedding.layer_norm) if config["norm"] == "post" else None
        last = FirstPositionBlock if model.head.first_only else Block
        self.blocks = [Block(block) for block in model.encoder.blocks[:-1]] + [last(model.encoder.blocks[-1])]
        self.final_norm = Normalization(model.encoder.final_norm) if config["norm"] == "pre" else None
        head = model.head if masked_score is None else with_masked_score(model.head, masked_score, config["width"])
        # Behind a function, and its variables by themselves: a `tf.Module` cannot track the head, which is Keras's.
        self.score = lambda hidden, padding_mask: head(hidden, padding_mask, training=False)[0]
        self.head_variables = [weight.value for weight in head.weights]

    def __call__(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        """`token_ids`, `padding_mask` and, for pairs, `segment_ids`, (B, T) int32 each -> the head's answer, float32."""
        mask = tf.cast(inputs["padding_mask"], tf.float32)[:, tf.newaxis, tf.newaxis, :]  # (B, 1, 1, T)
        fill = (1.0 - mask) * self.masked_score
        hidden = self._embed(inputs)
        for block in self.blocks:
            hidden = block(hidden, mask, fill)
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        return tf.cast(self.score(hidden, inputs["padding_mask"]), tf.float32)

    def _embed(self, inputs: dict[str, tf.Tensor]) -> tf.Tensor:
        ids = inputs["token_ids"]
        added = self.position_table[: size(ids, 1)]  # (T, D)
        if self.segment_table is not None:
            segments = inputs.get("segment_ids")
            added += self.segment_table[0] if segments is None else tf.gather(self.segment_table, segments)
        hidden = tf.gather(self.token_table, ids)  # (B, T, D)
        if self.token_scale is not None:
            hidden = tf.cast(hidden, tf.float32) * tf.gather(self.token_scale, ids)
        hidden += added
        return hidden if self.embedding_norm is None else self.embedding_norm(hidden)


class Block(tf.Module):
    """A `TransformerBlock` whose query, key and value weights lie apart, the query's times 1 / sqrt(d)."""

    def __init__(self, block: keras.layers.Layer):
        super().__init__()
        attention, feed_forward = block.attention, block.feed_forward
        self.heads, self.size, self.width = attention.heads, attention.size, attention.width
        self.pre_norm = block.pre_norm
        kernels, biases = tf.split(attention.kernel.value, 3, axis=1), tf.split(attention.bias.value, 3)
        scale = self.size**-0.5
        self.query = tf.Variable(kernels[0] * scale), tf.Variable(biases[0] * scale)
        self._arrange(kernels[1], biases[1], kernels[2], biases[2])
        self.output = attention.output_kernel.value, attention.output_bias.value
        self.expand = feed_forward.expand.kernel.value, feed_forward.expand.bias.value
        self.contract = feed_forward.contract.kernel.value, feed_forward.contract.bias.value
        self.activation = activations.get(feed_forward.activation)
        self.attention_norm, self.feed_forward_norm = Normalization(block.attention_norm), Normalization(block.feed_forward_norm)

    def __call__(self, hidden: tf.Tensor, mask: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
        """(B, T, D), and (B, 1, 1, T) twice -> (B, Q, D), where Q is T or 1."""
        source = self.attention_norm(hidden) if self.pre_norm else hidden
        context = self._attend(source, mask, fill)
        hidden = hidden[:, : context.shape[1]] + affine(context, self.output)
        if not self.pre_norm:
            hidden = self.attention_norm(hidden)
        fed = affine(self.feed_forward_norm(hidden) if self.pre_norm else hidden, self.expand)
        hidden += affine(self.activation(fed), self.contract)
        return hidden if self.pre_norm else self.feed_forward_norm(hidden)

    def _arrange(self, key_kernel: tf.Tensor, key_bias: tf.Tensor, value_kernel: tf.Tensor, value_bias: tf.Tensor) -> None:
        """Keeps (D, D) kernels and (D,) biases in the form that `_attend` reads."""
        self.key = tf.Variable(key_kernel), tf.Variable(key_bias)
        self.value = tf.Variable(value_kernel), tf.Variable(value_bias)

    def _attend(self, source: tf.Tensor, mask: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
        """(B, T, D) -> what the heads saw, (B, T, D)."""
        shape = (size(source, 0), size(source, 1), self.heads, self.size)
        query, key, value = (
            tf.transpose(tf.reshape(affine(source, weights), shape), (0, 2, 1, 3))  # (B, H, T, d)
            for weights in (self.query, self.key, self.value)
        )
        scores = tf.matmul(query, key, transpose_b=True) * mask + fill  # (B, H, T, T)
        context = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), (0, 2, 1, 3))  # (B, T, H, d)
        return tf.reshape(context, (*shape[:2], self.width))


class FirstPositionBlock(Block):
    """A last block of which position 0 alone is read: the same answer there, and not one key or value is made.

    One query q reads all positions, so what would be done to each of them is done to q, and to the one vector that comes
    out: q (X K)^T = (q K^T) X^T, and p (X V) = (p X) V. The key's bias adds the same q b to every score, which softmax does
    not see; the value's is added once, because p sums to 1. A head spends (T + d) D multiplications on keys instead of T D d.
    """

    def _arrange(self, key_kernel, key_bias, value_kernel, value_bias):
        by_head = (self.width, self.heads, self.size)
        self.key = tf.Variable(tf.transpose(tf.reshape(key_kernel, by_head), (1, 2, 0))[tf.newaxis])  # (1, H, d, D)
        self.value = tf.Variable(tf.transpose(tf.reshape(value_kernel, by_head), (1, 0, 2))[tf.newaxis])  # (1, H, D, d)
        self.value_bias = tf.Variable(value_bias)

    def _attend(self, source, mask, fill):
        """(B, T, D) -> what the heads saw from position 0, (B, 1, D)."""
        batch = size(source, 0)
        query = tf.reshape(affine(source[:, :1], self.query), (batch, self.heads, 1, self.size))
        reads = tf.reshape(tf.matmul(query, self.key), (batch, self.heads, self.width))
        scores = tf.matmul(reads, source, transpose_b=True) * mask[:, 0] + fill[:, 0]  # (B, H, T)
        seen = tf.reshape(tf.matmul(tf.nn.softmax(scores), source), (batch, self.heads, 1, self.width))
        context = tf.matmul(seen, self.value)  # (B, H, 1, d)
        return tf.reshape(context, (batch, 1, self.width)) + self.value_bias


class Normalization(tf.Module):
    """gamma (x - mean) / sqrt(variance + epsilon) + beta over the last axis (Ba et al. 2016)."""

    def __init__(self, layer: keras.layers.LayerNormalization):
        super().__init__()
        self.gamma, self.beta, self.epsilon = layer.gamma.value, layer.beta.value, layer.epsilon

    def __call__(self, values: tf.Tensor) -> tf.Tensor:
        # In this form, which is Keras's, full int8 gives 99.7 % of the float answers (2 layers of width 128, SST-2); with the
        # values centred first, the same in float, 97.8 %.
        mean, variance = tf.nn.moments(values, axes=-1, keepdims=True)
        scale = tf.math.rsqrt(variance + self.epsilon) * self.gamma
        return values * scale + (self.beta - mean * scale)


def with_masked_score(head: keras.layers.Layer, masked_score: float, width: int) -> keras.layers.Layer:
    """The same head with another answer to padding, where it has one of its own."""
    if "masked_score" not in head.get_config():
        return head
    twin = type(head).from_config(head.get_config() | {"masked_score": masked_score})
    twin.build((None, None, width))
    twin.set_weights(head.get_weights())
    return twin


def in_int8(table: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """(V, D) -> whole numbers (V, D) int8 and scales (V, 1), whose product is the table but for half a step of each row."""
    scale = tf.reduce_max(tf.abs(table), axis=1, keepdims=True) / 127.0
    return tf.cast(tf.round(tf.math.divide_no_nan(tf.convert_to_tensor(table), scale)), tf.int8), scale


def affine(values: tf.Tensor, weights: tuple[tf.Tensor, tf.Tensor]) -> tf.Tensor:
    """x W + b."""
    kernel, bias = weights
    return tf.matmul(values, kernel) + bias


def size(tensor: tf.Tensor, axis: int):
    """Length of an axis: a number where it is fixed, so that no operator is spent on it."""
    return tensor.shape[axis] if tensor.shape[axis] is not None else tf.shape(tensor)[axis]
