"""The ONNX graph of an encoder with its head, written node by node from the weights.

tf2onnx, the general way from TensorFlow, stops at opset 18, spells layer normalization and GELU out, and takes half a minute and
more for MiniLM (6 layers of width 384, a head on position 0). Rewriters change little about that: of its 603 nodes onnxscript's
optimizer, rewriter and ONNX Runtime fusions left 583, onnxsim 602. Here it takes half a second and has 168 nodes. Time of a
request in ONNX Runtime 1.32, one thread, relative to tf2onnx's file, at lengths 64 and 16 and for 16 texts of length 64, in one
run:

    tf2onnx and onnxscript                                                        0.98  0.98  1.13
    by node: query, key and value in one product and split, scores replaced       0.94  0.91  1.01
    in products of their own, the mask added                                      0.92  0.90  0.96
    and dense layers as one Gemm over (B * T, D), which leaves int8 0.38 of the   0.90  0.87  0.99
        time of float32 instead of 0.45
    and no key or value made of which one position alone would be read: this file 0.88  0.86  0.91
    the line before it with opset 23's Attention, which fewer runtimes know       0.90  0.88  0.99
"""

import math

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tfkd.layers.attention import MASKED_SCORE
from tfkd.models.encoder import TransformerEncoder

from .graph import SETTINGS
from .onnx_heads import HEADS

OPSET, IR_VERSION = 20, 9
"""The first with Gelu, and the oldest IR it goes with: runtimes released since the end of 2023 read it."""

ACTIVATIONS = {
    "gelu": ("Gelu", {}),
    "gelu_tanh": ("Gelu", {"approximate": "tanh"}),
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
}
PARTS = ("query", "key", "value")


class Graph:
    """Collects nodes and weights. Every method answers with the name of a tensor.

    Arguments:
        dtype: of all that is not a whole number, `float32` or `float16`.
    """

    def __init__(self, dtype: str = "float32"):
        self.dtype, self.type = dtype, helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.nodes, self.weights, self.numbers = [], [], {}

    def weight(self, name: str, values, dtype: str | None = None) -> str:
        """A tensor of the file, of the graph's dtype if of no other."""
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype or self.dtype, order="C"), name))
        return name

    def number(self, value) -> str:
        """A constant: whole numbers in int64, alone or in a list, or a float. The same one is stored once."""
        name = f"number_{value}".replace("[", "list_").replace("]", "").replace(", ", "_")
        if name not in self.numbers:
            values = np.asarray(value, self.dtype if isinstance(value, float) else "int64")
            self.numbers[name] = numpy_helper.from_array(values, name)
        return name

    def node(self, operator: str, *inputs: str, output: str | None = None, **attributes) -> str:
        """The output of a new node."""
        output = output or f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [output], name=f"node_{output}", **attributes))
        return output


