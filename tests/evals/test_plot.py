"""Charts: where the ticks are, where the values land, and that any text and any gap is survived."""

import math
import re
import xml.etree.ElementTree as ET

import pytest

from jaxgpt.evals import plot
from jaxgpt.evals.plot import Bar, Reference, Series


@pytest.mark.parametrize(
    "low, high, expected",
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),  # 10 / 5 = 2, a nice step already
        (0, 1, [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]),  # and 0.6 exactly, not 3 * 0.2
        (1.49, 3.1, [1.5, 2.0, 2.5, 3.0]),  # 1.61 / 5 = 0.322 -> 0.5
        (0, 1_638_400, [0, 500_000, 1_000_000, 1_500_000]),  # 327,680 -> 500,000
        (-0.3, 0.3, [-0.2, 0.0, 0.2]),  # 0.12 -> 0.2
        (0.0012, 0.0019, [0.0012, 0.0014, 0.0016, 0.0018]),
    ],
)
def test_nice_ticks_by_hand(low, high, expected):
    assert plot.nice_ticks(low, high) == expected


@pytest.mark.parametrize("low, high", [(1, 1), (2, 1), (0, math.inf), (math.nan, 1)])
def test_nice_ticks_refuse_what_is_no_range(low, high):
    with pytest.raises(ValueError, match="no range"):
        plot.nice_ticks(low, high)


def test_scale_maps_ends_to_ends_and_upwards_is_smaller():
    assert [plot.scale(v, (2, 4), (200, 100)) for v in (2, 2.5, 4)] == [200, 175, 100]


def test_line_lands_where_its_values_say():
    line = Series("loss", ((0, 4.0), (50, 3.0), (100, 0.0)))
    svg = plot.line_chart([line], title="t", x_label="x", y_label="y", y_range=(0, 4))
    left, right = plot.LEFT, plot.WIDTH - plot.RIGHT
    bottom, top = plot.HEIGHT - plot.BOTTOM, plot.TOP
    expected = [(left, top), ((left + right) / 2, bottom + 0.75 * (top - bottom)), (right, bottom)]
    assert _line(svg) == [pytest.approx(point, abs=0.006) for point in expected]


def test_line_is_monotone_in_both_axes_whatever_the_order_of_the_points():
    points = tuple((x, math.exp(-x / 7)) for x in (9, 3, 0, 6, 12))
    line = _line(plot.line_chart([Series("loss", points)], title="t", x_label="x", y_label="y"))
    assert [x for x, _ in line] == sorted(x for x, _ in line)
    assert [y for _, y in line] == sorted(y for _, y in line)  # the value falls, so y on the page grows


def test_everything_stays_on_the_page():
    svg = plot.line_chart(
        [Series("a", ((1, 1e-9), (2, 1e9))), Series("b", ((1, 7.0),))],
        title="t", x_label="x", y_label="y", reference=Reference(-1e9, "far below"),
    )  # fmt: skip
    for element in ET.fromstring(svg).iter():
        for name in ("x", "x1", "x2", "cx"):
            assert 0 <= float(element.get(name, 0)) <= plot.WIDTH
        for name in ("y", "y1", "y2", "cy"):
            assert 0 <= float(element.get(name, 0)) <= plot.HEIGHT


def test_reference_is_drawn_at_its_value_and_shaded_below():
    svg = plot.line_chart(
        [Series("bpb", ((0, 3.0), (1, 1.0)))], title="t", x_label="x", y_label="y",
        reference=Reference(2.0, "xz -9: 2.000"), y_range=(0, 4),
    )  # fmt: skip
    middle = (plot.TOP + plot.HEIGHT - plot.BOTTOM) / 2
    band = ET.fromstring(svg).find("{*}rect")
    assert float(band.get("y")) == middle
    assert float(band.get("y")) + float(band.get("height")) == plot.HEIGHT - plot.BOTTOM
    assert "xz -9: 2.000" in svg and "stroke-dasharray" in svg


def test_gaps_are_left_out_and_an_empty_chart_says_so():
    gap = ((0, 1.0), (1, math.nan), (2, math.inf), (3, 2.0))
    assert len(_line(plot.line_chart([Series("a", gap)], title="t", x_label="x", y_label="y"))) == 2
    for series in ([], [Series("a", ())], [Series("a", ((0, math.nan),))]):
        svg = plot.line_chart(series, title="t", x_label="x", y_label="y")
        assert "no measurements" in svg and "polyline" not in svg
    assert "no scores" in plot.bar_chart([], title="t")


def test_one_point_is_a_chart():
    svg = plot.line_chart([Series("a", ((5, 2.0),))], title="t", x_label="x", y_label="y")
    assert len(_line(svg)) == 1 and "<circle" in svg


def test_every_text_is_escaped():
    evil = '<script>alert("&")</script>'
    line = plot.line_chart(
        [Series(evil, ((0, 1.0), (1, 2.0))), Series("b" + evil, ((0, 2.0), (1, 1.0)))],
        title=evil, x_label=evil, y_label=evil, reference=Reference(1.5, evil),
    )  # fmt: skip
    bars = plot.bar_chart([Bar(evil, 0.5, 0.4, 0.6)], title=evil)
    for svg in (line, bars):
        assert "<script" not in svg
        assert evil in "".join(ET.fromstring(svg).itertext())  # and comes back whole


