"""A configuration's YAML as people write it: within limits, changed by `key=value`, mistakes in one line. No TensorFlow."""

import itertools
import pathlib
import re

import yaml

from tfkd.errors import UserError, show

LARGEST_FILE = 300_000  # bytes; read in a few seconds
MOST_NODES = 100_000  # values, those that aliases repeat counted each time: nine lines of aliases can stand for billions
DEEPEST = 50  # brackets within brackets


class _Mistake(yaml.MarkedYAMLError):
    """What YAML allows and a configuration does not; its text needs no further words."""


class _Loader(yaml.SafeLoader):
    """YAML as people write it: PyYAML alone takes `1e-3`, a number in YAML 1.2, for a string, and the last of two equal keys."""

    def get_single_node(self):
        node = super().get_single_node()
        if node is not None:
            _nodes(node, {})
        return node

    def compose_mapping_node(self, anchor):
        node, seen = super().compose_mapping_node(anchor), set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise _Mistake(problem=f"key {key.value} is there twice; delete one of them", problem_mark=key.start_mark)
                seen.add(key.value)
        return node

    def construct_object(self, node, deep=False):
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError):  # of the 13th month, of `!!int x`, of 5,000 digits
            kind = node.tag.rpartition(":")[2]
            raise _Mistake(problem=f"{show(node.value)} is no {kind}; put it in quotes", problem_mark=node.start_mark) from None

    def fetch_flow_collection_start(self, kind):
        if self.flow_level >= DEEPEST:
            raise _Mistake(problem=f"more than {DEEPEST} brackets within brackets", problem_mark=self.get_mark())
        super().fetch_flow_collection_start(kind)


class _Dumper(yaml.SafeDumper):
    """Puts quotes around what `_Loader` would take for a number, and escapes what it would take for the end of a line."""

    def represent_str(self, data):
        style = '"' if len(data.splitlines()) > 1 or re.search("[\x85\u2028\u2029]", data) else None
        return self.represent_scalar("tag:yaml.org,2002:str", data, style)


_Dumper.add_representer(str, _Dumper.represent_str)
for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def _nodes(node: yaml.Node, known: dict[int, int | None]) -> int:
    """Counts a node and all below it with every alias written out. Raises where they are too many, or never end."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) in known:
        if known[id(node)] is None:
            raise _Mistake(problem="an anchor that holds an alias of itself", problem_mark=node.start_mark)
        return known[id(node)]
    known[id(node)] = None
    below = itertools.chain.from_iterable(node.value) if isinstance(node, yaml.MappingNode) else node.value
    known[id(node)] = count = 1 + sum(_nodes(child, known) for child in below)
    if count > MOST_NODES:
        raise _Mistake(problem=f"aliases that stand for more than {MOST_NODES:,} values", problem_mark=node.start_mark)
    return count


def read(path: pathlib.Path) -> dict:
    """The tree of plain values in a YAML file. Raises `UserError`: the file, the place in it, what is wrong and the fix."""
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST_FILE + 1)
        if len(content) > LARGEST_FILE:
            raise UserError(f"{path}: has more than {LARGEST_FILE:,} bytes, and is hardly a configuration")
        text = content.decode("utf-8-sig")
        tree = _yaml(text)
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except IsADirectoryError:
        inside = path / "config.yaml"  # of a run
        raise UserError(f"{path}: a folder; name a file, such as {inside if inside.exists() else 'mine.yaml'}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line}: byte {error.start} is not UTF-8; save the file as UTF-8") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {_problem(error, text)}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: must hold `key: value` lines (data, teacher, student, ...), not {show(tree)}")
    return tree


def _yaml(text: str):
    """Plain values of a text, none of them shared: an override of one place must not change another. Raises `YAMLError`."""
    try:
        return _unshared(yaml.load(text, _Loader))
    except RecursionError:
        raise yaml.YAMLError("nested too deep") from None


def _unshared(value):
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    return [_unshared(inner) for inner in value] if isinstance(value, list) else value


def override(tree: dict, assignment: str) -> None:
    """Sets one value of a tree in place: `train.epochs=2`, a dotted key and a YAML value. Items of a list have their number for a
    key: `stages.0.train.epochs=1`. Raises `UserError`."""
    key, equals, text = assignment.partition("=")
    if not equals or not key:
        raise UserError(f"--set {assignment}: write key=value, such as train.epochs=2")
    try:
        value = _yaml(text) if text else None
    except yaml.YAMLError:
        raise UserError(f"--set {assignment}: {text} is not a YAML value") from None
    names, node = key.split("."), tree
    for depth in range(len(names) - 1):
        place = _place(node, names, depth, assignment)
        if isinstance(node, dict) and node.get(place) is None:
            node[place] = {}
        node = node[place]
    node[_place(node, names, len(names) - 1, assignment)] = value


def _place(node, names: list[str], depth: int, assignment: str) -> str | int:
    """`names[depth]` as a key of the section, or as a number of the list, that the names before it lead to."""
    name, above = names[depth], ".".join(names[:depth])
    if isinstance(node, dict):
        return name
    if not isinstance(node, list):
        raise UserError(f"--set {assignment}: {above} holds a value, not a section")
    if not node:
        raise UserError(f"--set {assignment}: {above} is an empty list; write {above}=[...]")
    if not (name.isdecimal() and int(name) < len(node)):
        last = f" to {above}.{len(node) - 1}" if len(node) > 1 else ""
        raise UserError(f"--set {assignment}: {above} is a list; its items are {above}.0{last}")
    return int(name)


def dump(tree: dict) -> str:
    """A tree of plain values as YAML; `read` reads it back unchanged."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


_IN_WORDS = {
    "mapping values are not allowed": "put quotes around a text that holds a colon",
    "'\\t'": "indent with spaces, not with tabs",
    "expected <block end>": "indent it like the lines of its section",
    "could not find expected ':'": "write `key: value`",
    "cannot start any token": "put quotes around it",
    "found unexpected end of stream": "a quote is never closed",
    "but found '<stream end>'": "a bracket is never closed",
    "found another document": "write one configuration a file, without --- lines",
    "could not determine a constructor": "leave the tag out",
    "undefined alias": "put quotes around a text that begins with *",
}
"""What PyYAML says -> what a person can do about it."""


def _problem(error: yaml.YAMLError, text: str) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    if isinstance(error, _Mistake):
        return place + error.problem
    if isinstance(error, yaml.reader.ReaderError):
        line = text.count("\n", 0, error.position) + 1
        return f"line {line}: holds the control character U+{error.character:04X}; delete it, or write it as an escape"
    reason = getattr(error, "problem", None) or str(error).splitlines()[0]
    fix = next((f"; {fix}" for said, fix in _IN_WORDS.items() if said in reason), "")
    return f"{place}not valid YAML ({reason}){fix}"
