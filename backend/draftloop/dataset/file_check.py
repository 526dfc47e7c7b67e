"""Check that the files of a program exist, are not empty, and have the format that their names claim.

Knows formats of files. A program opens them inside the sandbox, after the submitted ones and in the same
fresh folder: the sandbox has the libraries, and no untrusted file is opened in this process.
"""

import json
from collections.abc import Mapping, Sequence

from draftloop.runs.job import Attempt, Script

# Prints one JSON object: what is wrong, by file. It imports from the sandbox, never from the job's folder.
# Its text is part of the keys of stored runs: a change makes every sync run all programs again.
_CHECKER = """
import os, sys
sys.path = [part for part in sys.path if part not in ("", os.getcwd())]
import csv, json
csv.field_size_limit(2**31 - 1)
def encoding_of(path):
    for encoding in ("utf-8-sig", "gb18030"):
        try:
            with open(path, encoding=encoding) as stream:
                for line in stream:
                    pass
            return encoding
        except UnicodeDecodeError as error:
            wrong = error
    raise wrong
def opened(path):
    ending = path.rsplit(".", 1)[-1].lower()
    if ending in ("png", "jpg", "jpeg", "gif", "webp", "bmp"):
        from PIL import Image
        with Image.open(path) as image:
            image.load()
    elif ending == "pdf":
        from pypdf import PdfReader
        if not PdfReader(path).pages:
            raise ValueError("no page")
    elif ending in ("xlsx", "xlsm"):
        from openpyxl import load_workbook
        if not load_workbook(path, read_only=True).sheetnames:
            raise ValueError("no sheet")
    elif ending == "json":
        with open(path, encoding="utf-8") as stream:
            json.load(stream)
    elif ending == "jsonl":
        with open(path, encoding="utf-8") as stream:
            for line in stream:
                json.loads(line)
    elif ending == "csv":
        with open(path, encoding=encoding_of(path), newline="") as stream:
            for row in csv.reader(stream, strict=True):
                pass
    elif ending in ("txt", "md", "html", "svg"):
        encoding_of(path)
found = {}
for path in WANTED:
    try:
        if not os.path.isfile(path):
            found[path] = "is not there"
        elif not os.path.getsize(path):
            found[path] = "is empty"
        else:
            opened(path)
    except BaseException as error:
        found[path] = "does not open as what it claims to be: " + (str(error)[:120] or type(error).__name__)
print(json.dumps(found))
"""


def checker(wanted: Sequence[str]) -> Script:
    """Return the program that opens files in its working folder, and prints what is wrong by file."""
    return Script(f"WANTED = {json.dumps(list(wanted))}\n{_CHECKER}")


def wrong_files(attempt: Attempt, *, after: int) -> Mapping[str, str] | None:
    """Return what the checker printed, by file; None where it did not finish.

    Args:
        attempt: The attempt whose last program is the checker.
        after: How many programs ran before it.
    """
    if len(attempt.steps) != after + 1 or attempt.steps[-1].exit_status != 0:
        return None
    try:
        wrong = json.loads(attempt.steps[-1].stdout)
    except ValueError:
        return None
    return wrong if isinstance(wrong, dict) else None
