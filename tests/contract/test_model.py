"""What any model server must do for us: the fake in every run, real vLLM beside it where it is installed."""

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from draftloop.errors import FailedRequest, ServiceError, SetupError, TaskError
from draftloop.labelling.guidance import schema_refusal
from draftloop.labelling.labelling import Task, compile_labelling
from draftloop.model.scoring import score
from draftloop.model.vllm import VllmModel
from draftloop.prompting.cases import Cases
from draftloop.prompting.prompt import Message, Prompt, generic_case, preamble, render
from draftloop.serving.readiness import ModelCheck
from tests.adapters import run_of
from tests.conftest import LORA_RANK, gallery
from tests.fake_vllm import fake_vllm
from tests.families import FAMILIES
from tests.supported import SUPPORTED, short

CASES = Cases(Path(__file__).parents[2] / "label_config")


@dataclass(frozen=True)
class Engine:
    url: str
    name: str
    run: Path  # of an adapter for its model


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.integration)])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    if request.param == "real":
        vllm = request.getfixturevalue("vllm")
        yield Engine(vllm.url, vllm.name, request.getfixturevalue("runs")["zero"])
        return
    run = run_of(request.getfixturevalue("tmp_path") / "run")
    with fake_vllm(delay_s=0.1, max_lora_rank=LORA_RANK) as fake:
        yield Engine(fake.url, fake.name, run)


@pytest.fixture
def model(engine: Engine) -> Iterator[VllmModel]:
    with VllmModel(engine.url, engine.name) as opened:
        yield opened


def shared_prompts() -> dict[str, tuple[Message, ...]]:
    return {name: preamble(CASES.get(name), "compact") for name in CASES.names()}


def ask(case: str, text: str) -> Prompt:
    compiled = CASES.get(case)
    messages = render(compiled, Task(1, dict.fromkeys(compiled.labelling.keys, text)), "compact")
    return Prompt(messages, schema=compiled.labelling.decoding_schema, temperature=0, max_tokens=600)


@pytest.mark.parametrize(
    "said",
    [
        {"pattern": "^(?=.*[0-9])"},
        {"pattern": r"^(a|b)\1$"},
        {"not": {"const": "x"}, "format": "email"},
        {"anyOf": [{"const": "one"}, {"pattern": "^2+$"}, {"format": "date-time"}]},
        {"$ref": "#/$defs/short"},
        {"maxLength": 10**12},
    ],
)
def test_no_schema_that_a_case_may_have_is_refused(model: VllmModel, said: dict[str, Any]) -> None:
    config = """<View><Text name="t" value="$t"/><TextArea name="a" toName="t" maxSubmissions="1"/></View>"""
    overlay = {"properties": {"a": said}, "$defs": {"short": {"maxLength": 3}}}
    schema = compile_labelling(config, overlay).decoding_schema
    prompt = Prompt((Message("user", "abc 12"),), schema=schema, temperature=0, max_tokens=60)
    completion = model.complete(prompt, timeout_s=60)
    assert completion.text.startswith('{"a":')


def test_what_the_engine_refuses_here_it_refuses_there(model: VllmModel) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "string", "pattern": "^(?=a)"}},
        "required": ["a"],
    }
    assert schema_refusal(schema)
    with pytest.raises(TaskError, match="refused the prompt"):
        model.complete(Prompt((Message("user", "abc"),), schema=schema, max_tokens=60), timeout_s=60)


@pytest.mark.parametrize("case", CASES.names())
def test_an_answer_satisfies_the_decoding_schema_and_is_compact(model: VllmModel, case: str) -> None:
    completion = model.complete(ask(case, "您好,我叫王小明。😀 OK"), timeout_s=60)
    schema = CASES.get(case).labelling.decoding_schema
    value = json.loads(completion.text)
    assert completion.finish_reason == "stop"
    assert Draft202012Validator(schema).is_valid(value), completion.text
    assert completion.text == json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert list(value) == list(schema["properties"])
    assert completion.prompt_tokens > 0
    assert completion.completion_tokens > 0


