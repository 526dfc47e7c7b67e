"""The folder of cases: one folder per kind of task, mounted by a team, read once at start.

    config.xml      labelling config                 prompt.md       sections Role, Task, Compact
    schema.json     laid over the compiled schema    examples.jsonl  few-shot examples: {"data", "value"}

A call finds its case by the name that the project was set up with, else by the hash of its labelling
config, else it is served from the XML alone.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from backend.core.labelling import Labelling, Task, compile_labelling, hash_config
from backend.core.prompting import NO_OVERRIDES, Case, Example, Overrides, generic_case, parse_prompt
from backend.errors import DraftloopError, InvalidValue, SetupError


class Cases:
    """All cases of a folder, compiled; finds the case for a live project's config."""

    def __init__(self, folder: Path) -> None:
        """Read and check every case.

        Raises:
            SetupError: The folder or a case is missing something, or a case is wrong.
        """
        if not folder.is_dir():
            raise SetupError(f"There is no folder of cases at {folder}.", hint="Set CASES_DIR to one.")
        self._folders = {
            path.name: path for path in sorted(folder.iterdir()) if (path / "config.xml").is_file()
        }
        self._configs = {name: read(path / "config.xml") for name, path in self._folders.items()}
        self._by_hash = {hash_config(xml): name for name, xml in self._configs.items()}
        self._compiled: dict[tuple[str, str, Overrides], Case] = {}
        for name in self._folders:
            self.get(name)

    def names(self) -> list[str]:
        """List the cases' names."""
        return list(self._folders)

    def config(self, name: str) -> str:
        """Give a case's own labelling config.

        Raises:
            SetupError: There is no such case.
        """
        self._known(name)
        return self._configs[name]

    def get(self, name: str) -> Case:
        """Give a case as its folder has it.

        Raises:
            SetupError: There is no such case.
        """
        self._known(name)
        return self.find(self._configs[name], name)

    def find(self, xml: str, wanted: str | None = None, overrides: Overrides = NO_OVERRIDES) -> Case:
        """Find the case for a project.

        Args:
            xml: The project's labelling config, which may have been edited since the set-up.
            wanted: The name that the project was set up with, if any.
            overrides: What the project wants otherwise.
        Raises:
            SetupError: The config is not supported, or there is no such case.
        """
        config_hash = hash_config(xml)
        name = wanted or self._by_hash.get(config_hash, "")
        key = (name, config_hash, overrides)
        if key not in self._compiled:
            # Two threads may compile the same case at once: both results are equal, either may stay.
            self._compiled[key] = (
                self._compile(name, xml)
                if overrides == NO_OVERRIDES
                else self.find(xml, wanted).overridden(overrides)
            )
        return self._compiled[key]

    def _known(self, name: str) -> None:
        if name not in self._folders:
            raise SetupError(f"There is no case '{name}'.", hint=f"There are: {', '.join(self._folders)}.")

    def _compile(self, name: str, xml: str) -> Case:
        if not name:
            return generic_case(compile_labelling(xml))
        self._known(name)
        folder = self._folders[name]
        overlay = _json(folder / "schema.json") if (folder / "schema.json").is_file() else {}
        labelling = compile_labelling(xml, overlay)
        sections = parse_prompt(read(folder / "prompt.md"), f"{name}/prompt.md")
        own_config = xml == self._configs[name]
        case = Case(
            name=name,
            labelling=labelling,
            role=sections["role"],
            task_text=sections["task"],
            compact=sections["compact"],
            examples=tuple(_examples(folder / "examples.jsonl", labelling)) if own_config else (),
        )
        if own_config:
            _check_examples(case)
            return case
        # Examples that no longer fit a config edited in Label Studio are left out, not an error.
        fitting = []
        for example in _examples(folder / "examples.jsonl", labelling):
            try:
                if not case.for_task(example.task).rules.check(example.value, example.task):
                    fitting.append(example)
            except DraftloopError:
                continue
        return Case(name, labelling, case.role, case.task_text, case.compact, tuple(fitting))


def read(path: Path) -> str:
    """Read a UTF-8 file of a case.

    Raises:
        SetupError: It cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"{path} cannot be read: {error}.", hint="A case needs this file in UTF-8."
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(read(path))
    except ValueError as error:
        raise SetupError(f"{path} is not JSON: {error}.", hint="Correct it.") from error


def _examples(path: Path, labelling: Labelling) -> Iterator[Example]:
    if not path.is_file():
        return
    for number, line in enumerate(read(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            yield Example(Task(0, row["data"]), labelling.decode(json.dumps(row["value"])))
        except (ValueError, KeyError, TypeError, InvalidValue) as error:
            raise SetupError(
                f"{path} line {number} is no example: {error}.",
                hint='A line is {"data": {...}, "value": {...}}.',
            ) from error


def _check_examples(case: Case) -> None:
    for number, example in enumerate(case.examples, start=1):
        reasons = case.for_task(example.task).rules.check(example.value, example.task)
        if reasons:
            raise SetupError(
                f"Example {number} of case '{case.name}' breaks the case's own rules: {reasons[0]}.",
                hint="An example shows the model what is right; correct it.",
            )
