"""Pages name tests, files and pages that exist, and each generated part stands in one page."""

import re

import pytest

from draftloop.support.environments import ROOT
from scripts.docs import PARTS
from scripts.site_hooks import rewrite_links

PAGES = (
    "docs/explanation/threat-model.md",
    "docs/how-to/deploy.md",
    "docs/explanation/sandbox.md",
    "docs/how-to/artifacts.md",
    "SECURITY.md",
    "CONTRIBUTING.md",
)
ALL_PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"))
)
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


@pytest.mark.parametrize("page", ALL_PAGES)
def test_linked_pages_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / target).exists(), target


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "README.md"])
def test_named_files_of_the_repository_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    for name in re.findall(r"`((?:backend|scripts|tests|docs|demo|requirements)/[\w./-]+)", text):
        assert (ROOT / name).exists(), name


def test_the_readme_is_short_and_names_the_test_command() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) < 900
    assert "scripts/test" in text


@pytest.mark.parametrize("part", PARTS)
def test_each_generated_part_stands_in_one_page(part: str) -> None:
    texts = [(ROOT / page).read_text() for page in ALL_PAGES]
    assert sum(f"\n<!-- /{part} -->\n" in f"{text}\n" for text in texts) == 1


def test_the_site_turns_links_that_leave_it_into_paths() -> None:
    words = "[a](../reference/settings.md#b), [c](../../CHANGELOG.md#d), [e](../../demo/README.md)"
    assert rewrite_links(words, "how-to/x.md") == (
        "[a](../reference/settings.md#b), [c](../changelog.md#d), e (`demo/README.md`)"
    )
    assert rewrite_links("[f](docs/index.md), [g](SECURITY.md)", "contributing.md") == (
        "[f](index.md), [g](security.md)"
    )
