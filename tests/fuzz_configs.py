"""Configurations that people, editors and broken disks could have made: valid ones, mutated as trees and as bytes."""

import copy
import functools
import pathlib
import tempfile
import time

import yaml
from hypothesis import strategies as st

from tfkd import config
from tfkd.errors import LONGEST, UserError

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 10.0

TREES = [
    {
        "name": "whole",
        "task": "classification",
        "seed": 3,
        "data": {
            "files": {"train": "a.csv", "validation": "b.csv", "test": "${HOME}/c.csv"},
            "columns": {"text": "sentence", "text_pair": "other", "label": "class"},
            "labels": ["no", "yes", "1e3"],
            "max_length": 64,
            "buckets": [16, 32, 64],
        },
        "teacher": {
            "checkpoint": "hf://owner/name",
            "revision": "main",
            "head": "keep",
            "label_map": {"NEG": "no", "POS": "yes"},
            "finetune": {"epochs": 2, "learning_rate": 1e-5, "early_stopping": 2},
        },
        "student": {"layers": [0, 2, 4]},
        "stages": [
            {"name": "first", "distill": {"alpha": 0.0, "objectives": ["minilm_v2", {"name": "pkd", "weight": 2.0}]}},
            {
                "name": "second",
                "distill": {"alpha": {"start": 0.1, "end": 0.5}, "temperature": 2.0},
                "train": {"epochs": 4, "warmup": 0.2},
            },
        ],
        "strategy": {"kind": "mirrored", "precision": "mixed_bfloat16", "xla": True},
        "evaluate": {"bootstrap": 200},
        "export": {"formats": ["onnx", "tflite"], "length": 32, "examples": 300},
    },
    {
        "task": "tagging",
        "data": {"tfds": "conll2003", "splits": {"train": "train[:90%]"}, "columns": {"words": "tokens", "tags": "ner"}},
        "teacher": {"dimensions": {"layers": 4, "heads": 4}, "train": {}},
        "student": {"dimensions": {"layers": 1, "width": 64, "position": "sinusoidal", "norm": "pre"}},
        "distill": {"objectives": [{"name": "kl_divergence", "temperature": {"start": 8.0, "end": 1.0, "by": "epoch"}}]},
    },
]

WORDS = ["", " ", "~", "null", "yes", "1e3", "1e-3", ".nan", "-.inf", "0x10", "1_000", "12:30:45", "2020-01-01", "2020-13-99"]
WORDS += ["=", "<<", "!", "&a", "*a", "%", "@", "`", "'", '"', "{", "[", "- a", "a: b", "? a", "|", ">", "#", "../x", "/etc"]
WORDS += ["a\nb", "a\tb", "a\0b", "\ud800", "\u2028", "\x85", "\x1b[31m", "\u202e", "\ufeff", "é" * 40, "x" * 5000, "[" * 300]
NUMBERS = [0, 1, -1, 2**31, 2**63, 10**30, 10**400, 0.0, -0.0, 1e-300, 1e308, float("nan"), float("inf"), 0.1 + 0.2]

scalars = st.one_of(
    st.sampled_from(WORDS), st.sampled_from(NUMBERS), st.none(), st.booleans(), st.integers(), st.text(max_size=20)
)
keys = st.one_of(st.text(max_size=8), scalars)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(keys, inner, max_size=4)),
    max_leaves=8,
)


@functools.cache
def bases() -> list[dict]:
    """Valid trees: every shipped configuration, and some that say what those leave out."""
    shipped = sorted((ROOT / "configs").glob("*.yaml"))
    assert len(shipped) >= 3
    return TREES + [yaml.safe_load(path.read_text(encoding="utf-8")) for path in shipped]


def _places(tree, path=()):
    """Every place of a tree: the keys that lead there."""
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from _places(value, (*path, key))


def _mutate(draw, tree: dict) -> None:
    """One thing that a person can get wrong in a tree."""
    places = list(_places(tree))
    if not places:
        return
    *above, last = draw(st.sampled_from(places))
    node = tree
    for key in above:
        node = node[key]
    match draw(st.integers(0, 7)):
        case 0:
            node.pop(last)
        case 1 if isinstance(node, dict):
            node[draw(st.one_of(st.text(max_size=10), scalars))] = node.pop(last)
        case 2 if isinstance(node, dict):
            node[draw(st.one_of(st.just(f"{last}s"), st.sampled_from(WORDS), st.text(max_size=8)))] = draw(values)
        case 3:
            node[last] = [node[last]] if draw(st.booleans()) else {"value": node[last]}
        case 4:  # another place's value
            *others, end = draw(st.sampled_from(places))
            value = tree
            try:
                for key in (*others, end):
                    value = value[key]
            except (KeyError, IndexError, TypeError):
                return
            node[last] = copy.deepcopy(value)
        case 5:
            node[last] = str(node[last])
        case 6:
            node[last] = draw(scalars)
        case _:
            node[last] = draw(values)


BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "m0: &m0 {x: 1}\n" + "".join(f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 9)}]}}\n" for i in range(1, 12))
LINES = [BOMB, MERGES, "loop: &loop {inner: *loop}\n", "list: &list [*list]\n", "data: &d\n  <<: *d\n", "\tname: x\n", "---\n"]
LINES += ["name: one\nname: two\n", "data: {}\n", "? [a, b]\n: c\n", "!!python/object/apply:os.system ['true']: 1\n", "...\n"]
LINES += ["a: !!timestamp x\n", "a: !!float ''\n", "a: !!set {b, c}\n", "a: !!binary '*'\n", "a: !!omap [b: 1]\n", "a: !!int x\n"]
LINES += ["name: " + "y" * 400_000 + "\n", "a: " + "[" * 5000 + "\n", "{" * 2000 + "\n", "- " * 3000 + "\n", "d: 1:2:3:4\n"]
LINES += [f"k{i}: &k{i}\n" for i in range(3)] + ["a: *nowhere\n", "a: |2\n  b\n", "'", '"\\x', "a: >-\n", "!!map\n", "0o17: 1\n"]
LINES += ["a: " + "9" * 5000 + "\n", "seed: 0x" + "f" * 5000 + "\n", "2020-01-01: a\n", "!!binary aGk=: a\n", "1: 2\n~: 3\n"]
LINES += ["name: \x07\n", "\0", "%YAML 9.9\n---\n"]
ENCODINGS = ["utf-16", "utf-32", "latin-1", "cp037"]


def _damage(draw, content: bytes) -> bytes:
    """One thing that an editor or a disk can do to a file."""
    place = draw(st.integers(0, len(content)))
    line = content.rfind(b"\n", 0, place) + 1
    match draw(st.integers(0, 8)):
        case 0:
            return content[:place]
        case 1:
            return content[:line] + draw(st.sampled_from(LINES)).encode() + content[line:]
        case 2:
            return content[:place] + draw(st.binary(min_size=1, max_size=6)) + content[place:]
        case 3:
            return content[:place] + content[place + draw(st.integers(1, 40)) :]
        case 4:
            return content[:line] + b"\t" + content[line:]
        case 5:
            return content.replace(b"\n", draw(st.sampled_from([b"\r\n", b"\r", b"\n\n", b"\x85", b" "])))
        case 6:
            return b"\xef\xbb\xbf" + content
        case 7:
            return content.decode("utf-8", "replace").encode(draw(st.sampled_from(ENCODINGS)), "replace")
        case _:
            end = content.find(b"\n", line) + 1
            return content[:line] + content[line:end] * draw(st.sampled_from([2, 3, 500])) + content[end:]


@st.composite
def cases(draw) -> bytes:
    """The bytes of a configuration file with something wrong, or nothing."""
    tree = copy.deepcopy(draw(st.sampled_from(bases())))
    for _ in range(draw(st.integers(0, 3))):
        _mutate(draw, tree)
    try:
        text = yaml.dump(tree, allow_unicode=draw(st.booleans()), default_flow_style=draw(st.sampled_from([False, None, True])))
        content = text.encode("utf-8", "surrogatepass")
    except ValueError:  # numbers that Python does not write
        content = b"seed: 0x" + b"f" * 6000
    for _ in range(draw(st.integers(0, 2))):
        content = _damage(draw, content)
    return content


def check(content: bytes) -> str | None:
    """Loads a file as a program does. Answers with the one line for the person, None where it is a configuration."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "run.yaml"
        path.write_bytes(content)
        begin = time.process_time()
        try:
            loaded = config.load(path)
            message = None
        except UserError as error:
            message = str(error)
        seconds = time.process_time() - begin
        assert seconds < SECONDS, f"{seconds:.1f} s"
        if message is None:  # what a run writes of it is read again by everything after
            path.write_text(config.dump(loaded), encoding="utf-8")
            assert config.load(path) == loaded
            return None
        assert message.startswith(f"{path}: "), message
        message = message.removeprefix(f"{path}: ")
        assert message.splitlines() == [message] and message.isprintable(), repr(message)
        assert 10 < len(message) <= 2 * LONGEST, message
        return message
