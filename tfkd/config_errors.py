"""One line for the first mistake that pydantic finds in a configuration: full key, value, fix. No TensorFlow."""

import difflib
import re
import typing

import pydantic

from tfkd.errors import show


def explain(error: pydantic.ValidationError, schema: type[pydantic.BaseModel]) -> str:
    """The first mistake in one line: full key, value, fix. Unknown keys come first: they explain missing ones.

    Arguments:
        schema: what was checked; its keys are those that are suggested.
    """
    problems = _meant(error.errors(include_url=False))
    problem = next((p for p in problems if p["type"] in ("extra_forbidden", "invalid_key")), problems[0])
    *above, last = problem["loc"] or ("",)
    location = [part for part in above if not _is_tag(part, schema)]
    if problem["loc"] and (problem["type"] == "extra_forbidden" or not _is_tag(last, schema)):
        location.append(last)
    key = ".".join(part if re.fullmatch(r"[\w-]+", part) else show(part) for part in map(str, location))
    value = show(problem["input"])
    match problem["type"]:
        case "extra_forbidden":
            fix = _unspaced(problem) or _nearest([str(part) for part in location], schema)
            return f"{key} = {value}: unknown key{fix}"
        case "missing":
            return f"{key}: missing, and it has no default"
        case "value_error":
            return str(problem["ctx"]["error"]) if key in ("", *_SECTIONS) else f"{key}: {problem['ctx']['error']}"
        case "literal_error":
            # In a union with true and false: they are what YAML makes of on and off, but not in quotes.
            at = problem["loc"][:-1]
            switch = any(p["type"] == "bool_type" and p["loc"][:-1] == at for p in problems)
            expected = problem["ctx"]["expected"] + (", on or off, those two without quotes" if switch else "")
            return f"{key} = {value}: must be {expected}{_close(problem)}"
        case "string_type":
            return f"{key} = {value}: {_lower(problem['msg'])}" + ("" if isinstance(problem["input"], list | dict) else _QUOTE)
        case "int_type" | "float_type" | "bool_type" if re.fullmatch(r"[-+.eE\d]+|true|false", str(problem["input"])):
            return f"{key} = {value}: {_lower(problem['msg'])}" + ("; write it without quotes" if value[0] == '"' else "")
        case "model_type" | "dict_type":
            inside = _siblings([part for part in location if isinstance(part, str)], schema)
            return f"{key} = {value}: must be a section of `key: value` lines" + (f": {', '.join(inside)}" if inside else "")
        case _:
            return f"{key} = {value}: {_lower(problem['msg'])}"


_SECTIONS = ("data", "teacher", "student", "strategy", "export")  # whose own messages already carry full keys
_QUOTE = "; put it in quotes"


def _meant(problems: list[dict]) -> list[dict]:
    """Without the complaints that a section is no number, where a number may change: `{start: 0, end: 1, by: epochs}`."""
    within = [problem["loc"][:-2] for problem in problems]
    return [
        problem
        for problem in problems
        if not (problem["type"] == "float_type" and isinstance(problem["input"], dict) and problem["loc"][:-1] in within)
    ]


def _is_tag(part: str | int, schema: type[pydantic.BaseModel]) -> bool:
    """Whether a part of a place is what pydantic adds there for a value in a union: a type that it tried."""
    return isinstance(part, str) and (
        part in {kind.__name__ for kind in _all_sections(schema)}
        or re.fullmatch(r"bool|int|float|str|constrained-.*|[a-z-]+\[.*\]|\[key\]", part) is not None
    )


def _close(problem: dict) -> str:
    choices = [choice.strip(" '") for choice in problem["ctx"]["expected"].replace(" or ", ",").split(",")]
    close = difflib.get_close_matches(str(problem["input"]), choices, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def _unspaced(problem: dict) -> str:
    """For `{mask:0.2}`, which YAML takes for the key `mask:0.2` without a value."""
    name, colon, text = str(problem["loc"][-1]).partition(":")
    return f"; write `{name}: {text}`, with a space after the colon" if colon and problem["input"] is None else ""


def _nearest(location: list[str], schema: type[pydantic.BaseModel]) -> str:
    """The valid key that looks most like an unknown one: in its own section first, then anywhere."""
    *above, last = location
    siblings = _siblings(above, schema)
    close = difflib.get_close_matches(last, siblings, n=1, cutoff=0.6)
    if close:
        return f"; did you mean {'.'.join([*above, close[0]])}?"
    elsewhere = {}
    for key in _keys(schema):
        elsewhere.setdefault(key.rpartition(".")[2], key)
    close = difflib.get_close_matches(last, elsewhere, n=1, cutoff=0.8)
    if close:
        return f"; did you mean {elsewhere[close[0]]}?"
    return f"; {'.'.join(above) or 'the configuration'} knows {', '.join(siblings)}" if siblings else ""


def _siblings(location: list[str], schema: type[pydantic.BaseModel]) -> list[str]:
    """The keys that the section at a place knows."""
    section = ".".join(part for part in location if not part.isdigit())  # places in lists
    known = dict.fromkeys(key.rpartition(".")[::2] for key in _keys(schema))
    return [last for above, last in known if above == section]


def _keys(section: type[pydantic.BaseModel], prefix: str = "") -> typing.Iterator[str]:
    for name, field in section.model_fields.items():
        yield prefix + name
        for inner in _sections(field.annotation):
            yield from _keys(inner, f"{prefix}{name}.")


def _all_sections(section: type[pydantic.BaseModel]) -> typing.Iterator[type[pydantic.BaseModel]]:
    yield section
    for field in section.model_fields.values():
        for inner in _sections(field.annotation):
            yield from _all_sections(inner)


def _sections(annotation) -> list[type[pydantic.BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections(part)]


def _lower(message: str) -> str:
    message = message.removeprefix("Input ").replace(" after validation, not", ", not")
    return message[0].lower() + message[1:]
