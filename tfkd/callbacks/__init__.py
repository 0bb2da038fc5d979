"""What happens around steps and epochs. One callback, one file."""

from tfkd.callbacks.bad_steps_limit import BadStepsLimit
from tfkd.callbacks.checkpoint import Checkpoint
from tfkd.callbacks.metrics_log import MetricsLog, write_table
from tfkd.callbacks.progress_bar import ProgressBar

__all__ = ["BadStepsLimit", "Checkpoint", "MetricsLog", "ProgressBar", "write_table"]
