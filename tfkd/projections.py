"""Projections that objectives learn beside the student: from one stage of a training to the next."""

import json
import os
from collections.abc import Iterable

import numpy as np
from safetensors.numpy import load_file, save_file

from tfkd.run_dir import whole


def write_projections(path: str | os.PathLike, objectives: list) -> None:
    """Writes what the objectives of a stage have learned, into a safetensors file of its own: no student's file holds it."""
    with whole(path) as beside:
        save_file({name: np.asarray(variable.numpy()) for name, variable in _learned(objectives).items()}, beside)


def carry_projections(paths: Iterable[os.PathLike], objectives: list, team) -> None:
    """Gives objectives that earlier stages had too what these left, the latest last; all others keep their random start.

    The hidden states that a student has learned to match fit the projection that they were matched through: through another
    one they would have to be learned again. TinyBERT's two stages share theirs too. The same objective is one of the same name,
    class, layers and widths.

    Arguments:
        paths: files of earlier stages, in their order; one that is not there holds nothing.
        team: a `tfkd.multi_worker.Team`, of which the chief has the files.
    """
    found = {}
    for path in paths:
        found |= load_file(path) if os.path.exists(path) else {}
    learned = _learned(objectives)
    for name, variable in learned.items():
        if name in found:
            variable.assign(found[name])
    team.spread(list(learned.values()))


def _learned(objectives) -> dict:
    """The variables of objectives, by all that makes two of them the same."""
    named = {}
    for objective in objectives:
        config = objective.get_config()
        about = [objective.name, type(objective).__name__, config.get("layers"), config.get("vector")]
        for number, variable in enumerate(objective.weights):
            named[json.dumps([*about, number, list(variable.shape)])] = variable
    return named
