"""`README.md` of a Hugging Face folder: what the model is, where it comes from, how good it is, how to load it."""

import html
import pathlib
import re

from tfkd import config as configuration
from tfkd.checkpoints.hugging_face import TOKEN_TASKS
from tfkd.errors import UserError
from tfkd.run_dir import read_json

from .inference import Student

SHOWN = 30
"""Labels named on the page; all of them stand in config.json."""

ROLES = {"teacher": "teacher", "baseline": "this size, trained without the teacher", "student": "**this model**"}

TAGS = {
    "tagging": "token-classification",
    "question_answering": "question-answering",
    "sentence_embedding": "sentence-similarity",
}
"""What Hugging Face's pages call a task, where that is not text-classification."""

WHAT = {
    "classification": "Tells which of these labels {a text} has: {labels}.",
    "multilabel": "Tells which of these labels {a text} has, none, one or several: {labels}.",
    "regression": "Gives {a text} a number.",
    "tagging": "Gives each word of a text one of these tags: {labels}.",
    "question_answering": "Finds the answer to a question in a text.",
    "sentence_embedding": "Makes a vector of a text; the cosine of two says how alike the texts are.",
}

LOAD = """\
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = {auto}.from_pretrained(FOLDER)
"""
AUTO = {task: f"AutoModel{ending}" for ending, task in TOKEN_TASKS.items()}

OF_TEXTS = 'inputs = tokenizer({texts}, truncation=True, return_tensors="pt")\n'
USE = {
    "classification": OF_TEXTS + "print(model.config.id2label[model(**inputs).logits.argmax().item()])",
    "multilabel": OF_TEXTS
    + """\
scores = model(**inputs).logits.sigmoid()[0].tolist()
print([model.config.id2label[index] for index, score in enumerate(scores) if score > 0.5])""",
    "regression": OF_TEXTS + "print(model(**inputs).logits.item())",
    "tagging": """\
inputs = tokenizer(["a", "text"], is_split_into_words=True, truncation=True, return_tensors="pt")
tags, words = model(**inputs).logits[0].argmax(-1).tolist(), inputs.word_ids()
firsts = {word: place for place, word in reversed([*enumerate(words)]) if word is not None}  # the first piece of each word
print([model.config.id2label[tags[firsts[word]]] for word in sorted(firsts)])""",
    "question_answering": """\
text = "the text that holds the answer"
inputs = tokenizer("a question", text, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
offsets, inside = inputs.pop("offset_mapping")[0].tolist(), torch.tensor([side == 1 for side in inputs.sequence_ids()])
found = model(**inputs)
scores = found.start_logits[0][:, None] + found.end_logits[0]
allowed = torch.outer(inside, inside).triu()  # both ends in the text, in their order
first, last = divmod(scores.masked_fill(~allowed, -torch.inf).argmax().item(), len(offsets))
print(text[offsets[first][0] : offsets[last][1]])""",
    "sentence_embedding": """\
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(FOLDER)  # may report a pooler missing: none is used
vectors = model.encode(["a text", "and another one"])
print(vectors[0] @ vectors[1])""",
}
"""How each task's folder is used."""


def text(student: Student) -> str:
    """The page. Figures and origin are left out where the student has no run, or the run no report."""
    config, report = _read(student)
    encoder, weights = student.model.encoder.config, student.model.count_params()
    base = _base(config)
    title = config.name if config is not None else "student"
    what = WHAT[student.task].replace("{a text}", "a pair of texts" if student.pairs else "a text")
    casing = "lower-cased and stripped of accents" if student.tokenizer.lowercase else "taken as they are written"
    parts = [
        _front(config, student.task),
        f"# {title}",
        f"{what.replace('{labels}', _labels(student.labels))} Distilled with tfkd{f' from {base}' if base else ''}.",
        f"{encoder['layers']} layers of width {encoder['width']} with {encoder['heads']} heads, {weights:,} parameters, "
        f"{4 * weights / 1e6:.1f} MB in float32, {student.tokenizer.vocabulary_size:,} word pieces. Texts are {casing} and cut "
        f"at {student.max_length} pieces.",
        *([] if report is None else [_figures(report)]),
        "## Use",
        f"```python\n{_use(student)}\n```",
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _use(student: Student) -> str:
    """A program that asks the folder."""
    use = USE[student.task].replace("{texts}", '"a text", "and another one"' if student.pairs else '"a text"')
    if student.task == "sentence_embedding":
        return use
    load = LOAD.replace("{auto}", AUTO.get(student.task, "AutoModelForSequenceClassification"))
    return ("import torch\n" if "torch." in use else "") + load + use


def _read(student: Student) -> tuple[configuration.Config | None, dict | None]:
    """The configuration and the report of the student's run, as far as they are there."""
    run = student.run
    if run is None:
        return None, None
    config = configuration.load(run.config) if run.config.exists() else None
    return config, read_json(run.report_json) if run.report_json.exists() else None


def _base(config: configuration.Config | None) -> str | None:
    """What the teacher is, without where it lies on somebody's disk."""
    if config is None:
        return None
    return " and ".join(_teacher(given) for given in config.teacher.models)


def _teacher(given: configuration.TeacherModel) -> str:
    source = given.checkpoint or given.keras_file or given.saved_model
    if source is None:
        return "a teacher trained from scratch"
    name = source.partition("://")[2] or pathlib.PurePath(source).name.strip("${}")
    name = "".join(c for c in name if c.isprintable() and c != "`")  # it stands in a code span
    return f"`{name}`, fine-tuned on the same data" if given.finetune is not None else f"`{name}`"


def _front(config: configuration.Config | None, task: str) -> str:
    """The block that Hugging Face's pages are sorted by. It links to checkpoints that have a page there."""
    library = "sentence-transformers" if task == "sentence_embedding" else "transformers"
    tag = TAGS.get(task, "text-classification")
    lines = [f"library_name: {library}", f"pipeline_tag: {tag}", "tags: [distillation, tfkd]"]
    checkpoint = "" if config is None else config.teacher.checkpoint or ""
    if re.fullmatch(r"hf://[\w.-]+(/[\w.-]+)?", checkpoint):
        lines.append(f"base_model: {checkpoint.removeprefix('hf://')}")
    return "\n".join(["---", *lines, "---"])


def _labels(labels: tuple[str, ...]) -> str:
    shown = ", ".join(f"`{label.replace('`', chr(39))}`" for label in labels[:SHOWN])
    return shown + (f" and {len(labels) - SHOWN} more" if len(labels) > SHOWN else "")


def _figures(report: dict) -> str:
    """A table of the models that were measured, the headline and parameters of each."""
    try:
        data, metric, models = report["dataset"], report["metric"], report["models"]
        rows = [(ROLES[m["role"]], m["parameters"], m["metrics"][metric], m.get("interval")) for m in models]
        name = html.escape(str(data["name"]), quote=False)  # Markdown lets HTML through
        head = f"## Figures\n\n{metric} on the {data['measured_on']} split of {name}, {report['examples']:,} examples"
    except (KeyError, TypeError) as error:
        raise UserError(f"report.json: not a report of this version ({error}); repeat it: python -m tfkd.report RUN") from None
    lines = [f"{head}; in brackets the 95 % interval.", "", f"| | {metric} | parameters |", "|---|---|---|"]
    for who, parameters, value, interval in rows:
        between = f" ({interval[0]:.4f} to {interval[1]:.4f})" if interval else ""
        shown = "not measured" if value is None else f"{value:.4f}{between}"
        lines.append(f"| {who} | {shown} | {parameters:,} |")
    return "\n".join(lines)
