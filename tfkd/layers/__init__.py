"""Keras layers of a Transformer encoder. Written with `keras.ops` alone."""
