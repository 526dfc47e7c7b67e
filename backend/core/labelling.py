"""A labelling config, compiled: two schemas, the canonical serialization, regions both ways.

Knows XML, the controls and how a case's schema overlays the one made from the XML. Does not know
prompts, models or business rules (`rules`); it only carries the schemas that hold them.

The *validating* schema says everything about a value whose absent keys are missing. The *decoding*
schema says only what the pinned structured-output backend enforces, about a value in which every key
is present and an absent one is `null`.

Source:
    which keywords vLLM 0.32 enforces with guidance: measured; the others answer 400 or are ignored.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import Any
from xml.etree.ElementTree import Element, ParseError, canonicalize

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from jsonschema import Draft202012Validator

from backend.core.controls import CONTROLS, Control, Json, Placed, Region, Schema
from backend.errors import InvalidValue, SetupError, TaskError

Value = dict[str, Json]

# The key of task data in which a draft's reasons are shown; never part of a prompt.
STATUS_KEY = "draft_status"

_OBJECTS = ("Text", "HyperText")
_LAYOUT = ("View", "Header", "Style", "Collapse", "Panel", "Filter", "Label", "Choice", "Shortcut", "Hint")
# Enforced while decoding, and `description`, which models read. `format` only for what guidance knows.
_DECODABLE = (
    *("type", "properties", "required", "additionalProperties", "items", "minItems", "maxItems"),
    *("enum", "const", "anyOf", "minLength", "maxLength", "pattern", "minimum", "maximum", "multipleOf"),
    "description",
)
_DECODABLE_FORMATS = ("date", "uuid")


@dataclass(frozen=True)
class Task:
    """A Label Studio task: its id and the data that it was imported with."""

    id: int
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Source:
    """An object tag that the annotator reads: its name, tag, and the key of task data it shows."""

    name: str
    tag: str
    key: str

    def text(self, task: Task) -> str:
        """Give the plain text that stands in the page.

        Raises:
            TaskError: The task lacks the key, or holds something that is not text.
        """
        found: Any = task.data.get(self.key)
        if self.key not in task.data and "." in self.key:
            found = task.data
            for part in self.key.split("."):
                found = found.get(part) if isinstance(found, Mapping) else None
        if not isinstance(found, str | int | float) or isinstance(found, bool):
            raise TaskError(
                f"Task {task.id}: key '{self.key}' is {'missing' if found is None else 'not text'}.",
                hint=f"The config shows ${self.key}; import the task with this key.",
            )
        text = str(found)
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise TaskError(
                f"Task {task.id}: the text under '{self.key}' holds half a character (a lone surrogate).",
                hint="Correct the text where it comes from.",
            )
        return _plain(text) if self.tag == "HyperText" else text


@dataclass(frozen=True)
class Labelling:
    """A compiled labelling config. Made by `compile_labelling`; immutable and safe to share."""

    controls: tuple[Control, ...]
    sources: tuple[Source, ...]
    validating_schema: Schema
    decoding_schema: Schema
    config_hash: str
    shows_status: bool

    def inputs(self, task: Task) -> dict[str, str]:
        """Give the texts that the annotator reads, by key of task data, in the order of the page.

        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        return {source.key: source.text(task) for source in self.sources}

    def encode(self, value: Value) -> str:
        """Serialize a value canonically: compact, raw UTF-8, key order of the schema, absent = null.

        This very string is what the model is asked for, what examples show and what training targets
        are: a model trained with other spacing loses everything under constrained decoding.
        """
        return json.dumps(
            _in_order({**self._nothing(), **value}, self.decoding_schema),
            ensure_ascii=False,
            separators=(",", ":"),
        )

    def decode(self, text: str) -> Value:
        """Read a model's answer; keys that are null are absent. Nothing else is changed.

        Raises:
            InvalidValue: Not JSON, not an object, or the same key twice.
        """
        try:
            value = json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidValue(f"The answer is not JSON: {error}.") from error
        if not isinstance(value, dict):
            raise InvalidValue("The answer is JSON but not an object.")
        return {key: part for key, part in value.items() if part is not None}

    def to_regions(self, value: Value, task: Task) -> Placed:
        """Turn a decoded value into regions, in the order of the page.

        Any JSON object is taken: what does not have its control's shape is left out and told.

        Returns:
            The regions, and a sentence for each part of the value that has no place in the task.
        Raises:
            TaskError: The task lacks a key that the config shows.
        """
        placed = Placed([])
        for control in self.controls:
            if control.name in value:
                part = value[control.name]
                if not Draft202012Validator(_shape(control.schema())).is_valid(part):
                    placed.problems.append(
                        f"Control '{control.name}' ({control.tag}) cannot show {str(part)[:80]!r}."
                    )
                    continue
                own = control.to_regions(part, self._source_text(control, task))
                placed.regions.extend(own.regions)
                placed.problems.extend(own.problems)
        return placed

    def from_regions(self, regions: list[Region], task: Task) -> Value:
        """Read a value back from the regions of a prediction or an annotation.

        Regions of controls that the config no longer has are an error, not dropped: a training row
        made from half of an annotation would be wrong without anybody seeing it.

        Raises:
            InvalidValue: A region does not fit the config.
            TaskError: The task lacks a key that the config shows.
        """
        by_control: dict[str, list[Region]] = {control.name: [] for control in self.controls}
        for region in regions:
            if region.get("type") == "relation":
                raise InvalidValue("The annotation holds relations, which the config has no control for.")
            name = region.get("from_name")
            if name not in by_control:
                raise InvalidValue(
                    f"The annotation has a region of control '{name}', which the config lacks."
                )
            by_control[name].append(region)
        value = {}
        for control in self.controls:
            part = control.from_regions(by_control[control.name], self._source_text(control, task))
            if part is not None:
                value[control.name] = part
        return value

    def _source_text(self, control: Control, task: Task) -> str:
        source = next(source for source in self.sources if source.name == control.to_name)
        return source.text(task)

    def _nothing(self) -> Value:
        return {control.name: [] if control.is_many else None for control in self.controls}