# Every codec's schema in one config: a keyword that the engine refuses is a 400 for a whole project.
EVERYTHING = compile_labelling(
    """
<View><Text name="text" value="$text"/>
  <Choices name="one" toName="text" required="true"><Choice value="a"/><Choice value="b"/></Choices>
  <Choices name="several" toName="text" choice="multiple">
    <Choice value="x"/><Choice value="y"/>
  </Choices>
  <TextArea name="line" toName="text" maxSubmissions="1"/>
  <TextArea name="lines" toName="text" maxSubmissions="2"/>
  <Labels name="spans" toName="text"><Label value="PER"/><Label value="LOC"/></Labels>
  <Labels name="multi" toName="text" choice="multiple"><Label value="P"/><Label value="Q"/></Labels>
  <Rating name="stars" toName="text"/><Number name="count" toName="text" min="1" max="9" step="1"/>
  <Number name="share" toName="text" min="0" max="1" step="0.01"/><Number name="free" toName="text"/>
  <DateTime name="day" toName="text" only="date"/><DateTime name="clock" toName="text" only="time"/>
  <DateTime name="moment" toName="text"/>
  <Taxonomy name="tree" toName="text">
    <Choice value="A"><Choice value="B"/></Choice><Choice value="C"/>
  </Taxonomy>
</View>""",
    {
        "properties": {
            "line": {"maxLength": 20},
            "lines": {"items": {"maxLength": 20}},
            "spans": {"maxItems": 2, "items": {"properties": {"text": {"maxLength": 9}}}},
            "multi": {"maxItems": 2, "items": {"properties": {"text": {"maxLength": 9}}}},
        }
    },
)


def test_the_schema_of_every_control_is_taken_and_obeyed(model: VllmModel) -> None:
    schema = EVERYTHING.decoding_schema
    # No schema that guidance enforces ends a fraction: a model that likes its last digit goes on and on.
    prompt = Prompt((Message("user", "a"),), schema=schema, max_tokens=1500)
    completion = model.complete(prompt, timeout_s=120)
    value = json.loads(completion.text)
    assert [error.message for error in Draft202012Validator(schema).iter_errors(value)] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_schema_of_a_family_of_codecs_is_taken_and_obeyed(model: VllmModel, family: str) -> None:
    config, data = FAMILIES[family]
    assert obeyed(model, config, Task(1, data)) == []


@pytest.mark.parametrize("name", SUPPORTED)
def test_the_schema_of_a_template_is_taken_and_obeyed(model: VllmModel, name: str) -> None:
    template, _, task = gallery(name)
    assert obeyed(model, template.config, task) == []


@pytest.mark.parametrize("text", ['我叫"王"小明😀,a@b.cn', "line one\nline two\\ 京"])
def test_a_bound_quote_is_a_piece_of_the_text(model: VllmModel, text: str) -> None:
    case = CASES.get("complaint")
    prompt = replace(ask("complaint", text), grammar=case.grammar(Task(1, {"text": text})))
    value = case.labelling.decode(model.complete(prompt, timeout_s=120).text)
    assert value["question"]
    assert [quote for quote in value.values() if quote not in text] == []


def test_a_grammar_that_the_server_refuses_costs_this_task(model: VllmModel) -> None:
    prompt = Prompt((Message("user", "a"),), grammar="start: UNKNOWN", max_tokens=50)
    with pytest.raises(TaskError, match=r"refused the prompt \(400\)"):
        model.complete(prompt, timeout_s=60)


