"""Pages made of Jinja templates, which lie as files in the package that owns the page.

Knows where templates are and that every value is escaped. Does not know any page. Jinja is imported when the
first page is made: a verb that makes none does not pay for it.
"""

from functools import cache
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Return a page.

    Args:
        template: Its path in the package `draftloop`, such as `dataset/templates/report.html`.
        values: What it shows; text is escaped.
    Raises:
        jinja2.UndefinedError: The template uses a value that is missing.
    """
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  # 50 ms and 11 MB

    return Environment(
        loader=PackageLoader("draftloop", ""),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_escaped,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )


def _escaped(value: Any) -> Any:
    """Escape as `html.escape` does: its entities for quotes stand in files whose bytes must not change."""
    from markupsafe import Markup  # noqa: PLC0415  # comes with Jinja

    return value if hasattr(value, "__html__") else Markup(escape(str(value)))  # noqa: S704  # escaped here
