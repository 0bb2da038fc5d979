"""Which layer of the student learns from which of the teacher."""

CHOICES = ("uniform", "first", "last")


def layer_pairs(choice, student_layers: int, teacher_layers: int) -> list[tuple[int, int]]:
    """Resolves a choice of layers into pairs (student layer, teacher layer), numbered from 0, in the student's order.

        uniform   student layer i learns from the last of its share of the teacher's: (i + 1) * T / S - 1, rounded half up
                  where S does not divide T, as TinyBERT (Jiao et al. 2019, section 3.1) and PKD-Skip do. 3 of 6: 1, 3, 5.
        first     student layer i learns from teacher layer i (TinyBERT's bottom strategy)
        last      student layer i learns from teacher layer i + T - S (its top strategy, PKD-Last). 3 of 6: 3, 4, 5.
        pairs     as given, such as [[0, 1], [2, 5]]; negative numbers count from the end: [[-1, -1]] is the last pair alone

    A student deeper than its teacher has `uniform`, several of its layers then learning from one.

    Arguments:
        choice: one of these.
        student_layers, teacher_layers: S and T.

    Raises:
        ValueError: the choice is none of these, or a layer that it needs is not there.
    """
    sizes = f"the student has {student_layers} layers, the teacher {teacher_layers}"
    if min(student_layers, teacher_layers) < 1:
        raise ValueError(f"layers = {choice!r}: {sizes}: nothing to pair")
    if choice == "uniform":
        return [(i, _share_end(i, student_layers, teacher_layers)) for i in range(student_layers)]
    if choice in ("first", "last"):
        if student_layers > teacher_layers:
            raise ValueError(f"layers = {choice!r}: {sizes}: use 'uniform', which lets several learn from one")
        offset = teacher_layers - student_layers if choice == "last" else 0
        return [(i, i + offset) for i in range(student_layers)]
    if isinstance(choice, str):
        raise ValueError(f"layers = {choice!r}: must be {', '.join(CHOICES)} or pairs such as [[0, 1], [2, 5]]")
    given = check_pairs(choice, signed=True)
    return check_pairs([(_count(s, student_layers, "student"), _count(t, teacher_layers, "teacher")) for s, t in given])


def check_pairs(pairs, name: str = "layers", signed: bool = False) -> list[tuple[int, int]]:
    """Pairs of whole numbers, sorted, each once.

    Raises:
        ValueError: anything else; `name` says where it was given.
    """
    example = "must be pairs [student layer, teacher layer] such as [[0, 1], [2, 5]]"
    if isinstance(pairs, str) or not hasattr(pairs, "__iter__"):
        raise ValueError(f"{name} = {pairs!r}: {example}; layer_pairs resolves {', '.join(CHOICES)}")
    pairs = [tuple(pair) if hasattr(pair, "__iter__") else pair for pair in pairs]
    if not pairs:
        raise ValueError(f"{name} = []: {example}")
    for pair in pairs:
        whole = isinstance(pair, tuple) and all(isinstance(layer, int) and not isinstance(layer, bool) for layer in pair)
        if not whole or len(pair) != 2 or (not signed and min(pair) < 0):
            raise ValueError(f"{name}: {pair!r}: {example}")
        if pairs.count(pair) > 1:
            raise ValueError(f"{name}: {list(pair)} is there more than once: give it once, and the objective more weight")
    return sorted(pairs)


def _share_end(i, student_layers, teacher_layers):
    """(i + 1) * T / S - 1, rounded half up in whole numbers, at least 0: never falls as i rises."""
    rounded = (2 * (i + 1) * teacher_layers + student_layers) // (2 * student_layers)
    return max(rounded - 1, 0)


def _count(layer, layers, who):
    """The layer's number from 0."""
    if not -layers <= layer < layers:
        raise ValueError(f"layers: the {who} has no layer {layer}; its {layers} are 0 to {layers - 1}, or -1 from the end")
    return layer % layers
