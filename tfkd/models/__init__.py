"""Models that name their inner tensors. To have imported this is all that Keras needs to read a `student.keras`."""

from tfkd.layers import embedding_head, head, language_model_head, token_head
from tfkd.models import encoder, quantized, with_head

__all__ = ["embedding_head", "encoder", "head", "language_model_head", "quantized", "token_head", "with_head"]
