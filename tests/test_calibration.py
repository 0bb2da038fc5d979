"""The training texts that a run keeps for int8 files."""

import json

import pytest

from tfkd import outputs
from tfkd.run_dir import RunDir


class Rows:
    """Rows as a `Store` has them, each an example."""

    example = None

    def __init__(self, count: int, pairs: bool = False):
        self.count, self.pairs = count, pairs

    def __len__(self):
        return self.count

    def text(self, row):
        return f"text {row} \u2028 é"

    def text_pair(self, row):
        return f"pair {row}" if self.pairs else None


class Names:
    labels, pairs = ["a", "b"], False

    def told(self, store, row):
        return self.labels[row % 2]


class Pieces:
    lowercase = True

    def write(self, path):
        path.write_text("[PAD]\n")


def written(tmp_path, train: Rows) -> list[dict]:
    from tfkd import config

    tree = {"data": {"builtin": "docstrings"}, "teacher": {"dimensions": {}, "train": {}}, "student": {"dimensions": {}}}
    run, measured = RunDir(tmp_path), Rows(4)
    measured.target = Names()
    outputs.write_inputs(run, config.parse(tree), Pieces(), measured, train)
    assert len(run.examples.read_bytes().splitlines()) == 4
    return [json.loads(line) for line in run.calibration.read_bytes().splitlines()]


def test_500_training_texts_are_kept_evenly_spread(tmp_path):
    rows = written(tmp_path, Rows(2000))
    assert [row["text"] for row in rows] == [f"text {4 * place} \u2028 é" for place in range(500)]
    assert all(set(row) == {"text"} for row in rows)


@pytest.mark.parametrize("count", (1, 3, 499))
def test_of_fewer_all_are_kept_once(tmp_path, count):
    assert len({row["text"] for row in written(tmp_path, Rows(count))}) == count


def test_pairs_are_kept_together(tmp_path):
    assert written(tmp_path, Rows(2, pairs=True))[1] == {"text": "text 1 \u2028 é", "text_pair": "pair 1"}
