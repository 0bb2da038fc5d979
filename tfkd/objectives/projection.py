"""From the student's width to the teacher's."""

import keras

PROJECTIONS = ("auto", "always", "never")


def make_projection(name: str, projection: str, student_width: int, teacher_width: int) -> keras.layers.Dense | None:
    """x W, a learned matrix without bias (TinyBERT: Jiao et al. 2019, eq. 8 and 9), built; None where nothing is to be done.

    It belongs to the objective, so that it is trained with the student and never lands in the student's file.

    Arguments:
        name: the objective's.
        projection: `auto` projects where the widths differ, `always` even where they do not, `never` refuses that they do.

    Raises:
        ValueError: the widths differ and `projection` is `never`.
    """
    if student_width != teacher_width and projection == "never":
        raise ValueError(
            f"{name}: the student is {student_width} wide, the teacher {teacher_width}: projection = 'never' cannot compare "
            "them; use 'auto'"
        )
    if student_width == teacher_width and projection != "always":
        return None
    dense = keras.layers.Dense(teacher_width, use_bias=False, dtype="float32", name="projection")
    dense.build((None, student_width))
    return dense
