"""A `.keras` file as a model: ours, KerasHub's or any of Keras's layers."""

import json
import os
import pathlib
import re
import zipfile
import zlib

from tfkd.errors import UserError, first_line

LARGEST_CONFIG = 100_000_000


def open_keras_file(path: str | os.PathLike, trust: bool = False):
    """Loads the model of a `.keras` file, without what it was compiled with.

    Its layers are Keras's, KerasHub's, tfkd's, or registered by whoever calls this. The file's own Python code, which
    `Lambda` layers carry, never runs without `trust`.

    Arguments:
        path: what `model.save("name.keras")` wrote.
        trust: load with Keras's `safe_mode=False`: code in the file runs here, with all your rights. Only for a file whose
            maker you trust.

    Returns:
        A built `keras.Model`, created in the caller's `tf.distribute` scope.

    Raises:
        UserError: no such file, not a whole one, one that holds code, or classes that nobody here knows.
    """
    path = pathlib.Path(path)
    config = _config(path)
    import keras

    import tfkd.models.with_head  # noqa: F401 registers the classes that a file of ours names
    import tfkd.tasks.table  # noqa: F401

    if '"keras_hub' in config or '"keras_nlp' in config:
        import keras_hub  # noqa: F401 registers KerasHub's

    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=not trust)
    except Exception as error:  # Keras, h5py, zipfile and every layer's from_config share no base class
        raise UserError(f"{path}: {_reason(error)}") from None
    if not isinstance(model, keras.Model):
        raise UserError(f"{path}: holds a {type(model).__name__}, not a model")
    return model


def _config(path: pathlib.Path) -> str:
    """The text of a file's config.json."""
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        saved = (path / "saved_model.pb").exists()
        raise UserError(f"{path}: a folder" + ("; a SavedModel is given as teacher.saved_model" if saved else ""))
    if path.suffix != ".keras":
        raise UserError(f"{path}: not a .keras file; save the model again with model.save('{path.stem}.keras')")
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("config.json").file_size > LARGEST_CONFIG:  # a few bytes can unpack to terabytes
                raise UserError(f"{path}: its config.json claims more than {LARGEST_CONFIG:,} bytes; not what model.save wrote")
            text = archive.read("config.json").decode()
        json.loads(text)
    except KeyError:
        raise UserError(f"{path}: no config.json in it; not what model.save wrote") from None
    except UserError:
        raise
    # Of zipfile: damage, an end too early, a password or a method that it has not (RuntimeError). Of JSON and UTF-8: ValueError.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: not a whole .keras file ({first_line(error)}); copy or save it again") from None
    return text


def _reason(error: Exception) -> str:
    text = str(error)
    unknown = re.search(r"Could not locate \w+ '([^']+)'", text)
    if unknown:
        return (
            f"made with {unknown[1]}, which is neither Keras's, KerasHub's nor tfkd's; export it as a SavedModel and give that, "
            "or load it in Python after importing what registers it"
        )
    if "safe_mode" in text or "lambda" in text.lower():
        return (
            "holds Python code (a Lambda layer), which would run here; if you trust its maker, say so with teacher.trust: true, "
            "or export it as a SavedModel"
        )
    return f"Keras cannot load it ({first_line(text.rpartition('Exception encountered: ')[2] or error)})"
