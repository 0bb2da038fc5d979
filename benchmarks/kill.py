"""Kills small runs at random moments, goes on with each, and compares what comes out to the bit.

    python benchmarks/kill.py [--times 100] [--each 9] [--seed 0]

A run that nobody disturbs comes first. The others are killed with SIGKILL, children and all: at a random moment, or as soon as a
checkpoint, a file of the cache, a model or an export is half-written. After `--each` kills a run may come to its end, and its
weights, metrics and exports are compared with those of the first. TensorFlow is imported once: each sitting is a fork.
"""

import argparse
import contextlib
import glob  # unlike pathlib's it takes no offence at folders that go while it looks
import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import tempfile
import time
import zipfile

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

import rich.console  # noqa: E402 a program of the checkout, run from anywhere
import yaml  # noqa: E402

from tfkd.run_dir import read_json  # noqa: E402

MOMENTS = {
    "at random": None,
    "checkpoint": "run/checkpoints/*/*.partial*",
    "cache": "cache/**/*.partial*",
    "settings": "run/config.partial*",
    "model": "run/**/*.partial*.keras",
    "export": "run/export/*.partial*",
}
"""When a kill comes -> files in the sitting's folder at whose sight it does."""

WORDS = ["apple", "grass", "sky", "brick", "leaf", "sea", "this", "that", "very", "quite", "old", "new"]


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0 where every run came out equal, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=25, help="kills in all (default: %(default)s)")
    parser.add_argument("--each", type=int, default=9, help="kills of one run (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: %(default)s)")
    options = parser.parse_args(arguments)
    console, moments = rich.console.Console(highlight=False), random.Random(options.seed)
    import_heavy()
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        write_config(folder)
        begin = time.monotonic()
        if sit(folder / "whole", folder) != 0:
            raise SystemExit((folder / "whole" / "said.txt").read_text())
        seconds, expected = time.monotonic() - begin, outcome(folder / "whole" / "run")
        console.print(f"undisturbed: {seconds:.1f} s")
        killed = equal = runs = 0
        while killed < options.times:
            runs += 1
            path, sittings = folder / f"killed-{runs}", []
            for _ in range(min(options.each, options.times - killed)):
                what = moments.choice(list(MOMENTS))
                if sit(path, folder, what, moments.uniform(0.0, 0.6 * seconds)) is not None:
                    break
                sittings.append(what)
                killed += 1
            code = sit(path, folder)
            found = outcome(path / "run") if code == 0 else {}
            differ = sorted(name for name in expected | found if expected.get(name) != found.get(name))
            equal += not differ
            console.print(f"run {runs}: {len(sittings)} kills ({', '.join(sittings)}): {differ or 'equal'}")
            if code != 0:
                console.print((path / "said.txt").read_text(), markup=False)
        console.print(f"{killed} kills, {equal} of {runs} runs equal to the bit, {time.monotonic() - begin:.0f} s")
    return 0 if equal == runs else 1


def import_heavy() -> None:
    """Imports once what every sitting needs; nothing is computed, so that a fork can still begin."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
    import keras  # noqa: F401

    import tfkd.build
    import tfkd.evaluate
    import tfkd.fitting
    import tfkd.report  # noqa: F401


def write_config(folder: pathlib.Path) -> None:
    """Two hundred lines of text, and a run on them: teacher, cache, baseline, student, one export."""
    random_words = random.Random(0)
    for name, rows in (("train", 224), ("test", 48)):
        with open(folder / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for _ in range(rows):
                text = " ".join(random_words.choices(WORDS, k=random_words.randint(3, 9)))
                file.write(json.dumps({"text": text, "label": "yes" if "apple" in text else "no"}) + "\n")
    training = {"epochs": 3, "batch_size": 16, "learning_rate": 0.003}
    tree = {
        "data": {
            "files": {name: str(folder / f"{name}.jsonl") for name in ("train", "test")},
            "max_length": 12,
            "buckets": [8, 12],
            "vocabulary_size": 64,
        },
        "teacher": {"dimensions": {"layers": 1, "width": 16}, "train": training, "cache": True},
        "student": {"dimensions": {"layers": 1, "width": 8}},
        "train": training,
        "baseline": False,
        "checkpoint": {"steps": 2},
        "strategy": {"deterministic": True},
        "evaluate": {"bootstrap": 100},
        "export": {"formats": ["onnx:float32"]},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def sit(path: pathlib.Path, folder: pathlib.Path, what: str | None = None, after: float = 0.0) -> int | None:
    """One sitting of a run, from its begin or its last checkpoint; its exit code, or None where it was killed.

    Arguments:
        path: of the run and its cache.
        folder: with the configuration.
        what: of `MOMENTS`; None lets it come to its end.
        after: seconds before which it is not killed.
    """
    path.mkdir(exist_ok=True)
    child = os.fork()
    if child == 0:
        os._exit(_child(path, folder))
    with contextlib.suppress(OSError):
        os.setpgid(child, child)  # here too: whoever is first, a kill finds the group
    begin, pattern = time.monotonic(), MOMENTS[what] if what is not None else None
    status = None
    try:
        while True:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                return os.waitstatus_to_exitcode(status)
            status = None
            seen = pattern is not None and bool(glob.glob(str(path / pattern), recursive=True))
            if seen or (what is not None and pattern is None and time.monotonic() - begin >= after):
                return None
            time.sleep(0.0005 if pattern else 0.01)
    finally:
        if status is None:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            end = time.monotonic() + 10.0
            while time.monotonic() < end and _any_left(child):
                time.sleep(0.01)


def _any_left(group: int) -> bool:
    """Whether a process of a group still is: on a busy machine one that was killed lives on for a moment, and holds its lock."""
    try:
        os.killpg(group, 0)
    except OSError:
        return False
    return True


def _child(path: pathlib.Path, folder: pathlib.Path) -> int:
    from tfkd import train

    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    said = os.open(path / "said.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.environ["TFKD_CACHE"] = str(path / "cache")
    os.chdir(ROOT)
    resume = ["--resume"] if (path / "run" / "config.yaml").exists() else []
    try:
        return train.main([str(folder / "config.yaml"), "--output", str(path / "run"), *resume])
    except BaseException as error:  # a fork must not go on in its parent's code
        print(type(error).__name__, error, flush=True)
        return 1


def outcome(run: pathlib.Path) -> dict[str, str]:
    """What must be equal, as digests: weights, the log of metrics without its times, measures, exported files."""
    found = {}
    for model in [*run.glob("*.keras"), *run.glob("teacher/*.keras")]:
        with zipfile.ZipFile(model) as archive:
            found[str(model.relative_to(run))] = _weights(archive.read("model.weights.h5"))
    timed = ("seconds", "steps_per_second", "examples_per_second", "tokens_per_second", "gigaflops", "memory_gb")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    kept = [{name: value for name, value in line.items() if name not in timed} for line in lines]
    found["metrics.jsonl"] = json.dumps(kept)
    found["report.json"] = json.dumps(read_json(run / "report.json")["models"], sort_keys=True)
    found |= {path.name: _digest(path.read_bytes()) for path in run.glob("export/*.onnx")}
    found["unfinished files"] = str(sorted(path.name for path in run.rglob("*.partial*")))
    return found


def _weights(data: bytes) -> str:
    """Of an HDF5 file's arrays: the file itself also holds when it was written."""
    import io

    import h5py

    digest = hashlib.sha256()

    def add(name, item):
        if isinstance(item, h5py.Dataset):
            digest.update(name.encode() + item[()].tobytes())

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(add)
    return digest.hexdigest()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
