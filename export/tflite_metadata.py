"""What travels inside a TFLite file beside its graph: a description, the vocabulary and the labels.

The description is a `ModelMetadata` table (TFLite Model Metadata, schema 1.5), written slot by slot because the class that writes
it comes with MediaPipe alone. Vocabulary and labels are an uncompressed zip behind the model: every unzip reads them.
"""

import io
import json
import pathlib
import zipfile

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tfkd.data.tokenizer import Tokenizer

from .inference import Student

VOCABULARY, LABELS = "vocab.txt", "labels.txt"
AXIS_LABELS, VOCABULARY_FILE = 2, 5  # AssociatedFileType
BERT_TOKENIZER = 4  # ProcessUnitOptions

INPUTS = {
    "token_ids": ("ids", "WordPiece ids: [CLS] text [SEP], padded with [PAD]"),
    "padding_mask": ("mask", "1 at a piece, 0 at padding"),
    "segment_ids": ("segment_ids", "0 up to the first [SEP], 1 after it"),
}
"""Input -> its name as MediaPipe knows it, and what it is."""

Table = dict[int, "str | int | Table | list[Table]"]
"""A flatbuffer's table: slot -> value. A number is one byte, as all enumerations of this schema are."""


def attach(model: bytes, tokenizer: Tokenizer, labels: tuple[str, ...], description: str, scores: bool = False) -> bytes:
    """The same model with metadata.

    Arguments:
        model: a TFLite file without metadata.
        description: of the whole, for people.
        scores: says that the labels name the values of the output, and that the inputs come of a BERT tokenizer, which is
            what MediaPipe goes by.
    """
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    for buffer in parsed.buffers:
        if buffer.offset > 1:  # its bytes lie behind the table, as ai-edge-quantizer leaves them, at a place that will move
            buffer.data = np.frombuffer(model, "uint8", buffer.size, buffer.offset)
            buffer.offset = buffer.size = 0
    graphs = [_graph(parsed, index, scores) for index in range(len(parsed.subgraphs))]
    whole = {0: "student", 1: description, 3: graphs, 6: _files(), 7: "1.3.0"}
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = np.frombuffer(_packed(whole), "uint8")
    parsed.buffers.append(buffer)
    entry.name, entry.buffer = "TFLITE_METADATA", len(parsed.buffers) - 1
    parsed.metadata = [*(parsed.metadata or []), entry]
    builder = flatbuffers.Builder(len(model) + len(buffer.data))
    builder.Finish(parsed.Pack(builder), b"TFL3")
    file = io.BytesIO(bytes(builder.Output()))
    with zipfile.ZipFile(file, "a", zipfile.ZIP_STORED) as archive:
        for name, lines in ((VOCABULARY, tokenizer.pieces), (LABELS, labels)):
            # A date of its own would make every file differ from the last one.
            archive.writestr(zipfile.ZipInfo(name), "".join(f"{line}\n" for line in lines).encode())
    return file.getvalue()


def check(path: pathlib.Path, tokenizer: Tokenizer, labels: tuple[str, ...]) -> None:
    """Raises `ValueError` unless a file carries this vocabulary and these labels, in this order."""
    with zipfile.ZipFile(path) as archive:
        for name, lines in ((VOCABULARY, tokenizer.pieces), (LABELS, labels)):
            text = archive.read(name).decode()
            inside = text.removesuffix("\n").split("\n") if text else []
            if inside != list(lines):
                where = next((at for at, pair in enumerate(zip(inside, lines, strict=False)) if pair[0] != pair[1]), None)
                found = f"{len(inside)} lines" if where is None else f"{inside[where]!r} in line {where + 1}"
                wanted = f"{len(lines)}" if where is None else f"{lines[where]!r}"
                raise ValueError(f"carries another {name}: {found} instead of {wanted}")


def describe(student: Student, outputs: str = "logits", note: str | None = None) -> str:
    """What a program must know to turn text into inputs and outputs into an answer, as JSON."""
    about = {
        "task": student.task,
        "tokenizer": f"WordPiece as BERT splits it, with {VOCABULARY} of this file",
        "lowercase": student.tokenizer.lowercase,
        "pairs": student.pairs,
        "outputs": f"{outputs}, in the order of {LABELS} of this file" if student.labels else "a vector, of unit length",
    }
    return json.dumps(about | ({} if note is None else {"note": note}))


def _graph(model: schema.ModelT, index: int, scores: bool) -> Table:
    """`SubGraphMetadata` of one graph; its tensors are told in the graph's own order, by the names of its signature."""
    signature = next(each for each in model.signatureDefs if each.subgraphIndex == index)
    names = {each.tensorIndex: each.name.decode() for each in (*signature.inputs, *signature.outputs)}
    graph = model.subgraphs[index]
    inputs = [{0: INPUTS[names[tensor]][0], 1: INPUTS[names[tensor]][1]} for tensor in graph.inputs]
    named = {6: [_file(LABELS, AXIS_LABELS)]} if scores else {}
    outputs = [{0: names[tensor], **named} for tensor in graph.outputs]
    table = {0: signature.signatureKey.decode(), 2: inputs, 3: outputs}
    tokenizer = {0: BERT_TOKENIZER, 1: {0: [_file(VOCABULARY, VOCABULARY_FILE)]}}
    return table | ({5: [tokenizer]} if scores else {})


def _files() -> list[Table]:
    return [_file(VOCABULARY, VOCABULARY_FILE), _file(LABELS, AXIS_LABELS)]


def _file(name: str, kind: int) -> Table:
    return {0: name, 2: kind}


def _packed(table: Table) -> bytes:
    builder = flatbuffers.Builder(0)
    builder.Finish(_add(builder, table), b"M001")
    return bytes(builder.Output())


def _add(builder: flatbuffers.Builder, table: Table) -> int:
    """Writes a table, what it refers to first. Returns its offset."""
    offsets = {}
    for slot, value in table.items():
        if isinstance(value, str):
            offsets[slot] = builder.CreateString(value)
        elif isinstance(value, dict):
            offsets[slot] = _add(builder, value)
        elif isinstance(value, list):
            tables = [_add(builder, each) for each in value]
            builder.StartVector(4, len(tables), 4)
            for offset in reversed(tables):
                builder.PrependUOffsetTRelative(offset)
            offsets[slot] = builder.EndVector()
    builder.StartObject(max(table) + 1)
    for slot, value in table.items():
        if slot in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[slot], 0)
        else:
            builder.PrependInt8Slot(slot, value, 0)
    return builder.EndObject()
