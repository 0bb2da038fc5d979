"""A page in headless Chromium: what a person does there, and what the page asks the network for.

Chromium is told what to do over two pipes (its DevTools protocol, JSON messages that end in a zero byte), so nothing is installed
for it.
"""

import contextlib
import json
import os
import pathlib
import shutil
import subprocess
import time
from collections.abc import Iterator

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-sync"]
FLAGS += ["--disable-component-update", "--disable-dev-shm-usage", "--remote-debugging-pipe", "--window-size=900,800"]


class Page:
    """One page of a running Chromium.

    Attributes:
        requests: addresses that the page asked for, in order.
    """

    def __init__(self, write, read):
        self.write, self.read, self.number, self.session = write, read, 0, None
        self.requests = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.do("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Page", "Network", "Runtime"):
            self.do(f"{part}.enable")

    def do(self, method: str, **parameters) -> dict:
        """Sends a command and waits for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.write.write(json.dumps(message).encode() + b"\0")
        self.write.flush()
        while True:
            answer = json.loads(self._message())
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            if answer.get("id") == self.number:
                assert "error" not in answer, answer
                return answer["result"]

    def ask(self, expression: str):
        """What a JavaScript expression, or its promise, comes to."""
        said = self.do("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    def wait(self, expression: str, seconds: float = 90.0):
        """The first value of an expression that is true."""
        end = time.monotonic() + seconds
        while not (value := self.ask(expression)):
            assert time.monotonic() < end, f"{expression} did not come true; the page: {self.ask('document.body.innerText')}"
            time.sleep(0.05)
        return value

    def type(self, text: str) -> None:
        """Presses a key for each character, into what has the focus."""
        for character in text:
            self.do("Input.dispatchKeyEvent", type="char", text=character)

    def _message(self) -> bytes:
        message = bytearray()
        while (byte := self.read.read(1)) != b"\0":
            assert byte, "Chromium has ended"
            message += byte
        return bytes(message)


@contextlib.contextmanager
def page(url: str, folder: pathlib.Path) -> Iterator[Page]:
    """Opens an address in a Chromium of its own, which ends with the block.

    Arguments:
        folder: for its profile.
    """
    to_chromium, write = os.pipe()
    read, from_chromium = os.pipe()
    shell = f'exec "$0" "$@" 3<&{to_chromium} 4>&{from_chromium}'  # it reads commands from 3 and answers on 4
    command = ["sh", "-c", shell, PROGRAM, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    if max(to_chromium, from_chromium) > 9:
        command[0] = "bash"  # a plain shell knows descriptors of one digit alone
    started = subprocess.Popen(command, pass_fds=(to_chromium, from_chromium), stderr=subprocess.DEVNULL)
    os.close(to_chromium)
    os.close(from_chromium)
    try:
        with open(write, "wb") as to, open(read, "rb") as back:
            opened = Page(to, back)
            opened.do("Page.navigate", url=url)
            yield opened
    finally:
        started.terminate()
        started.wait(20)