class Writer:
    """Writes a `TransformerWithHead` as a graph: the same sums in an order that suits runtimes.

    Between attentions the hidden states lie as (B * T, D), so that a dense layer is one Gemm with its bias inside. Scores are
    scaled inside the query's weights, segment row 0 is added to the positions where no segment ids are read, and for a head that
    reads one position the last block computes that one alone. A padded key's score gets -1e4 added: e^-1e4 is 0 in float32 and
    in float16, as it is of the score that `MultiHeadSelfAttention` puts in its place.

    Arguments:
        model: one that `refusal` has nothing against.
        inputs: names of its inputs.
        dtype: of weights and computation; the answer is float32.
    """

    def __init__(self, model: keras.Model, inputs: tuple[str, ...], dtype: str = "float32"):
        self.graph, self.inputs = Graph(dtype), inputs
        self.encoder, self.head = model.encoder, model.head
        self.width, self.heads = self.encoder.config["width"], self.encoder.config["heads"]
        self.size = self.width // self.heads

    def model(self) -> onnx.ModelProto:
        """int32 inputs (batch, length) by name; float32 `logits` (batch, C) or (batch, length, C)."""
        self._shapes()
        self._masks()
        hidden = self._embedding()
        for index, block in enumerate(self.encoder.blocks):
            only_first = self.head.first_only and block is self.encoder.blocks[-1]
            hidden = self._block(hidden, block, only_first, f"block_{index}")
        if self.encoder.final_norm is not None:
            hidden = self.norm(hidden, self.encoder.final_norm, "final_norm")
        logits, shape = HEADS[type(self.head)](self, hidden)
        self.graph.node("Cast", logits, to=TensorProto.FLOAT, output="logits")
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT32, ["batch", "length"]) for name in self.inputs]
        outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)]
        weights = [*self.graph.numbers.values(), *self.graph.weights]
        graph = helper.make_graph(self.graph.nodes, "student", inputs, outputs, weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)

    # ---------------------------------------------------------------- encoder

    def _shapes(self) -> None:
        node, number = self.graph.node, self.graph.number
        self.batch, self.length = (node("Shape", "token_ids", start=axis, end=axis + 1) for axis in (0, 1))
        self.flat = node("Concat", node("Mul", self.batch, self.length), number([self.width]), axis=0)  # B * T, D
        self.rows = node("Concat", self.batch, number([self.width]), axis=0)  # B, D
        self.whole = node("Concat", self.batch, self.length, number([self.width]), axis=0)  # B, T, D
        self.split = node("Concat", self.batch, self.length, number([self.heads, self.size]), axis=0)  # B, T, H, d

    def _masks(self) -> None:
        node, number = self.graph.node, self.graph.number
        self.mask = node("Cast", "padding_mask", to=self.graph.type)  # (B, T)
        padding = node("Sub", number(1.0), node("Unsqueeze", self.mask, number([1])))
        self.masked = node("Mul", padding, number(MASKED_SCORE))  # (B, 1, T)

    def _embedding(self) -> str:
        """(B * T, D)."""
        graph, layer = self.graph, self.encoder.embedding
        table = np.asarray(layer.position_table if layer.position == "learned" else layer.waves)
        separate = "segment_ids" in self.inputs
        if layer.segments and not separate:
            table = table + np.asarray(layer.segment_table)[0]
        self.token_table = graph.weight("embedding.token_table", layer.token_table)
        hidden = graph.node("Gather", self.token_table, "token_ids")  # (B, T, D)
        positions, start = graph.weight("embedding.position_table", table), graph.number([0])
        hidden = graph.node("Add", hidden, graph.node("Slice", positions, start, self.length, start))
        if separate:
            segments = graph.weight("embedding.segment_table", layer.segment_table)
            hidden = graph.node("Add", hidden, graph.node("Gather", segments, "segment_ids"))
        hidden = graph.node("Reshape", hidden, self.flat)
        return hidden if layer.layer_norm is None else self.norm(hidden, layer.layer_norm, "embedding.layer_norm")

    def _block(self, hidden: str, block: keras.Layer, only_first: bool, name: str) -> str:
        """(B * T, D) -> the same, or (B, D) with `only_first`."""
        node, feed_forward = self.graph.node, block.feed_forward
        source = self.norm(hidden, block.attention_norm, f"{name}.attention_norm") if block.pre_norm else hidden
        attend = self._attention_of_first if only_first else self._attention
        kept = node("Gather", node("Reshape", hidden, self.whole), self.graph.number(0), axis=1) if only_first else hidden
        hidden = node("Add", kept, attend(source, block.attention, f"{name}.attention"))
        if not block.pre_norm:
            hidden = self.norm(hidden, block.attention_norm, f"{name}.attention_norm")
        source = self.norm(hidden, block.feed_forward_norm, f"{name}.feed_forward_norm") if block.pre_norm else hidden
        inner = self.activation(self.layer(source, feed_forward.expand, f"{name}.expand"), feed_forward.activation)
        hidden = node("Add", hidden, self.layer(inner, feed_forward.contract, f"{name}.contract"))
        return hidden if block.pre_norm else self.norm(hidden, block.feed_forward_norm, f"{name}.feed_forward_norm")

    def _attention(self, source: str, layer: keras.Layer, name: str) -> str:
        """(B * T, D) -> the same."""
        node, parts = self.graph.node, []
        orders = (0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)  # keys transposed for the product with the queries
        for part, (kernel, bias), order in zip(PARTS, self._kernels(layer), orders, strict=True):
            dense = self.dense(source, kernel, bias, f"{name}.{part}")
            parts.append(node("Transpose", node("Reshape", dense, self.split), perm=order))
        query, key, value = parts
        masked = node("Unsqueeze", self.masked, self.graph.number([1]))
        scores = node("Add", node("MatMul", query, key), masked)  # (B, H, T, T)
        context = node("MatMul", node("Softmax", scores, axis=-1), value)  # (B, H, T, d)
        context = node("Reshape", node("Transpose", context, perm=(0, 2, 1, 3)), self.flat)
        return self.dense(context, layer.output_kernel, layer.output_bias, f"{name}.output")

    def _attention_of_first(self, source: str, layer: keras.Layer, name: str) -> str:
        """(B * T, D) -> (B, D), and not one key or value is made: q (X K)^T = (q K^T) X^T, and p (X V) = (p X) V.

        The key's bias adds the same to every score, which softmax does not see; the value's is added once, because p sums to 1.
        """
        node, number = self.graph.node, self.graph.number
        by_head = (self.width, self.heads, self.size)
        query, (key, _), (value, value_bias) = self._kernels(layer)
        source = node("Reshape", source, self.whole)  # (B, T, D)
        asked = self.dense(node("Gather", source, number(0), axis=1), *query, f"{name}.query")  # (B, D)
        asked = node("Reshape", asked, node("Concat", self.batch, number([self.heads, self.size]), axis=0))
        key = self.graph.weight(f"{name}.key.kernel", key.reshape(by_head).transpose(1, 2, 0))  # (H, d, D)
        asked = node("MatMul", node("Transpose", asked, perm=(1, 0, 2)), key)  # (H, B, D)
        asked = node("Transpose", asked, perm=(1, 0, 2))  # (B, H, D)
        scores = node("MatMul", asked, node("Transpose", source, perm=(0, 2, 1)))  # (B, H, T)
        seen = node("MatMul", node("Softmax", node("Add", scores, self.masked), axis=-1), source)  # (B, H, D)
        value = self.graph.weight(f"{name}.value.kernel", value.reshape(by_head).transpose(1, 0, 2))  # (H, D, d)
        context = node("MatMul", node("Transpose", seen, perm=(1, 0, 2)), value)  # (H, B, d)
        context = node("Reshape", node("Transpose", context, perm=(1, 0, 2)), self.rows)
        context = node("Add", context, self.graph.weight(f"{name}.value.bias", value_bias))
        return self.dense(context, layer.output_kernel, layer.output_bias, f"{name}.output")

    def _kernels(self, layer: keras.Layer) -> list[tuple[np.ndarray, np.ndarray]]:
        """(D, D) and (D,) of query, key and value, the query's times 1 / sqrt(d)."""
        kernels, biases = np.split(np.asarray(layer.kernel), 3, axis=1), np.split(np.asarray(layer.bias), 3)
        scale = 1.0 / math.sqrt(self.size)
        return [(kernels[0] * scale, biases[0] * scale), *zip(kernels[1:], biases[1:], strict=True)]

    # ---------------------------------------------------------------- parts

    def mean(self, hidden: str) -> str:
        """(B * T, D) -> (B, D), the mean over the text's positions, as one matrix product with shares that sum to 1."""
        node, number = self.graph.node, self.graph.number
        count = node("ReduceSum", self.mask, number([1]), keepdims=1)  # (B, 1)
        shares = node("Unsqueeze", node("Div", self.mask, node("Max", count, number(1.0))), number([1]))  # (B, 1, T)
        return node("Reshape", node("MatMul", shares, node("Reshape", hidden, self.whole)), self.rows)

    def layer(self, hidden: str, layer: keras.layers.Dense, name: str) -> str:
        """A Dense layer without its activation; it may have no bias."""
        return self.dense(hidden, layer.kernel, layer.bias, name)

    def dense(self, hidden: str, kernel, bias, name: str) -> str:
        """(N, I) -> (N, O)."""
        given = {"kernel": kernel} | ({} if bias is None else {"bias": bias})
        weights = [self.graph.weight(f"{name}.{part}", values) for part, values in given.items()]
        return self.graph.node("Gemm", hidden, *weights)

    def activation(self, values: str, name: str) -> str:
        operator, attributes = ACTIVATIONS[name]
        return self.graph.node(operator, values, **attributes)

    def norm(self, hidden: str, layer: keras.layers.LayerNormalization, name: str) -> str:
        weights = self.graph.weight(f"{name}.gamma", layer.gamma), self.graph.weight(f"{name}.beta", layer.beta)
        return self.graph.node("LayerNormalization", hidden, *weights, axis=-1, epsilon=float(layer.epsilon))


def refusal(model: keras.Model) -> str | None:
    """Why this graph cannot be written here, or None."""
    encoder, head = getattr(model, "encoder", None), getattr(model, "head", None)
    if type(encoder) is not TransformerEncoder:
        return f"its encoder is a {type(encoder or model).__name__}, not a TransformerEncoder"
    if type(head) not in HEADS:
        return f"its head is a {type(head).__name__}, not one of {', '.join(kind.__name__ for kind in HEADS)}"
    if unknown := sorted(encoder.config.keys() - SETTINGS):
        return f"its encoder has a setting that is not known here, {unknown[0]}"
    for activation in (encoder.config["activation"], getattr(head, "hidden", None)):
        if activation is not None and activation not in ACTIVATIONS:
            return f"its activation {activation} is none of {', '.join(ACTIVATIONS)}"
    return None
