"""Run a Python script as the interpreter would: after a fork that has the packages, or as a program.

Runs inside the containment, beside code that is not trusted: it knows nothing and keeps nothing. As a
program it needs no other file of ours.

    python runner.py SCRIPT
"""

import atexit
import builtins
import os
import sys
import threading
import types
from collections.abc import Mapping
from typing import NoReturn


def run(path: str) -> NoReturn:
    """Run the script as `__main__` and end this process as Python would."""
    sys.argv = [path]
    sys.path[0] = ""
    main = types.ModuleType("__main__")
    main.__dict__.update(__file__=path, __builtins__=builtins)
    sys.modules["__main__"] = main
    try:
        with open(path, "rb") as file:
            code = compile(file.read(), path, "exec")
        exec(code, main.__dict__)
        status = 0
    except SystemExit as error:
        status = _exit_status(error.code)
    except BaseException as error:
        own = error.__traceback__
        theirs = own.tb_next if own else None  # without the frame of this function
        sys.excepthook(type(error), error.with_traceback(theirs), theirs)
        status = 130 if isinstance(error, KeyboardInterrupt) else 1
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    except SystemExit as error:
        status = _exit_status(error.code)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 120  # as Python's own exit has it
    os._exit(status & 0xFF)


def _exit_status(code: object) -> int:
    if code is None:
        return 0
    if isinstance(code, int):
        return code
    print(code, file=sys.stderr)
    return 1


def forked(environment: Mapping[str, str]) -> None:
    """Make a process that was forked from a running Python look like one that has just started."""
    os.environ.clear()
    os.environ.update(environment)
    # By line: what was printed before a run is ended at its limit must have left the process.
    sys.stdout = open(1, "w", 1, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = open(2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False)
    vars(sys).update(__stdout__=sys.stdout, __stderr__=sys.stderr)
    if tempfile := sys.modules.get("tempfile"):
        vars(tempfile).update(tempdir=None)  # looked up again, by TMPDIR
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed()  # else every fork draws the same numbers


if __name__ == "__main__":
    run(sys.argv[1])
