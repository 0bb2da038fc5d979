"""Times one file for `benchmarks/export.py`, in a process of its own: `python benchmarks/export_process.py TASK ANSWER`, JSON.

One thread, one text, as many requests as fit in the seconds given, medians of them: by the clock, and of the processor's time,
from which the waiting of a busy machine is gone. Nothing but the file's own runtime is loaded.
"""

import json
import pathlib
import sys
import tempfile
import time

import numpy as np

WARMUP = 10


def litert(path: str, inputs: dict[str, np.ndarray]):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    for about in interpreter.get_input_details():
        interpreter.set_tensor(about["index"], given(about["name"], inputs).reshape(about["shape"]))
    (out,) = interpreter.get_output_details()

    def call():
        interpreter.invoke()
        return interpreter.get_tensor(out["index"])

    return call


def onnx(path: str, inputs: dict[str, np.ndarray], profile: str | None = None):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if profile:
        options.enable_profiling, options.profile_file_prefix = True, profile
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(int64)": "int64", "tensor(int32)": "int32", "tensor(float)": "float32"}
    feed = {each.name: given(each.name, inputs).astype(kinds[each.type]) for each in session.get_inputs()}

    def call():
        return session.run(None, feed)[0]

    call.session = session
    return call


def given(name: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """What an input of some exporter's name stands for."""
    if "x" in inputs:
        return inputs["x"]
    if "mask" in name:
        return np.ones_like(inputs["ids"])
    return inputs["ids"] * 0 if "segment" in name or "type" in name else inputs["ids"]


def shares(path: str, inputs: dict[str, np.ndarray], seconds: float) -> dict[str, float]:
    """Operator -> its share of the time that a request spends in operators, as ONNX Runtime's profiler sees it."""
    with tempfile.TemporaryDirectory() as folder:
        call = onnx(path, inputs, str(pathlib.Path(folder, "profile")))
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            call()
        events = json.loads(pathlib.Path(call.session.end_profiling()).read_text())
    spent: dict[str, float] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            kind = event["args"]["op_name"]
            spent[kind] = spent.get(kind, 0) + event["dur"]
    whole = sum(spent.values())
    return {kind: round(each / whole, 3) for kind, each in sorted(spent.items(), key=lambda item: -item[1])}


def main(task: dict) -> dict:
    with np.load(task["inputs"]) as arrays:
        inputs = {name: arrays[name] for name in (["x"] if task.get("matmul") else ["ids"])}
    if task.get("profile"):
        return shares(task["path"], inputs, task["seconds"])
    call = (litert if task["path"].endswith(".tflite") else onnx)(task["path"], inputs)
    for _ in range(WARMUP):
        answer = call()
    times, begin = [], time.perf_counter()
    while time.perf_counter() - begin < task["seconds"] or len(times) < WARMUP:
        before = time.perf_counter(), time.process_time()
        call()
        times.append((time.perf_counter() - before[0], time.process_time() - before[1]))
    wall, processor = (float(at) * 1e3 for at in np.median(times, axis=0))
    told = {"wall": wall, "processor": processor, "requests": len(times)}
    return told | ({} if task.get("matmul") else {"logits": np.asarray(answer).tolist()})


if __name__ == "__main__":
    asked, answer = map(pathlib.Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(asked.read_text()))))
