"""After the student is trained: what prepares it for smaller files."""

import itertools

import keras

from tfkd import build, build_teacher
from tfkd import config as configs
from tfkd.config import Config
from tfkd.fitting import fit
from tfkd.models.quantized import QuantizedTransformer
from tfkd.progress import Display
from tfkd.run_dir import RunDir, whole

OBSERVED = 8
"""Batches that the first ranges are read from."""


def train_quantized(
    config: Config,
    run: RunDir,
    student: keras.Model,
    teacher,
    members: list,
    data: build.Data,
    task,
    display: Display,
    devices,
    resume: bool,
    team,
    epochs_before: int,
) -> None:
    """Goes on training a copy of the student with every number rounded to 8 bits, and writes it as `student-qat.keras`.

    It learns from the labels and the teacher's answers, with the alpha and temperature that the last stage ended with.

    Arguments:
        student: as it is in `student.keras`; it does not change.
        data: what its last stage was trained on.
        epochs_before: of the student's training: logs count on.
    """
    training = config.compression.qat
    stages = config.trainings()
    distill, epochs = stages[-1].distill, stages[-1].train.epochs
    ended = {"alpha": _end(distill.alpha, epochs), "temperature": _end(distill.temperature, epochs), "objectives": None}
    build_teacher.reseed(teacher, config.seed + len(stages))
    with devices.scope():
        keras.utils.set_random_seed(config.seed)
        model = QuantizedTransformer(copy_of(student), pace=training.range_pace)
        objectives = build.make_objectives(distill.model_copy(update=ended), task, model, teacher)
    knowledge, part = build_teacher.make_knowledge(config, teacher, members, objectives, data, training, display, team)
    with devices.scope():
        model.observe(inputs for inputs, *_ in itertools.islice(data.train(training).dataset(), OBSERVED))
    parts = part, data.validation()
    learned = {"teacher": knowledge, "objectives": objectives, "alpha": ended["alpha"]}
    counted = {"stage": "int8", "epochs_before": epochs_before}
    fit("student", model, config, training, *parts, task, run, display, devices, resume, **learned, **counted)
    with whole(run.quantized) as path:
        model.save(path)


def copy_of(model: keras.Model) -> keras.Model:
    """Another model with the same weights."""
    twin = type(model).from_config(model.get_config())
    twin.set_weights(model.get_weights())
    return twin


def _end(value: float | configs.Changing, epochs: int) -> float:
    return value.at_end(epochs) if isinstance(value, configs.Changing) else value