def test_legend_names_the_lines_that_are_not_faint_if_there_are_two():
    lines = [Series("raw", ((0, 1.0), (1, 2.0)), faint=True), Series("smooth", ((0, 1.0), (1, 2.0)))]
    assert "smooth" not in _text(plot.line_chart(lines, title="t", x_label="x", y_label="y"))
    both = _text(plot.line_chart([*lines, Series("other", ((0, 1.0),))], title="t", x_label="x", y_label="y"))
    assert "smooth" in both and "other" in both and "raw" not in both


def test_values_at_the_ends_do_not_overlap():
    lines = [Series(str(i), ((0, 1.0), (1, 2.0 + i / 1e6))) for i in range(3)]
    svg = plot.line_chart(lines, title="t", x_label="x", y_label="y")
    places = sorted(float(t.get("y")) for t in ET.fromstring(svg).iter() if (t.text or "").startswith("2.0"))
    assert all(b - a >= 12 for a, b in zip(places, places[1:])) and len(places) >= 3


def test_values_at_the_bottom_stay_above_the_axis_numbers():
    lines = [Series(str(i), ((0, 1.0), (1, 0.0))) for i in range(3)]
    svg = plot.line_chart(lines, title="t", x_label="x", y_label="y", y_range=(0, 1))
    places = sorted(float(t.get("y")) for t in ET.fromstring(svg).iter() if t.text == "0.00")
    bottom = plot.HEIGHT - plot.BOTTOM + 4
    assert places == [bottom - 26, bottom - 13, bottom]


def test_bars_and_whiskers_land_where_their_values_say():
    svg = plot.bar_chart([Bar("half", 0.5, 0.25, 1.0)], title="t")
    bar = ET.fromstring(svg).find("{*}rect")
    start, width = float(bar.get("x")), float(bar.get("width"))
    whisker = next(r for r in ET.fromstring(svg).iter() if r.get("y1") == r.get("y2") and r.get("x1"))
    assert float(whisker.get("x1")) == pytest.approx(start + width / 2, abs=0.01)
    assert float(whisker.get("x2")) == pytest.approx(start + 2 * width, abs=0.01)
    assert "50%" in svg


def test_dots_and_their_whiskers_land_where_their_values_say():
    """Whatever the range: the places are linear in the values, and the reference is at its own."""
    bars = [Bar("a", 1.7, 1.5, 1.9), Bar("b & c", 1.6, 1.6, 1.6)]
    root = ET.fromstring(plot.interval_chart(bars, title="t", x_label="bits", reference=1.7))
    dots = [float(dot.get("cx")) for dot in root.iter() if dot.tag.endswith("circle")]
    ends = [line for line in root.iter() if line.get("stroke-width") == "1.5"]
    whiskers = [(float(line.get("x1")), float(line.get("x2"))) for line in ends]
    reference, = [float(line.get("x1")) for line in root.iter() if line.get("stroke-dasharray")]
    assert reference == dots[0] == pytest.approx(sum(whiskers[0]) / 2, abs=0.02) and whiskers[1][0] == whiskers[1][1]
    assert dots[0] - dots[1] == pytest.approx((whiskers[0][1] - whiskers[0][0]) / 4, abs=0.02)
    assert "b & c" in "".join(root.itertext()) and "no measurements" in plot.interval_chart([], title="t", x_label="x")


def test_charts_scale_with_their_column():
    svg = plot.line_chart([Series("a", ((0, 1.0),))], title="t", x_label="x", y_label="y")
    root = ET.fromstring(svg)
    assert root.get("viewBox") == f"0 0 {plot.WIDTH} {plot.HEIGHT}" and root.get("width") is None
    assert plot.panels([svg, svg], columns=3).count("<figure>") == 2


def test_thin_keeps_the_mean_and_the_end():
    points = tuple((i, float(i % 7)) for i in range(1000))
    thinned = plot.thin(points, 100)
    assert len(thinned) == 100 and thinned[-1][0] == 999
    assert sum(y for _, y in thinned) / 100 == pytest.approx(sum(y for _, y in points) / 1000)
    assert plot.thin(points[:5], 100) == points[:5]


def test_smooth_by_hand():
    points = ((0, 9.0), (1, 0.0), (2, 3.0), (3, 6.0))
    # Both neighbours inside; at the start none, at the end one on the left only.
    assert plot.smooth(points, reach=1) == ((0, 9.0), (1, 4.0), (2, 3.0), (3, 4.5))
    assert plot.smooth(points, reach=0) == points
    assert plot.smooth((), reach=3) == ()


def test_sparkline_follows_the_curve():
    assert plot.sparkline([7, 6, 5, 4, 3, 2, 1, 0]) == "█▇▆▅▄▃▂▁"
    assert plot.sparkline([]) == "" and plot.sparkline([2, 2, 2]) == "▄▄▄"
    assert plot.sparkline([0, math.nan, 1]) == "▁█"
    assert len(plot.sparkline(list(range(1000)), width=20)) == 20


def _line(svg: str) -> list[tuple[float, float]]:
    """The points of the last line that was drawn."""
    points = re.findall(r'<polyline points="([^"]*)"', svg)[-1]
    return [tuple(map(float, pair.split(","))) for pair in points.split()]


def _text(svg: str) -> str:
    return "".join(ET.fromstring(svg).itertext())
