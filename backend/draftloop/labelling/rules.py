"""Rules as data: JSON Schema, CEL validations and grounding, checked after decoding, always.

Knows a value, its task and the validating schema. Does not know what happens to a value that fails: it
returns reasons that a model and a human can act on. It never runs code from a config file.

Keywords beyond JSON Schema, at any level of a case's schema.json:
    x-validations   [{rule, message}], as in Kubernetes CRDs: CEL over `self`, the value at that level.
                    Absent keys are missing, so guard optional ones: `!has(self.date) || ...`.
    x-grounded      true: every string below must occur, character for character, in the task's text.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import cel
from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from draftloop.errors import SetupError
from draftloop.labelling.controls import Json, Schema
from draftloop.labelling.labelling import Labelling, Question, Task, Value
from draftloop.labelling.overlays import read_overlay

_MESSAGE_CHARS = 300  # a message may quote the whole value; a human reads the first lines


@dataclass(frozen=True)
class Reason:
    """Why a draft needs a human: the kind of check that failed, its path in the value, and a message."""

    kind: Literal["decode", "schema", "rule", "grounding", "run", "engine"]
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


@dataclass(frozen=True)
class _Validation:
    path: tuple[str, ...]  # "*" stands for every item of an array
    program: Any
    rule: str
    message: str


class Rules:
    """The checks of one labelling, compiled once."""

    def __init__(self, labelling: Labelling) -> None:
        """Compile schema and validations.

        Raises:
            SetupError: A rule is not CEL.
        """
        schemas = labelling.schemas
        schema = schemas.validating
        self._labelling = labelling
        self._overlay = (
            read_overlay(schemas.overlay).without_required(schemas.human) if schemas.overlay else None
        )
        formats = self._overlay.formats if self._overlay else Draft202012Validator.FORMAT_CHECKER
        self._validator = Draft202012Validator(schema, format_checker=formats)
        self._validations = tuple(_validations(schema, ()))
        self._grounded = tuple(_grounded(schema, ()))

    @property
    def quoted(self) -> tuple[tuple[str, ...], ...]:
        """The paths of strings that are quotes from the task's text; "*" stands for every item."""
        spans = (control.name for control in self._labelling.span_controls)
        return (*self._grounded, *((name, "*", "text") for name in spans))

    @property
    def messages(self) -> tuple[str, ...]:
        """The rules that decoding does not enforce, for the prompt: validations and unenforced keywords."""
        unenforced = (
            f"{each.path}: {each.keyword} {json.dumps(each.value, ensure_ascii=False)}"
            for each in self._labelling.schemas.unenforced
        )
        return (*(validation.message for validation in self._validations), *unenforced)

    def check(self, value: Value, task: Task | Question) -> tuple[Reason, ...]:
        """Return everything that is wrong with a decoded value.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        schema_reasons = tuple(self._schema_reasons(value))
        if schema_reasons:
            return schema_reasons  # rules and regions rely on the right types
        question = self._labelling.read(task)
        return (
            *self._broken_rules(value),
            *self._ungrounded(value, question),
            *self._unplaced(value, question),
        )

    def _schema_reasons(self, value: Value) -> Iterator[Reason]:
        """Yield a value's violations of the config's schema and of schema.json itself."""
        errors = list(self._validator.iter_errors(value))
        known = {(_path(error.absolute_path), error.validator) for error in errors}
        if self._overlay is not None:
            errors += (
                error
                for error in self._overlay.errors(value)
                if (_path(error.absolute_path), error.validator) not in known
            )
        for error in sorted(errors, key=lambda each: _path(each.absolute_path)):
            yield Reason("schema", _path(error.absolute_path), _shortened(error))

    def _broken_rules(self, value: Value) -> Iterator[Reason]:
        for validation in self._validations:
            for path, part in _parts(value, validation.path, ()):
                try:
                    holds = validation.program.execute({"self": part})
                except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                    # An absent key, a division by zero, an overflow: the rule does not hold.
                    yield Reason("rule", _path(path), f"{validation.message} ({str(error)[:80]})")
                    continue
                if holds is not True:
                    yield Reason("rule", _path(path), validation.message)

    def _ungrounded(self, value: Value, question: Question) -> Iterator[Reason]:
        if not self._grounded:
            return
        texts = question.inputs.values()
        for pattern in self._grounded:
            for path, part in _parts(value, pattern, ()):
                for quote in _strings(part):
                    if not any(quote in text for text in texts):
                        yield Reason("grounding", _path(path), f"{quote[:80]!r} does not stand in the text.")

    def _unplaced(self, value: Value, question: Question) -> Iterator[Reason]:
        for problem in self._labelling.to_regions(value, question).problems:
            yield Reason("grounding", "", problem)


def _validations(schema: Any, path: tuple[str, ...]) -> Iterator[_Validation]:
    if not isinstance(schema, Mapping):
        return
    for entry in schema.get("x-validations", []):
        rule = entry["rule"]
        try:
            program = cel.compile(rule)
        except ValueError as error:
            raise SetupError(
                f"x-validations at {_path(path)}: {rule!r} is not CEL ({str(error)[:120]}).",
                hint="Correct the rule.",
            ) from error
        foreign = sorted(set(program.variables()) - {"self"})
        if foreign:
            raise SetupError(
                f"x-validations at {_path(path)}: {rule!r} uses '{foreign[0]}'.",
                hint="Rules see only `self`.",
            )
        yield _Validation(path, program, rule, str(entry.get("message") or f"failed rule: {rule}"))
    for below, subschema in _below(schema):
        yield from _validations(subschema, (*path, below))


def _grounded(schema: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    if not isinstance(schema, Mapping):
        return
    if schema.get("x-grounded") is True:
        yield path
    for below, subschema in _below(schema):
        yield from _grounded(subschema, (*path, below))


def _below(schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    yield from schema.get("properties", {}).items()
    if "items" in schema:
        yield "*", schema["items"]


def _parts(
    value: Json, pattern: tuple[str, ...], path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], Json]]:
    if not pattern:
        yield path, value
    elif pattern[0] == "*" and isinstance(value, list):
        for index, part in enumerate(value):
            yield from _parts(part, pattern[1:], (*path, index))
    elif isinstance(value, dict) and pattern[0] in value:
        yield from _parts(value[pattern[0]], pattern[1:], (*path, pattern[0]))


def _strings(value: Json) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _strings(part)


def _path(path: Any) -> str:
    return ".".join(str(part) for part in path)


def _shortened(error: ValidationError) -> str:
    return error.message if len(error.message) <= _MESSAGE_CHARS else error.message[:_MESSAGE_CHARS] + "..."
