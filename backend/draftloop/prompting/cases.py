"""The folder of cases: one folder per kind of task, mounted by a team, read once at start.

    config.xml      labelling config                 prompt.md       sections Role, Task, Compact
    schema.json     laid over the compiled schema    examples.jsonl  few-shot examples: {"data", "value"}

A call finds its case by the name that the project was set up with, else by the hash of its labelling
config, else it is served from the XML alone.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import structlog

from draftloop.errors import DraftloopError, InvalidValue, SetupError, TaskError
from draftloop.labelling.grammar import quoting_grammar
from draftloop.labelling.guidance import grammar_refusal
from draftloop.labelling.labelling import Labelling, Task, compile_labelling, hash_config
from draftloop.labelling.overlays import parse_overlay
from draftloop.prompting.prompt import NO_OVERRIDES, Case, Example, Overrides, generic_case, parse_prompt
from draftloop.support.strict_json import strict_json

_log = structlog.get_logger("backend")

_SAMPLE_TEXT = "a"  # the grammars of all texts are made in the same way
_KEPT = 256  # compiled cases, the most recently used: each save of an edited config makes another one


class Cases:
    """All cases of a folder, compiled, and the case for each project's config."""

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
        self._by_hash = {self._hash(name): name for name in self._folders}
        self._compiled: OrderedDict[tuple[str, str, Overrides], Case] = OrderedDict()
        self._keeping = threading.Lock()
        for name in self._folders:
            self._check(name)

    def _check(self, name: str) -> None:
        try:
            self.get(name)
        except SetupError as error:
            if name in error.message:
                raise
            raise SetupError(f"Case '{name}': {error.message}", hint=error.hint) from error

    def names(self) -> list[str]:
        """List the cases' names."""
        return list(self._folders)

    def config(self, name: str) -> str:
        """Return a case's own labelling config.

        Raises:
            SetupError: There is no such case.
        """
        self._known(name)
        return self._configs[name]

    def get(self, name: str) -> Case:
        """Return a case as its folder has it.

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
            overrides: The project's overrides.
        Raises:
            SetupError: The config is not supported, or there is no such case.
        """
        config_hash = hash_config(xml)
        name = wanted or self._by_hash.get(config_hash, "")
        key = (name, config_hash, overrides)
        with self._keeping:
            known = self._compiled.get(key)
            if known is not None:
                self._compiled.move_to_end(key)
                return known
        # Two threads may compile the same case at once: both results are equal, either may stay.
        case = (
            self._compile(name, xml)
            if overrides == NO_OVERRIDES
            else self.find(xml, wanted).overridden(overrides)
        )
        with self._keeping:
            self._compiled[key] = case
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)
        return case

    def _hash(self, name: str) -> str:
        try:
            return hash_config(self._configs[name])
        except SetupError as error:
            raise SetupError(f"{name}/config.xml: {error.message}", hint="Correct it.") from error

    def _known(self, name: str) -> None:
        if name not in self._folders:
            raise SetupError(f"There is no case '{name}'.", hint=f"There are: {', '.join(self._folders)}.")

    def _compile(self, name: str, xml: str) -> Case:
        if not name:
            case = generic_case(compile_labelling(xml))
            _check_compiles(case)
            return case
        self._known(name)
        folder = self._folders[name]
        labelling = _labelling(xml, folder)
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
        _check_compiles(case)
        if own_config:
            _check_examples(case)
            for keyword in labelling.schemas.unenforced:
                _log.warning("schema not enforced while decoding", case=name, what=str(keyword))
            return case
        # Examples that no longer fit a config edited in Label Studio are left out without an error.
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
        return path.read_text(encoding="utf-8-sig")  # editors of Windows begin a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(
            f"{path} cannot be read: {error}.", hint="A case needs this file in UTF-8."
        ) from error


def _labelling(xml: str, folder: Path) -> Labelling:
    path = folder / "schema.json"
    if not path.is_file():
        return compile_labelling(xml)
    try:
        return compile_labelling(xml, parse_overlay(read(path)))
    except SetupError as error:
        # The compiler knows no files: the message gets the folder, because several cases have a schema.json.
        raise SetupError(
            error.message.replace("schema.json", f"{folder.name}/schema.json", 1), hint=error.hint
        ) from error


def _check_compiles(case: Case) -> None:
    """Check the rules and the grammar of a case before the first task needs them.

    Raises:
        SetupError: A rule is not CEL, or the structured-output engine refuses the grammar.
    """
    schema, quoted = case.labelling.decoding_schema, case.rules.quoted
    grammar = quoting_grammar(schema, quoted, (_SAMPLE_TEXT,))
    refusal = grammar_refusal(grammar) if grammar else ""
    if refusal:
        raise SetupError(
            f"The structured-output engine refuses the grammar of the answers: {refusal[:200]}.",
            hint="Make the labelling config or schema.json simpler, or set MODEL_BIND_QUOTES=false.",
        )


def _examples(path: Path, labelling: Labelling) -> Iterator[Example]:
    if not path.is_file():
        return
    name = f"{path.parent.name}/{path.name}"
    # Only "\n" ends a line of JSONL: `str.splitlines` would cut a text at U+2028.
    for number, line in enumerate(read(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = strict_json(line)
            if not (isinstance(row, Mapping) and isinstance(row.get("data"), Mapping)):
                raise InvalidValue('It has no object "data".')
            if not isinstance(row.get("value"), Mapping):
                raise InvalidValue('It has no object "value".')
            yield Example(Task(0, dict(row["data"])), labelling.decode(json.dumps(row["value"])))
        except (ValueError, InvalidValue) as error:
            raise SetupError(
                f"{name} line {number} is no example: {str(error).rstrip('.')[:200]}.",
                hint='A line is {"data": {...}, "value": {...}}.',
            ) from error


def _check_examples(case: Case) -> None:
    for number, example in enumerate(case.examples, start=1):
        try:
            reasons = case.for_task(example.task).rules.check(example.value, example.task)
        except TaskError as error:
            raise SetupError(
                f"Example {number} of case '{case.name}' cannot be shown: {error.message}",
                hint="Its data needs every key that the labelling config shows.",
            ) from error
        if reasons:
            raise SetupError(
                f"Example {number} of case '{case.name}' breaks the case's own rules: {reasons[0]}.",
                hint="An example shows the model what is right; correct it.",
            )
