"""oneDNN on every CPU, unless the environment says otherwise."""

import pytest

from tests.fresh_python import fresh

PROGRAM = """
import os, sys
from tfkd import train
def found(*_):
    print(os.environ["TF_ENABLE_ONEDNN_OPTS"], "tensorflow" in sys.modules)
    return 0
train.train = found
os.environ.pop("TF_ENABLE_ONEDNN_OPTS", None)
os.environ |= dict(said)
sys.exit(train.main(["configs/quickstart.yaml", "--output", path, "--quiet"]))
"""


@pytest.mark.parametrize(("said", "found"), [({}, "1 False"), ({"TF_ENABLE_ONEDNN_OPTS": "0"}, "0 False")])
def test_a_run_takes_onednn_unless_told_otherwise(said, found, tmp_path):
    assert fresh(f"said, path = {said!r}, {str(tmp_path / 'run')!r}\n{PROGRAM}").stdout == f"{found}\n"
