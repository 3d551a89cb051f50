"""A matplotlib figure as inline SVG for a page whose policy forbids everything that it does not contain.

matplotlib writes style attributes, namespaces and ids for a file of its own; a page wants presentation
attributes (a style attribute would need a laxer Content-Security-Policy), no outside name and unique ids.
"""

import io
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

INK, QUIET, GRID = "#1d2327", "#5b656c", "#d9dee1"
ACCENT, PALE, SECOND = "#0b5563", "#c9dfe2", "#a34a12"

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.image_inline": True,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "text.parse_math": False,  # a branch may be called "A$B$"
    "axes.edgecolor": QUIET,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "path.simplify": True,
    "axes.unicode_minus": True,
    "hatch.linewidth": 0.7,
}
_FONT = re.compile(r"^(?:(?P<weight>bold|\d{3}) )?(?P<size>[\d.]+)px ")
_NOT_IN_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def plain(text: str, longest: int = 28) -> str:
    """One line of characters that XML may hold, shortened with an ellipsis."""
    line = " ".join(_NOT_IN_XML.sub("\ufffd", text).split())
    return line if len(line) <= longest else line[: longest - 1].rstrip() + "…"


def draw(
    name: str, title: str, description: str, size: tuple[float, float], paint: Callable[[Figure], Any]
) -> str:
    """Paint a figure of `size` inches; the SVG text, the same for the same input. `name` keeps ids apart."""
    settings: Any = {**_STYLE, "svg.hashsalt": f"sfumato-{name}"}
    with mpl.rc_context(settings), warnings.catch_warnings():
        # The reader's own fonts draw the text; DejaVu only measures it.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=size, dpi=72, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        written = io.StringIO()
        figure.savefig(written, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    root = ET.fromstring(written.getvalue())  # noqa: S314 - written on the line above
    return _inline(root, name, title, description)


def _inline(root: ET.Element, name: str, title: str, description: str) -> str:
    for element in root.iter():
        element.tag = _local(element.tag)
        element.attrib = {_local(k): v for k, v in element.attrib.items()}
        for key, value in _presentation(element.attrib.pop("style", "")).items():
            element.set(key, value)
    _drop(root, {"metadata", "style"})
    used = set(re.findall(r"#([\w.\-]+)", ET.tostring(root, encoding="unicode")))
    for element in root.iter():
        if element.get("id") not in used:
            element.attrib.pop("id", None)
    view = root.get("viewBox", "0 0 1 1")
    root.attrib = {
        "viewBox": view,
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-desc",
        "focusable": "false",
    }
    for tag, text in (("desc", description), ("title", title)):
        child = ET.Element(tag, {"id": f"{name}-{tag}"})
        child.text = _NOT_IN_XML.sub("\ufffd", text)
        root.insert(0, child)
    for element in root.iter():
        if element.tag not in ("text", "title", "desc", "tspan"):
            element.text = None
        element.tail = None
    return ET.tostring(root, encoding="unicode")


def _local(qualified: str) -> str:
    return qualified.rsplit("}", 1)[-1]


def _drop(parent: ET.Element, tags: set[str]) -> None:
    for child in list(parent):
        if child.tag in tags or (child.tag == "defs" and all(c.tag in tags for c in child) and len(child)):
            parent.remove(child)
        else:
            _drop(child, tags)


def _presentation(style: str) -> dict[str, str]:
    """The declarations of a style attribute as attributes; the page's style sheet names the font family."""
    found: dict[str, str] = {}
    for declaration in style.split(";"):
        key, _, value = (part.strip() for part in declaration.partition(":"))
        if key == "font" and (font := _FONT.match(value)):
            found["font-size"] = font["size"]
            if font["weight"]:
                found["font-weight"] = font["weight"]
        elif key and value and key != "font":
            found[key] = value
    return found
