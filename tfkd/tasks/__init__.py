"""What differs between tasks: head, supervised loss, metrics, columns, decoding. One file, one task; this table is the list."""

from tfkd.tasks.classification import Classification

TASKS = {"classification": Classification}
