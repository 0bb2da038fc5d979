"""What the page says of the exports' speed, from the files that `python -m export.benchmark` leaves."""

import numpy as np
import pytest

from export import benchmark_plot
from tests.test_export_benchmark import result
from tests.test_report import make_run, page_of
from tfkd import report, run_dir
from tfkd import report_words as words
from tfkd.report_benchmark import values

STUDENT = "5" * 64
MANIFEST = [{"format": "tflite", "variant": "float32", "passed": True, "student_sha256": STUDENT}]


@pytest.fixture
def run(tmp_path, no_pictures):
    """A run that was exported and timed. The pictures of other sections are not drawn."""
    run = make_run(tmp_path / "run")
    run_dir.write_json(run.manifest, MANIFEST)
    run_dir.write_json(run.exports / "benchmark.json", result(student_sha256=STUDENT))
    benchmark_plot.draw(result(), run.exports / "benchmark")
    return run


def test_page_tells_every_number_of_the_benchmark(run):
    page = page_of(run)
    assert "Benchmark" in page
    for cell in ("0.500 / 1.25", "16.0 / 20.0", "2,000", "43.0 MB", "4.4 MB", "88.5 %", "91.0 %"):
        assert f"<td>{cell}</td>" in page, cell
    assert page.count("<td>0.500 / 1.25</td>") == 2 * 3  # two numbers of threads, three artifacts that could be timed
    assert "could not be timed: it broke" in page
    assert '<th scope="row">teacher</th>' in page
    assert page.count('scope="colgroup" colspan="3"') == 2


def test_picture_is_inside_the_page_and_of_its_colours(run):
    page = page_of(run)
    picture = page[page.index('<figure class="broad">') :]
    picture = picture[: picture.index("</figure>")]
    assert "aria-label" in picture and "MB on disk" in picture and "teacher" in picture
    assert "var(--ink)" in picture and "#000000" not in picture
    assert "<script" not in picture and "xlink" not in picture and "http" not in picture


@pytest.mark.parametrize("wrong", ["another student", "no student", "json", "fields", "absent"])
def test_what_is_of_another_student_or_broken_is_left_out(run, wrong):
    path = run.exports / "benchmark.json"
    if wrong == "another student":
        run_dir.write_json(run.manifest, [{**MANIFEST[0], "student_sha256": "6" * 64}])
    elif wrong == "no student":
        run.manifest.unlink()
    elif wrong == "json":
        path.write_text('{"rows": [')
    elif wrong == "fields":
        run_dir.write_json(path, {"student_sha256": STUDENT, "threads": [1], "rows": [{"format": "onnx"}]})
    else:
        path.unlink()
    page = page_of(run)
    assert "Benchmark" not in page and "Exports" in page


@pytest.mark.parametrize("content", [None, "no picture", "<svg", "<html/>"])
def test_page_without_a_picture_still_has_the_table(run, content):
    (run.exports / "benchmark.svg").unlink()
    if content is not None:
        (run.exports / "benchmark.svg").write_text(content)
    page = page_of(run)
    assert "43.0 MB" in page and 'class="broad"' not in page


def test_a_script_in_the_picture_does_not_get_into_the_page(run):
    path = run.exports / "benchmark.svg"
    path.write_text(path.read_text().replace("</svg>", "<script>alert(1)</script></svg>"))
    assert "alert(1)" not in page_of(run)


def test_metric_that_is_not_measured_is_a_dash(run):
    rows = result()["rows"]
    rows[-1] = {**rows[-1], "metrics": None}
    run_dir.write_json(run.exports / "benchmark.json", result(rows=rows, student_sha256=STUDENT))
    told = values(run, MANIFEST, words.headline(report.read_report(run)))
    assert [row["metric"] for row in told["rows"]] == ["88.5 %", "88.5 %", "88.5 %", words.MISSING]
    assert np.isfinite([float(row["length"]) for row in told["rows"][:3]]).all()
