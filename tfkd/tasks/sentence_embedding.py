"""Vectors of sentences whose cosines say how alike they are, learned from a teacher's vectors without labels."""

from tfkd.layers.embedding_head import EmbeddingHead
from tfkd.tasks.no_labels import NoLabels
from tfkd.tasks.task import Task


class SentenceEmbedding(Task):
    """The teacher's own vectors are the target (Reimers and Gurevych 2020, arXiv:2004.09813, equation 1): their squared error.

    Measured by Spearman's rank correlation of the cosines with people's judgements, as STS benchmarks are.
    """

    name = "sentence_embedding"
    target = "sentences"
    metric, monitor = "spearman", None
    mixture = {"activation": "linear"}
    response = "logits_mse"
    learns_from_labels = False

    def outputs(self, labels):
        return None

    def head(self, outputs, pooling="mean", dropout=0.1):
        return EmbeddingHead(outputs, pooling, name="head")

    def loss(self, label_smoothing=0.0):
        self.refuse_smoothing(label_smoothing)
        return NoLabels()

    def training_metrics(self):
        return []