def compile_labelling(xml: str, overlay: Mapping[str, Any] | None = None) -> Labelling:
    """Compile a labelling config.

    Args:
        xml: The config as Label Studio holds it.
        overlay: A case's schema.json: JSON Schema that is laid over the one made from the XML. It may
            tighten and describe; it cannot add or rename controls.
    Raises:
        SetupError: Not XML, an unsupported tag, a control without its object, an overlay that does
            not fit.
    """
    root = _parse(xml)
    sources = tuple(_sources(root))
    controls = tuple(_controls(root, sources))
    if not controls:
        raise SetupError(
            "The labelling config has no control to fill.",
            hint=f"Add one of {', '.join(f'<{control.tag}>' for control in CONTROLS)}.",
        )
    compiled: Schema = {
        "type": "object",
        "properties": {control.name: control.schema() for control in controls},
        "required": [control.name for control in controls if control.required or control.is_many],
        "additionalProperties": False,
    }
    validating = _overlaid(compiled, overlay or {})
    return Labelling(
        controls=controls,
        sources=sources,
        validating_schema=validating,
        decoding_schema=_decoding(validating, controls),
        config_hash=hash_config(xml),
        shows_status=any(element.get("value") == f"${STATUS_KEY}" for element in root.iter()),
    )


def hash_config(xml: str) -> str:
    """Hash a config so that white space and attribute order do not matter; 16 hex digits.

    Raises:
        SetupError: Not XML.
    """
    _parse(xml)  # the canonicalizer below is not hardened: only let through what the hardened parser took
    return hashlib.sha256(canonicalize(xml, strip_text=True).encode()).hexdigest()[:16]


def _parse(xml: str) -> Element:
    try:
        root: Element = fromstring(xml, forbid_dtd=True)
    except (ParseError, DefusedXmlException, ValueError, UnicodeError) as error:
        raise SetupError(
            f"The labelling config is not XML that can be read safely: {error}.",
            hint="Check it in the project's Labeling Interface settings.",
        ) from error
    return root


def _sources(root: Element) -> list[Source]:
    sources = []
    for element in root.iter():
        if element.tag not in _OBJECTS or element.get("value") == f"${STATUS_KEY}":
            continue
        variable = element.get("value", "")
        if not variable.startswith("$") or element.get("valueType") == "url":
            raise SetupError(
                f"Object '{element.get('name')}' ({element.tag}) does not show text from task data.",
                hint='Give it value="$key" and no valueType="url".',
            )
        sources.append(Source(element.get("name", ""), element.tag, variable[1:]))
    return sources


