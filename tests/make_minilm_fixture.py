"""Writes what all-MiniLM-L6-v2 answers in its reference implementation (transformers, PyTorch). Not part of the package.

    python tests/make_minilm_fixture.py MODEL_FOLDER tests/data/minilm_hidden.npz           the stored fixture
    python tests/make_minilm_fixture.py MODEL_FOLDER /tmp/hidden.npz --whole                every number

Needs torch and transformers; run it in an environment without TensorFlow (the two abort in one process). The fixture
holds, for each of the 64 sentences of tests/data/sentences.txt and each of the 7 layers (embeddings first), 16 coordinates
at 4 positions, and the mean and the root mean square over all positions of the text, so that no coordinate goes unseen.
"""

import argparse
import pathlib

import numpy as np
import torch
import transformers

SENTENCES = pathlib.Path(__file__).parent / "data" / "sentences.txt"


def hidden_states(folder: str, sentences: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Token ids (N, T), -1 where padded, and hidden states (layers, N, T, D) in float32."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.BertModel.from_pretrained(folder, dtype=torch.float32).eval()
    batch = tokenizer(sentences, padding="longest", truncation=False, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch, output_hidden_states=True).hidden_states
    token_ids = torch.where(batch["attention_mask"] == 1, batch["input_ids"], -1)
    return token_ids.numpy().astype("int32"), torch.stack(hidden).numpy()


def sampled(token_ids: np.ndarray, hidden: np.ndarray) -> dict[str, np.ndarray]:
    """Coordinates and moments of the hidden states; positions are of the text, never of the padding."""
    draw = np.random.default_rng(0)
    lengths = (token_ids >= 0).sum(axis=1)
    positions = np.stack([[0, length - 1, *draw.integers(0, length, 2)] for length in lengths])  # (N, 4)
    coordinates = np.stack([draw.choice(hidden.shape[-1], 16, replace=False) for _ in lengths])  # (N, 16)
    rows = np.arange(len(lengths))[:, None, None]
    values = hidden[:, rows, positions[:, :, None], coordinates[:, None, :]]  # (layers, N, 4, 16)
    texts = [[layer[row, :length] for row, length in enumerate(lengths)] for layer in hidden]
    moments = [[(text.mean(), np.sqrt((text**2).mean())) for text in layer] for layer in texts]
    return {
        "token_ids": token_ids,
        "positions": positions.astype("int16"),
        "coordinates": coordinates.astype("int16"),
        "values": values,
        "moments": np.asarray(moments, "float32"),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_folder")
    parser.add_argument("output")
    parser.add_argument("--whole", action="store_true")
    arguments = parser.parse_args()
    ids, states = hidden_states(arguments.model_folder, SENTENCES.read_text(encoding="utf-8").splitlines())
    if arguments.whole:
        np.savez(arguments.output, token_ids=ids, hidden=states)
    else:
        np.savez_compressed(arguments.output, **sampled(ids, states))
