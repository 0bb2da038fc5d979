"""What a Hugging Face folder has beside it for sentence-transformers: how the vectors of positions become one of the text."""

import pathlib

import numpy as np
from safetensors.numpy import save_file

from tfkd.checkpoints.safetensors_files import ONE_FILE
from tfkd.checkpoints.sentence_transformers import FLAGS, MODULES, POOLING, PROMPTS, SETTINGS
from tfkd.run_dir import write_json

from .inference import Student

TYPES = "sentence_transformers.models."
"""Where all versions find their modules."""
NAMES = {ours: theirs for theirs, ours in reversed(POOLING.items())}
"""Our pooling -> the first of their names for it."""
CLASSES = {"linear": "torch.nn.modules.linear.Identity", "tanh": "torch.nn.modules.activation.Tanh"}


def write(student: Student, path: pathlib.Path) -> None:
    """Writes modules.json and the modules behind the encoder: pooling, the layer where there is one, unit length."""
    head, width = student.model.head, student.model.encoder.config["width"]
    modules = {"Transformer": "", "Pooling": "1_Pooling"}
    (path / "1_Pooling").mkdir()
    flags = {flag: name == NAMES[head.pooling] for flag, name in FLAGS.items()}
    write_json(path / "1_Pooling" / "config.json", {"word_embedding_dimension": width} | flags)
    if head.output_dense is not None:
        modules["Dense"] = "2_Dense"
        _write_layer(head, width, path / "2_Dense")
    modules["Normalize"] = f"{len(modules)}_Normalize"  # a folder that nobody needs: it would be empty
    listed = [
        {"idx": index, "name": str(index), "path": folder, "type": TYPES + name}
        for index, (name, folder) in enumerate(modules.items())
    ]
    write_json(path / MODULES, listed)
    write_json(path / SETTINGS, {"max_seq_length": student.max_length, "do_lower_case": False})
    write_json(path / PROMPTS, {"similarity_fn_name": "cosine"})


def _write_layer(head, width: int, folder: pathlib.Path) -> None:
    folder.mkdir()
    activation = CLASSES[head.activation or "linear"]
    about = {"in_features": width, "out_features": head.classes, "bias": head.bias, "activation_function": activation}
    write_json(folder / "config.json", about)
    arrays = {"linear.weight": np.ascontiguousarray(np.asarray(head.output_dense.kernel).T)}
    arrays |= {"linear.bias": np.asarray(head.output_dense.bias)} if head.bias else {}
    save_file(arrays, folder / ONE_FILE, metadata={"format": "pt"})
