"""Bounds on the product's modules and classes, and the records that are exempt from one of them."""

import ast
from collections.abc import Iterator

from draftloop.support.environments import ROOT

SOURCE = ROOT / "backend" / "draftloop"
MODULE_LINES, CLASS_METHODS, CONSTRUCTOR_PARAMETERS = 450, 20, 8
# Records that may have more fields: each mirrors something that is stored or written by others.
EXCEPTIONS = {
    "Attempt": "JSON between both sides of the sandbox, and in stored runs",
    "Brief": "a Sample without its texts, held in memory for every sample",
    "Calibration": "the JSON of a cascade's calibration file",
    "CodeTask": "what the gates of code tasks read of a task and its runs",
    "DatasetOptions": "the options of a dataset, in its manifest",
    "Draft": "a row of the ledger, and the source of a prediction",
    "DraftOutcome": "the JSON of one evaluated sample",
    "Logins": "the settings on logins, BACKEND_*, which are checked together",
    "Point": "the JSON of one point of a calibration's curve",
    "Sample": "the JSON of a dataset's line, described by sample.schema.json",
    "State": "the JSON of a dataset's state",
    "Tally": "the JSON of the counts in a dataset's manifest",
}


def classes() -> Iterator[tuple[str, ast.ClassDef]]:
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield str(path.relative_to(SOURCE)), node


def methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]


def parameters(node: ast.ClassDef) -> int:
    """Count what a constructor takes: the fields of a dataclass, else the parameters of `__init__`."""
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return sum(isinstance(part, ast.AnnAssign) for part in node.body)
    constructors = [part.args for part in methods(node) if part.name == "__init__"]
    return sum(len([*args.posonlyargs, *args.args, *args.kwonlyargs]) - 1 for args in constructors)


def test_a_module_has_under_450_lines() -> None:
    lines = {path: path.read_text().count("\n") for path in SOURCE.rglob("*.py")}
    assert not {str(path.relative_to(SOURCE)): n for path, n in lines.items() if n >= MODULE_LINES}


def test_a_class_has_at_most_20_methods() -> None:
    counts = {f"{where}: {node.name}": len(methods(node)) for where, node in classes()}
    assert not {name: count for name, count in counts.items() if count > CLASS_METHODS}


def test_a_constructor_takes_at_most_8_parameters() -> None:
    counts = {(where, node.name): parameters(node) for where, node in classes()}
    over = {key: count for key, count in counts.items() if count > CONSTRUCTOR_PARAMETERS}
    assert not {key: count for key, count in over.items() if key[1] not in EXCEPTIONS}


def test_every_exception_is_a_class_that_needs_one() -> None:
    over = {node.name for _, node in classes() if parameters(node) > CONSTRUCTOR_PARAMETERS}
    assert over >= EXCEPTIONS.keys()
