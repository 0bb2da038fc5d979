"""The built-in data: which sentences are taken, which are left out, and that a cache can be lost but never wrong."""

import collections
import json
import pathlib
import sys

import pytest

from tfkd.data import docstrings
from tfkd.data.sources import open_source

LONG = "This sentence is long enough to stay."


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Three small packages in place of the real ones."""
    root = tmp_path / "site"
    for package in docstrings.PACKAGES:
        if package in ("keras", "numpy", "python"):
            (root / package).mkdir(parents=True)
            lines = [f'def f{i}():\n    """Sentence {i} of the package {package}."""\n' for i in range(60)]
            (root / package / "__init__.py").write_text("".join(lines))
    monkeypatch.setattr(docstrings, "_roots", lambda package: [root / package] if (root / package).is_dir() else [])
    return root


def sentences(tmp_path, source, name="a.py"):
    """Sentences of a package with one file."""
    path = tmp_path / "package" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    return sorted(sentence for sentence, _ in docstrings.parse({"package": [tmp_path / "package"]})[0])


@pytest.mark.parametrize(
    ("docstring", "sentence"),
    [
        ("One. Two.", "One."),
        ("Is it? Yes.", "Is it?"),
        ("Stop! Now.", "Stop!"),
        ("  Spread\n    over\tlines.\n    Next.", "Spread over lines."),
        ("No end\n\nNext paragraph.", "No end"),
        ("No end\n   \t\nNext paragraph.", "No end"),
        ("Version 1.2 of a.b.c stays. Next.", "Version 1.2 of a.b.c stays."),
        ("Layers, e.g. Dense, i.e. a matrix. Next.", "Layers, e.g. Dense, i.e. a matrix."),
        ("By Smith et al. in 2015. Next.", "By Smith et al. in 2015."),
        ("Ends with etc.", "Ends with etc."),
        ("See Fig. 3 or Eq. 4. Next.", "See Fig. 3 or Eq. 4."),
        ("Returns x. Then y.", "Returns x."),
        ("Adds B. Next.", "Adds B."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_first_sentence_ends_where_a_reader_would_end_it(docstring, sentence):
    assert docstrings.first_sentence(docstring) == sentence


def test_modules_classes_and_functions_are_read_wherever_they_are_nested(tmp_path):
    source = '''"""Module docstring that is long enough."""
if True:
    class A:
        """Class docstring that is long enough."""
        async def f(self):
            """Coroutine docstring that is long enough."""
            try:
                pass
            except ValueError:
                def g():
                    """Handler docstring that is long enough."""
            else:
                def h():
                    """Else docstring that is long enough, too."""
match 1:
    case 1:
        def i():
            """Case docstring that is long enough, too."""
x = lambda: 1 if True else 2
"""A string in the middle, which documents nothing."""
'''
    assert [sentence.split()[0] for sentence in sentences(tmp_path, source)] == [
        "Case",
        "Class",
        "Coroutine",
        "Else",
        "Handler",
        "Module",
    ]


def test_sentences_under_25_characters_are_left_out(tmp_path):
    source = f'def f():\n    """{"a" * 23}."""\ndef g():\n    """{"b" * 24}."""\n'
    assert sentences(tmp_path, source) == ["b" * 24 + "."]


def test_a_sentence_is_taken_once_and_not_at_all_from_two_packages(tmp_path):
    for package, text in {"a": LONG, "b": LONG, "c": LONG, "d": "Another sentence, only found here."}.items():
        (tmp_path / package).mkdir()
        (tmp_path / package / "x.py").write_text(f'"""{text}"""\ndef f():\n    """{text}"""\n')
    assert docstrings.parse({package: [tmp_path / package] for package in "abcd"}) == (
        [("Another sentence, only found here.", "d")],
        0,
    )


def test_tests_are_left_out(tmp_path):
    for name in (
        "a.py",
        "testing/b.py",
        "contest.py",
        "tests/c.py",
        "x/test/d.py",
        "testdata/e.py",
        "test_f.py",
        "g_test.py",
        "conftest.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "site-packages").mkdir()
    (tmp_path / "site-packages" / "other.py").touch()
    found = [file.relative_to(tmp_path).as_posix() for file in docstrings.source_files(tmp_path)]
    assert found == ["a.py", "contest.py", "testing/b.py"]


def test_files_that_do_not_parse_are_counted_and_raise_no_warning(tmp_path):
    (tmp_path / "old.py").write_text("print 'python 2'\n")
    (tmp_path / "nul.py").write_bytes(b"x = '\0'\n")
    (tmp_path / "deep.py").write_text("(" * 5000 + ")" * 5000)
    (tmp_path / "latin.py").write_bytes(b'# -*- coding: latin-1 -*-\n"""Caf\xe9 sentence that is long enough."""\n')
    (tmp_path / "escape.py").write_text('"""Invalid \\d escape that is long enough."""\n')
    (tmp_path / "half.py").write_text('"""Half a pair \\ud800 that is long enough."""\n')
    found, unparsed = docstrings.parse({"a": [tmp_path]})
    assert sorted(sentence for sentence, _ in found) == [
        "Café sentence that is long enough.",
        "Invalid \\d escape that is long enough.",
    ]
    assert unparsed == 3


def test_order_and_split_follow_from_the_sentence_alone(tmp_path, packages):
    source = docstrings.Docstrings(tmp_path / "one")
    (packages / "keras" / "__init__.py").rename(packages / "keras" / "zzz.py")
    again = docstrings.Docstrings(tmp_path / "two")
    assert again.key == source.key
    assert [list(again.rows(split)) for split in again.splits] == [list(source.rows(split)) for split in source.splits]
    first = [row["label"] for row in source.rows("train")][:20]
    assert len(set(first)) == 3  # the first rows hold every package, so that a limit does


def test_split_is_85_5_10_and_disjoint():
    shares = collections.Counter(docstrings.split_of(f"sentence {i}") for i in range(20_000))
    assert {split: round(count / 20_000, 2) for split, count in shares.items()} == {
        "train": 0.85,
        "validation": 0.05,
        "test": 0.1,
    }


def test_every_example_is_in_exactly_one_split(tmp_path, packages):
    source = open_source(builtin="docstrings", cache_dir=tmp_path / "cache")
    rows = [row["text"] for split in source.splits for row in source.examples(split)]
    assert len(rows) == len(set(rows)) == 180
    for row in source.examples("train"):
        assert source.labels[row["label"]] == row["text"].split()[-1].rstrip(".")


def test_missing_packages_are_told_and_found_ones_are_the_labels(tmp_path, packages):
    source = docstrings.Docstrings(tmp_path / "cache")
    assert source.target.labels == ["keras", "numpy", "python"]
    assert list(source.provenance) == source.target.labels
    assert "tensorflow is not installed: its docstrings are missing" in source.notes


def test_cache_spares_the_parsing_and_damage_does_not_survive(tmp_path, packages):
    calls = []
    key = docstrings.Docstrings(tmp_path, progress=lambda done, total: calls.append((done, total))).key
    assert calls == [(1, 3), (2, 3), (3, 3)]
    calls.clear()
    assert docstrings.Docstrings(tmp_path, progress=lambda *call: calls.append(call)).key == key and not calls
    (cache,) = tmp_path.glob("docstrings-*.jsonl")
    whole = cache.read_bytes()
    for damage in (b"", b"\n", b"{}\n", b"[1]\n", whole[:-5], whole.replace(b"Sentence 7 ", b"Sentence 8 ", 1), b"\xff" * 100):
        cache.write_bytes(damage)
        assert docstrings.Docstrings(tmp_path).key == key
        assert cache.read_bytes() == whole


def test_other_versions_get_another_cache(tmp_path, packages, monkeypatch):
    docstrings.Docstrings(tmp_path)
    monkeypatch.setattr(docstrings, "_version", lambda package: "99")
    docstrings.Docstrings(tmp_path)
    assert len(list(tmp_path.glob("docstrings-*.jsonl"))) == 2


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path, packages):
    (tmp_path / "file").touch()
    source = docstrings.Docstrings(tmp_path / "file")
    assert len(list(source.rows("train"))) == len(list(docstrings.Docstrings(tmp_path / "good").rows("train")))
    assert any("cannot be written" in note and "TFKD_CACHE" in note for note in source.notes)


def test_cache_goes_where_the_environment_says(tmp_path, packages, monkeypatch):
    monkeypatch.setenv("TFKD_CACHE", str(tmp_path / "there"))
    docstrings.Docstrings()
    assert list((tmp_path / "there").iterdir())


def test_packages_are_found_without_being_imported():
    before = set(sys.modules)
    folders = docstrings._roots("keras_hub")
    assert folders and (folders[0] / "__init__.py").is_file()
    assert "keras_hub" in before or "keras_hub" not in sys.modules
    assert docstrings._roots("no_such_package_at_all") == []


def test_examples_of_the_installed_packages_look_like_sentences(tmp_path):
    """Two real packages, parsed for real."""
    found, _ = docstrings.parse({package: docstrings._roots(package) for package in ("keras_hub", "numpy")})
    counts = collections.Counter(package for _, package in found)
    assert counts["keras_hub"] > 500 and counts["numpy"] > 500
    assert all(len(sentence) >= 25 and "\n" not in sentence and sentence == sentence.strip() for sentence, _ in found)


@pytest.mark.slow
def test_all_installed_packages_give_the_promised_data(tmp_path):
    source = open_source(builtin="docstrings", cache_dir=tmp_path)
    counts = collections.Counter(row["label"] for split in source.splits for row in source.examples(split))
    assert len(source.labels) == 7 and 25_000 < sum(counts.values()) < 31_000
    (cache,) = pathlib.Path(tmp_path).glob("*.jsonl")
    assert json.loads(cache.read_text().split("\n")[0])["unparsed"] == 0
