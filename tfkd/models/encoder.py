"""A Transformer encoder over text."""

import keras
from keras import ops

from tfkd.layers.attention import MASKED_SCORE
from tfkd.layers.block import TransformerBlock
from tfkd.layers.embedding import TokenEmbedding
from tfkd.layers.packed_texts import PackedTexts

ATTENTION_NAMES = ("attention", "query", "key", "value")
PACKING = ("packing", "packing_starts")
"""Inputs that say in which rows the layers find the texts; a model that does not know them reads the texts row by row."""


@keras.saving.register_keras_serializable(package="tfkd")
class TransformerEncoder(keras.Model):
    """BERT's encoder (Devlin et al. 2018) and its relatives.

    Called, it answers with the last hidden states. `inner` answers with any tensor inside by name:

        embeddings               (B, T, D)     after the embedding layer
        hidden.0, hidden.1 ...   (B, T, D)     after block 0, 1 ...
        attention.0 ...          (B, H, T, T)  masked scores before softmax
        query.0, key.0, value.0  (B, H, T, d)

    Arguments:
        vocabulary_size: V.
        layers, width, heads, feed_forward: size; `feed_forward` defaults to 4 x width.
        max_positions: longest text in tokens.
        segments: number of segment ids; 0 for none.
        activation: `gelu`, `gelu_tanh` or `relu`.
        norm: `post` or `pre`; a pre-norm encoder normalizes once more at its end.
        position: `learned` or `sinusoidal`.
        dropout, attention_dropout, embedding_dropout: shares dropped in training; the last two default to the first.
        token_dropout: share of whole token vectors dropped in training.
        epsilon: of every layer normalization.
        masked_score, initializer_range: as in `MultiHeadSelfAttention`.

    Attributes:
        checkpoint_gradients: in training, keeps of each block what goes into it alone, and computes the rest again for the
            gradients (Chen et al. 2016, arXiv:1604.06174): less memory for long texts, a third more work. It is of a training,
            not of the model, and is not saved.
    """

    # ---------------------------------------------------------------- layers

    def __init__(
        self,
        vocabulary_size: int,
        layers: int,
        width: int,
        heads: int,
        feed_forward: int | None = None,
        max_positions: int = 512,
        segments: int = 2,
        activation: str = "gelu",
        norm: str = "post",
        position: str = "learned",
        dropout: float = 0.1,
        attention_dropout: float | None = None,
        embedding_dropout: float | None = None,
        token_dropout: float = 0.0,
        epsilon: float = 1e-12,
        masked_score: float = MASKED_SCORE,
        initializer_range: float = 0.02,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.config = {
            "vocabulary_size": vocabulary_size,
            "layers": layers,
            "width": width,
            "heads": heads,
            "feed_forward": feed_forward or 4 * width,
            "max_positions": max_positions,
            "segments": segments,
            "activation": activation,
            "norm": norm,
            "position": position,
            "dropout": dropout,
            "attention_dropout": dropout if attention_dropout is None else attention_dropout,
            "embedding_dropout": dropout if embedding_dropout is None else embedding_dropout,
            "token_dropout": token_dropout,
            "epsilon": epsilon,
            "masked_score": masked_score,
            "initializer_range": initializer_range,
        }
        policy = self.dtype_policy
        self.embedding = TokenEmbedding(
            vocabulary_size,
            width,
            max_positions,
            segments,
            position,
            normalize=norm == "post",
            epsilon=epsilon,
            dropout=self.config["embedding_dropout"],
            token_dropout=token_dropout,
            initializer_range=initializer_range,
            dtype=policy,
            name="embedding",
        )
        block = {key: self.config[key] for key in ("width", "heads", "feed_forward", "activation", "norm", "dropout")}
        block |= {key: self.config[key] for key in ("attention_dropout", "epsilon", "masked_score", "initializer_range")}
        self.blocks = [TransformerBlock(**block, dtype=policy, name=f"block_{i}") for i in range(layers)]
        self.final_norm = (
            keras.layers.LayerNormalization(epsilon=epsilon, dtype=policy, name="final_norm") if norm == "pre" else None
        )
        self.checkpoint_gradients = False
        self.build()

    def build(self, input_shape=None):
        """Creates every variable at once: sizes are known, and they must be made inside a strategy's scope."""
        if self.built:
            return
        self.embedding.build()
        for block in self.blocks:
            block.build()
        if self.final_norm is not None:
            self.final_norm.build((None, None, self.config["width"]))
        self.built = True

    # ---------------------------------------------------------------- graph

    def call(self, inputs, training=None):
        """A dict of `token_ids`, `padding_mask` and, for pairs, `segment_ids`, each (B, T) int -> (B, T, D).

        With `packing` and `packing_starts` (see `tfkd.data.packed_batches`) the layers compute the texts in the rows that they
        share there; what comes out is the same, and 0 at padding.
        """
        return self.encode(inputs, training=training)[0]

    def inner(self, inputs, names, training=None):
        """The tensors called `names` (see the class), as a flat dict, and nothing else."""
        self.check(names)
        depth = max([int(name.partition(".")[2]) + 1 for name in names if "." in name], default=0)
        inner = self.encode(inputs, names, training=training, depth=depth)[1]
        return {name: inner[name] for name in names}

    def encode(self, inputs, names=(), training=None, first_only=False, depth=None):
        """The last hidden states and the inner tensors called `names`.

        Arguments:
            first_only: the caller reads position 0 of the last hidden states alone. Unless a name needs the others, the
                last block then computes only it, and the states are (B, 1, D).
            depth: how many blocks to go through; default: all.
        """
        texts, mask, ids, segments, positions = None, inputs["padding_mask"], inputs["token_ids"], inputs.get("segment_ids"), None
        if "packing" in inputs:
            refused = [name for name in names if name.partition(".")[0] in ATTENTION_NAMES]
            if refused:
                raise ValueError(f"{refused[0]}: what is between positions cannot be had of packed texts")
            texts = PackedTexts(inputs["packing"], inputs["packing_starts"], mask)
            mask, ids, positions = texts.together, texts.pack(ids), texts.positions
            segments = None if segments is None else texts.pack(segments)
        hidden = self.embedding(ids, segments, training=training, positions=positions)
        inner = {"embeddings": hidden}
        last, firsts = len(self.blocks) - 1, None
        whole = {f"hidden.{last}", f"attention.{last}", f"query.{last}"}
        for index, block in enumerate(self.blocks[:depth]):
            wanted = tuple(name for name in ATTENTION_NAMES if f"{name}.{index}" in names)
            shortcut = first_only and index == last and not whole.intersection(names)
            if shortcut and texts is not None:  # all rows as one, which the texts' first positions look into
                hidden, mask, firsts = ops.reshape(hidden, (1, -1, self.config["width"])), texts.of_texts, texts.starts
            if training and self.checkpoint_gradients:
                hidden, found = recomputed(block, hidden, mask, shortcut, wanted, firsts)
            else:
                hidden, found = block(hidden, mask, training=training, first_only=shortcut, names=wanted, firsts=firsts)
            if firsts is not None:
                hidden = ops.transpose(hidden, (1, 0, 2))
            inner |= {f"{name}.{index}": tensor for name, tensor in found.items()}
            inner[f"hidden.{index}"] = hidden
        if self.final_norm is not None:
            hidden = self.final_norm(hidden)
        if texts is not None:
            hidden = hidden if firsts is not None else texts.unpack(hidden)
            inner = {name: texts.unpack(tensor) for name, tensor in inner.items() if name in names}
        return hidden, inner

    def check(self, names) -> None:
        """Raises `ValueError` for a name this encoder does not have."""
        count = len(self.blocks)
        known = {"embeddings"} | {f"{n}.{i}" for n in ("hidden", *ATTENTION_NAMES) for i in range(count)}
        for name in names:
            if name not in known:
                raise ValueError(
                    f"no inner tensor {name!r}: an encoder of {count} layers has embeddings, and hidden, attention, query, "
                    f"key and value .0 to .{count - 1}"
                )

    # ---------------------------------------------------------------- config

    def get_config(self):
        return {**super().get_config(), **self.config}


def recomputed(block: TransformerBlock, hidden, mask, first_only: bool, names, firsts=None):
    """What a block answers in training, with nothing of its inside kept for the gradients: they compute it again.

    The second pass must drop out what the first one did: both begin with the random states as they were, and those go on once.
    """
    states = block.non_trainable_variables
    before, after = [ops.copy(state.value) for state in states], []

    def forward(hidden):
        with keras.StatelessScope(state_mapping=list(zip(states, before, strict=True))) as scope:
            hidden, inner = block(hidden, mask, training=True, first_only=first_only, names=names, firsts=firsts)
        if not after:
            after.extend(scope.get_current_value(state) for state in states)
        return hidden, *inner.values()

    hidden, *inner = keras.remat(forward)(hidden)
    for state, value in zip(states, after, strict=True):
        state.assign(value)
    return hidden, dict(zip(names, inner, strict=True))
