import re

import numpy as np
import pytest

from cam_pipeline.errors import UserError
from cam_pipeline.report.page import (
    SERIES,
    Table,
    chart,
    chart_figure,
    chart_style,
    duration,
    environment,
    line_style,
    percent,
    size,
    thumbnail,
    write_page,
)

OUTSIDE = re.compile(r"""(src|href|url)\s*[=(]\s*["']?\s*(https?:)?//""", re.IGNORECASE)


def lines(alt):
    with chart_style():
        figure = chart_figure()
        figure.add_subplot().plot([0, 1], [2, 3], label="a < b", **line_style(0))
        figure.axes[0].legend()
        return chart(figure, alt)


def test_a_chart_follows_the_page_and_can_be_read_aloud():
    found = lines('loss "a" & b')
    assert 'role="img" aria-label="loss &#34;a&#34; &amp; b"' in found.svg
    assert "currentColor" in found.svg and "#010203" not in found.svg and SERIES[0] in found.svg
    assert "a &lt; b</text>" in found.svg, "text is no outline"
    assert not OUTSIDE.search(found.svg) and "DejaVu" not in found.svg


def test_ids_of_two_charts_differ():
    ids = [set(re.findall(r' id="([^"]+)"', lines(alt).svg)) for alt in ("one", "two")]
    assert ids[0] and not ids[0] & ids[1]


def test_every_reference_of_a_chart_is_there():
    svg = lines("one").svg
    assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    for one in re.findall(r'(?:href="|url\()#([^")]+)', svg):
        assert f'id="{one}"' in svg


@pytest.mark.parametrize(
    ("shape", "expected"), [((400, 800, 3), (320, 160)), ((10, 1000), (320, 3)), ((5, 7, 3), (7, 5))]
)
def test_a_picture_is_small_and_inside_the_page(shape, expected):
    found = thumbnail(np.zeros(shape, np.uint8), "nothing")
    assert (found.width, found.height) == expected
    assert found.source.startswith("data:image/webp;base64,")


def test_a_lossless_picture_keeps_its_values():
    labels = np.repeat(np.arange(4, dtype=np.uint8), 200).reshape(2, 400)
    import base64
    import io

    from PIL import Image

    found = thumbnail(labels, "labels", lossless=True)
    content = base64.b64decode(found.source.partition(",")[2])
    assert set(np.unique(np.asarray(Image.open(io.BytesIO(content))))) <= {0, 1, 2, 3}


def test_tables_escape_and_have_headers():
    module = environment().get_template("parts.html.j2").module
    html = module.table(Table("a table", ("name", "value"), [("<b>", "1")]))
    assert '<th scope="col">name</th>' in html and '<th scope="row">&lt;b&gt;</th>' in html
    assert "<caption>a table</caption>" in html


def test_a_page_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("cam_pipeline.report.page.LARGEST", 10)
    with pytest.raises(UserError, match="fewer pictures"):
        write_page(tmp_path / "page.html", "x" * 11)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (size(None), "–"),
        (size(0), "0 B"),
        (size(999), "999 B"),
        (size(1000), "1 kB"),
        (size(2_663_504), "2.66 MB"),
        (size(3.2e9), "3.2 GB"),
        (duration(None), "–"),
        (duration(71.8), "71.8 s"),
        (duration(150), "2 min"),
        (duration(7260), "2 h 01 min"),
        (percent(None), "–"),
        (percent(float("nan")), "–"),
        (percent(0.5), "50.0 %"),
    ],
)
def test_figures_as_they_are_read(found, expected):
    assert found == expected


def test_lines_differ_by_more_than_colour():
    styles = [tuple(line_style(number).values()) for number in range(12)]
    assert len(set(styles)) == 12
