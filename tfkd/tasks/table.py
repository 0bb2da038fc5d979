"""The whole list of tasks, by the name a configuration gives them.

Beside the package's `__init__` on purpose: metrics are read by programs that must not wait for Keras.
"""

from tfkd.tasks.classification import Classification
from tfkd.tasks.masked_language_model import MaskedLanguageModel
from tfkd.tasks.multilabel import Multilabel
from tfkd.tasks.question_answering import QuestionAnswering
from tfkd.tasks.regression import Regression
from tfkd.tasks.sentence_embedding import SentenceEmbedding
from tfkd.tasks.tagging import Tagging

ALL = (Classification, Regression, Multilabel, Tagging, QuestionAnswering, MaskedLanguageModel, SentenceEmbedding)
TASKS = {task.name: task for task in ALL}
