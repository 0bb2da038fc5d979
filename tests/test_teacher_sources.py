"""Teachers from files: SavedModel folders and .keras files."""

import functools
import pathlib
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from tfkd.checkpoints.keras_file import open_keras_file
from tfkd.checkpoints.saved_model import open_saved_model
from tfkd.distiller import Distiller
from tfkd.errors import UserError
from tfkd.models.encoder import TransformerEncoder
from tfkd.models.with_head import TransformerWithHead
from tfkd.objectives import KLDivergence
from tfkd.tasks.classification import ClassificationHead
from tfkd.teacher import LiveTeacher, foreign_teacher

V, D, C, B, T, L = 30, 8, 3, 4, 6, 10
INTS = tf.TensorSpec((None, None), tf.int32)


@functools.cache
def model():
    keras.utils.set_random_seed(0)
    encoder = TransformerEncoder(V, 1, D, 2, max_positions=L, initializer_range=0.5)
    one = TransformerWithHead(encoder, ClassificationHead(C))
    one.head.output_dense.kernel.assign(one.head.output_dense.kernel * 50)  # answers that tell one text from another
    return one


def batch():
    random = np.random.default_rng(0)
    mask = (np.arange(T) < np.array([6, 4, 2, 5])[:, None]).astype("int32")
    return {"token_ids": random.integers(1, V, (B, T)).astype("int32") * mask, "padding_mask": mask}


def save(path, tracked=None, **signatures):
    """Writes a SavedModel of functions, each given with its input specs: `name=(function, {input: spec})`."""
    servable = tf.Module()
    servable.tracked = tracked
    made = {name: tf.function(function, input_signature=list(specs.values())) for name, (function, specs) in signatures.items()}
    tf.saved_model.save(servable, str(path), signatures=made)
    return path


def saved(path, one, **changes):
    """A SavedModel of one of our models, as Hugging Face names its inputs."""
    specs = {"input_ids": tf.TensorSpec((None, None), tf.int64), "attention_mask": INTS} | changes

    def answer(input_ids, attention_mask):
        return {"logits": one({"token_ids": tf.cast(input_ids, tf.int32), "padding_mask": attention_mask})}

    return save(path, one, serving_default=(answer, specs))


# ---------------------------------------------------------------- SavedModel


def test_a_saved_model_teaches_its_logits(tmp_path):
    one, x = model(), batch()
    found = open_saved_model(saved(tmp_path / "teacher", one))
    assert sorted(found.takes) == ["padding_mask", "token_ids"]
    assert found.max_length is None and found.layers is None
    assert sum(int(tf.size(variable)) for variable in found.variables) == one.count_params()
    teacher = LiveTeacher(found)
    assert teacher.shapes(["logits"]) == {"logits": (None, C)}
    more = x | {"segment_ids": np.ones_like(x["token_ids"])}  # not the signature's, so left out
    np.testing.assert_allclose(teacher(more)["logits"], one(x), rtol=1e-5, atol=1e-5)
    for names in (["hidden.0"], ["logits", "pooled"]):
        with pytest.raises(ValueError, match="teacher is a SavedModel: it has logits, but no inner tensor"):
            teacher(x, names)
    assert teacher(x, ()) == {}


