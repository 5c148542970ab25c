"""Turns a matplotlib figure into an `<svg>` element of a page: with unique ids, without a date, in the page's colours.

Text stays text. Everything in the colour `INK` gets the colour of the page's text, so it is readable on light and dark.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.figure import Figure

from fold.errors import printable

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

INK = "#010203"
"""Replaced by the page's text colour. matplotlib omits black, and does not know `currentColor`."""
SVG = "http://www.w3.org/2000/svg"
HREF = "{http://www.w3.org/1999/xlink}href"
STYLE: "dict[RcKeyType, Any]" = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "font.family": "sans-serif",
    "font.size": 10,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "path.simplify": False,
    "svg.fonttype": "none",
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": INK,
    "ytick.color": INK,
}
"""Set on top of matplotlib's defaults, so that a user's configuration does not change a report."""


def inline(figure: Figure, name: str, title: str, description: str) -> str:
    """The figure as an `<svg>` element of HTML that fills its column.

    Its ids begin with `name`; screen readers read `title` and `description`.
    """
    file = io.StringIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=metadata)
    root = ElementTree.fromstring(file.getvalue())
    for parent in root.iter():
        for child in [child for child in parent if child.tag in (f"{{{SVG}}}metadata", f"{{{SVG}}}style")]:
            parent.remove(child)  # a style element would apply to the whole page
    _rename_ids(root, name)
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if attribute in ("style", "fill", "stroke"):
                element.set(attribute, value.replace(INK, "currentColor"))
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    root.set("role", "img")
    root.set("aria-labelledby", f"{name}-title {name}-desc")
    for position, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(f"{{{SVG}}}{tag}", {"id": f"{name}-{tag}"})
        element.text = printable(text)
        root.insert(position, element)
    ElementTree.register_namespace("", SVG)
    return ElementTree.tostring(root, encoding="unicode").replace(f' xmlns="{SVG}"', "", 1)


@contextmanager
def styled() -> Iterator[None]:
    """A context with the style of reports, whatever the user's matplotlibrc says."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Number the ids that are referenced and drop the others; matplotlib's ids are random."""
    text = ElementTree.tostring(root, encoding="unicode")
    used = set(re.findall(r"url\(#([^)]+)\)", text)) | set(re.findall(r'href="#([^"]+)"', text))
    new: dict[str, str] = {}
    for element in root.iter():
        old = element.attrib.pop("id", None)
        if old in used and old is not None:
            new[old] = f"{name}-{len(new)}"
            element.set("id", new[old])
    for element in root.iter():
        for attribute, value in element.attrib.items():
            if "url(#" in value:
                element.set(attribute, re.sub(r"url\(#([^)]+)\)", lambda found: f"url(#{new[found[1]]})", value))
        if HREF in element.attrib:
            element.set("href", "#" + new[element.attrib.pop(HREF)[1:]])
