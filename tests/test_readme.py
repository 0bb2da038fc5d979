"""What the pages say is true: their commands parse, their tables are current, their tree is the tree."""

import importlib.util
import pathlib
import re
import shlex

import pytest

from tfkd import config

ROOT = pathlib.Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "configs" / "README.md"]


def commands(text):
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].split("    #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


MEASURED = ROOT / "benchmarks" / "README.md"
ALL = [command for page in [*PAGES, MEASURED] for command in commands(page.read_text(encoding="utf-8"))]


def parser_of(module):
    from export import __main__ as export
    from export import benchmark
    from serving import __main__ as serving
    from serving import client
    from tfkd import evaluate, report, train

    programs = {"tfkd.train": train, "tfkd.evaluate": evaluate, "tfkd.report": report}
    parsers = {"export": export.parse, "export.benchmark": benchmark.parse}
    parsers |= {"serving": serving.parse, "serving.client": client.parse}
    return parsers[module] if module in parsers else programs[module]._parser().parse_args


def test_the_pages_have_commands():
    assert len(ALL) >= 20


@pytest.mark.parametrize("command", ALL)
def test_every_command_on_the_pages_parses(command):
    words = [word for word in shlex.split(command) if not re.fullmatch(r"[A-Z][A-Z0-9_]*=\S*", word)]
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
        if words[2] == "http.server":
            assert words[-2:] == ["--directory", "runs/sst2/export/demo"]
            return
        options = parser_of(words[2])(words[3:])
        given = getattr(options, "config", None)
        if given and (ROOT / given).exists():
            config.load(ROOT / given, getattr(options, "set", []))
    elif words[0] == "pip":
        (extra,) = re.fullmatch(r"\.\[(\w+)\]", words[-1]).groups()
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    elif words[0] == "docker":
        base = parser_of("serving")(["RUN"]).base
        assert words == ["docker", "compose", "-f", f"{base}/docker-compose.yml", "up", "-d"]
    else:
        assert words[0] == "python" and (ROOT / words[1]).exists()


def test_the_configuration_on_the_first_page_is_valid(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", PAGES[0].read_text(encoding="utf-8"), re.DOTALL).group(1)
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    assert config.load(path).student.layers == 3
    path.write_text(text.replace("# finetune", "finetune"))
    assert config.load(path).teacher.finetune.epochs == 2


def test_the_error_on_the_first_page_is_what_is_said(tmp_path):
    said = re.search(r"tfkd: mine\.yaml: (.*)", PAGES[0].read_text(encoding="utf-8")).group(1)
    path = tmp_path / "mine.yaml"
    path.write_text("data: {builtin: docstrings}\nteacher: {checkpoint: x}\nstudent: {layers: 3}\n")
    with pytest.raises(config.UserError) as caught:
        config.load(path, ["train.epcohs=3"])
    assert str(caught.value) == f"{path}: {said}"


def test_the_tables_are_made_from_the_results():
    specification = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(tables)
    pages = tables.pages()
    shown = dict.fromkeys(PAGES, ("quickstart", "sst2", "sst2_tiny")) | {MEASURED: ("kl_divergence", "contrastive")}
    assert set(pages) == set(shown)
    for path, text in pages.items():
        assert path.read_text(encoding="utf-8") == text, "run: python benchmarks/tables.py"
        assert all(f"| `{name}` |" in text for name in shown[path])


def test_the_tree_on_the_first_page_names_every_file():
    text = PAGES[0].read_text(encoding="utf-8")
    tree = text[text.index("## The tree") : text.index("## What a run leaves")]
    files = [path for folder in ("tfkd", "export", "serving", "benchmarks") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 40
    for path in files:
        assert path.name == "__init__.py" or path.name in tree, path
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        assert path.name in tree, path


def test_the_header_of_every_config_says_what_command_and_where_the_numbers_are():
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
        assert {"What", "Command", "Expected", "Source"} <= {line[1:].split()[0] for line in header if line[1:].split()}, path
        (command,) = [line for line in header if "python -m tfkd.train" in line]
        assert f"configs/{path.name}" in command or path.name == "quickstart.yaml"
