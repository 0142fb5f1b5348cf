"""The templates, as functions of what they show. Everything that they are given is escaped."""

from functools import cache
from importlib.resources import files

import jinja2


def render(template: str, **shown: object) -> str:
    """Fill in one of the package's templates."""
    return _environment().get_template(template).render(**shown)


def template_text(name: str) -> str:
    """The text of a file among the templates, as it is."""
    return (files("vramtune.reports") / "templates" / name).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("vramtune.reports"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["percent"] = _percent
    return environment


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%"
