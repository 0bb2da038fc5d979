"""What measures each task, by the name of the task. No Keras here: reports and exports' checks need none."""

from tfkd.tasks.classification_metrics import ClassificationMeasure
from tfkd.tasks.masked_language_model_metrics import MaskedLanguageModelMeasure
from tfkd.tasks.multilabel_metrics import MultilabelMeasure
from tfkd.tasks.question_answering_metrics import QuestionAnsweringMeasure
from tfkd.tasks.regression_metrics import RegressionMeasure
from tfkd.tasks.sentence_embedding_metrics import SentenceEmbeddingMeasure
from tfkd.tasks.tagging_metrics import TaggingMeasure

MEASURES = {
    "classification": ClassificationMeasure,
    "regression": RegressionMeasure,
    "multilabel": MultilabelMeasure,
    "tagging": TaggingMeasure,
    "question_answering": QuestionAnsweringMeasure,
    "masked_language_model": MaskedLanguageModelMeasure,
    "sentence_embedding": SentenceEmbeddingMeasure,
}
