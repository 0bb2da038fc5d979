"""Asks a TF Serving model: `python -m serving.client TEXT...`, and the class for programs.

Over gRPC it needs tensorflow-serving-api, but never imports TensorFlow itself; over REST the standard library is enough.
"""

import argparse
import dataclasses
import pathlib
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from . import client_screen
from .errors import DeadlineExceeded, ServingError, Unavailable, UserError

BATCH = 32
"""Texts in one request: `max_batch_size` of batching.config."""

BYTES = 2_000_000
"""Bytes of text in one request. A server takes 4 MB of gRPC message unless told otherwise; one longer text goes alone."""

PORTS = {"grpc": 8500, "rest": 8501}
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0
"""Seconds before the second try, and before the last ones."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model says of one text.

    Arguments:
        label: the class with the highest score.
        scores: probabilities of the C classes, in the order of the run's `labels.txt`.
        truncated: whether the text was longer than the model reads.
    """

    label: str
    scores: tuple[float, ...]
    truncated: bool


class Client:
    """Asks one model of one TF Serving server; usable by several threads, and as a context manager.

        with Client("quickstart") as client:
            for answer in client.classify(["a text", "another"]):
                print(answer.label, max(answer.scores))

    Arguments:
        name: the model, as in `models.config`.
        host, port: where the server is; default port: 8500 for gRPC, 8501 for REST.
        rest: speaks REST instead of gRPC.
        version: asks this version; default: the newest that is loaded.
        deadline: seconds that one request may take, all its tries and pauses included. A long list is several requests.
        tries: how often a request is sent while the server is unavailable. The pauses between double, from 0.1 s to 2 s, and
            are shortened by chance, down to half, lest all clients of a server that was away come back at one moment.

    Raises:
        UserError: gRPC is asked for and tensorflow-serving-api is not installed.
    """

    def __init__(
        self,
        name: str,
        host: str = "127.0.0.1",
        port: int | None = None,
        *,
        rest: bool = False,
        version: int | None = None,
        deadline: float = 10.0,
        tries: int = 5,
    ):
        try:
            if rest:
                from .over_rest import Rest as Transport
            else:
                from .over_grpc import Grpc as Transport
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed: pip install tfkd[serving], or speak REST") from None
        self.name, self.deadline, self.tries = name, deadline, tries
        host = f"[{host}]" if ":" in host else host  # IPv6
        self._server = Transport(f"{host}:{port or PORTS['rest' if rest else 'grpc']}", name, version)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._server.close()

    def classify(self, texts: Sequence[str | bytes], pairs: Sequence[str | bytes] | None = None) -> list[Answer]:
        """Texts, with their second texts where the model reads pairs -> an answer for each, in order; as `ask` does.

        Raises:
            ServingError: the model is no classifier.
        """
        rows = self.ask(texts, pairs)
        if rows and not {"label", "scores", "truncated"} <= rows[0].keys():
            raise ServingError(f"{self.name} is no classifier of texts: it answers with {', '.join(rows[0])}")
        return [Answer(row["label"], tuple(row["scores"]), row["truncated"]) for row in rows]

    def ask(self, texts: Sequence[str | bytes], pairs: Sequence[str | bytes] | None = None) -> list[dict]:
        """Texts, with their second texts where the model reads pairs -> for each what the model answers, by name.

        Sent in requests of at most 32 texts; none at all for an empty list.

        Raises:
            ValueError: `pairs` has another length than `texts`.
            DeadlineExceeded, Unavailable, NotFound, ServingError: as the server says.
        """
        if isinstance(texts, str | bytes) or isinstance(pairs, str | bytes):
            raise ValueError("texts and pairs are lists of texts, not one text")
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(f"{len(texts)} texts and {len(pairs)} second texts: one belongs to each")
        answers = []
        for rows in batches(texts, pairs):
            outputs = self.predict({"text": texts[rows]} | ({} if pairs is None else {"text_pair": pairs[rows]}))
            if any(not isinstance(column, list) or len(column) != rows.stop - rows.start for column in outputs.values()):
                raise ServingError(f"{self.name} does not answer each text, with {', '.join(outputs)}")
            columns = (_readable(column) for column in outputs.values())
            answers += [dict(zip(outputs, row, strict=True)) for row in zip(*columns, strict=True)]
        return answers

    def predict(self, inputs: dict[str, Sequence], signature: str = "serving_default") -> dict[str, list]:
        """One request to any signature: columns of inputs by name -> columns of outputs by name.

        Arguments:
            inputs: columns of strings, bytes or whole numbers, or of rows of whole numbers of one length.
        """
        columns = {name: list(values) for name, values in inputs.items()}
        return self._try(lambda seconds: self._server.predict(signature, columns, seconds))

    def health(self) -> dict[int, str]:
        """State of every version that the server knows of: `AVAILABLE` answers, `END` was unloaded."""
        return self._try(self._server.status)

    def metadata(self) -> dict[str, dict[str, dict[str, str]]]:
        """Inputs and outputs of every signature: `{"serving_default": {"inputs": {"text": "string (?)"}, "outputs": ...}}`."""
        found = self._try(self._server.signatures)
        return {
            name: {
                side: {key: _spelled(info) for key, info in sorted(definition.get(side, {}).items())}
                for side in ("inputs", "outputs")
            }
            for name, definition in sorted(found.items())
            if definition.get("inputs")
        }

    def _try(self, call: Callable[[float], object]):
        """Calls with the seconds that are left, until there is an answer, an error that stays, or no time or try left."""
        end = time.monotonic() + self.deadline
        for attempt in range(1, self.tries + 1):
            left = end - time.monotonic()
            try:
                return call(max(left, 0.001))
            except Unavailable as error:
                pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (attempt - 1)) * random.uniform(0.5, 1.0)
                if attempt == self.tries or time.monotonic() + pause >= end:
                    tries = "1 try" if attempt == 1 else f"{attempt} tries"
                    raise Unavailable(f"{error} (after {tries})") from None
                time.sleep(pause)
            except DeadlineExceeded as error:
                raise DeadlineExceeded(f"no answer within {self.deadline:g} s ({error})") from None


