"""What stopped a run that nobody made a mistake in, in one line: no disk, no permission, no memory."""

import errno

from tfkd.config import Config, Training

_NO_SPACE = "No space left on device"
_OUT_OF_MEMORY = ("ResourceExhaustedError", "MemoryError", "_ArrayMemoryError")


def explain(error: BaseException, config: Config, begun: bool = True) -> str | None:
    """The line, or None where it is none of these; `begun` where there is a run to go on with."""
    text, again = str(error), "go on with --resume" if begun else "begin again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE in text or "Disk quota" in text:
        where = getattr(error, "filename", None)
        return f"{f'{where}: ' if where else ''}no space left on the disk; make room, and {again}"
    if isinstance(error, PermissionError):
        return f"{error.filename}: no permission; give it, and {again}"
    if isinstance(error, OSError) and error.errno == errno.EROFS:
        return f"{error.filename}: the disk cannot be written to; choose another folder with --output, or set TFKD_CACHE to one"
    if type(error).__name__ in _OUT_OF_MEMORY or "OOM when allocating" in text or "out of memory" in text.lower():
        return f"out of memory; lower {_lower(config)}"
    return None


def _lower(config: Config) -> str:
    """What takes the memory, and what it is now."""
    sizes = {"train.batch_size": config.train.batch_size}
    if config.stages is not None:
        sizes = {f"train.batch_size of stage {stage.name}": stage.train.batch_size for stage in config.stages}
    members = {f"teacher.members.{number}": member for number, member in enumerate(config.teacher.members or [])}
    for place, teacher in {"teacher": config.teacher, **members}.items():
        for name in ("finetune", "train"):
            training = getattr(teacher, name)
            if isinstance(training, Training):
                sizes[f"{place}.{name}.batch_size"] = training.batch_size
    sizes["data.max_length"] = config.data.max_length
    found = ", ".join(f"{name} ({value})" for name, value in sizes.items())
    more = [] if config.strategy.precision != "float32" else ["strategy.precision: mixed_bfloat16"]
    more += [] if config.teacher.cache else ["teacher.cache: true"]
    return found + (f", or use {' and '.join(more)}" if more else "")
