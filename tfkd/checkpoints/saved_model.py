"""A SavedModel as a teacher of logits: whatever made it, it has a signature."""

import os
import pathlib

import tensorflow as tf

from tfkd.errors import UserError, first_line
from tfkd.models.foreign import ACTIVATIONS, choose_inputs, fixed_length, meaning, pad_to, to_logits

DEFAULT = "serving_default"
REACHING_OUT = (
    "PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "Save", "SaveSlices",
    "WholeFileReader", "WholeFileReaderV2", "TextLineReader", "TextLineReaderV2", "TFRecordReader", "TFRecordReaderV2",
    "FixedLengthRecordReader", "FixedLengthRecordReaderV2", "LMDBReader", "LMDBDataset", "SqlDataset", "DataServiceDataset",
    "DataServiceDatasetV4", "TextLineDataset", "TFRecordDataset", "FixedLengthRecordDataset", "FixedLengthRecordDatasetV2",
    "LoadDataset", "SaveDataset", "SaveDatasetV2", "SnapshotDataset", "SnapshotDatasetV2", "CacheDataset", "CacheDatasetV2",
    "DatasetToTFRecord", "CreateSummaryFileWriter", "CreateSummaryDbWriter", "DebugIdentity", "DebugIdentityV2",
    "DebugIdentityV3", "DebugNumericSummary",
)  # fmt: skip
"""Operations with which a graph can run Python of this process or read and write any file of yours."""


def open_saved_model(
    path: str | os.PathLike,
    signature: str | None = None,
    output: str | None = None,
    inputs: dict[str, str] | None = None,
    activation: str | None = None,
    trust: bool = False,
) -> "SavedModelLogits":
    """Loads a SavedModel folder and chooses what of it answers with logits.

    A SavedModel is a graph: loading and asking it runs TensorFlow operations and no Python of its maker. Those that can
    reach files or Python of yours are refused unless `trust` is given; that is a sieve for the common case, not a prison,
    and a SavedModel of a stranger is still a program of a stranger.

    Arguments:
        path: the folder with saved_model.pb.
        signature: default: `serving_default`, or the only one.
        output: default: `logits`, or the only one.
        inputs: the signature's name of an input -> the batch's, where neither is the other's nor a well-known one. Raw text
            is not in a batch unless the pipeline put it there: name it here if it did.
        activation: what the output has been through: `linear`, `softmax` or `sigmoid`; default: `linear`, and outputs that
            look like probabilities are refused until it is said.
        trust: load it whatever operations it holds.

    Raises:
        UserError: no such folder, a broken one, a choice to make, or a signature that cannot be asked for batches.
    """
    path = pathlib.Path(path)
    if activation not in (None, *ACTIVATIONS):
        raise UserError(f"teacher.activation = {activation}: must be one of {', '.join(ACTIVATIONS)}")
    _check_operations(path, trust)
    import tensorflow_text  # noqa: F401 registers the tokenizers' operations, which a SavedModel that reads text is full of

    try:
        loaded = tf.saved_model.load(str(path))
        signatures = dict(loaded.signatures)
    except Exception as error:  # TensorFlow raises OSError, ValueError, AttributeError and its own here
        raise UserError(f"{path}: TensorFlow cannot load it ({first_line(error)})") from None
    chosen = _choose(path, "signature", signature, signatures, DEFAULT)
    _check_inputs(path, chosen, signatures, inputs or {})
    answer = _choose(path, "output", output, signatures[chosen].structured_outputs, "logits")
    found = SavedModelLogits(path.name, loaded, signatures[chosen], answer, inputs, activation or "linear")
    found.probe()
    if activation is None and found.looks_like_probabilities:
        raise UserError(
            f"{path}: output {answer} of signature {chosen} holds probabilities: say teacher.activation: softmax, "
            "or choose an output of logits with teacher.output"
        )
    return found


