"""`tfkd.report`: what `report.json` says, the page anybody may open, and the table on the terminal."""

import html.parser
import io
import json
import re

import numpy as np
import pytest
from rich.console import Console

from tests.fresh_python import fresh
from tfkd import report, report_classification, report_inputs, report_page, report_plots, run_dir
from tfkd import report_words as words
from tfkd.errors import UserError

LABELS = ["sport", "politics", "science"]
SECTIONS = ["models", "training", "confusion", "roc", "calibration", "classes", "disagreement"]
SECTIONS += ["exports", "data", "configuration", "time"]
VOID = {"meta", "br", "hr", "img", "link", "input"}
SECONDS = {"data": 1.5, "teacher": 245.3, "student": 61.0}
DATASET = {"name": "news", "rows": {"train": 900, "test": 120}, "provenance": {"numpy": "2.4.6"}, "notes": ["one file was empty"]}


def outputs(labels, classes, seed):
    logits = np.random.default_rng(seed).normal(size=(len(labels), classes)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 1.5
    return logits


def summary(labels, logits, names=LABELS, **changes):
    sizes = {"teacher": 9_000_000, "baseline": 1_500_000, "student": 1_500_000}
    values = {
        "task": "classification",
        "dataset": DATASET,
        "labels": names,
        "truth": {"labels": labels},
        "outputs": logits,
        "parameters": sizes,
        "bytes": {role: 4 * number for role, number in sizes.items()},
        "seconds": SECONDS,
        "bootstrap": 200,
    }
    return report.summarize(**values | changes)


def make_run(path, names=LABELS, examples=120, roles=words.ROLES, labels=None, dataset=DATASET):
    """A run with its two needed files."""
    run = run_dir.RunDir(path)
    path.mkdir(parents=True)
    labels = np.arange(examples, dtype=np.int32) % len(names) if labels is None else labels
    logits = {role: outputs(labels, len(names), seed) for seed, role in enumerate(roles)}
    np.savez(run.predictions, labels=labels, **logits)
    run_dir.write_json(run.report_json, summary(labels, logits, names, dataset=dataset))
    return run


def fill(run, text="A plain sentence.", terms=("loss",), names=LABELS):
    """Writes the files that a run may lack."""
    lines = []
    for role in words.ROLES:
        for step in range(1, 7):
            lines.append({"role": role, "epoch": (step + 2) // 3, "step": step, "seconds": 1.0, "learning_rate": 1e-4})
            lines[-1] |= {"steps_per_second": 7.5, "gigaflops": 41.0, "memory_gb": 2.5}
            lines[-1] |= {term: 2.0 / step for term in terms}
        lines += [{"role": role, "epoch": epoch, "step": 3 * epoch, "val_loss": 0.5, "val_accuracy": 0.8} for epoch in (1, 2)]
    run_dir.write_text(run.metrics, "".join(json.dumps(line) + "\n" for line in lines))
    examples = [{"row": row, "text": text, "label": names[row % len(names)]} for row in range(100)]
    run_dir.write_text(run.examples, "".join(json.dumps(line) + "\n" for line in examples))
    run_dir.write_text(
        run.config,
        "teacher:\n  dimensions: {layers: 6, width: 384}\nstudent:\n  dimensions: {layers: 1, width: 128}\n",
    )
    run_dir.write_json(run.manifest, MANIFEST)
    return run


MANIFEST = [
    {
        "format": "tflite",
        "variant": "float32",
        "path": "student.tflite",
        "bytes": 6_000_000,
        "sha256": "0" * 64,
        "metrics": {"accuracy": 0.861},
        "agreement": 0.998,
        "max_abs_difference": 2.2e-6,
        "latency_ms": {"p50": 0.36, "p95": 0.47},
        "passed": True,
        "examples": 512,
    },
    {"format": "tflite", "variant": "int8", "passed": False, "reason": "agreement 0.89 is <below> 0.98"},
]


def page_of(run):
    report.write_html(run)
    return run.report_html.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full_page(tmp_path_factory):
    return page_of(fill(make_run(tmp_path_factory.mktemp("runs") / "run")))


class Reader(html.parser.HTMLParser):
    """Checks that every element is closed in its turn, and collects elements, ids and text by section."""

    def __init__(self, text):
        super().__init__()
        self.stack, self.elements, self.ids, self.links, self.sections, self.texts = [], [], [], [], {}, []
        self.feed(text)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag, attrs):
        self._meet(tag, attrs)
        if tag not in VOID:
            self.stack.append((tag, dict(attrs).get("id") if tag == "section" else None))

    def handle_startendtag(self, tag, attrs):
        self._meet(tag, attrs)

    def _meet(self, tag, attrs):
        attrs = dict(attrs)
        self.elements.append(tag)
        self.ids += [attrs["id"]] if "id" in attrs else []
        self.links += [value for key, value in attrs.items() if key in ("href", "src", "xlink:href", "srcset", "action", "data")]

    def handle_endtag(self, tag):
        assert self.stack and self.stack[-1][0] == tag, f"</{tag}> closes {self.stack[-1:]} on line {self.getpos()[0]}"
        self.stack.pop()

    def handle_data(self, data):
        if any(tag == "style" for tag, _ in self.stack):
            return
        self.texts.append(data + " ")
        for _, section in self.stack:
            if section:
                self.sections[section] = self.sections.get(section, "") + data + " "


def shown(renderable, width=120):
    stream = io.StringIO()
    Console(file=stream, width=width).print(renderable)
    return stream.getvalue()


# What report.json says.


def test_report_is_what_the_design_promises():
    labels = np.array([0, 1, 2, 0])
    eye = 9.0 * np.eye(3)
    logits = {"student": eye[[0, 1, 2, 1]], "teacher": eye[[0, 1, 2, 0]], "baseline": eye[[0, 1, 0, 1]]}
    found = summary(labels, logits)
    assert [entry["role"] for entry in found["models"]] == ["teacher", "baseline", "student"]
    assert [entry["metrics"]["accuracy"] for entry in found["models"]] == [1.0, 0.5, 0.75]
    assert found["retention"] == 0.75
    assert found["student_minus_baseline"]["difference"] == 0.25
    assert {role: near["agreement"] for role, near in found["near_teacher"].items()} == {"baseline": 0.5, "student": 0.75}
    # One row of four moves from one corner to another.
    assert found["near_teacher"]["student"]["kl"] == pytest.approx(9.0 / 4, rel=0.01)
    assert found["models"][2]["parameters"] == 1_500_000 and found["models"][2]["bytes"] == 6_000_000
    assert [row["support"] for row in found["models"][0]["per_label"]] == [2, 1, 1]
    assert (found["task"], found["metric"], found["examples"], found["artifacts"]) == ("classification", "accuracy", 4, [])
    low, high = found["models"][2]["interval"]
    assert 0.0 <= low <= 0.75 <= high <= 1.0


def test_report_is_strict_json_even_of_numpy_numbers(tmp_path):
    labels = np.zeros(5, np.int32)  # one class: no ROC-AUC
    logits = {role: outputs(labels, 3, seed) for seed, role in enumerate(words.ROLES)}
    found = summary(labels, logits, parameters={"teacher": np.int64(7)}, seconds={"data": np.float32(1.5)})
    run_dir.write_json(tmp_path / "report.json", found)
    read = json.loads((tmp_path / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == found
    assert read["models"][0]["metrics"]["roc_auc"] is None
    assert read["models"][0]["parameters"] == 7 and read["models"][1]["parameters"] is None


def test_without_a_baseline_nothing_is_said_about_distillation():
    labels = np.arange(60) % 3
    found = summary(labels, {role: outputs(labels, 3, seed) for seed, role in enumerate(("teacher", "student"))})
    assert found["student_minus_baseline"] is None
    assert "cannot say" in words.verdict(found)


def test_retention_of_a_teacher_that_knows_nothing_is_undefined():
    labels, eye = np.array([0, 0]), np.eye(2)
    found = summary(labels, {"teacher": eye[[1, 1]], "student": eye[[0, 1]]}, names=["a", "b"])
    assert found["retention"] is None


def test_reports_that_cannot_be_made_name_the_role():
    labels = np.arange(6) % 3
    good = outputs(labels, 3, 0)
    bad = good.copy()
    bad[:2] = np.nan
    with pytest.raises(UserError, match="student: 2 of 6 rows"):
        summary(labels, {"teacher": good, "student": bad})
    with pytest.raises(UserError, match="needs logits of the teacher; there are student"):
        summary(labels, {"student": good})


# How it is worded.


def told(task, metric, difference, interval, examples=900):
    against = None if interval is None else {"difference": difference, "interval": interval}
    report = {"task": task, "metric": metric, "examples": examples, "dataset": {}, "models": [{"role": "baseline"}]}
    return report | {"student_minus_baseline": against}


@pytest.mark.parametrize(
    ("difference", "interval", "examples", "expected"),
    [
        (0.0123, [0.004, 0.021], 900, "Distillation helped: the student is 1.23 points above"),
        (-0.02, [-0.03, -0.01], 900, "Distillation hurt: the student is 2.00 points below"),
        (0.003, [-0.004, 0.011], 900, "No difference is shown: the student is 0.30 points above"),
        (0.0, [0.0, 0.0], 900, "No difference is shown: the student is level with the same student"),
        (1.0, [1.0, 1.0], 1, "Nothing can be said from 1 test example: the student is 100.00 points above"),
    ],
)
def test_verdict_claims_no_more_than_the_interval(difference, interval, examples, expected):
    found = words.verdict(told("classification", "accuracy", difference, interval, examples))
    assert found.startswith(expected)
    color = words.worth(told("classification", "accuracy", difference, interval, examples))
    assert color == {"Distillation helped": "helped", "Distillation hurt": "hurt"}.get(expected.partition(":")[0], "open")
    if examples > 100:
        assert ("excludes 0" in found) == (interval[0] > 0 or interval[1] < 0) != ("includes 0" in found)


def test_numbers_in_words():
    assert (words.percent(0.8714), words.percent(None)) == ("87.1 %", "–")
    assert words.interval([0.858, 0.884], "percent") == "85.8 to 88.4 %"
    assert words.interval([-0.0581, 0.884], "decimal") == "−0.058 to 0.884" and words.interval(None, "decimal") == "–"
    assert [words.gap(value, "percent") for value in (0.011, -0.0104, 0.0)] == ["+1.10", "−1.04", "0.00"]
    assert [words.gap(value, "decimal") for value in (0.011, -0.0104, 0.0001)] == ["+0.011", "−0.010", "0.000"]
    assert [words.number(value) for value in (1234.6, 0.012345, -3.0, None)] == ["1,235", "0.0123", "−3.00", "–"]
    numbers = (999, 1000, 999_949, 999_999, 22_713_216, None)
    assert [words.amount(number) for number in numbers] == ["999", "1.0 k", "999.9 k", "1.0 M", "22.7 M", "–"]
    assert [words.size(n) for n in (12, 17_300_000, None)] == ["12 B", "17.3 MB", "–"]
    times = (3.21, 59.96, 245.3, 3780, None)
    assert [words.duration(seconds) for seconds in times] == ["3.2 s", "1 min 00 s", "4 min 05 s", "1 h 03 min", "–"]
    assert (words.ratio(22.7, 4.4), words.ratio(3, 0), words.ratio(None, 2)) == ("5.2×", None, None)


@pytest.mark.parametrize(
    ("begin", "end", "length", "said"),
    [
        (4, 6, 99, ("0123", "45", "6789abcdef")),
        (0, 2, 6, ("", "01", "234…")),
        (8, 9, 5, ("…7", "8", "9…")),
        (14, 16, 6, ("…bcd", "ef", "")),
        (2, 14, 4, ("…", "234…", "…")),  # what is asked for alone is too long
    ],
)
def test_a_text_is_cut_around_a_part_of_it(begin, end, length, said):
    assert words.around("0123456789abcdef", begin, end, length) == said


# The page.


def test_page_is_balanced_and_complete(full_page):
    read = Reader(full_page)
    assert list(read.sections) == SECTIONS
    text = "".join("".join(read.texts).split())
    for said in (
        "A student (1 layer of width 128) distilled from a teacher (6 layers of width 384) for classification on news",
        "measured on 120 test examples",
        "6.0× fewer parameters 1.5 M for 9.0 M; 6.0× smaller on disk",
        "retained of the teacher's accuracy",
        "same student trained without the teacher",
        "one file was empty",
        "2.2e-06",
        "0.36 / 0.47",
        "agreement 0.89 is <below> 0.98",
        "4 min 05 s",
    ):
        assert "".join(said.split()) in text, said
    for role in words.ROLES:
        assert role in read.sections["models"]
    assert read.elements.count("svg") == 2 + 3 + 3 + 3  # loss and accuracy, confusion, ROC, reliability
    assert all(label in read.sections["classes"] for label in LABELS)


def test_page_needs_nothing_but_itself(full_page):
    read = Reader(full_page)
    assert read.links and all(link.startswith("#") for link in read.links)
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", full_page))
    assert not {"script", "link", "img", "iframe", "object", "embed", "base"} & set(read.elements)
    assert "http" not in full_page and "@import" not in full_page
    assert len(full_page) < 3_000_000


def test_ids_are_unique_and_every_reference_has_one(full_page):
    read = Reader(full_page)
    assert len(read.ids) == len(set(read.ids))
    asked = {link[1:] for link in read.links} | {target[1:] for target in re.findall(r"url\(([^)]*)\)", full_page)}
    assert asked <= set(read.ids)


def test_page_is_the_same_every_time(full_page, tmp_path):
    assert page_of(fill(make_run(tmp_path / "run"))) == full_page


def test_hostile_texts_and_names_stay_text(tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)> & \x00\x1b[31m \ud800 {{ 7 * 7 }}"
    names = ["</title><script>", "$\\frac{$", "quo\"te' 日本", "\x07 bell"]
    dataset = {"name": "<b>data</b>", "notes": ["<script>note</script>"], "nested": {"<i>": ["</dl>", None, True, 1234]}}
    run = fill(make_run(tmp_path / "run", names=names, dataset=dataset), text=hostile, names=names)
    run_dir.write_text(run.config, "teacher: {checkpoint: '<script>c</script>'}\nname: '</pre><script>'\n")
    text = page_of(run)
    read = Reader(text)
    assert not {"script", "img", "b>data"} & set(read.elements)
    assert read.elements.count("title") == 1
    said = "".join(read.texts)
    parts = ("<script>alert(1)</script>", "{{ 7 * 7 }}", "<b>data</b>", "<script>note</script>", "</dl>", "1,234", names[1])
    for part in parts:
        assert part in said, part
    assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]", text)


def test_long_texts_are_cut(no_pictures, tmp_path):
    text = page_of(fill(make_run(tmp_path / "run"), text="abcdefghij " * 10_000))
    assert max(len(data) for data in Reader(text).texts) < 1000
    assert "…" in text


def test_both_texts_of_a_pair_are_shown(no_pictures, tmp_path):
    run = fill(make_run(tmp_path / "run"))
    lines = [{"row": row, "text": "premise here", "text_pair": "hypothesis there", "label": "sport"} for row in range(100)]
    run_dir.write_text(run.examples, "".join(json.dumps(line) + "\n" for line in lines))
    section = Reader(page_of(run)).sections["disagreement"]
    assert "premise here" in section and "hypothesis there" in section


def test_disagreements_are_counted_by_who_is_right():
    labels, eye = np.array([0, 0, 0, 0, 1]), np.eye(3)
    logits = {"teacher": 3 * eye[[0, 0, 1, 1, 1]], "student": np.array([5, 1, 1, 1, 1])[:, None] * eye[[1, 2, 0, 2, 1]]}
    found = report_classification._disagreements({row: {"texts": [f"text {row}"]} for row in range(5)}, labels, logits, LABELS)
    assert found["count"] == 4
    assert [group["count"] for group in found["groups"]] == [2, 1, 1]
    first = found["groups"][0]["shown"][0]  # the surest first: row 0
    assert first["texts"] == ["text 0"] and first["true"] == "sport"
    assert first["said"]["student"] == {"label": "politics", "probability": pytest.approx(np.exp(5) / (np.exp(5) + 2))}


@pytest.mark.parametrize("gone", ["metrics", "examples", "config", "manifest", "labels"])
def test_optional_files_may_be_missing(no_pictures, tmp_path, gone):
    run = fill(make_run(tmp_path / "run"))
    getattr(run, gone).unlink(missing_ok=True)
    read = Reader(page_of(run))
    assert list(read.sections) == SECTIONS
    said = {"metrics": "no metrics.jsonl", "examples": "no examples.jsonl", "config": "no config.yaml"}
    said["manifest"] = "Nothing was exported"
    for name, sentence in said.items():
        assert (sentence in "".join(read.texts)) == (name == gone)


def test_page_of_a_run_without_baseline(no_pictures, tmp_path):
    read = Reader(page_of(make_run(tmp_path / "run", roles=("teacher", "student"))))
    assert "No baseline was trained" in "".join(read.texts)
    assert "baseline" not in read.sections["models"]


def test_many_classes_show_confused_pairs_instead_of_matrices(no_pictures, tmp_path):
    names = [f"class-{number:03d}" for number in range(150)]
    labels = np.repeat(np.arange(150, dtype=np.int32), 4)
    run = make_run(tmp_path / "run", names=names, labels=labels)
    logits = {role: 9.0 * np.eye(150, dtype=np.float32)[labels] for role in words.ROLES}
    logits["student"][28:31] = 9.0 * np.eye(150)[40]  # three of the four of class 7 are taken for 40
    np.savez(run.predictions, labels=labels, **logits)
    run_dir.write_json(run.report_json, summary(labels, logits, names))
    read = Reader(page_of(run))
    assert " ".join(read.sections["confusion"].split()).endswith("class-007 class-040 4 0 0 3")
    assert "All 150 classes" in read.sections["classes"]
    assert len(read.sections["classes"].split("All 150 classes")[0].split("class-007")) == 2  # the class that fell behind leads


def test_perfect_student_of_many_classes_confuses_nothing(no_pictures, tmp_path):
    labels = np.arange(30, dtype=np.int32)
    run = make_run(tmp_path / "run", names=[f"c{c}" for c in range(30)], labels=labels)
    logits = {role: 9.0 * np.eye(30)[labels] for role in words.ROLES}
    np.savez(run.predictions, labels=labels, **logits)
    assert "confused nothing" in Reader(page_of(run)).sections["confusion"]


def test_a_validation_split_that_measures_is_owned_up_to(no_pictures, tmp_path):
    text = "".join(Reader(page_of(make_run(tmp_path / "run", dataset=DATASET | {"measured_on": "validation"}))).texts)
    assert "measured on 120 validation examples" in text and "There is no test split" in text
    other = "".join(Reader(page_of(make_run(tmp_path / "other", dataset=DATASET | {"measured_on": "test"}))).texts)
    assert "measured on 120 test examples" in other and "There is no test split" not in other


@pytest.mark.parametrize("examples", [1, 40])
def test_one_label_alone_has_a_page_that_says_so(tmp_path, examples):
    labels = np.ones(examples, np.int32)
    read = Reader(page_of(fill(make_run(tmp_path / "run", labels=labels))))
    assert "Not defined: all examples have the same label" in read.sections["roc"]


def test_new_loss_terms_show_up_on_their_own(no_pictures, tmp_path):
    text = page_of(fill(make_run(tmp_path / "run"), terms=("loss", "hidden_mse", "kl_divergence")))
    assert {"hidden mse", "kl divergence", "loss", "accuracy"} <= set(re.findall(r"<figcaption>([^<]*)</figcaption>", text))
    assert not any(name in text for name in ("learning rate", "per second", "gigaflops", "memory gb"))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("train: {augment: {concatenate: 0.7}}", True),
        ("stages:\n- train: {augment: {concatenate: 0.7}}\n- train: {}", True),
        ("train: {augment: {mask: 0.1, concatenate: 0.0}}", False),
        ("stages: [1, {train: 3}, {train: {augment: null}}]", False),
        ("stages: 3", False),
        ("stages: {inner: 3}", False),
    ],
)
def test_metrics_of_texts_that_others_follow_are_explained(no_pictures, tmp_path, config, said):
    run = fill(make_run(tmp_path / "run"))
    run_dir.write_text(run.config, config)
    assert ("by the first one's label" in page_of(run)) == said


def test_a_teacher_trained_before_has_no_place_in_the_legend_of_the_training(full_page, no_pictures, tmp_path):
    run = fill(make_run(tmp_path / "run"))
    lines = run.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
    run.metrics.write_text("".join(line for line in lines if '"role": "teacher"' not in line), encoding="utf-8")
    for page, trained in ((full_page, ["teacher", "baseline", "student"]), (page_of(run), ["baseline", "student"])):
        training = page.partition('<section id="training">')[2].partition("</section>")[0]
        assert re.findall(r'<li><i class="line (\w+)">', training) == trained
        assert ("The teacher was not trained in this run" in training) == ("teacher" not in trained)


def test_half_a_line_in_the_log_costs_that_line_alone(no_pictures, tmp_path):
    run = fill(make_run(tmp_path / "run"))
    with open(run.metrics, "ab") as stream:
        stream.write(b'{"role": "student", "epoch": 3, "st\xff\n[]\n')
    read = Reader(page_of(run))
    assert "2 lines of metrics.jsonl could not be used and are missing" in " ".join(read.sections["training"].split())


def test_a_diverged_training_can_still_be_drawn(tmp_path):
    run = make_run(tmp_path / "run")
    values = ["NaN", "null", "Infinity", "true", '"text"']
    lines = [f'{{"role": "student", "epoch": 1, "step": {step}, "loss": {value}}}' for step, value in enumerate(values)]
    run_dir.write_text(run.metrics, "\n".join(lines) + "\n")
    assert "loss" in Reader(page_of(run)).sections["training"]


def test_a_resumed_step_is_drawn_once_as_it_was_last(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [("student", 1, 1, 9.0), ("student", 1, 2, 8.0), ("teacher", 1, 1, 7.0), ("student", 1, 2, 5.0)]
    log.write_text("".join(json.dumps(dict(zip(("role", "epoch", "step", "loss"), line, strict=True))) + "\n" for line in lines))
    history, unusable = report_inputs.history(log)
    assert list(history) == ["teacher", "student"] and unusable == 0
    assert [line["loss"] for line in history["student"]] == [9.0, 5.0]


@pytest.mark.parametrize("steps", [(50, 100, 150, 200), (50, 100, 50, 100)], ids=["of the run", "of the epoch"])
def test_steps_become_epochs_however_they_are_counted(steps):
    lines = [{"epoch": epoch, "step": step} for epoch, step in zip((1, 1, 2, 2), steps, strict=True)]
    assert report_page._positions(lines) == [0.5, 1.0, 1.5, 2.0]


def test_a_stages_steps_begin_anew_however_few_the_stage_before_had():
    lines = [("general", 1, 2), ("general", 2, 4), ("task", 3, 50), ("task", 3, 100), ("task", 4, 150), ("task", 4, 200)]
    lines = [dict(zip(("stage", "epoch", "step"), line, strict=True)) for line in lines]
    assert report_page._positions(lines) == [1.0, 2.0, 2.5, 3.0, 3.5, 4.0]


def test_the_page_says_that_scheduled_numbers_are_no_averages(tmp_path):
    terms = ("loss", "alpha", "kl_divergence_temperature")
    training = Reader(page_of(fill(make_run(tmp_path / "run"), terms=terms))).sections["training"]
    assert "mean since the epoch began, but alpha, kl divergence temperature as set for the step." in " ".join(training.split())


def test_pictures_take_colours_and_font_from_the_page(full_page):
    drawn = "".join(re.findall(r"<svg.*?</svg>", full_page))
    assert "font-family" not in drawn and "font-size" in drawn
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", drawn))
    assert {"var(--student)", "var(--teacher)", "var(--baseline)", "var(--ink)"} <= colours
    assert all(colour == "none" or colour.startswith("var(--") for colour in colours)


def test_long_curves_are_averaged_not_sampled():
    thinned = report_plots._thinned(np.arange(1000.0))
    assert len(thinned) == 250
    assert thinned[0] == 1.5 and thinned[-1] == 997.5


# The program.


def test_terminal_table_tells_models_and_exports(tmp_path):
    run = make_run(tmp_path / "run")
    text = shown(report.table(report.read_report(run), MANIFEST))
    assert "news: 120 test examples" in text
    assert re.search(r"student +1\.5 M +6\.0 MB", text)
    assert re.search(r"tflite +float32 +6\.0 MB +2\.2e-06 +99\.8 % +86\.1 % +0\.36 / 0\.47 +yes", text)
    assert re.search(r"tflite +int8 .* NO", text)
    assert "tflite int8: agreement 0.89 is <below> 0.98" in text
    assert "exports" not in shown(report.table(report.read_report(run)))


def test_terminal_table_fits_80_columns(tmp_path):
    text = shown(report.table(report.read_report(make_run(tmp_path / "run"))), width=80)
    assert re.search(r"student +1\.5 M +6\.0 MB +\d+\.\d\d % +\d+\.\d to \d+\.\d % +0\.\d{3} +0\.\d{3} +0\.\d{3}", text)


def test_names_are_never_read_as_markup(tmp_path):
    run = make_run(tmp_path / "run", dataset={"name": "[red]data[/red]"})
    assert "[red]data[/red]" in shown(report.table(report.read_report(run)))
    assert shown(report.comparison({"[red]a[/red]": report.read_report(run)})).count("[red]a[/red]") == 2


def test_program_rewrites_the_page_and_prints_the_table(no_pictures, tmp_path, capsys):
    run = fill(make_run(tmp_path / "run"))
    assert report.main([str(run)]) == 0
    said = capsys.readouterr()
    assert "student" in said.out and "tflite" in said.out and said.err == ""
    assert run.report_html.exists()


def test_program_compares_several_runs_in_one_table(no_pictures, tmp_path, capsys):
    first = make_run(tmp_path / "first")
    second = make_run(tmp_path / "second", roles=("teacher", "student"))
    assert report.main([str(first), str(second), str(first)]) == 0
    said = capsys.readouterr().out
    assert said.count("2 runs") == 1
    assert re.search(r"first +teacher .*\n +baseline .*\n +student .*\n *\n second +teacher .*\n +student", said)
    assert "second: No baseline was trained" in said
    assert first.report_html.exists() and second.report_html.exists()


def test_several_runs_have_one_page_that_needs_nothing_else(tmp_path, capsys):
    first, second = (fill(make_run(tmp_path / name)) for name in ("first", "<b>second"))
    run_dir.write_text(second.config, first.config.read_text(encoding="utf-8").replace("width: 128", "width: 64"))
    assert report.main([str(first), str(second)]) == 0
    assert str(tmp_path / "comparison.html") in capsys.readouterr().out
    text = (tmp_path / "comparison.html").read_text(encoding="utf-8")
    read = Reader(text)
    said = " ".join(" ".join(read.texts).split())
    assert not {"script", "img", "link"} & set(read.elements) and "http" not in re.sub(r"xmlns\S*", "", text)
    assert read.elements.count("svg") == 1 and "<b>second" in said
    for role in words.ROLES:
        assert text.count(f"</i>{role}</td>") == 2, role
    # One field differs, and that one alone is told, with the value that each run has.
    assert re.search(r"student\.dimensions\.width 128 64", said) and "teacher.dimensions" not in said
    assert said.count("tflite float32 6.0 MB 86.1 % 99.8 % 0.36 / 0.47 yes") == 2


def test_runs_without_logs_or_settings_are_compared_by_their_figures(tmp_path):
    runs = {name: make_run(tmp_path / name) for name in ("first", "second")}
    report.write_comparison(tmp_path / "both.html", runs)
    text = (tmp_path / "both.html").read_text(encoding="utf-8")
    assert "<svg" not in text and "Exports" not in text and "Nothing that the runs" in text and text.count("teacher</td>") == 2


def test_runs_of_the_same_name_are_told_apart(no_pictures, tmp_path, capsys):
    paths = [make_run(tmp_path / folder / "run").path for folder in ("a", "b")]
    assert report.main([str(path) for path in paths]) == 0
    said = "".join(capsys.readouterr().out.split())
    assert all(f"{path}:" in said for path in paths)


def break_json(run):
    run.report_json.write_text("{")


def old_json(run):
    run.report_json.write_text('{"task": "classification"}')


def no_student(run):
    found = run_dir.read_json(run.report_json)
    found["models"].pop()
    run_dir.write_json(run.report_json, found)


def no_predictions(run):
    run.predictions.unlink()


def broken_predictions(run):
    run.predictions.write_bytes(b"PK\x03\x04 nothing")


def text_predictions(run):
    run.predictions.write_text("not an archive")


def other_predictions(run):
    np.savez(run.predictions, labels=np.zeros(3, np.int32), **{role: np.zeros((3, 3)) for role in words.ROLES})


def too_few_roles(run):
    np.savez(run.predictions, labels=np.zeros(120, np.int32), teacher=np.zeros((120, 3)))


def broken_examples(run):
    run_dir.write_text(run.examples, '{"row": 0, "text": "fine"}\n{"text": "no row"}\n')


def broken_manifest(run):
    run_dir.write_json(run.manifest, {"format": "tflite"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (break_json, "report.json: not a JSON file"),
        (old_json, "report.json: dataset is missing; train it again"),
        (no_student, "report.json: student is missing"),
        (no_predictions, "predictions.npz is missing"),
        (broken_predictions, "predictions.npz: cannot be read"),
        (text_predictions, "predictions.npz: cannot be read"),
        (other_predictions, "predictions.npz: holds 3 examples, but report.json speaks of 120"),
        (too_few_roles, "predictions.npz: cannot be read"),
        (broken_examples, "examples.jsonl: line 2 is not an example"),
        (broken_manifest, "manifest.json: format is missing; export the run again: python -m export"),
    ],
)
def test_damaged_runs_end_in_one_line_and_code_2(tmp_path, capsys, damage, message):
    run = make_run(tmp_path / "run")
    damage(run)
    assert report.main([str(run)]) == 2
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and said.out == ""


@pytest.mark.parametrize(("path", "message"), [("nowhere", "no such run directory"), (".", "not a finished run")])
def test_wrong_folders_end_in_one_line_and_code_2(tmp_path, capsys, path, message):
    assert report.main([str(tmp_path / path)]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("tfkd.report: ") and message in said.err and said.err.count("\n") == 1


def test_nothing_is_written_if_one_of_several_runs_is_wrong(tmp_path, capsys):
    run = make_run(tmp_path / "run")
    assert report.main([str(run), str(tmp_path / "nowhere")]) == 2
    assert not run.report_html.exists()


def test_report_runs_without_tensorflow(tmp_path):
    run = fill(make_run(tmp_path / "run"))
    program = f"import sys; from tfkd import report; assert report.main([{str(run)!r}]) == 0; print('tensorflow' in sys.modules)"
    done = fresh(program, "-W", "error")
    assert done.stdout.splitlines()[-1] == "False"
    assert done.stderr == ""
