"""A Hugging Face folder: `transformers` loads it with its Auto classes, sentence-transformers where it makes vectors, and tfkd
as a teacher.

A student leaves as the class that computes what it computes. That of texts has a layer before its scores: with tanh it is
BERT's, with relu and no segments DistilBERT's, with GELU ELECTRA's. Heads that score every position, and sentence vectors, are
BERT's. Sinusoidal positions are a table like learned ones, and the scale of a regression's answers is put into its last layer.
What has no such class is refused with the reason.
"""

import pathlib

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

from tfkd.checkpoints.checkpoint import open_checkpoint, variables
from tfkd.checkpoints.hugging_face import PROBLEMS, TOKEN_TASKS
from tfkd.checkpoints.safetensors_files import BODIES, HEADS, ONE_FILE, SUFFIXES, TOKEN_HEADS
from tfkd.data.tokenizer import SPECIAL
from tfkd.errors import UserError
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import write_json, write_text

from . import model_card, sentence_transformers, tokenizer_json
from .inference import Student
from .parity import FLOAT32, Answers, Variant
from .questions import Questions, widened
from .timing import measure

FAMILIES = {"tanh": "bert", "relu": "distilbert", "gelu": "electra"}
"""Activation of the layer before the scores -> whose head that is."""

CLASSES = {"bert": "Bert", "distilbert": "DistilBert", "electra": "Electra"}
ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}
PROBLEM_OF = {task: problem for problem, task in PROBLEMS.items()}
ENDINGS = dict.fromkeys(PROBLEM_OF, "ForSequenceClassification") | {task: ending for ending, task in TOKEN_TASKS.items()}
ENDINGS |= {"sentence_embedding": "Model"}
"""Task -> how the name of the class ends."""


def write_float32(student: Student, path: pathlib.Path) -> None:
    """Writes the folder: configuration, weights, tokenizer and model card.

    Raises:
        UserError: `transformers` has no class that computes what this student does.
    """
    family = family_of(student)
    path.mkdir()
    write_json(path / "config.json", _config(student, family))
    save_file(_tensors(student, family), path / ONE_FILE, metadata={"format": "pt"})
    if student.task == "sentence_embedding":
        sentence_transformers.write(student, path)
    student.tokenizer.write(path / "vocab.txt")
    tokenizer_json.write(student, path / tokenizer_json.FILE, special=True)
    there = set(student.tokenizer.pieces)
    # A piece that is not said to be absent is given an id of its own, past the last embedding.
    special = {f"{piece.strip('[]').lower()}_token": piece if piece in there else None for piece in SPECIAL}
    write_json(path / "special_tokens_map.json", {name: piece for name, piece in special.items() if piece})
    write_json(path / "tokenizer_config.json", _tokenizer_config(student, family) | special)
    write_text(path / "README.md", model_card.text(student))


def family_of(student: Student) -> str:
    """`bert`, `distilbert` or `electra`.

    Raises:
        UserError: none of them; the message says what is in the way.
    """
    config, head = student.model.encoder.config, student.model.head
    if student.task not in ENDINGS:
        why = f"it has none for task: {student.task}"
    elif config["norm"] != "post":
        why = "BERT's classes normalize after each sum, and this student before each layer (norm: pre)"
    elif student.task not in PROBLEM_OF:
        return "bert"
    elif head.pooling != "first":
        why = f"BERT's classifiers read the first position, and this student's head all of them (pooling: {head.pooling})"
    elif head.hidden not in FAMILIES:
        why = f"BERT's classifiers have a layer before the scores: {', '.join(FAMILIES)}, and this student's head {head.hidden}"
    elif head.hidden == "relu" and (config["segments"] or config["epsilon"] != 1e-12):
        why = "a relu layer before the scores is DistilBERT's, which has no segments, and an epsilon of 1e-12"
    else:
        return FAMILIES[head.hidden]
    raise UserError(f"transformers has no class for this student: {why}")


def names_of(student: Student) -> list[str] | None:
    """What config.json calls the numbers of the head: the labels, or as `transformers` calls a number without a name; None
    where it names nothing."""
    if student.task == "regression":
        return ["LABEL_0"]
    return list(student.labels) if student.task not in ("question_answering", "sentence_embedding") else None


