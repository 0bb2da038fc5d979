"""The teachers that a configuration names, opened: one or several, of any make, each with the word pieces it reads."""

import contextlib
import dataclasses
import pathlib

import keras

from tfkd import config as configs
from tfkd.checkpoints import checkpoint as checkpoints
from tfkd.checkpoints.keras_file import open_keras_file
from tfkd.checkpoints.run import Surroundings, surroundings
from tfkd.checkpoints.saved_model import open_saved_model
from tfkd.config import Config, Training
from tfkd.data import teacher_cache
from tfkd.data.tokenizer import Tokenizer, learn_vocabulary
from tfkd.errors import UserError
from tfkd.models.with_head import TransformerWithHead
from tfkd.run_dir import RunDir, read_json, sha256
from tfkd.teacher import LiveTeacher


@dataclasses.dataclass
class Member:
    """One teacher of a run.

    Attributes:
        given: its section of the configuration.
        number: its place among the teachers, from 0; None where it is the only one.
        checkpoint: what was read, of a `teacher.checkpoint`.
        model: what was read, of a file, or trained in a run before.
        files: digest of a SavedModel as it was read, where its answers are to be cached: hours later others may lie there.
        around: what lies beside that file.
        tokenizer: what it reads with; None until it is known that it reads what the student reads.
        prefix: of its inputs in a batch; empty where they are the student's.
        teacher: how it is asked, once it was made.
    """

    given: configs.TeacherModel
    number: int | None = None
    checkpoint: checkpoints.Checkpoint | None = None
    model: object = None
    files: str | None = None
    around: Surroundings = Surroundings()
    tokenizer: Tokenizer | None = None
    prefix: str = ""
    teacher: LiveTeacher | None = None

    @property
    def name(self) -> str | None:
        """Of what it came from; None where it is trained from scratch."""
        if self.checkpoint is not None:
            return self.checkpoint.name
        path = self.given.keras_file or self.given.saved_model or self.given.checkpoint
        return None if path is None else pathlib.PurePath(path).name

    @property
    def training(self) -> Training | None:
        return self.given.training

    def seed(self, config: Config) -> int:
        """Of its start and its training: several that are alike in all else still differ."""
        return config.seed + (self.number or 0)

    def folder(self, run: RunDir) -> pathlib.Path:
        """What a run keeps of it, where it is trained there."""
        return run.teacher if self.number is None else run.teacher / str(self.number + 1)

    def place(self) -> str:
        return "teacher" if self.number is None else f"teacher.members.{self.number}"


@contextlib.contextmanager
def blamed(member: Member):
    """Says of whom a mistake is, where there are several."""
    try:
        yield
    except UserError as error:
        raise error if member.number is None else UserError(f"{member.place()}: {error}") from None


# ---------------------------------------------------------------- opening


def open_members(config: Config, task, trained: RunDir | None = None) -> list[Member]:
    """Reads what the teachers are made of.

    Arguments:
        task: the class.
        trained: a finished run: those that were trained in it are read from there.

    Raises:
        UserError: something cannot be read, is too short for `data.max_length`, or lacks a head that it is to be used with.
    """
    members = []
    for number, given in enumerate(config.teacher.models):
        member = Member(given, None if config.teacher.members is None else number)
        members.append(member)
        keras.utils.set_random_seed(member.seed(config))
        with blamed(member):
            if trained is not None and given.training is not None:
                _open_trained(member, trained)
            elif given.checkpoint is not None:
                member.checkpoint = open_checkpoint(given, config.data.max_length, task)
                member.tokenizer = Tokenizer(member.checkpoint.pieces, lowercase=member.checkpoint.lowercase)
            elif given.dimensions is None:
                _open_file(member, config.teacher.cache)
    return members


