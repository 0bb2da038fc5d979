"""The program `python -m export RUN`."""

import argparse
import os
import sys
import typing

from tfkd import config as configuration
from tfkd.errors import UserError
from tfkd.run_dir import RunDir

FORMATS = typing.get_args(typing.get_args(configuration.Export.model_fields["formats"].annotation)[0])


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Writes the student of a finished run as SavedModel, TFLite and ONNX into RUN/export. Every file is loaded "
        "with its own runtime and compared with the Keras student; one that answers otherwise is deleted.",
        epilog="exit codes: 0 every file passed, 1 one did not, 2 a mistake in what was given",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a finished run, such as runs/NAME")
    parser.add_argument(
        "--format",
        dest="formats",
        nargs="+",
        choices=FORMATS,
        metavar="FORMAT",
        help=f"only these of {', '.join(FORMATS)}; default: export.formats of the run's configuration",
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Exports a run and returns the exit code."""
    options = parse(arguments)
    try:
        run = RunDir(options.run)
        run.require(run.config, run.student, run.vocabulary, run.labels, run.tokenizer, run.examples)
        settings = configuration.load(run.config).export
        entries = export(run, options.formats or settings.formats, settings.length, settings.examples)
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if all(entry["passed"] for entry in entries) else 1


def export(run: RunDir, formats: list[str], length: int | None, examples: int) -> list[dict]:
    """Makes and proves every file of `formats`, showing progress. Returns their manifest entries."""
    from .quiet import quiet
    from .screen import Screen

    run.exports.mkdir(exist_ok=True)
    log = run.exports / "log.txt"
    log.unlink(missing_ok=True)
    with Screen(log) as screen:
        with screen.working("loading the student"), quiet(log):
            from . import artifacts, inference, manifest, parity

            student = inference.load(run, length)
            questions = parity.load_questions(run, student, examples)
        written = manifest.Manifest(run, artifacts.FILES)
        screen.removed(written.removed)
        entries = []
        for format, variant in artifacts.FILES:
            if format in formats:
                with screen.working(f"{format} {variant}"):
                    entry = artifacts.make(student, questions, format, variant, run.exports, log)
                entries.append(written.add(entry))
                screen.done(entries[-1])
        written.write()
        screen.table(entries)
    return entries


if __name__ == "__main__":
    # Nothing here wants a GPU: its memory may be somebody else's, and files are proven where phones and servers run them.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    sys.exit(main())