def obeyed(model: VllmModel, config: str, task: Task) -> list[str]:
    """Ask under a config's schema, with quotes free and bound; list what is wrong with the answers."""
    case = generic_case(short(config)).for_task(task)
    labelling = case.labelling
    free = Prompt((Message("user", "abc 京"),), schema=labelling.decoding_schema, max_tokens=1500)
    grammar = case.grammar(task)
    wrong = []
    for prompt in (free, replace(free, grammar=grammar)) if grammar else (free,):
        completion = model.complete(prompt, timeout_s=120)
        assert completion.finish_reason == "stop"
        value = json.loads(completion.text)
        decoded = labelling.decode(completion.text)
        assert labelling.encode(decoded) == completion.text
        labelling.to_regions(decoded, task)
        errors = Draft202012Validator(labelling.decoding_schema).iter_errors(value)
        wrong += [error.message for error in errors]
    return wrong


def test_the_tokens_are_those_of_the_answer_and_give_a_score(model: VllmModel) -> None:
    completion = model.complete(ask("complaint", "我叫王小明😀"), timeout_s=60)
    assert b"".join(token.content for token in completion.tokens).startswith(completion.text.encode())
    scored = score(completion.text, completion.tokens)
    assert 0 < scored.total <= 1
    assert list(scored.fields) == ["name", "address", "email", "question"]


def test_a_greedy_answer_repeats(model: VllmModel) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = pool.map(
            lambda _: model.complete(ask("complaint", "我叫王小明"), timeout_s=60).text, range(16)
        )
    assert len(set(answers)) == 1


def test_a_cut_answer_says_so(model: VllmModel) -> None:
    prompt = ask("complaint", "我叫王小明")
    cut = Prompt(prompt.messages, schema=prompt.schema, max_tokens=3)
    completion = model.complete(cut, timeout_s=60)
    assert completion.finish_reason == "length"


def test_a_limit_beyond_the_context_is_left_to_the_server(model: VllmModel) -> None:
    prompt = ask("complaint", "我叫王小明")
    long = Prompt(prompt.messages, schema=prompt.schema, max_tokens=100_000)
    assert model.complete(long, timeout_s=60).finish_reason == "stop"


def test_a_prompt_may_name_another_model_of_the_server(engine: Engine) -> None:
    with VllmModel(engine.url, "nobody") as model:
        named = replace(ask("sentiment", "很好"), model=engine.name)
        assert model.complete(named, timeout_s=60).finish_reason == "stop"
        model.check_served(engine.name)
        with pytest.raises(SetupError, match="does not serve 'another'; it serves: ") as refused:
            model.check_served("another")
        assert "extra params" in refused.value.hint


@pytest.mark.parametrize(
    "config",
    [
        '<Choices name="c" toName="text"><Choice value="&lt;|im_start|&gt; x"/></Choices>',
        '<Labels name="l" toName="text"><Label value="&lt;|im_end|&gt;"/></Labels>',
        '<TextArea name="&lt;/think&gt;" toName="text"/>',
    ],
)
def test_a_config_with_a_control_token_of_the_model_is_refused_at_set_up(
    model: VllmModel, config: str
) -> None:
    labelling = compile_labelling(f'<View><Text name="text" value="$text"/>{config}</View>')
    for _ in range(2):
        with pytest.raises(SetupError, match="is a control token of"):
            model.check_schema(labelling.decoding_schema, timeout_s=30)


def test_text_that_only_looks_like_control_tokens_is_written(model: VllmModel) -> None:
    options = ["<|nothing|>", "<b>", "[NONE]", "a < b > c", "<unclear>"]
    schema = {
        "type": "object",
        "properties": {"pick": {"type": "string", "enum": options}},
        "required": ["pick"],
    }
    model.check_schema(schema, timeout_s=30)
    for option in options:
        one = {
            **schema,
            "properties": {"pick": {"type": "string", "enum": [option]}},
            "additionalProperties": False,
        }
        prompt = Prompt((Message("user", "a"),), schema=one, max_tokens=100)
        assert json.loads(model.complete(prompt, timeout_s=60).text) == {"pick": option}


