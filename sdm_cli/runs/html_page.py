"""One self-contained HTML page, built as a tree, so that no name can become markup.

Owns the frame of a page and its building blocks. A Content-Security-Policy with the hashes of the page's own style and
script lets a browser run nothing else and load nothing from anywhere. Knows no run and no score.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, tostring

from sdm_cli import __version__
from sdm_cli.files import replacing
from sdm_cli.runs.page_style import SCRIPT, STYLE, class_style

REPORT = "report.html"
"""What the page of a run or of an evaluation is called."""

Child = Element | str | None


def node(tag: str, *children: Child, **attributes: str | float | None) -> Element:
    """An element of HTML or SVG.

    Args:
        tag: its name.
        children: elements and texts in order; None is left out.
        attributes: `class_` is `class`, other underscores are hyphens; numbers are rounded to two places; None is left
            out.
    """
    element = Element(tag)
    for name, value in attributes.items():
        if value is not None:
            text = value if isinstance(value, str) else f"{value:.2f}".rstrip("0").rstrip(".")
            element.set("class" if name == "class_" else name.replace("_", "-"), text)
    for child in children:
        if isinstance(child, Element):
            element.append(child)
        elif child is not None and len(element):
            element[-1].tail = (element[-1].tail or "") + child
        elif child is not None:
            element.text = (element.text or "") + child
    return element


def section(heading: str, *children: Child) -> Element:
    """A section of the page, which its list of contents names."""
    name = "".join(letter if letter.isalnum() else "-" for letter in heading.lower())
    return node("section", node("h2", heading), *children, id=name)


def sentences(texts: Iterable[str]) -> Element:
    """A list of sentences."""
    return node("ul", *(node("li", text) for text in texts), class_="sentences")


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[str]], sortable: bool = False) -> Element:
    """A table in a box of its own to scroll in; the first cell of a row is its heading.

    Args:
        caption: what it shows.
        headings: of the columns.
        rows: texts of the cells.
        sortable: whether a click on a heading sorts.
    """
    head = node("tr", *(node("th", heading, scope="col") for heading in headings))
    body = [node("tr", node("th", row[0], scope="row"), *(node("td", cell) for cell in row[1:])) for row in rows]
    whole = node(
        "table",
        node("thead", head),
        node("tbody", *body),
        class_="sortable" if sortable else None,
    )
    box = node("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")
    return node("div", node("p", caption, class_="note"), box)


def legend(entries: Iterable[tuple[str, str]]) -> Element:
    """What a colour or a stroke means: pairs of a CSS class and a name."""
    return node("ul", *(node("li", node("span", class_=f"key {key}"), name) for key, name in entries), class_="legend")


def write_page(path: Path, title: str, subtitle: str, sections: Sequence[Element], n_classes: int) -> None:
    """Write a page.

    Args:
        path: of the HTML file; an older one is replaced.
        title: first heading.
        subtitle: below it.
        sections: as `section` makes them.
        n_classes: foreground classes that have colours.

    Raises:
        OutputError: the file cannot be written.
    """
    style = STYLE + class_style(n_classes)
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(SCRIPT)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    head = node(
        "head",
        node("meta", charset="utf-8"),
        _named("meta", "http-equiv", "Content-Security-Policy", content=policy),
        node("meta", name="viewport", content="width=device-width, initial-scale=1"),
        node("meta", name="color-scheme", content="light dark"),
        node("meta", name="generator", content=f"sdm {__version__}"),
        node("title", f"{title}: {subtitle}"),
        node("link", rel="icon", href="data:,"),
        node("style", style),
    )
    links = [node("li", node("a", part[0].text or "", href=f"#{part.get('id')}")) for part in sections]
    body = node(
        "body",
        node("header", node("h1", title), node("p", subtitle, class_="subtitle")),
        node("nav", node("ul", *links), aria_label="Contents"),
        node("main", *sections),
        node("footer", f"Made by sdm {__version__}. For research; not a medical device."),
        node("script", SCRIPT),
    )
    text = tostring(node("html", head, body, lang="en"), encoding="unicode", method="html")
    with replacing(path) as temporary:
        # A name of a file that is no Unicode must not spoil the page.
        temporary.write_text(f"<!DOCTYPE html>\n{text}\n", encoding="utf-8", errors="replace")


def _named(tag: str, name: str, value: str, **attributes: str) -> Element:
    element = node(tag, **attributes)
    element.set(name, value)
    return element


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
