"""`tokenizer.json`: the student's tokenizer for Hugging Face's `tokenizers`, which Rust, Python, JavaScript and others read."""

import pathlib

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from tfkd.data.tokenizer import LONGEST_WORD, SPECIAL
from tfkd.run_dir import write_text

from .inference import Student
from .questions import Questions

FILE = "tokenizer.json"

ALLOWED = 0.01
"""Share of texts that may get other ids: some hundred code points are of a later Unicode than the student's tokenizer knows
(`tfkd.data.tokenizer`), and a text may hold one."""


def write(student: Student, path: pathlib.Path, special: bool = False) -> None:
    """Writes the file, with the student's longest input as the place to cut, and batches padded to their longest text.

    Arguments:
        special: `[SEP]` and the like written in a text become the special piece, as Hugging Face has it by default; without,
            they are brackets and letters, as they are to the student.
    """
    pieces = student.tokenizer.pieces
    model = models.WordPiece(
        {piece: index for index, piece in enumerate(pieces)},
        unk_token="[UNK]",
        continuing_subword_prefix="##",
        max_input_chars_per_word=LONGEST_WORD,
    )
    made = Tokenizer(model)
    made.normalizer = normalizers.BertNormalizer(lowercase=student.tokenizer.lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.decoder = decoders.WordPiece()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", student.tokenizer.cls_id), ("[SEP]", student.tokenizer.sep_id)],
    )
    if special:
        made.add_special_tokens([piece for piece in SPECIAL if piece in set(pieces)])
    made.enable_truncation(student.max_length)
    made.enable_padding(pad_id=student.tokenizer.pad_id)
    write_text(path, made.to_str(pretty=True) + "\n")


def check(path: pathlib.Path, questions: Questions) -> None:
    """Asks the file for the token ids of all questions.

    Raises:
        ValueError: they are not the student's; the file is deleted.
    """
    # Of a pair of very long texts `tokenizers` keeps every combination of what it cuts off: gigabytes, for 5,000 words each.
    enough = 40 * questions.max_length
    texts, pairs = [[text.decode(errors="ignore")[:enough] for text in side or ()] for side in (questions.texts, questions.pairs)]
    expected = questions.features(questions.max_length)
    loaded = Tokenizer.from_file(str(path))
    loaded.enable_padding(pad_id=questions.student.tokenizer.pad_id, length=questions.max_length)
    encodings = loaded.encode_batch(list(zip(texts, pairs, strict=True)) if pairs else texts)
    got = {
        "token_ids": [encoding.ids for encoding in encodings],
        "padding_mask": [encoding.attention_mask for encoding in encodings],
        "segment_ids": [encoding.type_ids for encoding in encodings],
    }
    other = np.any([(np.asarray(got[name]) != values).any(axis=1) for name, values in expected.items()], axis=0)
    if other.mean() > ALLOWED:
        path.unlink()
        raise ValueError(f"{FILE} gives other token ids than the student's for {other.sum()} of {len(other)} texts")
