"""The skeleton of the HTML pages: one file each that needs no network, with pictures and charts inside.

A page is a template that extends `base.html.j2`; `parts.html.j2` has macros for tables, charts and pictures. Pages have
a policy that forbids requests, so a mistake in a template cannot make one.
"""

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from cam_pipeline.errors import UserError
from cam_pipeline.machine.atomic import write_text
from cam_pipeline.report.colors import class_color

TEMPLATES = Path(__file__).parent / "templates"
THUMBNAIL = 320
"""Longest side of a picture in pixels, if nothing else is said."""
LARGEST = 25_000_000
"""Bytes. A page that is larger opens slowly on a phone, and cannot be mailed."""
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Colours of the lines of a chart, which colour-blind people tell apart (Okabe and Ito 2008), on white and on black."""
DASHES = ("-", "--", "-.", ":")
INK = "#010203"
"""What stands for the page's text colour while a chart is drawn; in the page it follows light and dark."""
CHART_STYLE: Any = {  # its type would name every parameter of matplotlib
    "svg.fonttype": "none",  # text stays text: it can be found, read aloud and enlarged
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "grid.color": INK,
    "legend.frameon": False,
    "font.size": 11,
}


@dataclass(frozen=True)
class Picture:
    """A small picture inside the page: `source` is a data URI, `alt` says in words what it shows."""

    source: str
    alt: str
    width: int
    height: int


@dataclass(frozen=True)
class Chart:
    """A chart inside the page; `alt` says in words what it shows."""

    svg: Markup
    alt: str


@dataclass(frozen=True)
class Table:
    """A table: its caption, the titles of its columns, and its cells; the first cell of a row is its title.

    Numbers are strings already, so that the page shows as many digits as matter; they stand on the right.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]


def thumbnail(pixels: NDArray[np.uint8], alt: str, side: int = THUMBNAIL, lossless: bool = False) -> Picture:
    """An image (H, W, 3) or (H, W) uint8 as a picture of at most `side` pixels on its longer side: WebP.

    `lossless`: a PNG with exactly these values, for maps that a script reads; it is reduced without mixing them.
    """
    image = Image.fromarray(pixels)
    scale = min(1.0, side / max(image.size))
    if scale < 1:
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.NEAREST if lossless else Image.Resampling.LANCZOS)
    content = io.BytesIO()
    if lossless:
        image.save(content, format="PNG", optimize=True)
    else:
        image.save(content, format="WEBP", quality=75)
    kind = "png" if lossless else "webp"
    return Picture(data_uri(content.getvalue(), f"image/{kind}"), alt, image.width, image.height)


def data_uri(content: bytes, media_type: str) -> str:
    """A file's content as an address that needs no network."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def chart_figure(width: float = 7.0, height: float = 3.2) -> Figure:
    """An empty figure (inches) for `chart`; draw within `chart_style`."""
    return Figure(figsize=(width, height), layout="constrained")


def chart_style() -> Any:
    """A context in which axes are made and drawn so that they fit the page, light and dark."""
    return rc_context(CHART_STYLE)


def line_style(number: int) -> dict[str, Any]:
    """Colour and dashes of the n-th line of a chart: no two of the first twelve look alike, even without colour."""
    return {"color": SERIES[number % len(SERIES)], "linestyle": DASHES[number % len(DASHES)]}


def chart(figure: Figure, alt: str) -> Chart:
    """A figure as SVG inside the page. Its text takes the page's font and colour."""
    content = io.StringIO()
    with rc_context({**CHART_STYLE, "svg.hashsalt": alt}):  # ids of two charts must differ
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(content, format="svg", transparent=True, metadata=nothing)
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r' id="[A-Za-z0-9.]+_[A-Za-z0-9_.]+"', "", svg
    )  # those that matplotlib counts, the same in every chart
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "sans-serif", svg)
    svg = svg.replace(INK, "currentColor")
    svg = re.sub(r'<svg ([^>]*?)width="[^"]*"', r"<svg \1", svg, count=1)
    svg = re.sub(r'<svg ([^>]*?)height="[^"]*"', r"<svg \1", svg, count=1)
    label = str(Markup.escape(alt))
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return Chart(Markup(svg), alt)


def css_color(label: int) -> str:
    """The colour of a label (`report.colors`) for a style sheet."""
    return "#{:02x}{:02x}{:02x}".format(*class_color(label))


@cache
def environment() -> jinja2.Environment:
    """Where templates are found; whatever they show is escaped."""
    found = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    found.filters |= {"css_color": css_color, "count": counted, "percent": percent, "size": size, "duration": duration}
    return found


def render(template: str, **content: Any) -> str:
    """The page of a template. Raises jinja2's errors for a value that is missing."""
    return environment().get_template(template).render(**content)


def write_page(path: Path, html: str) -> None:
    """Write a page in one step. Raises UserError if it has more than LARGEST bytes: it holds too many pictures."""
    if (length := len(html.encode())) > LARGEST:
        raise UserError(f"{path}: the page would have {length:,} bytes, more than {LARGEST:,}; show fewer pictures")
    write_text(path, html)


def counted(number: int) -> str:
    """A number with commas between thousands."""
    return f"{number:,}"


def percent(share: float | None) -> str:
    """A share 0..1 in percent; a dash if it is not known."""
    return "–" if share is None or share != share else f"{100 * share:.1f} %"


def size(count: float | None) -> str:
    """Bytes in the unit that suits them; a dash if they are not known."""
    if count is None:
        return "–"
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float | None) -> str:
    """Seconds in the unit that suits them; a dash if they are not known."""
    if seconds is None:
        return "–"
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
