"""Heads as ONNX nodes: hidden states (B * T, D), or (B, D) for a head that reads position 0, to logits and their shape."""

from typing import TYPE_CHECKING

from onnx import TensorProto

from tfkd.layers.embedding_head import EmbeddingHead
from tfkd.layers.head import ClassificationHead, RegressionHead
from tfkd.layers.language_model_head import LanguageModelHead
from tfkd.layers.token_head import SpanHead, TokenHead

if TYPE_CHECKING:
    from .onnx_graph import Writer


def pooled(writer: "Writer", hidden: str) -> tuple[str, list]:
    """`ClassificationHead`, and `RegressionHead`, whose units may be anything: they are put on in float32."""
    head = writer.head
    vector = hidden if head.first_only else writer.mean(hidden)
    if head.hidden is not None:
        vector = writer.activation(writer.layer(vector, head.hidden_dense, "head.hidden"), head.hidden)
    logits = writer.layer(vector, head.output_dense, "head.output")
    if type(head) is RegressionHead:
        mean, deviation = (writer.graph.weight(f"head.{name}", getattr(head, name), "float32") for name in ("mean", "deviation"))
        scores = writer.graph.node("Cast", logits, to=TensorProto.FLOAT)
        logits = writer.graph.node("Add", writer.graph.node("Mul", scores, deviation), mean)
    return logits, ["batch", head.classes]


def positions(writer: "Writer", hidden: str) -> tuple[str, list]:
    """`TokenHead` and `SpanHead`. What that puts in the place of padding is seen outside, so it is put there here too."""
    node, head = writer.graph.node, writer.head
    logits = _of_positions(writer, writer.layer(hidden, head.output_dense, "head.output"))
    if type(head) is SpanHead:
        text = node("Cast", node("Unsqueeze", writer.mask, writer.graph.number([2])), to=TensorProto.BOOL)
        logits = node("Where", text, logits, writer.graph.number(float(head.masked_score)))
    return logits, ["batch", "length", head.classes]


def embedding(writer: "Writer", hidden: str) -> tuple[str, list]:
    """`EmbeddingHead`; the length is taken in float32, because squares leave float16's range."""
    node, head = writer.graph.node, writer.head
    vector = hidden if head.first_only else writer.mean(hidden)
    if head.output_dense is not None:
        vector = writer.layer(vector, head.output_dense, "head.output")
        vector = writer.activation(vector, "tanh") if head.activation == "tanh" else vector
    vector = node("Cast", vector, to=TensorProto.FLOAT)
    return node("LpNormalization", vector, axis=-1, p=2), ["batch", head.classes]


def language_model(writer: "Writer", hidden: str) -> tuple[str, list]:
    """`LanguageModelHead`, which reads the table that `Writer` has put into the graph for the embeddings."""
    head = writer.head
    hidden = writer.activation(writer.layer(hidden, head.hidden_dense, "head.hidden"), "gelu")
    hidden = writer.norm(hidden, head.layer_norm, "head.layer_norm")
    bias = writer.graph.weight("head.output.bias", head.bias)
    logits = writer.graph.node("Gemm", hidden, writer.token_table, bias, transB=1)
    return _of_positions(writer, logits), ["batch", "length", head.classes]


def _of_positions(writer: "Writer", logits: str) -> str:
    """(B * T, C) -> (B, T, C)."""
    node, classes = writer.graph.node, writer.graph.number([writer.head.classes])
    return node("Reshape", logits, node("Concat", writer.batch, writer.length, classes, axis=0))


HEADS = {
    ClassificationHead: pooled,
    RegressionHead: pooled,
    TokenHead: positions,
    SpanHead: positions,
    EmbeddingHead: embedding,
    LanguageModelHead: language_model,
}
