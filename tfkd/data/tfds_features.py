"""What the features of a TFDS data set hold, and their cells as Python values. TensorFlow Datasets is imported when asked."""

from collections.abc import Iterable

from tfkd.errors import UserError


def kind_of(feature) -> str:
    """What a feature holds, in a word or two: `text`, `classes`, `whole numbers`, `booleans`, `lists of` these, or its type."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.ClassLabel):
        return "classes"
    if isinstance(feature, tfds.features.Sequence) and not isinstance(feature.feature, tfds.features.FeaturesDict):
        return f"lists of {kind_of(feature.feature)}"
    if isinstance(feature, tfds.features.Sequence | tfds.features.FeaturesDict):
        return "records"
    if isinstance(feature, tfds.features.Tensor) and feature.shape in ((), (None,)):
        kind = feature.np_dtype.__name__ if isinstance(feature.np_dtype, type) else str(feature.np_dtype)
        if kind in ("object_", "str_", "bytes_", "object"):
            kind = "text"
        elif kind in ("bool", "bool_"):
            kind = "booleans"
        else:
            kind = "whole numbers" if "int" in kind else f"{kind} numbers"
        return kind if feature.shape == () else f"lists of {kind}"
    return f"a feature of type {type(feature).__name__}"


def class_names(features, names: Iterable[str]) -> dict[str, list[str]]:
    """Names of the classes of ClassLabels, by column; also where they stand in lists."""
    import tensorflow_datasets as tfds

    found = {}
    for name in names:
        feature = features[name]
        while isinstance(feature, tfds.features.Sequence):
            feature = feature.feature
        if isinstance(feature, tfds.features.ClassLabel):
            found[name] = [label.strip() for label in feature.names]
    return found


def listed(values):
    """A batch of a feature as a list with a Python value a row: of a record, dicts."""
    if isinstance(values, dict):
        parts = {name: listed(part) for name, part in values.items()}
        return [dict(zip(parts, row, strict=True)) for row in zip(*parts.values(), strict=True)]
    return values.to_list() if hasattr(values, "to_list") else values.numpy().tolist()


def text(cell: bytes, column: str) -> str:
    """Decodes a cell. Raises `UserError` without a place."""
    try:
        return cell.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"column {column}: byte {error.start:,} is 0x{cell[error.start]:02X}, not UTF-8") from None
