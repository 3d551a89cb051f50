"""Pages that stand alone: templates of this package, and a policy that lets a page load nothing.

A page's only style sheet is inside it, and allowed by its hash; see `report`.
"""

import base64
import hashlib
from importlib import resources

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup


def source(name: str) -> str:
    """A file of the templates' folder."""
    return resources.files("sfumato.server").joinpath("templates", name).read_text("utf-8")


def render(template: str, style: str, **values: object) -> str:
    """The page as text. Its template says `style` and, in its policy, `style_hash`."""
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    environment = Environment(
        loader=FunctionLoader(source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    page = environment.get_template(template)
    return page.render(style=Markup(style), style_hash=f"sha256-{digest}", **values)  # noqa: S704 - our own file
