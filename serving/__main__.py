"""The program `python -m serving RUN`."""

import argparse
import pathlib
import sys

from .errors import UserError


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Deploys the SavedModel of a run into a model base for TF Serving: NAME/VERSION/ with warm-up requests, and "
        "the server's own files beside. Only a SavedModel that passed the export's checks is deployed, and its SHA-256 is "
        "compared once more. Several models live in one base; each is deployed, upgraded and rolled back by itself.",
        epilog="exit codes: 0 done, 2 a mistake in what was given",
    )
    parser.add_argument("run", metavar="RUN", type=pathlib.Path, help="folder of a run, such as runs/NAME")
    parser.add_argument("--base", metavar="DIR", type=pathlib.Path, default="models", help="the model base; default: models")
    parser.add_argument("--name", help="what the model is called on the server; default: the name of the run's folder")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument(
        "--keep",
        metavar="N",
        type=_positive,
        help="deletes all but the newest N versions, and the one served until now; default: deletes none",
    )
    choice.add_argument(
        "--rollback",
        action="store_true",
        help="serves the version before the served one again, and deploys nothing; RUN gives the name alone",
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: must be a whole number from 1")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Deploys or rolls back, and returns the exit code."""
    options = parse(arguments)
    name = options.name or options.run.resolve().name
    try:
        from . import artifact, base, screen

        models = base.ModelBase(options.base)
        if options.rollback:
            before, now = models.roll_back(name)
            done = f"{name} serves version {now} again, instead of version {before}"
        else:
            base.check(name)
            version, gone = models.deploy(name, artifact.find(options.run), options.keep)
            done = f"{name} serves version {version}, of {options.run}"
            done += f"; deleted: version {', '.join(map(str, gone))}" if gone else ""
        screen.show(models, name, done)
    except ModuleNotFoundError as error:
        print(f"error: {error.name} is not installed: pip install tfkd[serving]", file=sys.stderr)
        return 2
    except (UserError, OSError) as error:  # OSError: a folder that cannot be written, a full disk
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