def _config(student: Student, family: str) -> dict:
    """config.json. Two segments at least, zeros where the student has none: the tokenizer numbers the second text 1."""
    encoder, head, labels = student.model.encoder.config, student.model.head, names_of(student)
    shared = {
        "architectures": [CLASSES[family] + ENDINGS[student.task]],
        "model_type": family,
        "dtype": "float32",
        "vocab_size": student.tokenizer.vocabulary_size,
        "max_position_embeddings": encoder["max_positions"],
        "pad_token_id": student.tokenizer.pad_id,
        "initializer_range": encoder["initializer_range"],
    }
    if student.task in PROBLEM_OF:
        shared["problem_type"] = PROBLEM_OF[student.task]
    if labels is not None:
        shared |= {"id2label": {str(index): label for index, label in enumerate(labels)}}
        shared |= {"label2id": {label: index for index, label in enumerate(labels)}}
    sizes = {"layers": encoder["layers"], "heads": encoder["heads"], "width": encoder["width"], "inner": encoder["feed_forward"]}
    activation = ACTIVATIONS[encoder["activation"]]
    if family == "distilbert":
        names = {"layers": "n_layers", "heads": "n_heads", "width": "dim", "inner": "hidden_dim"}
        rest = {"activation": activation, "dropout": encoder["dropout"], "attention_dropout": encoder["attention_dropout"]}
        rest |= {"seq_classif_dropout": head.dropout_rate, "sinusoidal_pos_embds": False}
    else:
        names = {"layers": "num_hidden_layers", "heads": "num_attention_heads", "width": "hidden_size"}
        names |= {"inner": "intermediate_size"}
        rest = {"hidden_act": activation, "hidden_dropout_prob": encoder["dropout"], "layer_norm_eps": encoder["epsilon"]}
        rest |= {"attention_probs_dropout_prob": encoder["attention_dropout"], "type_vocab_size": encoder["segments"] or 2}
        rest |= {"classifier_dropout": head.dropout_rate} if hasattr(head, "dropout_rate") else {}
        rest |= {"embedding_size": encoder["width"]} if family == "electra" else {}
    return shared | {names[name]: size for name, size in sizes.items()} | rest


def _tensors(student: Student, family: str) -> dict[str, np.ndarray]:
    """The weights under the names and in the shapes of PyTorch's modules: kernels as (outputs, inputs)."""
    encoder, head = student.model.encoder, student.model.head
    vectors = student.task == "sentence_embedding"  # the encoder alone: its names have no prefix
    stems = {part: stem if vectors else f"{family}.{stem}" for part, stem in BODIES[family].items()}
    stems |= HEADS[family] | TOKEN_HEADS.get(student.task, {})
    arrays = {}
    for variable, slots in variables(encoder, None if vectors else head):
        for (part, layer, kind), values in zip(slots, np.split(np.asarray(variable), len(slots), axis=-1), strict=True):
            arrays[stems[part].format(layer) + SUFFIXES[kind][0]] = values.T if kind == "kernel" else values
    if student.task == "regression":
        weight, bias = stems["output"] + ".weight", stems["output"] + ".bias"
        arrays |= {weight: head.deviation * arrays[weight], bias: head.mean + head.deviation * arrays[bias]}
    words = stems["token"] + ".weight"
    arrays[words] = arrays[words][: student.tokenizer.vocabulary_size]  # no text reaches rows without a piece
    if encoder.config["position"] == "sinusoidal":
        arrays[stems["position"] + ".weight"] = np.asarray(encoder.embedding.waves)
    if "segment" in stems and not encoder.config["segments"]:
        arrays[stems["segment"] + ".weight"] = np.zeros((2, encoder.config["width"]), "float32")
    return {name: np.array(values, "float32", order="C") for name, values in arrays.items()}


def _tokenizer_config(student: Student, family: str) -> dict:
    inputs = ["input_ids", "attention_mask"] if family == "distilbert" else ["input_ids", "token_type_ids", "attention_mask"]
    return {
        "tokenizer_class": f"{CLASSES[family]}Tokenizer",
        "do_lower_case": student.tokenizer.lowercase,
        "strip_accents": None,
        "tokenize_chinese_chars": True,
        "model_max_length": student.max_length,
        "model_input_names": inputs,
    }


def answer(path: pathlib.Path, questions: Questions) -> Answers:
    """Reads the folder as tfkd reads a teacher's, compares what is not numbers, and asks it everything.

    `transformers` itself is asked in the tests: it is not needed here, and PyTorch beside TensorFlow aborts.

    Raises:
        ValueError: vocabulary, casing, labels or tokenizer.json are not the student's.
    """
    student = questions.student
    found = open_checkpoint(str(path), vectors=student.task == "sentence_embedding")
    for what, ours, theirs in (
        ("task", student.task, found.task),
        ("label names", names_of(student), found.labels),
        ("word pieces", student.tokenizer.pieces, found.pieces),
        ("lower-casing", student.tokenizer.lowercase, found.lowercase),
    ):
        if ours != theirs:
            raise ValueError(f"the folder's {what} are not the student's")
    tokenizer_json.check(path / tokenizer_json.FILE, questions)
    model: keras.Model = TransformerWithHead(found.encoder, found.head)

    @tf.function(input_signature=[student.specs(None, None)])
    def logits(batch):
        return model(batch, training=False)

    length = questions.max_length
    answers = np.concatenate([widened(logits(batch).numpy(), length) for batch in questions.batches(length)])
    return Answers(answers, length, measure(logits, questions.singles(length)), "token ids, own length, read back into Keras")


VARIANTS = (Variant("float32", "huggingface", write_float32, FLOAT32),)