class SavedModelLogits:
    """A signature of a SavedModel, asked as a model of ours is: `inner(inputs, names)`, `shapes(names)`, `takes`.

    Texts shorter than a signature's fixed length are padded to it; `max_length` is that length, or None for any.

    Arguments:
        name: for messages.
        loaded: what `tf.saved_model.load` gave; kept, for it owns the variables.
        function: the signature.
        output: name of the output to give out as `logits`.
        inputs: the signature's name of an input -> the batch's.
        activation: what the output has been through.
    """

    layers = None

    def __init__(self, name: str, loaded, function, output: str, inputs: dict[str, str] | None, activation: str):
        self.name, self.loaded, self.function, self.output = name, loaded, function, output
        self.renamed, self.activation = dict(inputs or {}), activation
        self.specs = function.structured_input_signature[1]
        self.shape = _dimensions(function.structured_outputs[output].shape)
        self.looks_like_probabilities = False
        self.lengths = {
            key: fixed_length(self.renamed.get(key, key), spec.shape) for key, spec in self.specs.items() if spec.shape.rank
        }
        self.max_length = min([length for length in self.lengths.values() if length], default=None)

    @property
    def takes(self) -> list[str]:
        """Our names of the inputs that the signature takes."""
        return [meaning(self.renamed.get(name, name)) for name in self.specs]

    @property
    def variables(self) -> list:
        """The variables that the signature reads."""
        return list(self.function.variables)

    def shapes(self, names) -> dict:
        """Name -> shape; None where the signature does not say."""
        self._check(names)
        return dict.fromkeys(names, self.shape)

    def inner(self, inputs, names, training=None) -> dict:
        """`logits`, float32. A signature is what it is: `training` changes nothing."""
        self._check(names)
        if not names:
            return {}
        chosen = choose_inputs(list(self.specs), inputs, self.name, self.renamed)
        logits = self.function(**{key: self._fit(key, value) for key, value in chosen.items()})[self.output]
        padded = [key for key, length in self.lengths.items() if length]
        if padded and logits.shape.rank is not None and logits.shape.rank > 2:
            logits = logits[:, : tf.shape(chosen[padded[0]])[1]]  # (B, T, C): the positions that were added say nothing
        return {"logits": to_logits(logits, self.activation)}

    def probe(self) -> None:
        """Asks for two made-up texts: what a signature leaves unsaid, its outputs show. One that refuses them stays unsaid."""
        values = {}
        for name, spec in self.specs.items():
            if spec.dtype == tf.string or spec.shape.rank is None:
                return
            shape = [size or (8, 2)[axis == 0] for axis, size in enumerate(spec.shape)]
            count = tf.reshape(tf.range(tf.reduce_prod(shape)), shape)
            ours = meaning(self.renamed.get(name, name))
            value = {"token_ids": count % 5, "padding_mask": tf.ones_like(count)}.get(ours, tf.zeros_like(count))
            values[name] = tf.cast(value, spec.dtype)
        try:
            answer = self.function(**values)[self.output]
        except (tf.errors.OpError, ValueError):
            return
        self.shape = _dimensions(answer.shape)
        rows = tf.cast(tf.reshape(answer, (-1, answer.shape[-1])), "float32") if len(answer.shape) else tf.zeros((1, 1))
        sums_to_1 = tf.reduce_max(tf.abs(tf.reduce_sum(rows, -1) - 1.0)) < 1e-3
        self.looks_like_probabilities = bool(rows.shape[-1] > 1 and sums_to_1 and tf.reduce_min(rows) >= 0.0)

    def _fit(self, key, value):
        """A batch's tensor in the type and the length that the signature asks for."""
        spec = self.specs[key]
        value = tf.convert_to_tensor(value)
        return pad_to(value if spec.dtype == tf.string else tf.cast(value, spec.dtype), self.lengths.get(key), self.name)

    def _check(self, names):
        unknown = [name for name in names if name != "logits"]
        if unknown:
            raise ValueError(f"{self.name} is a SavedModel: it has logits, but no inner tensor {unknown[0]!r}")


def _check_operations(path: pathlib.Path, trust: bool) -> None:
    """Reads saved_model.pb without loading it. Raises `UserError` where it is missing, broken or reaches out."""
    file = path / "saved_model.pb"
    if not path.is_dir() or not file.exists():
        what = "no such folder" if not path.exists() else "no saved_model.pb in it" if path.is_dir() else "a file"
        raise UserError(f"{path}: {what}; a SavedModel is the folder that holds saved_model.pb")
    from tensorflow.core.protobuf import saved_model_pb2

    model = saved_model_pb2.SavedModel()
    try:
        model.ParseFromString(file.read_bytes())
    except Exception as error:  # google.protobuf's DecodeError, whose home moves between versions
        raise UserError(f"{file}: not a whole file ({first_line(error)}); copy or export it again") from None
    if not model.meta_graphs:
        raise UserError(f"{file}: holds no graph; export the model again")
    graphs = [graph.graph_def for graph in model.meta_graphs]
    nodes = [node for graph in graphs for node in graph.node]
    nodes += [node for graph in graphs for function in graph.library.function for node in function.node_def]
    reaching = {node.op for node in nodes if node.op in REACHING_OUT}
    if any(node.op == "PrintV2" and node.attr["output_stream"].s.startswith(b"file:") for node in nodes):
        reaching.add("PrintV2 into a file")
    reaching = sorted(reaching)
    if reaching and not trust:
        raise UserError(
            f"{path}: its graph holds {', '.join(reaching)}, which can reach files or Python of yours; if you trust its maker, "
            "say so with teacher.trust: true"
        )


def _choose(path, what, given, available, preferred):
    """A name of `available`: the given one, else the preferred one, else the only one."""
    names = ", ".join(sorted(available)) or "none"
    if given is not None:
        if given not in available:
            raise UserError(f"{path}: no {what} {given!r}; it has {names}")
        return given
    if preferred in available:
        return preferred
    if len(available) != 1:
        raise UserError(f"{path}: which {what} to ask must be said with teacher.{what}; it has {names}")
    return next(iter(available))


def _check_inputs(path, chosen, signatures, renamed) -> None:
    """Raises `UserError` unless a signature can be asked for batches of word pieces, or of what `renamed` names."""
    function = signatures[chosen]
    specs = function.structured_input_signature[1]
    unknown = sorted(set(renamed) - set(specs))
    if unknown:
        raise UserError(f"{path}: signature {chosen} has no input {unknown[0]!r}; it has {', '.join(specs) or 'none'}")
    for name, spec in specs.items():
        if spec.dtype == tf.string and name not in renamed:
            others = [
                other
                for other, one in signatures.items()
                if all(spec.dtype != tf.string for spec in one.structured_input_signature[1].values())
            ]
            hint = f"say teacher.signature: {sorted(others)[0]}" if others else "export one that takes token ids"
            raise UserError(f"{path}: signature {chosen} takes raw text ({name}), and batches hold word pieces; {hint}")
        if spec.shape.rank and spec.shape[0] is not None:
            raise UserError(
                f"{path}: signature {chosen} takes batches of exactly {spec.shape[0]} ({name}); export it for any number"
            )


def _dimensions(shape: tf.TensorShape) -> tuple | None:
    """A shape as a teacher says it: of the last dimension alone, for all others follow the batch."""
    return None if not shape.rank else (*[None] * (shape.rank - 1), shape[-1])
