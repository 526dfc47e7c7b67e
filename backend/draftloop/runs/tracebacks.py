"""Tracebacks as pages, prompts and samples hold them: short, and the same on every machine.

Knows how Python and Node.js print a stack. Of its frames those of the script's own files stay, and the last
one of a library (the innermost); the paths of library files begin at their package. Does not know where a
sandbox keeps its packages: an absolute path is a library's, a relative one the script's.

Source:
    CPython 3.11 to 3.13, traceback.py; Node.js 20 and 22.
"""

import re

_START = re.compile(r"(?P<margin>[ |+]*?)(?:Exception Group )?Traceback \(most recent call last\):\s*")
_FILE = re.compile(r'  File "(?P<path>[^"\n]+)", line \d+(?P<name>, in .*)?')
_PACKAGES = re.compile(r"^(?:/.*)?/(?:(?:site|dist)-packages|lib(?:64)?/python3\.\d+)/(?=.)")
_COMPILED = (".pyx", ".pxd", ".pxi")  # Cython names its files relative to the package
_LIBRARY = ("/", "<frozen ", "<__array_function__")
_NODE_FRAME = re.compile(r"\s+at (?:.* \()?(?P<place>[^()\s]+:\d+:\d+)\)?(?P<rest> \{)?\s*")


def shorten(text: str) -> str:
    """Return what a program printed, its stack traces reduced to the script's frames and the last library's.

    A text that was shortened stays as it is. What is no stack trace is not changed.

    Args:
        text: What it printed, with paths in its own folder relative.
    """
    if "Traceback (most recent call last):" in text:
        text = _shorten_python(text)
    return _shorten_node(text) if "(node:" in text or "at node:" in text else text


def _shorten_python(text: str) -> str:
    lines = text.split("\n")
    kept: list[str] = []
    at = 0
    while at < len(lines):
        kept.append(lines[at])
        start = _START.fullmatch(lines[at])
        at += 1
        if start:
            margin = start["margin"].replace("+", "|")
            end = at
            while end < len(lines) and lines[end].startswith(f"{margin}  "):
                end += 1
            kept += _python_frames(lines[at:end], margin)
            at = end
    return "\n".join(kept)


def _python_frames(lines: list[str], margin: str) -> list[str]:
    """Choose among the lines between a traceback's first line and its exception."""
    frames: list[list[str]] = [[]]  # what stands before the first frame is kept
    libraries: list[int] = []
    for line in lines:
        file = _FILE.fullmatch(line[len(margin) :].rstrip())
        if file is None:
            frames[-1].append(line)
            continue
        path = file["path"]
        # Without a function it is the place of a SyntaxError, which is part of the exception.
        if file["name"] and (path.startswith(_LIBRARY) or path.endswith(_COMPILED)):
            libraries.append(len(frames))
        frames.append([line.replace(f'"{path}"', f'"{_PACKAGES.sub("", path)}"', 1)])
    dropped = set(libraries[:-1])
    return [line for number, frame in enumerate(frames) if number not in dropped for line in frame]


def _shorten_node(text: str) -> str:
    kept: list[str] = []
    stack: list[re.Match[str]] = []
    for line in text.split("\n"):
        frame = _NODE_FRAME.fullmatch(line)
        if frame:
            stack.append(frame)
            continue
        kept += _node_frames(stack)
        stack = []
        kept.append(line)
    return "\n".join([*kept, *_node_frames(stack)])


def _node_frames(stack: list[re.Match[str]]) -> list[str]:
    """Choose among the frames of one stack, the innermost first: how Node.js began is left out."""
    own = [
        not frame["place"].startswith("node:") and "/node_modules/" not in frame["place"] for frame in stack
    ]
    called = max((number for number, is_own in enumerate(own) if is_own), default=1)
    innermost = next((number for number, is_own in enumerate(own) if not is_own), len(own))
    kept = [number for number in range(len(own)) if own[number] or (number == innermost and number < called)]
    lines = [stack[number][0] for number in kept]
    opens = bool(stack) and bool(stack[-1]["rest"])  # the error's own fields follow
    return [*lines[:-1], f"{lines[-1]} {{"] if opens and lines and not lines[-1].endswith(" {") else lines
