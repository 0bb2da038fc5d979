"""The whole list of tasks, by the name a configuration gives them.

Beside the package's `__init__` on purpose: metrics are read by programs that must not wait for Keras.
"""

from tfkd.tasks.classification import Classification

TASKS = {"classification": Classification}
