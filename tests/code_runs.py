"""Runs and files of code, made without a sandbox: what tests of pages and of the store look at."""

import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftloop.runs.job import Attempt, OutputFile, Refused, Script, Step
from draftloop.runs.run import InputFile, Run, run_key

SALES = InputFile("销售.csv", "2026/销售.csv", 1234, "a" * 64)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def png(width: int = 4, height: int = 3, *, idat: bytes | None = None) -> bytes:
    """A PNG of one grey; `idat` instead of its packed pixels."""

    def chunk(kind: bytes, part: bytes) -> bytes:
        return struct.pack(">I", len(part)) + kind + part + struct.pack(">I", zlib.crc32(kind + part))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = zlib.compress((b"\0" + b"\x80" * width) * height) if idat is None else idat
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def output(path: str, content: bytes) -> OutputFile:
    return OutputFile(path, len(content), sha256(content))


def write(folder: Path, contents: Mapping[str, bytes]) -> tuple[OutputFile, ...]:
    """Leave files in a folder, as the sandbox does."""
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return tuple(output(path, content) for path, content in sorted(contents.items()))


def attempt(
    code: str = "print(1)\n", stdout: str = "1\n", stderr: str = "", exit_status: int = 0, **more: Any
) -> Attempt:
    step = Step(Script(code), exit_status, stdout, stderr, 1.25)
    outcome, reason = ("ok", "") if exit_status == 0 else ("failed", f"It ended with status {exit_status}.")
    fields = {"outcome": outcome, "reason": reason, "steps": (step,), "wall_s": 1.25, "cpu_s": 0.9, **more}
    return Attempt(**{"peak_memory_bytes": 50 << 20, **fields})


def run(*attempts: Attempt, instruction: str = "按月汇总销售额。", **more: Any) -> Run:
    tried: Sequence[Attempt] = attempts or (attempt(),)
    key = run_key([tried[-1].steps[-1].script], [SALES])
    fields = {"key": key, "instruction": instruction, "inputs": (SALES,), "attempts": tuple(tried)}
    return Run(
        **{"origin": "draft", "at": "2026-01-02T03:04:05Z", "version": "m-0123456789", **fields, **more}
    )


def refused(path: str, reason: str = "a link") -> Refused:
    return Refused(path, reason)
