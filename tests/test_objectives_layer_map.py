"""Layer maps: which layer of the student learns from which of the teacher."""

import pytest

from tfkd.objectives import layer_pairs


@pytest.mark.parametrize(
    ("student", "teacher", "chosen"),
    [
        (3, 6, [1, 3, 5]),  # TinyBERT: g(m) = m N / M, counted from 1
        (4, 12, [2, 5, 8, 11]),
        (6, 12, [1, 3, 5, 7, 9, 11]),
        (4, 6, [1, 2, 4, 5]),  # 1.5, 3, 4.5, 6, halves up: 2, 3, 5, 6
        (5, 6, [0, 1, 3, 4, 5]),  # 1.2, 2.4, 3.6, 4.8, 6
        (2, 3, [1, 2]),
        (6, 6, [0, 1, 2, 3, 4, 5]),
        (1, 6, [5]),
        (6, 3, [0, 0, 1, 1, 2, 2]),
        (12, 2, [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1]),
    ],
)
def test_uniform_takes_the_last_layer_of_each_share(student, teacher, chosen):
    assert layer_pairs("uniform", student, teacher) == list(enumerate(chosen))


def test_uniform_rises_and_ends_at_the_last_whatever_the_sizes():
    for student in range(1, 30):
        for teacher in range(1, 30):
            own, other = zip(*layer_pairs("uniform", student, teacher), strict=True)
            assert own == tuple(range(student)) and other[-1] == teacher - 1
            assert list(other) == sorted(other) and other[0] >= 0
            if student <= teacher:
                assert len(set(other)) == student


def test_first_and_last_are_the_teachers_ends():
    assert layer_pairs("first", 3, 6) == [(0, 0), (1, 1), (2, 2)]
    assert layer_pairs("last", 3, 6) == [(0, 3), (1, 4), (2, 5)]
    assert layer_pairs("last", 2, 2) == layer_pairs("first", 2, 2) == [(0, 0), (1, 1)]


def test_pairs_are_taken_as_given_and_negative_ones_count_from_the_end():
    assert layer_pairs([[2, 5], [0, 1]], 3, 6) == [(0, 1), (2, 5)]
    assert layer_pairs([[-1, -1]], 3, 6) == layer_pairs(((2, 5),), 3, 6) == [(2, 5)]
    assert layer_pairs([[0, 1], [0, 2]], 3, 6) == [(0, 1), (0, 2)]  # one may learn from two


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ([[0, 6]], "the teacher has no layer 6; its 6 are 0 to 5"),
        ([[3, 5]], "the student has no layer 3; its 3 are 0 to 2"),
        ([[-4, 0]], "the student has no layer -4"),
        ([[0, 1], [0, 1]], r"\[0, 1\] is there more than once"),
        ([[2, 5], [-1, -1]], r"\[2, 5\] is there more than once"),
        ("middle", "must be uniform, first, last or pairs such as"),
        ([], r"layers = \[\]"),
        (None, "layers = None"),
        (2, "layers = 2"),
        ([0, 1], "layers: 0: must be pairs"),
        ([[0, 1, 2]], "must be pairs"),
        ([["0", "1"]], "must be pairs"),
        ([[0, True]], "must be pairs"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_the_way_out(choice, message):
    with pytest.raises(ValueError, match=message):
        layer_pairs(choice, 3, 6)


@pytest.mark.parametrize("choice", ["first", "last"])
def test_a_student_deeper_than_its_teacher_has_uniform_alone(choice):
    with pytest.raises(ValueError, match="student has 6 layers, the teacher 3: use 'uniform'"):
        layer_pairs(choice, 6, 3)
    with pytest.raises(ValueError, match="nothing to pair"):
        layer_pairs("uniform", 0, 3)
