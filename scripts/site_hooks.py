"""Hooks of MkDocs, which `scripts/docs --site` runs: pages and links of the repository outside docs/.

CONTRIBUTING.md, CHANGELOG.md and SECURITY.md become pages of the site. A link to any other file outside
docs/ becomes its path, because the site does not hold it; a link to a file that does not exist is an error.
"""

import logging
import os
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Pages of the site that lie outside docs/.
PAGES = {"CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md", "SECURITY.md": "security.md"}

_log = logging.getLogger("mkdocs.hooks")
_LINK = re.compile(r"(?<!!)\[(?P<words>[^\]\[]+)\]\((?P<path>[^)#:\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Any, config: Any, **_: object) -> Any:
    """Add the pages that lie outside docs/."""
    from mkdocs.structure.files import File  # noqa: PLC0415  MkDocs is in the environment `docs` alone

    for source, page in PAGES.items():
        if (ROOT / source).is_file():
            files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Rewrite links that leave docs/, and those of pages that lie outside."""
    return rewrite_links(markdown, page.file.src_uri)


def rewrite_links(markdown: str, page: str) -> str:
    """Rewrite the links of a page, which is named by its path in the site."""
    outside = {name: source for source, name in PAGES.items()}
    folder = Path(outside.get(page, f"docs/{page}")).parent

    def rewrite(link: re.Match[str]) -> str:
        target = os.path.normpath(folder / link["path"])
        if target in PAGES:
            inside = PAGES[target]
        elif target.startswith("docs/"):
            inside = target.removeprefix("docs/")
        elif not (ROOT / target).exists():
            _log.warning("%s links to %s, which does not exist", page, link["path"])
            return link[0]
        else:
            return link["words"] if target in link["words"] else f"{link['words']} (`{target}`)"
        path = os.path.relpath(inside, Path(page).parent)
        return f"[{link['words']}]({path}{link['anchor'] or ''})"

    return _LINK.sub(rewrite, markdown)
