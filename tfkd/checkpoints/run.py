"""A run of tfkd as somebody's checkpoint: the encoder that was trained there, its head, and how it reads text."""

import dataclasses
import pathlib

from tfkd import yaml_file
from tfkd.checkpoints.description import check_vocabulary, read_vocabulary
from tfkd.checkpoints.keras_file import open_keras_file
from tfkd.errors import UserError
from tfkd.run_dir import RunDir, read_json

LEVELS = 4
"""How far above a model's file what belongs to it is looked for: `teacher/1/model.keras` lies three folders deep in a run."""


@dataclasses.dataclass(frozen=True)
class Surroundings:
    """What lies beside a model and says how to read its inputs and outputs.

    Attributes:
        vocabulary: vocab.txt, in a folder that says in tokenizer_config.json how texts are cleaned; None where there is none.
        lowercase: whether texts are lower-cased.
        task, labels: of the run that the model is part of; None where it is of none.
    """

    vocabulary: pathlib.Path | None = None
    lowercase: bool = True
    task: str | None = None
    labels: list[str] | None = None


def surroundings(path: str | pathlib.Path) -> Surroundings:
    """What belongs to the model in a file or a folder: looked for there and in the folders above it.

    Raises:
        UserError: a file that should say it is broken.
    """
    path, found = pathlib.Path(path).resolve(), {}
    folders = [path, *path.parents][: LEVELS + 1]
    reader = next((folder for folder in folders if all((folder / name).is_file() for name in _READER)), None)
    if reader is not None:
        settings = read_json(reader / _READER[1])
        settings = settings if isinstance(settings, dict) else {}
        lowercase = settings.get("lowercase", settings.get("do_lower_case", True))
        found |= {"vocabulary": reader / _READER[0], "lowercase": lowercase is not False}
    run = next((RunDir(folder) for folder in folders if _is_run(folder)), None)
    if run is not None:
        found |= {"task": yaml_file.read(run.config).get("task", "classification"), "labels": run.read_labels()}
    return Surroundings(**found)


def is_run(reference: str) -> bool:
    """Whether a checkpoint's reference means a run of tfkd, or a `.keras` file."""
    path = pathlib.Path(reference)
    return "://" not in reference and (path.suffix == ".keras" or _is_run(path))


def open_run(reference: str) -> dict:
    """Arguments of `Checkpoint`: of the teacher that a run trained, or of the model in a `.keras` file of one.

    The layers are made anew, in the caller's `tf.distribute` scope and dtype policy.

    Raises:
        UserError: no such model, one that is not an encoder of ours, or one whose vocabulary is not beside it.
    """
    path = pathlib.Path(reference)
    file = path if path.suffix == ".keras" else RunDir(path).teacher / "model.keras"
    if file != path and not file.exists():
        raise UserError(f"{path}: no one teacher was trained in this run; name one of its files, such as {path}/student.keras")
    from tfkd.models.encoder import TransformerEncoder
    from tfkd.models.with_head import TransformerWithHead

    model = open_keras_file(file)
    if not isinstance(model, TransformerWithHead):
        raise UserError(f"{file}: a {type(model).__name__}, not an encoder of tfkd's; give it as teacher.keras_file")
    beside = surroundings(file)
    if beside.vocabulary is None:
        raise UserError(f"{file}: no vocab.txt and tokenizer_config.json with it; leave it in its run")
    encoder = TransformerEncoder(**model.encoder.config, name="encoder")
    _fill(encoder, model.encoder)
    settings = {key: value for key, value in model.head.get_config().items() if key != "dtype"}
    head = type(model.head).from_config(settings)
    head.build((None, None, encoder.config["width"]))
    _fill(head, model.head)
    return {
        "name": path.resolve().name if file != path else f"{file.resolve().parent.name}/{file.name}",
        "encoder": encoder,
        "head": head,
        "labels": beside.labels,
        "pieces": check_vocabulary(read_vocabulary(beside.vocabulary), beside.vocabulary, encoder.config["vocabulary_size"]),
        "lowercase": beside.lowercase,
        "max_length": encoder.config["max_positions"],
        "pooler": None,
        "task": beside.task,
    }


_READER = "vocab.txt", "tokenizer_config.json"


def _is_run(folder: pathlib.Path) -> bool:
    run = RunDir(folder)
    return all(path.is_file() for path in (run.config, run.vocabulary, run.tokenizer, run.labels))


def _fill(into, source) -> None:
    for target, value in zip(into.trainable_variables, source.trainable_variables, strict=True):
        target.assign(value)
