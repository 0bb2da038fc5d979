"""The last step of a run: `python -m export RUN`, as a process of its own."""

import importlib.util
import os
import signal
import subprocess
import sys

from tfkd import lock, stopping
from tfkd.config import Config
from tfkd.progress import Display
from tfkd.run_dir import RunDir


def export(run: RunDir, config: Config, display: Display) -> int:
    """Starts `python -m export RUN` as a process of its own: float32, no GPU memory held, its memory given back at its end.

    Returns:
        0 where every file passed or none was wanted, else 1.
    """
    if not config.export.formats:
        return 0
    try:
        found = importlib.util.find_spec("export.__main__")
    except ModuleNotFoundError:
        found = None
    if found is None:
        display.say("Not exported: there is no `export` here; run `python -m export` from a checkout of tfkd")
        return 0
    command = [sys.executable, "-m", "export", str(run.path), "--format", *config.export.formats]
    # The person's own stderr: this process's now goes to the log. With the run's lock, which it holds should this one be killed.
    streams = {"stderr": sys.stderr, "stdout": None if display.mode == "person" else subprocess.DEVNULL}
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    with subprocess.Popen(command, env=environment, pass_fds=lock.held(), **streams) as process:
        try:
            code = process.wait()
        except (KeyboardInterrupt, stopping.Stopped) as stop:
            if getattr(stop, "number", None) == signal.SIGTERM:
                process.send_signal(signal.SIGINT)
            process.wait()  # Ctrl-C reached it too: it tidies up what is half-written
            raise
    if code == 1:
        display.say(f"Export: at least one file did not pass; what passed is in {run.exports}")
    elif code:
        display.say(f"Export: it ended with code {code} before its files were proven; repeat it with: python -m export {run}")
    return min(abs(code), 1)
