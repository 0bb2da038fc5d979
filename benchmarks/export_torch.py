"""Writes the PyTorch exports of `benchmarks/export.py`: TASK and ANSWER are JSON.

The Python that runs it has torch, transformers, onnxscript and onnxruntime. `torch.onnx.export` from the Hugging Face folder, by
its present exporter and by the one over TorchScript before it, batch and length free, inputs `input_ids` and `attention_mask`;
and what ONNX Runtime's transformer optimizer makes of each.
"""

import json
import pathlib
import sys
import time

import torch
import transformers


class Logits(torch.nn.Module):
    """A classifier whose answer is a tensor, not a dict."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, input_ids, attention_mask):
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def optimize(path: pathlib.Path, shape: dict) -> tuple[str, dict[str, int]]:
    """Name of the optimized file, and how many of which operators were fused."""
    from onnxruntime.transformers import optimizer

    model = optimizer.optimize_model(str(path), "bert", shape["heads"], shape["width"])
    to = path.with_suffix(".optimized.onnx")
    model.save_model_to_file(str(to))
    return to.name, {kind: count for kind, count in model.get_fused_operator_statistics().items() if count}


def main(task: dict) -> dict:
    folder, length, seconds, fused = pathlib.Path(task["folder"]), task["shape"]["length"], {}, {}
    names, sizes, reasons = ["input_ids", "attention_mask"], {0: "batch", 1: "length"}, {}
    for file, attention, options in (
        ("torch.onnx", "sdpa", {"dynamo": True, "external_data": False, "dynamic_shapes": dict.fromkeys(names, sizes)}),
        ("torchscript.onnx", "eager", {"dynamo": False, "dynamic_axes": dict.fromkeys(names, sizes)}),
    ):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            folder / "huggingface", attn_implementation=attention
        )
        example = tuple(torch.ones((2, length), dtype=torch.int64) for _ in names)
        begin, processors = time.perf_counter(), time.process_time()
        try:
            torch.onnx.export(
                Logits(model).eval(), example, str(folder / file), input_names=names, output_names=["logits"], **options
            )
        except Exception as error:  # an exporter may not know this model
            reasons[file] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        seconds[file] = {"wall": time.perf_counter() - begin, "processors": time.process_time() - processors}
        name, fused[file] = optimize(folder / file, task["shape"])
        seconds[name] = {"wall": time.perf_counter() - begin, "processors": time.process_time() - processors}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    return {"seconds": seconds, "reasons": reasons, "versions": versions, "fused": fused}


if __name__ == "__main__":
    asked, answer = map(pathlib.Path, sys.argv[1:])
    answer.write_text(json.dumps(main(json.loads(asked.read_text()))))
