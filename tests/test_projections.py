"""What objectives learn beside the student goes from stage to stage."""

import keras
import numpy as np
import tensorflow as tf

from tfkd.multi_worker import Team
from tfkd.objectives import Contrastive, EmbeddingMSE, HiddenStateMSE, KLDivergence, LayerNormMSE
from tfkd.projections import carry_projections, write_projections


def built(objective, student=4, teacher=6):
    """An objective over layers 0 and 1 of two models of these widths."""
    names = ("embeddings", "hidden.0", "hidden.1")
    shapes = [
        dict.fromkeys(names, (None, None, width)) | {"pooled": (None, width), "logits": (None, 3)} for width in (student, teacher)
    ]
    objective.build(*shapes)
    return objective


def carried(paths, *objectives):
    """Which of the objectives' projections are no longer what they were."""
    start = [objective.project.kernel.numpy() for objective in objectives]
    carry_projections(paths, objectives, Team(tf.distribute.get_strategy()))
    return [bool((before != after.project.kernel.numpy()).any()) for before, after in zip(start, objectives, strict=True)]


def test_the_same_objective_goes_on_with_its_projection_and_any_other_begins_anew(tmp_path):
    keras.utils.set_random_seed(0)
    path, gone = tmp_path / "projections-one.safetensors", tmp_path / "projections-two.safetensors"
    hidden, embedding = built(HiddenStateMSE([(0, 1)])), built(EmbeddingMSE())
    write_projections(path, [built(KLDivergence()), hidden, embedding])
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again = built(HiddenStateMSE([(0, 1)], weight=3.0)), built(EmbeddingMSE())
    assert carried([path, gone], *again) == [True, True]
    for before, after in zip((hidden, embedding), again, strict=True):
        np.testing.assert_array_equal(before.project.kernel, after.project.kernel)
    others = [HiddenStateMSE([(0, 0)]), HiddenStateMSE([(0, 1)], name="other"), LayerNormMSE([(0, 1)], name="hidden_state_mse")]
    assert carried([path, gone], *map(built, others), built(HiddenStateMSE([(0, 1)]), teacher=8)) == [False] * 4


def test_the_latest_stage_that_had_an_objective_is_gone_on_from(tmp_path):
    keras.utils.set_random_seed(0)
    stages = [[built(Contrastive())], [built(Contrastive())], [built(KLDivergence())]]
    paths = [tmp_path / f"projections-{number}.safetensors" for number in range(3)]
    for path, objectives in zip(paths, stages, strict=True):
        write_projections(path, objectives)
    after = built(Contrastive())
    assert carried(paths, after) == [True]
    np.testing.assert_array_equal(after.project.kernel, stages[1][0].project.kernel)
    assert carried([], after) == [False]