def batches(texts: Sequence, pairs: Sequence | None = None) -> Iterator[slice]:
    """Splits texts, in order, so that no request has more than `BATCH` of them, or more than `BYTES` in several."""
    start = size = 0
    for row, text in enumerate(texts):
        more = 4 * (len(text) + (len(pairs[row]) if pairs is not None else 0))  # a character has 4 bytes at most
        if row > start and (row - start == BATCH or size + more > BYTES):
            yield slice(start, row)
            start, size = row, 0
        size += more
    if len(texts) > start:
        yield slice(start, len(texts))


def _readable(values: list) -> list:
    """The same nested lists with text in place of bytes, which gRPC gives."""
    if values and isinstance(values[0], list):
        return [_readable(value) for value in values]
    return [value.decode("utf-8", "replace") if isinstance(value, bytes) else value for value in values]


def _spelled(info: dict) -> str:
    sizes = [int(dimension.get("size", 0)) for dimension in info.get("tensor_shape", {}).get("dim", ())]
    shape = ", ".join("?" if size < 0 else str(size) for size in sizes)
    return f"{info['dtype'].removeprefix('DT_').lower()} ({shape})"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.client",
        description="Asks a model on a TF Serving server about texts: their classes, or whatever else it was trained to answer.",
        epilog="exit codes: 0 answered, 1 the server did not, 2 a mistake in what was given",
    )
    parser.add_argument("texts", metavar="TEXT", nargs="*", help="a text; a single - reads one a line from standard input")
    parser.add_argument("--pair", metavar="TEXT", action="append", help="second text, one for each TEXT, of models that read two")
    parser.add_argument("--name", help="the model; default: the only one of models/models.config")
    parser.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1")
    parser.add_argument("--port", type=_port, help="default: 8500, with --rest 8501")
    parser.add_argument("--rest", action="store_true", help="speaks REST instead of gRPC")
    parser.add_argument("--deadline", metavar="SECONDS", type=_seconds, default=10.0, help="for one request, tries included")
    parser.add_argument("--json", action="store_true", help="prints a JSON object a text, all scores in it")
    parser.add_argument("--status", action="store_true", help="prints the model's versions and signatures, asks no text")
    options = parser.parse_args(arguments)
    if options.status == bool(options.texts):
        parser.error("give a TEXT, or --status" if not options.texts else "--status takes no TEXT")
    return options


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text}: must be a port, from 1 to 65535")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"{text}: must be seconds above 0")
    return seconds


def main(arguments: list[str] | None = None) -> int:
    """Asks, prints, and returns the exit code."""
    options = parse(arguments)
    try:
        name = options.name or _only_model()
        where = {"host": options.host, "port": options.port, "rest": options.rest, "deadline": options.deadline}
        with Client(name, **where) as client:
            if options.status:
                client_screen.print_status(name, client.health(), client.metadata(), options.json)
            else:
                texts = [line.rstrip(b"\r\n") for line in sys.stdin.buffer] if options.texts == ["-"] else options.texts
                texts, pairs = _printable(texts), options.pair and _printable(options.pair)
                if pairs is not None and len(pairs) != len(texts):
                    raise UserError(f"--pair: given {len(pairs)} times for {len(texts)} texts; one belongs to each")
                client_screen.print_answers(texts, pairs, client.ask(texts, pairs), options.json)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ServingError as error:
        hint = "; is a server running there (docker compose up)? --host and --port name another"
        print(f"error: {error}{hint if isinstance(error, Unavailable) else ''}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _printable(texts: list[str | bytes]) -> list[str]:
    """Texts that can be printed: bytes that are not UTF-8 become U+FFFD, which models drop as they drop the bytes."""
    whole = (text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape") for text in texts)
    return [text.decode("utf-8", "replace") for text in whole]


def _only_model() -> str:
    try:
        from .base import ModelBase
    except ModuleNotFoundError as error:
        raise UserError(f"give --name: {error.name}, which reads models/models.config, is not installed") from None
    names = list(ModelBase(pathlib.Path("models")).served())
    if len(names) == 1:
        return names[0]
    raise UserError(f"--name is missing: models/models.config has {', '.join(names) or 'no model'}")


if __name__ == "__main__":
    sys.exit(main())
