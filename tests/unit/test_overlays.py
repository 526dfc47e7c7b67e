"""A schema.json is enforced as it is written, or refused in one sentence when the backend starts."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from draftloop.errors import SetupError, TaskError
from draftloop.labelling.guidance import grammar_refusal, schema_refusal
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.labelling.matching import matches
from draftloop.labelling.rules import Rules
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import generic_case

ROOT = Path(__file__).parents[2]
CONFIG = """<View><Text name="t" value="$t"/>
<TextArea name="a" toName="t" maxSubmissions="1"/><TextArea name="b" toName="t" maxSubmissions="1"/>
<Number name="n" toName="t"/><Rating name="stars" toName="t" maxRating="5"/>
<Choices name="kind" toName="t"><Choice value="x"/><Choice value="y"/><Choice value="long one"/></Choices>
<Labels name="spans" toName="t"><Label value="L"/></Labels></View>"""
TASK = Task(1, {"t": "abc"})
DRAFT_7 = "http://json-schema.org/draft-07/schema#"
DRAFT_4 = "http://json-schema.org/draft-04/schema#"

SPAN_A, SPAN_B = ({"spans": [{"text": text, "nth": 0, "label": "L"}]} for text in "ab")


def of_a(schema: Any, **more: Any) -> dict[str, Any]:
    return {"properties": {"a": schema}, **more}


def accepts(overlay: dict[str, Any], value: dict[str, Any]) -> bool:
    """Return whether the rules of CONFIG under an overlay take a value."""
    return not Rules(compile_labelling(CONFIG, overlay)).check({"spans": [], **value}, TASK)


@pytest.mark.parametrize(
    ("overlay", "right", "wrong"),
    [
        # references
        (of_a({"$ref": "#/$defs/w"}, **{"$defs": {"w": {"maxLength": 2}}}), "ab", "abc"),
        (of_a({"$ref": "#/definitions/w"}, definitions={"w": {"pattern": "^x"}}), "xy", "y"),
        (of_a({"$ref": "#w"}, **{"$defs": {"w": {"$anchor": "w", "minLength": 2}}}), "ab", "a"),
        (of_a({"$ref": "urn:e#/$defs/w"}, **{"$id": "urn:e", "$defs": {"w": {"maxLength": 2}}}), "ab", "abc"),
        ({"$ref": "#/$defs/all", "$defs": {"all": of_a({"maxLength": 2})}}, "ab", "abc"),
        ({"allOf": [of_a({"maxLength": 3}), of_a({"minLength": 2})]}, "ab", "a"),
        (of_a({"$ref": "#/$defs/w", "maxLength": 2}, **{"$defs": {"w": {"minLength": 2}}}), "ab", "abc"),
        # formats
        (of_a({"format": "date-time"}), "2026-01-31T10:00:00Z", "2026-01-31"),
        (of_a({"format": "uri"}), "https://example.com/a", "not a uri"),
        (of_a({"format": "email"}), "a@example.com", "a"),
        (of_a({"format": "duration"}), "P1D", "1 day"),
        (
            of_a({"format": "uuid"}, **{"$schema": DRAFT_7}),  # which has no such format
            "3f2504e0-4f89-41d3-9a0c-0305e82c3301",
            "1",
        ),
        # whatever else a schema says of one text
        (of_a({"not": {"const": "x"}}), "y", "x"),
        (of_a({"if": {"pattern": "^x"}, "then": {"minLength": 3}}), "xyz", "xy"),
        (of_a({"oneOf": [{"pattern": "^a"}, {"pattern": "b$"}]}), "ax", "ab"),
        (of_a({"anyOf": [{"const": "one"}, {"pattern": "^2+$"}]}), "22", "two"),
        (of_a({"pattern": "^(?=.*[0-9])[a-z0-9]{3,}$"}), "ab1", "abc"),
        (of_a({"type": ["string", "null"], "maxLength": 2}), "ab", "abc"),
        (of_a({"type": "string", "enum": ["p", "q", 5]}), "q", "r"),
        ({"patternProperties": {"^a$": {"maxLength": 2}}}, "ab", "abc"),
        # of the whole answer
        ({"not": {"required": ["a"], "properties": {"a": {"const": "x"}}}}, "y", "x"),
        ({"propertyNames": {"maxLength": 5}, **of_a({"maxLength": 2})}, "ab", "abc"),
        # other dialects
        (of_a({"pattern": "^x"}, **{"$schema": DRAFT_7, "$defs": {"no": {"format": []}}}), "xy", "y"),
        (
            of_a(
                {"$ref": "#/definitions/w", "maxLength": 1},
                definitions={"w": {"maxLength": 2}},
                **{"$schema": DRAFT_7},
            ),
            "ab",
            "abc",
        ),
        (of_a({"pattern": "^x"}, **{"$schema": DRAFT_4, "id": "urn:old"}), "xy", "y"),
        (of_a({"pattern": "^x", "additionalProperties": False}, **{"$schema": DRAFT_4}), "xy", "y"),
    ],
    ids=lambda part: json.dumps(part)[:60],
)
def test_a_schema_is_enforced(overlay: dict[str, Any], right: str, wrong: str) -> None:
    assert accepts(overlay, {"a": right})
    assert not accepts(overlay, {"a": wrong})


@pytest.mark.parametrize(
    ("overlay", "right", "wrong"),
    [
        ({"dependentRequired": {"a": ["b"]}}, {"a": "x", "b": "y"}, {"a": "x"}),
        ({"$schema": DRAFT_7, "dependencies": {"a": ["b"]}}, {"a": "x", "b": "y"}, {"a": "x"}),
        ({"minProperties": 3}, {"a": "x", "b": "y"}, {"a": "x"}),
        ({"if": {"required": ["n"]}, "then": {"required": ["a"]}}, {"n": 1, "a": "x"}, {"n": 1}),
        ({"anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, {"b": "x"}, {"n": 1}),
        ({"properties": {"n": {"exclusiveMinimum": 0, "multipleOf": 2}}}, {"n": 2}, {"n": 0}),
        (
            {"$schema": DRAFT_4, "properties": {"n": {"minimum": 0, "exclusiveMinimum": True}}},
            {"n": 1},
            {"n": 0},
        ),
        ({"properties": {"kind": {"maxLength": 1}}}, {"kind": "y"}, {"kind": "long one"}),
        ({"properties": {"stars": {"maximum": 9}}}, {"stars": 5}, {"stars": 6}),
        ({"properties": {"spans": {"minItems": 1}}}, SPAN_A, {}),
        ({"properties": {"spans": {"contains": {"properties": {"text": {"const": "b"}}}}}}, SPAN_B, SPAN_A),
    ],
    ids=lambda part: json.dumps(part)[:60],
)
def test_a_whole_answer_is_checked(
    overlay: dict[str, Any], right: dict[str, Any], wrong: dict[str, Any]
) -> None:
    assert accepts(overlay, right)
    assert not accepts(overlay, wrong)


@pytest.mark.parametrize(
    ("overlay", "words"),
    [
        # what the file is
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, r"at \$schema is .* not supported"),
        ({"$schema": 7}, r"at \$schema is '7', which is not supported"),
        ({"properties": []}, "at properties is not JSON Schema"),
        ({"required": 5}, "at required is not JSON Schema"),
        (of_a({"anyOf": 5}), "at properties.a.anyOf is not JSON Schema"),
        (of_a("text"), "at properties.a is not JSON Schema"),
        (of_a({"maxLength": "5"}), "at properties.a.maxLength is not JSON Schema"),
        (of_a({"pattern": "("}), "at properties.a.pattern"),
        (
            of_a({"pattern": "a{99999999999}"}),
            "holds what cannot be compiled: the repetition number is too large",
        ),
        (of_a({"pattern": "(" * 5000 + ")" * 5000}), "holds what cannot be compiled"),
        ({"properties": {"n": {"const": 10**20}}}, "no value was found that 'n' may have"),
        ({"$schema": DRAFT_4, "patternProperties": {"(": {}}}, r"at patternProperties holds '\('"),
        # references
        (
            of_a({"$ref": "https://example.com/a.json"}),
            r"a.json' does not stand in the file. .*nothing is fetched",
        ),
        (of_a({"$ref": "other.json"}), r"at properties.a.\$ref: 'other.json' does not stand"),
        (of_a({"$ref": "#/$defs/b"}, **{"$defs": {"a": {}}}), "does not stand in the file"),
        (of_a({"$ref": 5}, **{"$schema": DRAFT_4}), r"at properties.a.\$ref is no text"),
        (of_a({"$ref": "#/x/a"}, x={"a": {"type": 5}}), r"at properties.a.\$ref.type is not JSON Schema"),
        (
            of_a({"$ref": "#/$defs/a"}, **{"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/a"}]}}}),
            "leads back to itself",
        ),
        (of_a({"$schema": DRAFT_7}), "states another dialect"),
        # what nobody would check
        (of_a({"format": "iri-or-so"}), "at properties.a.format is 'iri-or-so', which nobody would check"),
        (of_a({"not": {"format": "phone"}}), "at properties.a.not.format"),
        ({"dependencies": {"a": ["b"]}}, "is no keyword of https://json-schema.org/draft/2020-12"),
        (
            of_a({"items": [{}], "additionalItems": False}),
            r"at properties.a.items is not JSON Schema.*another `\$schema`",
        ),
        (
            of_a({"dependentRequired": {}}, **{"$schema": DRAFT_7}),
            "is no keyword of http://json-schema.org/draft-07",
        ),
        (of_a({"maxLenght": 5}), r"at properties.a.maxLenght is no keyword.* Is it `maxLength`\?"),
        # keywords of our own
        ({"x-validations": {"rule": "true"}}, "at x-validations is wrong"),
        ({"x-validations": ["true"]}, "at x-validations.0 is wrong"),
        ({"x-validation": [{"rule": "true"}]}, r"Is it `x-validations`\?"),
        (of_a({"x-grounded": "yes"}), "at properties.a.x-grounded is wrong"),
        (of_a({"x-human": 1}), "at properties.a.x-human is wrong"),
        (of_a({"x-run": "ruby"}), "at properties.a.x-run is wrong"),
        ({"x-human": True}, "x-human is of fields alone"),
        ({"anyOf": [of_a({"x-grounded": True})]}, "at anyOf.0.properties.a: nobody reads x-grounded there"),
        # what the config cannot hold
        ({"properties": {"nme": {}}}, "describes 'nme', which is no control of the config"),
        ({"required": ["a", "nme"]}, "requires 'nme', which is no control of the config"),
        ({"allOf": [{"required": ["nme"]}]}, "at allOf.0 requires 'nme'"),
        (
            {"properties": {"spans": {"items": {"required": ["extra"]}}}},
            r"'extra', which is no key of 'spans.\*'",
        ),
        (
            of_a({"type": "integer"}),
            "no value of 'a': it is of type string, and properties.a asks for integer",
        ),
        (of_a(False), "no value of 'a': properties.a allows nothing"),
        (of_a({"not": {}}), "no value was found that 'a' may have"),
        (of_a({"minLength": 3, "maxLength": 2}), "no value of 'a': minLength is 3, maxLength is 2"),
        (of_a({"enum": [1, 2]}), "no value of 'a': none of its options is allowed"),
        (of_a({"maxLength": 5, "format": "date-time"}), "no value was found that 'a' may have"),
        (
            {"properties": {"kind": {"enum": ["z"]}}},
            r"no value of 'kind': none of its options is allowed \(x, y",
        ),
        ({"properties": {"n": {"minimum": 5, "maximum": 4}}}, "no value of 'n': minimum is 5"),
        ({"properties": {"stars": {"minimum": 6}}}, "no value of 'stars': minimum is 6, maximum is 5"),
        ({"properties": {"spans": {"maxItems": 0}}}, "no value of 'spans': maxItems is 0"),
        (of_a({}, additionalProperties=False), "no value of 'b': additionalProperties allows nothing"),
        ({"unevaluatedProperties": False}, "no answer was found that passes it"),
        ({"maxProperties": 0}, "no answer was found that passes it"),
        ({"required": ["a"], "not": {"required": ["a"]}}, "no answer was found that passes it"),
        ({"type": "array"}, "no answer was found that passes it"),
        (of_a({"minLength": 10**9, "maxLength": 10**10}), "no value of 'a': minLength is 1000000000, more"),
        ({"properties": {"spans": {"minItems": 10**9, "maxItems": 10**9}}}, "no value of 'spans': minItems"),
    ],
    ids=lambda part: json.dumps(part)[:60],
)
def test_keywords_that_would_not_be_enforced_are_refused(overlay: dict[str, Any], words: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        compile_labelling(CONFIG, overlay)
    assert refused.value.message.startswith("schema.json")
    assert refused.value.hint


def write_case(folder: Path, **files: str) -> Path:
    """Write a case `mine` whose files may be others than right ones; return the folder of cases."""
    right = {
        "config.xml": CONFIG,
        "prompt.md": "# Role\nYou.\n# Task\nDo.\n# Compact\nDo.\n",
        "schema.json": "{}",
        "examples.jsonl": "",
    }
    (folder / "mine").mkdir()
    for name, text in {**right, **{key.replace("_", "."): text for key, text in files.items()}}.items():
        (folder / "mine" / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('"x"', 'holds "x", which is no JSON object'),
        ("[]", "which is no JSON object"),
        ("true", "which is no JSON object"),
        ("", "is not JSON"),
        ('{"required": ["a"], "required": ["b"]}', "the key 'required' occurs twice"),
        ('{"properties": {"n": {"minimum": NaN}}}', "NaN is not JSON"),
        ('{"properties": {"n": {"maximum": 1e999}}}', "1e999 is too large a number"),
        ('{"properties": {"a": {"description": "\\ud800"}}}', "lone surrogate"),
        ("[" * 100_000, "is not JSON"),
        ('{"not":' * 150 + "{}" + "}" * 150, "nested deeper than 100 levels"),
        ('{"required": ["nme"]}', "requires 'nme'"),
        ('{"x-validations": [{"rule": "self.a <"}]}', "is not CEL"),
    ],
)
def test_the_file_and_its_case_are_named_at_the_start(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(SetupError, match=words) as refused:
        Cases(write_case(tmp_path, schema_json=text))
    assert refused.value.message.startswith(("mine/schema.json", "Case 'mine': x-validations"))


@pytest.mark.parametrize(
    "line",
    [
        *("5", "[]", '"x"', "{}", '{"data": {"t": "x"}}', '{"data": [], "value": {}}'),
        *('{"data": {"t": "x"}, "value": []}', '{"data": null, "value": {}}', "[" * 100_000),
        *('{"data": {"t": "x"}, "value": {"n": NaN}}', '{"data": {"t": NaN}, "value": {"spans": []}}'),
        *('{"data": {"t": "x", "t": "y"}, "value": {}}', '{"data": {"t": "\\udc00"}, "value": {}}'),
    ],
)
def test_an_example_of_the_wrong_kind_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(SetupError, match=r"mine/examples\.jsonl line 2 is no example"):
        Cases(write_case(tmp_path, examples_jsonl='{"data": {"t": "x"}, "value": {"spans": []}}\n' + line))


def test_an_example_whose_data_lacks_a_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="Example 1 of case 'mine' cannot be shown"):
        Cases(write_case(tmp_path, examples_jsonl='{"data": {}, "value": {"spans": []}}'))


@pytest.mark.parametrize("config", ["<View", "<View/>", CONFIG.replace("Rating", "Polygon"), ""])
def test_an_unusable_config_is_reported_with_its_case(tmp_path: Path, config: str) -> None:
    with pytest.raises(SetupError, match="mine"):
        Cases(write_case(tmp_path, config_xml=config))


def test_files_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    example = '{"data": {"t": "x"}, "value": {"spans": [], "a": "y"}}'
    files = {
        "config_xml": CONFIG,
        "prompt_md": "# Role\nYou.\n# Task\nDo.\n# Compact\nDo.\n",
        "schema_json": json.dumps(of_a({"maxLength": 2})),
        "examples_jsonl": example,
    }
    case = Cases(write_case(tmp_path, **{name: f"\ufeff{text}" for name, text in files.items()})).get("mine")
    assert [example.value for example in case.examples] == [{"spans": [], "a": "y"}]


@pytest.mark.parametrize(
    ("schema", "keyword"),
    [
        ({"pattern": "^(?=.*[0-9])[a-z0-9]+$"}, "pattern"),
        ({"pattern": r"^(a|b)\1$"}, "pattern"),
        ({"pattern": r"\bword\b"}, "pattern"),
        ({"allOf": [{"pattern": "^a"}, {"pattern": r"b\b"}]}, "allOf"),
    ],
)
def test_keywords_that_the_engine_rejects_are_checked_after_decoding(
    schema: dict[str, Any], keyword: str
) -> None:
    labelling = compile_labelling(CONFIG, of_a({"maxLength": 9, **schema}))
    (left_out,) = labelling.schemas.unenforced
    assert str(left_out).startswith(f"`{keyword}` of 'a' is checked after")
    (message,) = Rules(labelling).messages
    assert message.startswith(f"a: {keyword} ")
    assert not schema_refusal(labelling.decoding_schema)
    bound = labelling.decoding_schema["properties"]["a"]["anyOf"][0]
    assert (bound["type"], bound["maxLength"]) == ("string", 9)


@pytest.mark.parametrize(
    "overlay", ["x", [], 5, True, False, ["properties"], {"a": {1, 2}}, {"a": float("nan")}]
)
def test_an_overlay_that_is_no_json_object_is_refused(overlay: Any) -> None:
    with pytest.raises(SetupError, match=r"^schema\.json (holds|is not JSON)"):
        compile_labelling(CONFIG, overlay)


def test_the_engine_has_the_version_that_vllm_pins() -> None:
    pins = [
        re.findall(r"(?m)^llguidance==\S+", (ROOT / "requirements" / name).read_text())
        for name in ("backend.txt", "vllm.txt")
    ]
    assert pins[0] == pins[1] != []


def test_docs_list_the_formats_and_their_example_works() -> None:
    page = (ROOT / "docs/reference/configs.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith("| `format`"))
    formats = Draft202012Validator.FORMAT_CHECKER.checkers
    assert re.findall(r"`([a-z0-9-]+)`", row)[1:] == sorted(formats)
    example = json.loads(page.split("## schema.json")[1].split("```json\n")[1].split("```")[0])
    config = """<View><Text name="t" value="$t"/><TextArea name="departure" toName="t" maxSubmissions="1"/>
    <Number name="seats" toName="t"/><Choices name="class" toName="t"><Choice value="economy"/>
    <Choice value="business"/><Choice value="first"/></Choices></View>"""
    rules = Rules(compile_labelling(config, example))
    assert not rules.check({"departure": "abc", "seats": 2, "class": "economy"}, TASK)
    assert rules.check({"departure": "abc", "class": "economy"}, TASK)
    assert rules.check({"departure": "abc", "seats": 2, "class": "first"}, TASK)


def test_bounds_without_end_are_no_burden_to_the_engine() -> None:
    overlay = {"properties": {"a": {"maxLength": 10**12}, "spans": {"maxItems": 10**12}}}
    labelling = compile_labelling(CONFIG, overlay)
    assert labelling.decoding_schema["properties"]["spans"]["maxItems"] == 10_000
    assert accepts(overlay, {"a": "x" * 3000})


@pytest.mark.parametrize("step", [1e-308, 1e308, 3, 0.1])
def test_any_step_of_a_number_is_enforced(step: float) -> None:
    overlay = {"properties": {"n": {"multipleOf": step}}}
    assert accepts(overlay, {"n": 0})
    assert accepts(overlay, {"n": 2}) == Draft202012Validator({"multipleOf": step}).is_valid(2)


def test_numbers_beyond_the_engines_are_left_to_the_check_after_decoding() -> None:
    labelling = compile_labelling(CONFIG, {"properties": {"n": {"maximum": 1e300}}})
    assert labelling.schemas.unenforced
    assert not schema_refusal(labelling.decoding_schema)


def test_alternatives_and_options_bind_the_model() -> None:
    overlay = {
        "properties": {
            "a": {"anyOf": [{"const": "one"}, {"pattern": "^2+$"}, {"type": "integer"}]},
            "kind": {"not": {"const": "x"}},
            "n": {"type": "integer", "exclusiveMinimum": 0},
        }
    }
    decoding = compile_labelling(CONFIG, overlay).decoding_schema["properties"]
    text = {"type": "string", "minLength": 1, "maxLength": 2000}
    assert decoding["a"]["anyOf"][0] == {
        "anyOf": [{"type": "string", "enum": ["one"]}, {**text, "pattern": "^2+$"}]
    }
    assert decoding["kind"]["anyOf"][0]["enum"] == ["y", "long one"]
    assert decoding["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 1_000_000_000}


def test_an_example_may_state_an_answer_that_the_search_misses() -> None:
    digits = {"pattern": "^(?=.*0314)[0-9]{7}$"}
    with pytest.raises(SetupError, match=r'State one at the field, "examples"'):
        compile_labelling(CONFIG, of_a(digits))
    overlay = of_a({**digits, "examples": ["0314009"]})
    assert accepts(overlay, {"a": "0314009"})
    together = {"if": {"required": ["a"]}, "then": {"properties": {"b": {"pattern": "^(?=.*q)(?=.*z).*$"}}}}
    assert accepts(together, {"a": "x", "b": "zq"})
    assert not accepts(together, {"a": "x", "b": "z"})


@pytest.mark.parametrize(
    "pattern",
    [
        r"^((25[0-5]|2[0-4]\d|1?\d?\d)(\.|$)){4}$",
        *(r"(?i)^yes|no$", r"^(['\"]).*\1$", r"^(?!.*\s$)[\w.+-]+@[\w-]+\.[a-z]{2,}$", r"^[^\s<>]{3}$"),
        *(r"^(?=.*[A-Z])(?=.*[a-z])(?=.*[0-9]).{8,}$", r"^[\u4e00-\u9fff]{2,4}$", r"\bword\b", r"^🐲*$"),
        *(r"^[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]{4}){3,7}$", r"^(?P<y>[0-9]{4})-(?P=y)$", r"\S", r"^[^a-zA-Z]+$"),
        *(r"^\$\{\{(.|[\r\n])*\}\}$", r"^(?:[^\W_]|-)+$", r"^v?\d+\.\d+\.\d+(-[\w.]+)?$", r"^a*?b++$"),
    ],
)
def test_usual_patterns_have_a_matching_text(pattern: str) -> None:
    assert any(re.search(pattern, text) for text in matches(pattern, 200))
    assert compile_labelling(CONFIG, of_a({"pattern": pattern}))  # type: ignore[truthy-bool]


def test_keywords_of_our_own_are_read_where_a_reference_leads() -> None:
    overlay = of_a({"$ref": "#/$defs/quoted"}, **{"$defs": {"quoted": {"x-grounded": True}}})
    labelling = compile_labelling(CONFIG, overlay)
    assert Rules(labelling).quoted[0] == ("a",)
    human = compile_labelling(CONFIG, {"allOf": [of_a({"x-human": True})], "required": ["n"]})
    assert human.human == {"a"}
    assert "a" not in human.decoding_schema["properties"]


def test_a_draft_may_lack_fields_that_only_humans_fill() -> None:
    overlay = of_a({"x-human": True, "minLength": 2}, required=["a"])
    assert accepts(overlay, {})
    assert not accepts(overlay, {"a": "x"})


def test_the_version_of_drafts_changes_with_every_word_of_a_schema() -> None:
    plain = compile_labelling(CONFIG, of_a({"maxLength": 5})).validating_schema
    assert "x-overlay" not in plain
    overlay = of_a({"maxLength": 5, "not": {"const": "x"}})
    assert compile_labelling(CONFIG, overlay).validating_schema["x-overlay"] == overlay


def test_a_thing_of_several_keeps_its_null_where_the_schema_allows_it() -> None:
    config = """<View><Text name="t" value="$t"/><Image name="i" valueList="$i"/>
    <TextArea name="a" toName="i" maxSubmissions="1" perItem="true"/></View>"""
    task = Task(1, {"t": "x", "i": ["a.png", "b.png"]})
    word = {"type": "string", "minLength": 1, "maxLength": 2}
    for said, items in (
        ({"maxLength": 2}, {"anyOf": [word, {"type": "null"}]}),
        ({"type": "string", "maxLength": 2}, word),
    ):
        labelling = compile_labelling(config, of_a({"items": said})).for_task(task)
        assert labelling.validating_schema["properties"]["a"]["items"] == items


def test_a_task_with_forbidden_options_is_refused() -> None:
    config = CONFIG.replace('<Choices name="kind" toName="t">', '<Choices name="kind" toName="t" value="$o">')
    labelling = compile_labelling(config, {"properties": {"kind": {"enum": ["x", "new"]}}})
    fitting = labelling.for_task(Task(1, {"t": "a", "o": [{"value": "new"}, {"value": "other"}]}))
    assert fitting.validating_schema["properties"]["kind"]["enum"] == ["x", "new"]
    config = CONFIG.replace("</View>", '<Taxonomy name="tax" toName="t" value="$o"/></View>')
    labelling = compile_labelling(config, {"properties": {"tax": {"items": {"const": "new"}}}})
    with pytest.raises(TaskError, match=r"Task 2: its options do not fit: schema\.json leaves no value of"):
        labelling.for_task(Task(2, {"t": "a", "o": [{"value": "other"}]}))


def test_the_engine_accepts_decoding_schemas_and_explains_refusals() -> None:
    case = generic_case(compile_labelling(CONFIG))
    grammar = case.grammar(TASK)
    assert grammar is not None
    assert not grammar_refusal(grammar)
    assert not schema_refusal(case.labelling.decoding_schema)
    assert "look" in schema_refusal({"type": "string", "pattern": "(?=a)"})
    assert grammar_refusal("start: UNKNOWN")
    Draft202012Validator.check_schema(case.labelling.decoding_schema)
