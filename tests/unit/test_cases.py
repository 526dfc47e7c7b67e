"""The folder of cases: what is compiled is kept, and only so much of it."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from draftloop.errors import SetupError
from draftloop.labelling.labelling import STATUS_KEY
from draftloop.prompting.cases import _KEPT, Cases
from draftloop.prompting.prompt import Overrides

CASES = Path(__file__).parents[2] / "label_config"


def config(number: int) -> str:
    return f'<View><Text name="t{number}" value="$text"/><TextArea name="a" toName="t{number}"/></View>'


def test_configs_without_end_leave_a_bounded_number_of_cases() -> None:
    cases = Cases(CASES)
    kept = cases.find(config(0))
    for number in range(1, _KEPT + 50):
        assert cases.find(config(number)).name == "generic"
        assert cases.find(config(0)) is kept, "what is used stays"
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(cases.find, map(config, range(_KEPT))))
    assert len(cases._compiled) == _KEPT
    for number in range(_KEPT):
        cases.find(config(0), overrides=Overrides(temperature=number / 1000))
    assert len(cases._compiled) <= _KEPT
    for name in cases.names():
        assert cases.get(name).name == name, "compiled anew where it went"


def test_an_example_may_hold_a_line_separator(tmp_path: Path) -> None:
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "config.xml").write_text(
        '<View><Text name="t" value="$text"/>'
        '<TextArea name="a" toName="t" maxSubmissions="1" required="true"/></View>'
    )
    (folder / "prompt.md").write_text("# Role\nYou.\n# Task\nDo.\n# Compact\nDo.\n")
    line = '{"data": {"text": "a\u2028b"}, "value": {"a": "c\u2028d"}}'
    (folder / "examples.jsonl").write_text(f"{line}\n\n{line}\n", encoding="utf-8")
    assert [example.value for example in Cases(tmp_path).get("words").examples] == [{"a": "c\u2028d"}] * 2
    (folder / "examples.jsonl").write_text(f"{line}\n{{}}\n", encoding="utf-8")
    with pytest.raises(SetupError, match="line 2 is no example"):
        Cases(tmp_path)


def test_lists_show_what_is_read_first_and_why_a_draft_needs_a_human_last() -> None:
    # Label Studio's columns have the order of the config; the page has that of the style.
    cases = Cases(CASES)
    for name in cases.names():
        config = cases.config(name)
        keys = re.findall(r'value="\$(\w+)"', config)
        assert keys[0] in ("text", "instruction"), name
        assert keys[-1] == STATUS_KEY, name
        assert re.search(r"\.draft-status \{ order: -1;", config), name
        assert '<View className="task">' in config


def test_links_in_a_task_can_be_followed() -> None:
    # Label Studio lets a click on a link do nothing unless the tag says otherwise.
    config = Cases(CASES).config("code_analysis")
    for key in ("run_status", "run_files"):
        assert re.search(rf'value="\${key}" inline="true" clickableLinks="true"', config), key
