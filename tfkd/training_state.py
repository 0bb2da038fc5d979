"""All that a training needs to go on to the same bits: folders that are whole, checksummed, and never the only one."""

import hashlib
import json
import pathlib

import keras
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from tfkd.errors import UserError
from tfkd.run_dir import read_json, remove, sha256, whole, write_json

FORMAT = 1
KEPT = 2
"""Checkpoints of a training: the newest, and the one to go on from where the newest is damaged."""

ABOUT = "state.json"


def gather(model: keras.Model) -> dict[str, list[np.ndarray]]:
    """What a model under training holds, by kind: weights and random states, the optimizer's, the running averages'."""
    return {kind: [np.asarray(variable.numpy()) for variable in variables] for kind, variables in _variables(model).items()}


def assign(model: keras.Model, arrays: dict[str, list[np.ndarray]], kinds=("model", "optimizer")) -> None:
    """Puts back what `gather` found; the optimizer, and for the averages the metrics, must have been built.

    Raises:
        UserError: they are those of another model or optimizer.
    """
    for kind in kinds:
        variables, values = _variables(model)[kind], arrays[kind]
        if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
            raise UserError(f"--resume: the checkpoint's {kind} has other variables than this program makes; start a new run")
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)


def _variables(model: keras.Model) -> dict[str, list]:
    return {"model": model.variables, "optimizer": model.optimizer.variables, "averages": model.metrics_variables}


def reseed(model: keras.Model, seed: int) -> None:
    """Gives every dropout generator a state that follows from `seed` alone, whatever was drawn before."""
    states = [variable for variable in model.variables if variable.path.endswith("seed_generator_state")]
    for number, state in enumerate(states):
        state.assign([seed, number])


def save(folder: pathlib.Path, step: int, about: dict, arrays: dict[str, list[np.ndarray]]) -> pathlib.Path:
    """Writes the checkpoint of a step, whole or not at all, and removes those before the last `KEPT`.

    Arguments:
        folder: of the training.
        step: of the whole training.
        about: what JSON can hold.
        arrays: lists of arrays by kind.
    """
    path = folder / f"step-{step:08}"
    with whole(path) as beside:
        beside.mkdir()
        for kind, values in arrays.items():
            tensors = {f"{number:06}": np.ascontiguousarray(value).reshape(value.shape) for number, value in enumerate(values)}
            save_file(tensors, beside / f"{kind}.safetensors")
        files = {file.name: sha256(file) for file in sorted(beside.iterdir())}
        about = {**about, "format": FORMAT, "files": files}
        write_json(beside / ABOUT, about | {"sha256": _digest(about)})
    for older in _found(folder)[:-KEPT]:
        remove(older)
    return path


def load(folder: pathlib.Path) -> tuple[dict, dict[str, list[np.ndarray]], list[str]] | None:
    """The newest checkpoint whose bytes are those that were written.

    Returns:
        What is said about it, its arrays by kind, and the names of damaged ones that were passed over and removed; None where
        there is no sound one.
    """
    damaged = []
    for path in reversed(_found(folder)):
        about = _about(path)
        if about is not None:
            arrays = {name.removesuffix(".safetensors"): _arrays(path / name) for name in about["files"]}
            for name in damaged:
                remove(folder / name)
            return about, arrays, damaged
        damaged.append(path.name)
    return None


def _found(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.glob("step-????????") if path.is_dir())


def _about(path: pathlib.Path) -> dict | None:
    """What a checkpoint says of itself, where all of it is as it was written."""
    try:
        about = read_json(path / ABOUT)
        digest = about.pop("sha256")
        sound = digest == _digest(about) and all(sha256(path / name) == known for name, known in about["files"].items())
    except (UserError, OSError, AttributeError, KeyError, TypeError):
        return None
    if sound and about["format"] != FORMAT:
        raise UserError(f"--resume: {path} was written by another version of tfkd; start a new run")
    return about if sound else None


def _arrays(path: pathlib.Path) -> list[np.ndarray]:
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"--resume: {path} cannot be read ({error}); remove its folder, and go on from the one before") from None
    return [tensors[name] for name in sorted(tensors)]


def _digest(about: dict) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