def _controls(root: Element, sources: tuple[Source, ...]) -> list[Control]:
    classes = {control.tag: control for control in CONTROLS}
    objects = {source.name: source for source in sources}
    controls: list[Control] = []
    for element in root.iter():
        if element.tag in _OBJECTS or element.tag in _LAYOUT:
            continue
        if element.tag not in classes:
            raise SetupError(
                f"Tag <{element.tag}> of the labelling config is not supported.",
                hint="Supported: " + ", ".join(f"<{tag}>" for tag in (*_OBJECTS, *classes, *_LAYOUT)) + ".",
            )
        control = classes[element.tag].from_element(element)
        if not control.name or control.name in {known.name for known in controls}:
            raise SetupError(
                f"A <{element.tag}> has {'the name of another control' if control.name else 'no name'}.",
                hint="Give every control a name of its own.",
            )
        if control.to_name not in objects:
            raise SetupError(
                f"Control '{control.name}' ({element.tag}) has toName=\"{control.to_name}\", "
                "which is no Text or HyperText of the config.",
                hint="Point toName at an object tag.",
            )
        if control.tag == "Labels" and objects[control.to_name].tag != "Text":
            raise SetupError(
                f"Control '{control.name}' (Labels) labels a {objects[control.to_name].tag}.",
                hint="Spans are supported on <Text>.",
            )
        controls.append(control)
    return controls


def _overlaid(compiled: Schema, overlay: Mapping[str, Any]) -> Schema:
    unknown = sorted(set(overlay.get("properties", {})) - set(compiled["properties"]))
    if unknown:
        raise SetupError(
            f"schema.json describes '{unknown[0]}', which is no control of the config "
            f"({', '.join(compiled['properties'])}).",
            hint="Use the names of the controls.",
        )
    merged: Schema = _merge(compiled, {key: part for key, part in overlay.items() if not key.startswith("$")})
    required = {*compiled["required"], *overlay.get("required", [])}
    merged["required"] = [name for name in compiled["properties"] if name in required]
    return merged


def _merge(below: Any, above: Any) -> Any:
    if isinstance(below, Mapping) and isinstance(above, Mapping):
        return {
            **below,
            **{key: _merge(below[key], part) if key in below else part for key, part in above.items()},
        }
    return above


def _decoding(validating: Schema, controls: tuple[Control, ...]) -> Schema:
    required = set(validating["required"])
    properties = {}
    for control in controls:
        schema = _decodable(validating["properties"][control.name])
        properties[control.name] = (
            schema if control.name in required else {"anyOf": [schema, {"type": "null"}]}
        )
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _decodable(schema: Any) -> Any:
    """Keep what the structured-output backend enforces; bound what the case left unbounded."""
    if not isinstance(schema, Mapping):
        return schema
    kept: Schema = {}
    for key, part in schema.items():
        if key == "properties":
            kept[key] = {name: _decodable(inner) for name, inner in part.items()}
        elif key == "items":
            kept[key] = _decodable(part)
        elif key == "anyOf":
            kept[key] = [_decodable(inner) for inner in part]
        elif key in _DECODABLE or (key == "format" and part in _DECODABLE_FORMATS):
            kept[key] = part
    if "pattern" in kept:
        kept.pop("format", None)  # two patterns for one string: the case's own says more
    return kept


def _shape(schema: Any) -> Any:
    """Keep of a schema what a codec counts on: types, keys and options, not lengths and ranges."""
    if not isinstance(schema, Mapping):
        return schema
    shape: Schema = {key: schema[key] for key in ("type", "required", "enum") if key in schema}
    if "properties" in schema:
        shape["properties"] = {name: _shape(inner) for name, inner in schema["properties"].items()}
    if "items" in schema:
        shape["items"] = _shape(schema["items"])
    return shape


def _in_order(value: Json, schema: Schema) -> Json:
    """Order the keys of objects as the schema lists them."""
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        ordered = {key: _in_order(value[key], properties[key]) for key in properties if key in value}
        return ordered | {key: part for key, part in value.items() if key not in ordered}
    if isinstance(value, list):
        return [_in_order(part, schema.get("items", {})) for part in value]
    return value


def _no_doubles(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _no_constant(name: str) -> Json:
    raise ValueError(f"{name} is not JSON")


class _Text(HTMLParser):
    _BREAKS = frozenset(
        {"p", "div", "br", "li", "tr", "h1", "h2", "h3", "h4", "h5", "h6", "section", "article"}
    )
    _HIDDEN = frozenset({"script", "style", "head"})

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in self._HIDDEN
        if tag in self._BREAKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in self._HIDDEN and self._hidden > 0
        if tag in self._BREAKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def _plain(html: str) -> str:
    """Give the text that a browser would show, one line per block."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    lines = (" ".join(line.split()) for line in "".join(parser.parts).split("\n"))
    return "\n".join(line for line in lines if line)
