"""The program `python -m export RUN`."""

import argparse
import os
import sys

from tfkd import config as configuration
from tfkd.errors import UserError, of_system
from tfkd.run_dir import RunDir

from . import demo
from . import formats as table


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
        choices=table.choices(),
        metavar="FORMAT",
        help=f"only these of {', '.join(table.FORMATS)}, or a variant as in tflite:int8; default: export.formats of the run's "
        f"configuration. Written only where named: {', '.join(sorted(table.ON_REQUEST))}",
    )
    parser.add_argument(
        "--demo",
        action="store_true",
        help="writes RUN/export/demo too, a static page that classifies what is typed into it, and the mediapipe files that it "
        f"is made of; without --format nothing else. npm fetches {demo.PACKAGE}",
    )
    parser.add_argument("--demo-package", metavar="PATH", help="a folder or tarball of that package, in place of npm")
    options = parser.parse_args(arguments)
    if options.demo_package and not options.demo:
        parser.error("--demo-package is of use with --demo alone")
    return options


def main(arguments: list[str] | None = None) -> int:
    """Exports a run and returns the exit code."""
    options = parse(arguments)
    try:
        run = RunDir(options.run)
        run.require(run.config, run.student, run.vocabulary, run.labels, run.tokenizer, run.examples)
        config = configuration.load(run.config)
        settings = config.export.model_dump(exclude_none=True)
        formats, library = options.formats or settings["formats"], None
        if options.demo:
            demo.check(run, config.task)
            formats, library = [*(options.formats or ()), "mediapipe"], demo.library(options.demo_package)
        entries = export(run, settings, config.task, formats, library)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {of_system(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0 if all(entry["passed"] for entry in entries) else 1


def export(run: RunDir, settings: dict, task: str, formats: list[str], library: dict[str, bytes] | None = None) -> list[dict]:
    """Makes and proves every file that `formats` ask for, showing progress. Returns their manifest entries.

    Arguments:
        settings: the section `export` of the run's configuration: `examples`, `tolerance`, and `lengths` where they are set.
        task: name of what the student was trained for.
        library: MediaPipe's files, where a demo is to be written.
    """
    from .quiet import quiet
    from .screen import Screen

    run.exports.mkdir(exist_ok=True)
    log = run.exports / "log.txt"
    log.unlink(missing_ok=True)
    with Screen(log) as screen:
        with screen.working("loading the student"), quiet(log):
            from . import artifacts, inference, manifest
            from .questions import load_questions

            student = inference.load(run, settings.get("lengths"), task)
            questions = load_questions(run, student, settings["examples"])
        written = manifest.Manifest(run, artifacts.FILES)
        screen.removed(written.removed)
        screen.left_out(questions.left_out)
        entries = []
        for format, variant in table.chosen(formats):
            with screen.working(f"{format} {variant}"):
                tolerance = settings.get("tolerance")
                entry = artifacts.make(student, questions, format, variant, run.exports, log, tolerance)
            entries.append(written.add(entry))
            screen.done(entries[-1])
        written.write()
        screen.table(entries)
        if library is not None:
            screen.demo(demo.write(run, entries, library))
    return entries


if __name__ == "__main__":
    # Nothing here wants a GPU: its memory may be somebody else's, and files are proven where phones and servers run them.
    os.environ |= {"CUDA_VISIBLE_DEVICES": "-1", "TF_CPP_MIN_LOG_LEVEL": "1"}
    sys.exit(main())