def test_a_saved_model_teaches_a_compiled_student_and_stays_as_it_is(tmp_path):
    table = tf.Variable(np.random.default_rng(0).normal(0, 3, (V, C)).astype("float32"))
    specs = {"input_ids": tf.TensorSpec((None, None), tf.int64)}
    path = save(tmp_path / "table", table, default=(lambda input_ids: {"out": tf.gather(table, input_ids)[:, 0]}, specs))
    teacher, x = LiveTeacher(open_saved_model(path)), batch()
    distiller = Distiller(functional(), teacher, [KLDivergence(1.0)], alpha=0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    distiller.compile(keras.optimizers.Adam(0.1), loss=loss, jit_compile=True)
    data = tf.data.Dataset.from_tensors((x, np.zeros(B, "int32"))).repeat(10)
    history = distiller.fit(data, epochs=3, verbose=0, shuffle=False).history
    assert history["loss"][-1] < 0.1 * history["loss"][0]
    np.testing.assert_array_equal(teacher(x)["logits"], table.numpy()[x["token_ids"][:, 0]])


def test_a_signature_of_one_length_gets_its_padding(tmp_path):
    one, x = model(), batch()
    fixed = {"input_ids": tf.TensorSpec((None, L), tf.int64), "attention_mask": tf.TensorSpec((None, L), tf.int32)}
    found = open_saved_model(saved(tmp_path / "teacher", one, **fixed))
    assert found.max_length == L
    np.testing.assert_allclose(LiveTeacher(found)(x)["logits"], one(x), rtol=1e-5, atol=1e-5)
    signature = {name: tf.TensorSpec((None, None), "int32") for name in x}  # the length is not known when this is traced
    graph = tf.function(lambda x: LiveTeacher(found)(x)["logits"], input_signature=[signature])
    np.testing.assert_allclose(graph(x), one(x), rtol=1e-5, atol=1e-5)
    longer = {name: np.pad(value, ((0, 0), (0, L))) for name, value in x.items()}
    with pytest.raises(ValueError, match=f"teacher takes {L} word pieces; the batch has {T + L}"):
        LiveTeacher(found)(longer)


def test_positions_that_were_only_padding_are_cut_off_again(tmp_path):
    table = tf.Variable(np.random.default_rng(0).normal(size=(V, C)).astype("float32"))
    specs = {"token_ids": tf.TensorSpec((None, L), tf.int32)}
    path = save(tmp_path / "tagger", table, serving_default=(lambda token_ids: {"out": tf.gather(table, token_ids)}, specs))
    logits = LiveTeacher(open_saved_model(path))(batch())["logits"]
    np.testing.assert_array_equal(logits, table.numpy()[batch()["token_ids"]])


def test_segments_that_a_signature_asks_for_are_zeros_for_single_texts(tmp_path):
    one, x = model(), batch()

    def answer(token_ids, padding_mask, token_type_ids):
        return {"logits": one({"token_ids": token_ids, "padding_mask": padding_mask, "segment_ids": token_type_ids})}

    specs = {"token_ids": INTS, "padding_mask": INTS, "token_type_ids": INTS}
    teacher = LiveTeacher(open_saved_model(save(tmp_path / "teacher", one, serving_default=(answer, specs))))
    np.testing.assert_allclose(teacher(x)["logits"], one(x), rtol=1e-5, atol=1e-5)
    assert teacher.supplied(x) == ["segment_ids"]
    pair = x | {"segment_ids": (np.arange(T) > 2).astype("int32") * x["padding_mask"]}
    np.testing.assert_allclose(teacher(pair)["logits"], one(pair), rtol=1e-5, atol=1e-5)
    assert np.abs(one(pair) - one(x)).max() > 1e-3 and teacher.supplied(pair) == []


def two_signatures(path, activation=tf.identity):
    table = tf.Variable(np.random.default_rng(0).normal(size=(V, C)).astype("float32"))

    def ids(token_ids):
        scores = tf.gather(table, token_ids)[:, 0]
        return {"scores": activation(scores), "double": 2.0 * scores}

    def text(text):
        return {"logits": tf.gather(table, tf.strings.length(text))}

    save(path, table, serving_default=(text, {"text": tf.TensorSpec((None,), tf.string)}), ids=(ids, {"token_ids": INTS}))
    return path, table.numpy()


def test_signature_and_output_are_chosen_by_name(tmp_path):
    path, table = two_signatures(tmp_path / "teacher")
    first = batch()["token_ids"][:, 0]
    for output, factor in (("scores", 1.0), ("double", 2.0)):
        found = open_saved_model(path, signature="ids", output=output)
        np.testing.assert_allclose(LiveTeacher(found)(batch())["logits"], factor * table[first], rtol=1e-6)
    with pytest.raises(UserError, match="which output to ask must be said with teacher.output; it has double, scores"):
        open_saved_model(path, signature="ids")
    with pytest.raises(UserError, match="no output 'logits'; it has double, scores"):
        open_saved_model(path, signature="ids", output="logits")
    with pytest.raises(UserError, match="no signature 'predict'; it has ids, serving_default"):
        open_saved_model(path, signature="predict")
    with pytest.raises(UserError, match="signature ids has no input 'text'; it has token_ids"):
        open_saved_model(path, signature="ids", output="scores", inputs={"text": "text"})


def test_raw_text_is_refused_unless_the_batch_holds_it(tmp_path):
    path, table = two_signatures(tmp_path / "teacher")
    with pytest.raises(UserError, match=r"takes raw text \(text\), and batches hold word pieces; say teacher.signature: ids"):
        open_saved_model(path)
    teacher = LiveTeacher(open_saved_model(path, inputs={"text": "sentence"}))
    texts = tf.constant(["a", "four", "", "the"])
    np.testing.assert_allclose(teacher(batch() | {"sentence": texts})["logits"], table[[1, 4, 0, 3]], rtol=1e-6)
    with pytest.raises(ValueError, match="teacher takes an input 'text'; the batch holds padding_mask, token_ids"):
        teacher(batch())


def test_probabilities_are_noticed_and_become_logits_once_it_is_said(tmp_path):
    path, table = two_signatures(tmp_path / "teacher", tf.nn.softmax)
    with pytest.raises(UserError, match="output scores of signature ids holds probabilities: say teacher.activation: softmax"):
        open_saved_model(path, signature="ids", output="scores")
    found = open_saved_model(path, signature="ids", output="scores", activation="softmax")
    logits = LiveTeacher(found)(batch())["logits"].numpy()
    plain = table[batch()["token_ids"][:, 0]]
    np.testing.assert_allclose(logits - logits[:, :1], plain - plain[:, :1], rtol=1e-4, atol=1e-5)
    as_said = open_saved_model(path, signature="ids", output="scores", activation="linear")
    np.testing.assert_allclose(LiveTeacher(as_said)(batch())["logits"].numpy().sum(-1), 1.0, rtol=1e-5)
    with pytest.raises(UserError, match="teacher.activation = tanh: must be one of linear, softmax, sigmoid"):
        open_saved_model(path, activation="tanh")


def test_a_signature_for_one_number_of_texts_is_refused(tmp_path):
    one = {"token_ids": tf.TensorSpec((1, None), tf.int32)}
    path = save(tmp_path / "teacher", serving_default=(lambda token_ids: {"logits": tf.one_hot(token_ids[:, 0], C)}, one))
    with pytest.raises(UserError, match=r"takes batches of exactly 1 \(token_ids\)"):
        open_saved_model(path)


def test_a_graph_that_reaches_out_is_refused_without_trust(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("12345")

    def answer(token_ids):
        length = tf.cast(tf.strings.length(tf.io.read_file(str(secret))), "float32")
        return {"logits": tf.fill((tf.shape(token_ids)[0], C), length)}

    path = save(tmp_path / "teacher", serving_default=(answer, {"token_ids": INTS}))
    with pytest.raises(UserError, match="holds ReadFile, which can reach files or Python of yours; .* teacher.trust: true"):
        open_saved_model(path)
    np.testing.assert_array_equal(LiveTeacher(open_saved_model(path, trust=True))(batch())["logits"], np.full((B, C), 5.0))


def test_what_is_no_saved_model_is_refused_in_one_line(tmp_path):
    good, _ = two_signatures(tmp_path / "good")
    (tmp_path / "empty").mkdir()
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / "saved_model.pb").write_bytes((good / "saved_model.pb").read_bytes()[:-100])
    junk = tmp_path / "junk"
    junk.mkdir()
    (junk / "saved_model.pb").write_bytes(b"\xff\xfe not a protocol buffer")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    (nothing / "saved_model.pb").write_bytes(b"")
    without = tmp_path / "without"
    without.mkdir()
    (without / "saved_model.pb").write_bytes((good / "saved_model.pb").read_bytes())
    for path, words in (
        (tmp_path / "absent", "no such folder"),
        (tmp_path / "empty", "no saved_model.pb in it"),
        (good / "saved_model.pb", "a file; a SavedModel is the folder"),
        (cut, "not a whole file"),
        (junk, "not a whole file"),
        (nothing, "holds no graph"),
        (without, "TensorFlow cannot load it"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_saved_model(path)
        assert "\n" not in str(caught.value) and str(path.name) in str(caught.value)


def test_a_saved_model_without_a_signature_is_refused(tmp_path):
    tf.saved_model.save(tf.Module(), str(tmp_path / "teacher"))
    with pytest.raises(UserError, match="which signature to ask must be said with teacher.signature; it has none"):
        open_saved_model(tmp_path / "teacher")


REPLICAS = """
import sys
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
import numpy as np
from tfkd.checkpoints.saved_model import open_saved_model
from tfkd.teacher import LiveTeacher

strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with strategy.scope():
    teacher = LiveTeacher(open_saved_model(sys.argv[1]))
with np.load(sys.argv[2]) as file:
    data = tf.data.Dataset.from_tensor_slices(dict(file)).batch(4)

@tf.function
def step(x):
    return strategy.run(lambda x: teacher(x)["logits"], args=(x,))

for x in strategy.experimental_distribute_dataset(data):
    parts = strategy.experimental_local_results(step(x))
    np.save(sys.argv[3], np.concatenate(parts))
    assert len(parts) == 2 and all(part.shape == (2, 3) for part in parts)
"""


@pytest.mark.slow
def test_a_saved_model_answers_on_every_replica(tmp_path):
    one, x = model(), batch()
    np.savez(tmp_path / "batch.npz", **x)
    arguments = [saved(tmp_path / "teacher", one), tmp_path / "batch.npz", tmp_path / "answer.npy"]
    root = pathlib.Path(__file__).parent.parent
    command = [sys.executable, "-c", REPLICAS, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=root)
    assert done.returncode == 0, done.stderr[-2000:]
    np.testing.assert_allclose(np.load(tmp_path / "answer.npy"), one(x), rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------- .keras


def functional(*more):
    keras.utils.set_random_seed(0)
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    hidden = layers.Embedding(V, D, name="embedding")(ids)
    for layer in more:
        hidden = layer(hidden)
    return keras.Model(ids, layers.Dense(C, name="scores")(hidden[:, 0]), name="plain")


def test_a_keras_file_of_ours_has_all_its_inner_tensors(tmp_path):
    one, x = model(), batch()
    one.save(tmp_path / "teacher.keras")
    teacher = LiveTeacher(open_keras_file(tmp_path / "teacher.keras"))
    assert teacher.layers == 1
    names = ("logits", "attention.0", "hidden.0")
    expected = one.inner(x, names)
    for name, tensor in teacher(x, names).items():
        np.testing.assert_array_equal(tensor, expected[name])


def test_a_keras_file_of_a_functional_model_has_its_layers_tensors(tmp_path):
    one, x = functional(), batch()
    one.compile("adam", loss="mse")  # what it was compiled with is not read
    one.save(tmp_path / "teacher.keras")
    teacher = LiveTeacher(open_keras_file(tmp_path / "teacher.keras"), names={"embeddings": "embedding"})
    answer = teacher(x, ("logits", "embeddings"))
    np.testing.assert_array_equal(answer["logits"], one(x["token_ids"]))
    assert not teacher.model.compiled
    np.testing.assert_array_equal(answer["embeddings"], one.get_layer("embedding")(x["token_ids"]))


def test_code_in_a_keras_file_never_runs_without_trust(tmp_path):
    ran = tmp_path / "ran"
    touch = layers.Lambda(eval(f"lambda x: [x, open({str(ran)!r}, 'w').close()][0]"))
    one = functional(touch)
    one.save(tmp_path / "teacher.keras")
    ran.unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"holds Python code \(a Lambda layer\).* teacher.trust: true") as caught:
        open_keras_file(tmp_path / "teacher.keras")
    assert not ran.exists() and "\n" not in str(caught.value)
    trusted = open_keras_file(tmp_path / "teacher.keras", trust=True)
    np.testing.assert_array_equal(trusted(batch()["token_ids"]), one(batch()["token_ids"]))
    assert ran.exists()


def test_a_class_that_nobody_knows_is_named(tmp_path):
    class Strange(layers.Layer):
        def call(self, x):
            return x

    functional(Strange()).save(tmp_path / "teacher.keras")
    with pytest.raises(UserError, match="made with Strange, which is neither Keras's, KerasHub's nor tfkd's"):
        open_keras_file(tmp_path / "teacher.keras")


def test_what_is_no_keras_file_is_refused_in_one_line(tmp_path):
    good = tmp_path / "good.keras"
    functional().save(good)
    whole = good.read_bytes()
    (tmp_path / "cut.keras").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.keras").write_bytes(b"")
    (tmp_path / "text.keras").write_text("hello")
    (tmp_path / "old.h5").write_bytes(whole)
    (tmp_path / "folder").mkdir()
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"")
    configs = {"none": None, "bad": b"{", "latin": b'{"\xe9": 1}', "list": b"[]", "odd": b'{"class_name": 3}'}
    for name, config in configs.items():
        with zipfile.ZipFile(tmp_path / f"{name}.keras", "w") as archive:
            archive.writestr("metadata.json", "{}")
            if config is not None:
                archive.writestr("config.json", config)
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(tmp_path / "bare.keras", "w") as archive:
        archive.writestr("config.json", source.read("config.json"))  # no weights
        archive.writestr("metadata.json", source.read("metadata.json"))
    for name, words in (
        ("absent.keras", "no such file"),
        ("cut.keras", "not a whole .keras file"),
        ("empty.keras", "not a whole .keras file"),
        ("text.keras", "not a whole .keras file"),
        ("old.h5", r"not a .keras file; save the model again with model.save\('old.keras'\)"),
        ("folder", "a folder"),
        ("saved", "a SavedModel is given as teacher.saved_model"),
        ("none.keras", "no config.json in it"),
        ("bad.keras", "not a whole .keras file"),
        ("latin.keras", "not a whole .keras file"),
        ("list.keras", "cannot load it|holds a"),
        ("odd.keras", "cannot load it"),
        ("bare.keras", "cannot load it"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            open_keras_file(tmp_path / name)
        assert "\n" not in str(caught.value) and name in str(caught.value), name


# ---------------------------------------------------------------- as a teacher of the data's classes


def test_classes_of_a_foreign_model_are_put_in_the_datas_order():
    one, x = functional(), batch()
    meaning = {"0": "b", "1": "c", "2": "a"}
    teacher = foreign_teacher(one, ["a", "b", "c"], meaning)
    np.testing.assert_array_equal(teacher(x)["logits"], one(x["token_ids"]).numpy()[:, [2, 0, 1]])
    assert teacher.shapes(["logits"]) == {"logits": (None, C)}
    with pytest.raises(UserError, match=r"the teacher has \[0, 1, 2\], the data \[a, b, c\]; say which means which"):
        foreign_teacher(one, ["a", "b", "c"])


@pytest.mark.parametrize(
    ("labels", "per_position", "message"),
    [
        (["a", "b"], False, "plain answers with 3 scores a row; the data have 2 labels"),
        (None, False, "plain answers with 3 scores a row; the task asks for 1"),
        (["a", "b", "c"], True, r"shape \(\?, 3\); the task asks for \(B, T, C\), a row of scores a word piece"),
    ],
)
def test_a_foreign_model_of_another_size_is_refused(labels, per_position, message):
    with pytest.raises(UserError, match=message):
        foreign_teacher(functional(), labels, {"0": "a", "1": "b", "2": "c"}, per_position=per_position)


def test_a_mistyped_layer_is_a_users_mistake():
    with pytest.raises(UserError, match="teacher.inner: plain: no inner tensor 'embeding' for 'embeddings'; near it: embedding"):
        foreign_teacher(functional(), ["a", "b", "c"], {"0": "a", "1": "b", "2": "c"}, names={"embeddings": "embeding"})


def test_texts_that_a_foreign_model_is_too_short_for_are_refused():
    ids = keras.Input((L,), dtype="int32", name="token_ids")
    short = keras.Model(ids, layers.Dense(1)(layers.Embedding(V, D)(ids)[:, 0]), name="short")
    assert foreign_teacher(short, None, max_length=L).max_length == L
    with pytest.raises(UserError, match=f"data.max_length = {L + 1} is above the {L} word pieces that short takes"):
        foreign_teacher(short, None, max_length=L + 1)


def test_a_sigmoid_is_undone_for_classes_and_left_for_values():
    ids = keras.Input((None,), dtype="int32", name="token_ids")
    one, x = keras.Model(ids, layers.Dense(1, activation="sigmoid")(layers.Embedding(V, D)(ids)[:, 0]), name="one"), batch()
    value = one(x["token_ids"]).numpy()
    np.testing.assert_array_equal(foreign_teacher(one, None)(x)["logits"], value)
    logit = foreign_teacher(one, ["only"], {"0": "only"})(x)["logits"]
    np.testing.assert_allclose(logit, np.log(value / (1 - value)), atol=1e-5)