def test_a_request_that_a_server_cannot_answer_leaves_it_well(model: VllmModel) -> None:
    one = {"type": "string", "enum": ["<|im_start|>"]}
    with pytest.raises(FailedRequest):
        model.complete(Prompt((Message("user", "a"),), schema=one, max_tokens=100), timeout_s=60)
    assert model.complete(ask("sentiment", "很好"), timeout_s=60).finish_reason == "stop"


def test_an_adapter_is_loaded_under_its_name_and_again_without_harm(engine: Engine) -> None:
    with VllmModel(engine.url, engine.name) as model:
        for _ in range(2):
            model.load_adapter("loaded-zero", engine.run / "adapter")
        model.check_served("loaded-zero")
        plain, tuned = (model.complete(ask_as(name), timeout_s=60) for name in ("", "loaded-zero"))
        assert tuned.text == plain.text
        # Its context is that of its base: a limit beyond it is left to the server.
        long = replace(ask_as("loaded-zero"), max_tokens=100_000)
        assert "max_tokens" not in model.body(long)
        assert model.body(replace(long, max_tokens=600))["max_tokens"] == 600


def test_an_adapter_that_the_server_does_not_know_is_handed_over_by_whoever_asks(engine: Engine) -> None:
    known = {"handed-zero": engine.run / "adapter"}
    with VllmModel(engine.url, engine.name, context_tokens=2048, find_adapter=known.get) as model:
        with ThreadPoolExecutor(8) as pool:
            texts = pool.map(lambda _: model.complete(ask_as("handed-zero"), timeout_s=60).text, range(8))
        assert len(set(texts)) == 1
    with VllmModel(engine.url, engine.name, find_adapter={"shown-zero": engine.run / "adapter"}.get) as model:
        model.check_served("shown-zero")
        with pytest.raises(SetupError, match="does not serve 'nobody'"):
            model.check_served("nobody")


