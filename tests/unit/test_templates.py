"""Pages are made of templates that escape every value, refuse a missing one and are packaged."""

import os
import subprocess
import sys
import tomllib
from fnmatch import fnmatch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from selectolax.lexbor import LexborHTMLParser

from draftloop.execution.run_page import unshown
from draftloop.support.environments import ROOT
from draftloop.support.templates import render

CASCADE = "drafting/templates/cascade.html"
TEMPLATES = sorted((ROOT / "backend/draftloop").glob("*/templates/*.html"))
# Modules that make pages; a verb that loads `draftloop.app` has Jinja anyway, with Flask.
PAGES = ("draftloop.dataset.report", "draftloop.drafting.cascade_page", "draftloop.execution.run_page")


@given(st.text())
def test_every_value_is_escaped(text: str) -> None:
    page = render(CASCADE, small=text, larger="<b>'\"&", cases=[])
    assert page.count("<b>") == 0
    assert "&lt;b&gt;&#x27;&quot;&amp;" in page, "as html.escape writes them"
    assert not LexborHTMLParser(page).css("h1 *")


def test_a_value_that_is_missing_is_an_error() -> None:
    with pytest.raises(UndefinedError, match="larger"):
        render(CASCADE, small="a", cases=[])


def test_only_charts_are_marked_as_safe() -> None:
    places = [
        (path.name, place.strip())
        for path in TEMPLATES
        for place in path.read_text("utf-8").replace("}}", "{{").split("{{")
        if "|safe" in place or "| safe" in place or "autoescape" in place
    ]
    assert sorted(places) == [
        ("cascade.html", "case.plot|safe"),
        ("report.html", "deciles|safe"),
        ("report.html", "lengths|safe"),
        ("table.html", "cell|safe"),
    ]


def test_no_template_holds_script_or_loads_anything() -> None:
    page = unshown("a.html")
    assert LexborHTMLParser(page).css("script, link, img") == []
    for path in TEMPLATES:
        text = path.read_text("utf-8")
        assert "<script" not in text, path.name
        assert "http" not in text.replace("http-equiv", ""), path.name


def test_every_template_is_in_the_wheel() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        data = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    assert len(TEMPLATES) > 5
    for path in TEMPLATES:
        patterns = data[f"draftloop.{path.parents[1].name}"]
        assert any(fnmatch(f"templates/{path.name}", pattern) for pattern in patterns), path


@pytest.mark.parametrize("module", [*PAGES, "draftloop.cli.next_tasks"])
def test_jinja_is_imported_with_the_first_page(module: str) -> None:
    program = f"import sys, {module}; sys.exit('jinja2' in sys.modules)"
    ended = subprocess.run([sys.executable, "-P", "-c", program], env=dict(os.environ), check=False)
    assert ended.returncode == 0
