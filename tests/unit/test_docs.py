"""Pages that say which test shows something name tests that exist."""

import re

import pytest

from draftloop.support.environments import ROOT

PAGES = ("docs/explanation/threat-model.md", "docs/how-to/deploy.md", "docs/explanation/sandbox.md", "docs/how-to/artifacts.md", "SECURITY.md")
FILES = {path.relative_to(ROOT).as_posix(): path.read_text() for path in (ROOT / "tests").rglob("*.py")}


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in re.findall(r"`(tests/[\w/.]+|test_\w+(?:\.py)?)[:`]", text):
        if name.endswith(".py"):
            assert any(path.endswith(name) for path in FILES), name
        elif name.startswith("tests/"):
            assert (ROOT / name).exists(), name
        else:
            assert any(f"def {name}(" in content for content in FILES.values()), name


@pytest.mark.parametrize("page", PAGES)
def test_linked_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target