def open_checkpoint(given: configs.TeacherModel, max_length: int, task) -> checkpoints.Checkpoint:
    """A teacher's checkpoint. Raises `UserError` as `open_members`."""
    reference, vectors = configs.expand(given.checkpoint, "teacher.checkpoint"), task.name == "sentence_embedding"
    found = checkpoints.open_checkpoint(reference, given.revision, vectors)
    if max_length > found.max_length:
        raise UserError(f"data.max_length = {max_length} is above the {found.max_length} positions of {found.name}")
    keep = given.head == "keep" or (given.head == "auto" and given.finetune is None)
    if not task.learns_from_labels or not keep:
        return found
    if found.head is None:
        how = "use teacher.head: new" if given.finetune else "say with teacher.finetune how to train one"
        raise UserError(f"teacher.checkpoint = {found.name} has no head for task: {task.name}; {how}")
    if found.task != task.name:
        raise UserError(
            f"teacher.checkpoint = {found.name} brings a {found.task} head; task: {task.name} needs one of its own: say with "
            "teacher.finetune how to train it" + (", and leave out teacher.head: keep" if given.finetune else "")
        )
    return found


def _open_file(member: Member, cached: bool) -> None:
    given = member.given
    if given.keras_file is not None:
        path = configs.expand(given.keras_file, "teacher.keras_file")
        member.model = open_keras_file(path, given.trust)
    else:
        path = configs.expand(given.saved_model, "teacher.saved_model")
        hashed = cached and pathlib.Path(path).is_dir()
        member.files = sha256(path) if hashed else None
        member.model = open_saved_model(path, given.signature, given.output, given.inputs, given.activation, given.trust)
        if hashed and sha256(path) != member.files:
            raise UserError(f"{path}: it changed while it was read; begin again when nobody writes there")
    member.around = around = surroundings(path)
    vocabulary, lowercase = around.vocabulary, around.lowercase
    if given.vocabulary is not None:
        vocabulary = pathlib.Path(configs.expand(given.vocabulary, "teacher.vocabulary")).resolve()
        beside = surroundings(vocabulary)
        lowercase = beside.lowercase if beside.vocabulary == vocabulary else True
    if vocabulary is None:
        raise UserError(f"{path}: no vocab.txt beside it: say with teacher.vocabulary whose word pieces its token ids are")
    member.tokenizer = Tokenizer.from_file(vocabulary, lowercase if given.lowercase is None else given.lowercase)
    known = member.model.encoder.config["vocabulary_size"] if isinstance(member.model, TransformerWithHead) else None
    if known not in (None, member.tokenizer.vocabulary_size):
        raise UserError(f"{vocabulary}: {member.tokenizer.vocabulary_size} pieces, but {path} knows {known}")


def _open_trained(member: Member, run: RunDir) -> None:
    folder = member.folder(run)
    run.require(folder / "model.keras")
    import tfkd.tasks.table  # noqa: F401 registers the heads that files name

    member.model = open_keras_file(folder / "model.keras")
    if (folder / "vocab.txt").exists():
        settings = read_json(folder / "tokenizer_config.json")
        member.tokenizer = Tokenizer.from_file(folder / "vocab.txt", lowercase=settings["lowercase"])


# ---------------------------------------------------------------- word pieces


def choose_tokenizer(config: Config, members: list[Member], source) -> Tokenizer:
    """What the student reads with: as the first teacher that brings word pieces, or learned from the training texts."""
    brought = [member.tokenizer for member in members if member.tokenizer is not None]
    if brought and config.student.vocabulary == "teacher":
        return brought[0]
    texts = (example[key] for example in source.examples("train") for key in ("text", "text_pair") if key in example)
    pieces = learn_vocabulary(texts, config.data.vocabulary_size, config.data.lowercase)
    return Tokenizer(pieces, lowercase=config.data.lowercase)


def share_tokenizer(members: list[Member], tokenizer: Tokenizer) -> dict[str, Tokenizer]:
    """Says of each teacher whether it reads what the student reads; returns the others' tokenizers by prefix."""
    others: dict[str, Tokenizer] = {}
    for member in members:
        if member.tokenizer is None or _same(member.tokenizer, tokenizer):
            member.tokenizer, member.prefix = tokenizer, ""
            continue
        known = next((prefix for prefix, other in others.items() if _same(other, member.tokenizer)), None)
        member.prefix = known or (f"teacher{len(others) + 1}." if others else teacher_cache.PREFIX)
        others.setdefault(member.prefix, member.tokenizer)
    return others


def _same(one: Tokenizer, other: Tokenizer) -> bool:
    return one.lowercase == other.lowercase and one.pieces == other.pieces