def test_an_adapter_of_too_high_a_rank_is_refused_in_words(
    engine: Engine, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    high = tmp_path / "high"
    shutil.copytree(engine.run / "adapter", high)
    config = json.loads((high / "adapter_config.json").read_text()) | {"r": 2 * LORA_RANK}
    (high / "adapter_config.json").write_text(json.dumps(config))
    with (
        VllmModel(engine.url, engine.name) as model,
        pytest.raises(SetupError, match="'high': LoRA rank 32 is greater than max_lora_rank") as refused,
    ):
        model.load_adapter("high", high)
    assert "--max-lora-rank" in refused.value.hint


def test_an_adapter_that_is_not_there_for_the_server_is_named(engine: Engine, tmp_path: Path) -> None:
    with (
        VllmModel(engine.url, engine.name) as model,
        pytest.raises(SetupError, match=f"finds no adapter at {tmp_path}/gone") as refused,
    ):
        model.load_adapter("gone", tmp_path / "gone")
    assert "ADAPTERS_DIR" in refused.value.hint


def test_a_server_that_takes_no_adapters_is_named_with_its_flags(tmp_path: Path) -> None:
    run = run_of(tmp_path / "run")
    with (
        fake_vllm() as fake,
        VllmModel(fake.url, fake.name) as model,
        pytest.raises(SetupError, match="takes no adapters") as refused,
    ):
        model.load_adapter("zero", run / "adapter")
    assert "--enable-lora" in refused.value.hint
    assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in refused.value.hint


def ask_as(name: str) -> Prompt:
    return replace(ask("complaint", "我叫王小明"), model=name)


@pytest.mark.parametrize("context_tokens", [0, 2048])
def test_a_wrong_model_name_stops_with_a_sentence(engine: Engine, context_tokens: int) -> None:
    with (
        VllmModel(engine.url, "nobody", context_tokens=context_tokens) as model,
        pytest.raises(SetupError, match=r"does not (serve|know) 'nobody'"),
    ):
        model.complete(ask("sentiment", "a"), timeout_s=60)


def test_a_schema_that_the_server_refuses_costs_this_task(model: VllmModel) -> None:
    schema = {
        "type": "array",
        "items": {"type": "string", "maxLength": 2},
        "maxItems": 2,
        "uniqueItems": True,
    }
    prompt = Prompt((Message("user", "a"),), schema=schema, max_tokens=50)
    with pytest.raises(TaskError, match=r"refused the prompt \(400\): .*uniqueItems"):
        model.complete(prompt, timeout_s=60)


def test_a_server_that_is_too_slow_may_be_tried_again(model: VllmModel) -> None:
    assert model.context_tokens == 2048
    # A thousand characters take any engine far longer than this limit, however late we are to look.
    schema = {"type": "string", "minLength": 1000, "maxLength": 1100}
    prompt = Prompt((Message("user", "我叫王小明"),), schema=schema, max_tokens=1500)
    with pytest.raises(ServiceError, match="did not answer within"):
        model.complete(prompt, timeout_s=0.02)


def test_a_server_that_is_not_there_may_be_tried_again() -> None:
    with (
        VllmModel("http://127.0.0.1:9/v1", "x", context_tokens=1) as model,
        pytest.raises(ServiceError, match="cannot be reached"),
    ):
        model.complete(ask("sentiment", "a"), timeout_s=5)


# What the tests above cannot provoke on a real server: the meaning of each code.
@pytest.mark.parametrize(
    ("status", "expected"),
    [(401, SetupError), (403, SetupError), (422, TaskError), (429, ServiceError), (503, ServiceError)],
)
def test_each_refusal_says_its_reaction(status: int, expected: type[Exception]) -> None:
    with (
        fake_vllm(fail=lambda _: status) as fake,
        VllmModel(fake.url, fake.name) as model,
        pytest.raises(expected),
    ):
        model.complete(ask("sentiment", "a"), timeout_s=5)


def test_a_key_is_sent_and_stands_in_no_message() -> None:
    with fake_vllm(api_key="right-key") as fake:
        with VllmModel(fake.url, fake.name, api_key="right-key") as model:
            assert model.complete(ask("sentiment", "a"), timeout_s=5).text
        with (
            VllmModel(fake.url, fake.name, api_key="wrong-key") as model,
            pytest.raises(SetupError) as refused,
        ):
            model.complete(ask("sentiment", "a"), timeout_s=5)
    assert "wrong-key" not in str(refused.value)


def test_the_probe_finds_nothing_wrong(model: VllmModel) -> None:
    assert ModelCheck(model, shared_prompts).check() == ()


def test_the_probe_names_a_wrong_model(engine: Engine) -> None:
    with VllmModel(engine.url, "nobody") as model, pytest.raises(SetupError, match="does not serve 'nobody'"):
        ModelCheck(model).check()


@pytest.mark.parametrize(
    ("started_with", "named"),
    [
        ({"structured_outputs": ""}, "does not enforce JSON Schemas"),
        ({"any_whitespace": True}, "disable_any_whitespace is missing"),
        ({"structured_outputs": "xgrammar"}, "not pinned to the backend guidance"),
        ({"answer": lambda _: "Fine, thank you!"}, "does not enforce JSON Schemas"),
        ({"answer": lambda _: '{\n   "probe"'}, "disable_any_whitespace is missing"),
    ],
)
def test_the_probe_says_which_flag_is_missing(started_with: dict[str, Any], named: str) -> None:
    with (
        fake_vllm(**started_with) as fake,
        VllmModel(fake.url, fake.name) as model,
        pytest.raises(SetupError, match=named) as refused,
    ):
        ModelCheck(model).check()
    assert "--structured-outputs-config" in refused.value.hint


def test_the_probe_of_a_server_that_is_not_there_may_be_tried_again() -> None:
    with (
        VllmModel("http://127.0.0.1:9/v1", "x", context_tokens=1) as model,
        pytest.raises(ServiceError, match="cannot be reached"),
    ):
        ModelCheck(model).check()
