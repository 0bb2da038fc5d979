"""One item of `benchmarks/training.py` in a process of its own: PyTorch, eager, over `transformers` models.

It knows nothing of tfkd, and speaks as `training_process.py` does.
"""

import json
import pathlib
import re
import sys
import time

import numpy as np
import torch
import torch.nn.functional as F
import transformers


def peak() -> int:
    return int(re.search(r"^VmHWM:\s*(\d+) kB", pathlib.Path("/proc/self/status").read_text(), re.MULTILINE)[1]) * 1024


def build(shape: dict, about: dict, inner: bool):
    config = transformers.BertConfig(
        vocab_size=about["vocabulary"],
        hidden_size=shape["width"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        intermediate_size=shape["feed_forward"],
        num_labels=about["classes"],
        attn_implementation="eager" if inner else "sdpa",  # the fast one does not show its attention
    )
    return transformers.BertForSequenceClassification(config)


def main() -> None:
    about = json.loads(sys.argv[1])
    item, base = about["item"], peak()
    torch.manual_seed(0)
    with np.load(about["batches"]) as file:
        batches = [
            {n: torch.from_numpy(file[f"{n}_{i}"]).long() for n in ("token_ids", "padding_mask", "labels")}
            for i in range(sum(name.startswith("labels_") for name in file.files))
        ]
    inner = item == "torch-inner"
    teacher = None if item == "torch-student" else build(about["teacher"], about, inner).eval()
    student = None if item == "torch-teacher" else build(about["student"], about, inner).train()
    project = torch.nn.Linear(about["student"]["width"], about["teacher"]["width"], bias=False)
    count, parameters = about["student"]["layers"], list(project.parameters()) if inner else []
    layers = [round(i * (about["teacher"]["layers"] - 1) / (count - 1)) for i in range(count)]
    parameters += list(student.parameters()) if student else []
    optimizer = torch.optim.AdamW(parameters, 5e-5, weight_decay=0.01) if student else None

    def loss_of(batch):
        asked = {"input_ids": batch["token_ids"], "attention_mask": batch["padding_mask"]}
        asked |= {"output_hidden_states": inner, "output_attentions": inner}
        if teacher is not None:
            with torch.no_grad():
                taught = teacher(**asked)
        if student is None:
            return taught.logits.sum()
        learned = student(**asked)
        loss = F.cross_entropy(learned.logits, batch["labels"])
        if teacher is None:
            return loss
        soft = [F.log_softmax(answer.logits / 4.0, -1) for answer in (learned, taught)]
        kl = 16.0 * F.kl_div(soft[0], soft[1], log_target=True, reduction="batchmean")
        for mine, theirs in enumerate(layers if inner else []):
            kl = kl + F.mse_loss(project(learned.hidden_states[mine + 1]), taught.hidden_states[theirs + 1]) / count
            p, q = taught.attentions[theirs], learned.attentions[mine]
            kl = kl + (p * ((p + 1e-9).log() - (q + 1e-9).log())).sum(-1).mean() / count
        return 0.5 * loss + 0.5 * kl

    def one_round():
        times = []
        for batch in batches:
            begin = time.perf_counter()
            loss = loss_of(batch)
            if student is not None:
                loss.backward()
                torch.nn.utils.clip_grad_norm_(parameters, 1.0)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            loss.item()
            times.append(1e3 * (time.perf_counter() - begin))
        return times

    begin = time.perf_counter()
    one_round()
    print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)
    for _ in sys.stdin:
        used = time.process_time()
        print(json.dumps({"milliseconds": one_round(), "processor": 1e3 * (time.process_time() - used)}), flush=True)
    print(json.dumps({"peak_bytes": peak(), "base_bytes": base}), flush=True)


if __name__ == "__main__":
    main()
