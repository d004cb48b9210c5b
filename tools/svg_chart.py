"""Charts as SVG text, drawn with the standard library alone: lines with axes, and heat maps as pixel images.

Colours are CSS variables (--ink, --c0, ...), so that one chart is right in light and in dark; `standalone` puts the
light ones in their place and makes a file of its own.
"""

import base64
import html
import math
import re
import struct
import zlib
from dataclasses import dataclass

LIGHT = {"ink": "#1d2433", "muted": "#5c6675", "grid": "#e3e7ed", "surface": "#ffffff"}
DARK = {"ink": "#e8ebf0", "muted": "#9aa5b5", "grid": "#2b3340", "surface": "#141a22"}
# Okabe and Ito's colours, which readers with any kind of colour vision tell apart, and lighter ones for dark pages.
SERIES_LIGHT = ["#0072b2", "#d55e00", "#009e73", "#b1579a", "#c58a00", "#4a9fd4", "#5e4aa1", "#6f7680"]
SERIES_DARK = ["#56b4e9", "#ff8a4c", "#2fcf9f", "#ee9fd0", "#f2c14e", "#9fd4f5", "#b3a1ee", "#b3bac4"]
FONT = "font-family='Inter,Segoe UI,Helvetica,Arial,DejaVu Sans,sans-serif'"
CHARACTER = 6.4  # mean width at font size 12
WIDE, HALF = 1110, 540  # of a figure, in pixels

# From idle to overloaded: blue, nearly white at balance, orange to dark red. Told apart without red and green.
DIVERGING = [(0.0, (20, 56, 110)), (0.25, (66, 133, 190)), (0.5, (240, 240, 236)), (0.75, (236, 146, 66)),
             (1.0, (140, 40, 10))]
NOTHING = (128, 128, 128)


def palette_css(values, series):
    return "".join(f"--{name}:{value};" for name, value in values.items()) + "".join(
        f"--c{i}:{value};" for i, value in enumerate(series))


def standalone(svg, dark=False):
    """The chart as a file of its own, with the colours of one kind of page."""
    values = (DARK if dark else LIGHT) | {f"c{i}": value for i, value in enumerate(SERIES_DARK if dark else SERIES_LIGHT)}
    svg = re.sub(r"var\(--(\w+)\)", lambda found: values[found[1]], svg)
    ground = f"<rect width='100%' height='100%' fill='{values['surface']}'/>"
    return re.sub(r"(<svg [^>]*>)", lambda found: found[1] + ground, svg, count=1)


def color_of(index):
    return f"var(--c{index % len(SERIES_LIGHT)})"


def dot(x, y, index, within=""):
    """A point of series `index`: hollow where its colour is that of an earlier one."""
    fill, stroke = color_of(index), "var(--surface)"
    if index // len(SERIES_LIGHT) % 2:
        fill, stroke = stroke, fill + "' stroke-width='2"
    end = f">{within}</circle>" if within else "/>"
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3.5' fill='{fill}' stroke='{stroke}'{end}"


def diverging(share):
    share = min(max(share, 0.0), 1.0)
    for (low, a), (high, b) in zip(DIVERGING, DIVERGING[1:]):
        if share <= high:
            t = (share - low) / (high - low)
            return tuple(round(x + (y - x) * t) for x, y in zip(a, b))
    return DIVERGING[-1][1]


def ratio_color(ratio, limit=4.0):
    """Colour of a multiple: nearly white at 1, the ends at 1/limit and limit. None: no data."""
    if ratio is None:
        return NOTHING
    if ratio <= 0:
        return diverging(0)
    return diverging(0.5 + 0.5 * math.log(ratio) / math.log(limit))


def png(rows, across=1, down=1):
    """PNG bytes of rows of (r, g, b), each of which becomes so many pixels across and down."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    raw = b"".join((b"\0" + b"".join(bytes(pixel) * across for pixel in row)) * down for row in rows)
    header = struct.pack(">IIBBBBB", len(rows[0]) * across, len(rows) * down, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def image(rows, x, y, width, height):
    # At twice the size that it is shown in, since not every program leaves the edges of enlarged pixels sharp.
    enlarged = png(rows, math.ceil(2 * width / len(rows[0])), math.ceil(2 * height / len(rows)))
    data = base64.b64encode(enlarged).decode()
    return (f"<image x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' preserveAspectRatio='none' "
            f"style='image-rendering:pixelated' href='data:image/png;base64,{data}'/>"
            f"<rect x='{x:.1f}' y='{y:.1f}' width='{width:.1f}' height='{height:.1f}' fill='none' "
            "stroke='var(--grid)'/>")


def text(x, y, content, anchor="start", size=12, fill="muted", weight="normal", rotate=None):
    turn = f" transform='rotate({rotate} {x:.1f} {y:.1f})'" if rotate is not None else ""
    return (f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' font-size='{size}' font-weight='{weight}' "
            f"fill='var(--{fill})'{turn}>{html.escape(str(content))}</text>")


def svg_open(width, height, title, more=""):
    return (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:g} {height:g}' width='{width:g}' "
            f"height='{height:g}' role='img' aria-label='{html.escape(title, quote=True)}' {FONT}{more}>")


# ---- axes ----

def short(value):
    """A number for a label: 3 significant digits, k, M, B, T; tiny and huge ones as a power."""
    if value == 0:
        return "0"
    size = abs(value)
    if size >= 9.995e14 or size < 1e-4:
        return f"{value:.0e}".replace("e-0", "e-").replace("e+", "e")
    for limit, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= 0.9995 * limit:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def percent(value):
    return f"{100 * value:.3g} %"


def exact(value, y_format):
    """A value that is told, where a label of an axis would round it."""
    return f"{value:.4g}" if y_format is short and (value == 0 or 1e-4 <= abs(value) < 1e5) else y_format(value)


FAR = 1e9


@dataclass
class Scale:
    low: float
    high: float
    log: bool = False

    def at(self, value):
        """0 at low, 1 at high; on a logarithmic scale far below 0 for what has no logarithm."""
        if self.log:
            if value <= 0:
                return -FAR
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about=6):
        if self.log:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            if last - first >= 2:
                stride = max(1, math.ceil((last - first + 1) / about))
                return [10.0**k for k in range(first, last + 1, stride)]
            steps = [m * 10.0**k for k in range(first - 1, last + 1) for m in (1, 2, 5)]
            return [value for value in steps if self.low <= value * (1 + 1e-9) and value <= self.high * (1 + 1e-9)]
        step = nice_step((self.high - self.low) / about)
        first = math.ceil(self.low / step - 1e-9)
        count = math.floor(self.high / step + 1e-9) - first + 1
        return [round((first + i) * step, 12) for i in range(count)]


def nice_step(rough):
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= rough * (1 - 1e-9))


def scale_for(values, log=False, low=None, high=None, floor=None):
    """A scale around the values, with a little air; floor: the smallest that a log scale shows."""
    values = [v for v in values if not log or v > 0] or [1.0]
    bottom = min(values) if low is None else low
    top = max(max(values) if high is None else high, bottom)
    if log:
        bottom = max(bottom, floor or 0.0)
        top = max(top, bottom * 2)
        return Scale(bottom / 1.15 if low is None else bottom, top * 1.15 if high is None else top, True)
    air = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    return Scale(bottom - air if low is None else bottom, top + air if high is None else top)


# ---- line charts ----

@dataclass
class Series:
    label: str
    points: list            # [(x, y)], x ascending; NaN: not finite, which is marked
    color: int = 0
    style: str = "line"     # line, thin, dots (joined by a dotted line), points (not joined)
    raw: list = None        # what the points are a smoothed version of: drawn faintly, and what is marked at the frame
    in_legend: bool = True


def finite(points):
    return [(x, y) for x, y in points if math.isfinite(y)]


def stretches(points):
    """The parts between values that are not finite."""
    part = []
    for point in [*points, (0, math.nan)]:
        if math.isfinite(point[1]):
            part.append(point)
        elif part:
            yield part
            part = []


def slope_of(ys):
    """Of the straight line through values at equal distances."""
    middle = (len(ys) - 1) / 2
    return sum((k - middle) * y for k, y in enumerate(ys)) / (sum((k - middle) ** 2 for k in range(len(ys))) or 1.0)


def smoothed(points, weight):
    """Means over as many points as an exponential average of this weight looks back on, 19 for 0.9, but centred: nothing is
    shifted. Near the beginning fewer, on either side a third of those that lie behind, so that a steep fall stays where it
    is. Near the end the mean of the last ones goes on with their slope, within what they span; the slope is of thrice as many,
    so that the end is little noisier than the rest. Values that are not finite stay where they are and count in no mean.
    None: the points."""
    half = round(weight / (1 - weight)) if weight else 0
    if not half:
        return points
    part, out = finite(points), [point for point in points if not math.isfinite(point[1])]
    ys, n = [y for _, y in part], len(part)
    for i, (x, _) in enumerate(part):
        left = min(half, i // 3)
        window = ys[i - left:i + left + 1]
        mean = sum(window) / len(window)
        if i + left >= n:  # cut at the end
            window = ys[n - 2 * left - 1:]
            slope = slope_of(ys[n - max(2 * left + 1, min(6 * left + 3, n // 2)):])
            mean = sum(window) / len(window) + slope * (i - (n - 1 - left))
            mean = min(max(mean, min(window)), max(window))
        out.append((x, mean))
    return sorted(out, key=lambda point: point[0])


def decimated(points, most=800):
    """About so many of the points: of neighbours the least and the greatest, so that no spike is lost, and the first that is
    not finite."""
    if len(points) <= most:
        return points
    n_parts, out = most // 2, []
    for i in range(n_parts):
        part = points[i * len(points) // n_parts:(i + 1) * len(points) // n_parts]
        sound = finite(part)
        kept = {min(sound, key=lambda point: point[1]), max(sound, key=lambda point: point[1])} if sound else set()
        kept |= {points[0]} if i == 0 else {points[-1]} if i == n_parts - 1 else set()
        out += sorted(kept | set(next(([point] for point in part if not math.isfinite(point[1])), [])))
    return out


def clipped(points):
    """The parts of a line that lie between heights 0 and 1, cut where it crosses them."""
    parts = []
    for part in stretches(points):
        if len(part) == 1 and 0 <= part[0][1] <= 1:
            parts.append(part)
        last = None
        for (x0, y0), (x1, y1) in zip(part, part[1:]):
            if y0 == y1:
                enters, leaves = (0.0, 1.0) if 0 <= y0 <= 1 else (1.0, 0.0)
            else:
                enters, leaves = sorted((-y0 / (y1 - y0), (1 - y0) / (y1 - y0)))
                enters, leaves = max(enters, 0.0), min(leaves, 1.0)
            if enters >= leaves:
                continue
            begin, end = ((x0 + t * (x1 - x0), min(max(y0 + t * (y1 - y0), 0.0), 1.0)) for t in (enters, leaves))
            if last is None or enters > 0:
                parts.append([begin])
            parts[-1].append(end)
            last = end if leaves == 1 else None
    return parts


def excursions(points, heights):
    """[(x, value, side)], one for each stretch of a line that lies above (1) or below (-1) the frame: where it is farthest
    out. Side 0: where it begins to be not finite."""
    out, before = [], None
    for (x, y), height in zip(points, heights):
        side = 0 if not math.isfinite(y) else 1 if height > 1 else -1 if height < 0 else None
        if side is not None and side == before and side * y > side * out[-1][1]:
            out[-1] = (x, y, side)
        elif side is not None and side != before:
            out.append((x, y, side))
        before = side
    return out


class Marks:
    """What says, at the edge of the frame, that a value lies beyond it."""

    ROW = 14

    def __init__(self, left, top, right, bottom):
        self.left, self.top, self.right, self.bottom = left, top, right, bottom
        self.taken = []  # (row from the edge, side, from x, to x)

    def row_for(self, upper, begin, end):
        n_rows = int((self.bottom - self.top) / self.ROW) - 2
        return next((row for row in range(n_rows)
                     if not any(r == row and u == upper and a < end and begin < b for r, u, a, b in self.taken)), None)

    def draw(self, x, side, value, tip, color, told):
        upper = side >= 0
        edge, inward = (self.top, 1) if upper else (self.bottom, -1)
        sign = "\u25b2" if side > 0 else "\u25bc" if side < 0 else "\u2715"
        width = CHARACTER * (len(value) + 2)
        rightward = x + width <= self.right
        begin, end = (x - 5, x + width) if rightward else (x - width, x + 5)
        row = self.row_for(upper, begin, end) if told else None
        title = f"<title>{html.escape(tip)}</title>"
        if row is None:
            base = edge + 7 * inward
            return (f"<path class='beyond' d='M{x - 4:.1f} {base}L{x + 4:.1f} {base}L{x:.1f} {edge}Z' fill='{color}'>"
                    f"{title}</path>")
        self.taken.append((row, upper, begin, end))
        y = edge + inward * (self.ROW * row + (19 if upper else 11))  # below the triangles of those that are not told
        words = f"{sign} {value}" if rightward else f"{value} {sign}"
        return (f"<path class='beyond' d='M{x:.1f} {edge}V{y - 4:.1f}' stroke='{color}'/>"
                f"<text class='beyond' x='{x - 5 if rightward else x + 5:.1f}' y='{y:.1f}' font-size='11' fill='{color}' "
                f"text-anchor='{'start' if rightward else 'end'}' stroke='var(--surface)' stroke-width='3' "
                f"paint-order='stroke'>{html.escape(words)}{title}</text>")


def legend(entries, left, right, top):
    """Rows of colour keys; returns the drawing and the height."""
    out, x, y = [], left, top
    for label, index, style in entries:
        color = color_of(index)
        width = 26 + CHARACTER * len(label) + 16
        if x > left and x + width > right:
            x, y = left, y + 18
        out.append(f"<g class='key' data-name='{html.escape(label, quote=True)}'>")
        if style in ("dots", "points"):
            out.append(dot(x + 9, y - 4, index))
        else:
            out.append(f"<line x1='{x:.1f}' y1='{y - 4:.1f}' x2='{x + 18:.1f}' y2='{y - 4:.1f}' stroke='{color}' "
                       f"stroke-width='{1 if style == 'thin' else 2.5}'/>")
        out.append(text(x + 24, y, label, fill="ink") + "</g>")
        x += width
    return "".join(out), y - top + 18


def frame(left, top, width, height, x_scale, y_scale, x_label, y_label, x_format, y_format):
    out = []
    for value in y_scale.ticks():
        y = top + height * (1 - y_scale.at(value))
        out.append(f"<line x1='{left}' y1='{y:.1f}' x2='{left + width}' y2='{y:.1f}' stroke='var(--grid)'/>")
        out.append(text(left - 8, y + 4, y_format(value), "end"))
    for value in x_scale.ticks(max(2, int(width / 90))):
        x = left + width * x_scale.at(value)
        out.append(f"<line x1='{x:.1f}' y1='{top + height}' x2='{x:.1f}' y2='{top + height + 4}' "
                   "stroke='var(--muted)'/>")
        out.append(text(x, top + height + 18, x_format(value), "middle"))
    out.append(f"<line x1='{left}' y1='{top + height}' x2='{left + width}' y2='{top + height}' "
               "stroke='var(--muted)'/>")
    out.append(text(left + width, top + height + 36, x_label, "end"))
    out.append(text(left - 8, top - 10, y_label, "start") if len(y_label) * CHARACTER < width else "")
    return "".join(out)


def path_of(parts, place, attributes):
    d = "".join("M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in (place(*point) for point in part))
                for part in parts if len(part) > 1)
    return f"<path d='{d}' fill='none' stroke-linejoin='round' {attributes}/>" if d else ""


def draw_series(s, x_scale, y_scale, marks, place, x_format, y_format):
    """place: pixels of (share of the width, share of the height)."""
    color, dots = color_of(s.color), s.style in ("dots", "points")

    def unit(points):
        return [(x_scale.at(x), y_scale.at(y) if math.isfinite(y) else math.nan) for x, y in points]

    def told(x, y):
        return f"{s.label}: {exact(y, y_format) if math.isfinite(y) else 'not finite'} at {x_format(x)}"

    shown = s.points if dots else decimated(s.points)
    parts = clipped(unit(shown))
    out = [f"<g class='series' data-name='{html.escape(s.label, quote=True)}'>"]
    if s.raw:
        out.append(path_of(clipped(unit(decimated(s.raw))), place, f"class='raw' stroke='{color}' opacity='0.25'"))
    look = {"line": f"class='{'smooth' if s.raw else 'curve'}' stroke-width='2'",
            "thin": "class='curve' stroke-width='1' opacity='0.5'",
            "dots": "stroke-width='1.2' stroke-dasharray='2 3'", "points": ""}[s.style]
    if s.style != "points":
        out.append(path_of(parts, place, f"stroke='{color}' {look}"))
    alone = {part[0] for part in parts if len(part) == 1}
    for point, at in zip(shown, unit(shown)):
        if (dots or at in alone) and 0 <= at[1] <= 1:
            px, py = place(*at)
            out.append(dot(px, py, s.color, f"<title>{html.escape(told(*point))}</title>"))
    source = decimated(s.raw) if s.raw else shown
    heights = [height for _, height in unit(source)]
    if dots:
        beyond = [found for point, height in zip(source, heights) for found in excursions([point], [height])]
    else:
        beyond = excursions(source, heights)
    farthest = {side: max((e for e in beyond if e[2] == side), key=lambda e: e[1] * side if side else 0)
                for side in {e[2] for e in beyond}}
    last, said = {}, {}
    for x, y, side in beyond:
        px, _ = place(x_scale.at(x), 0)
        value = exact(y, y_format) if side else "not finite"
        say = value != said.get(side) and (dots or side == 0 or s.style == "line" and farthest[side] == (x, y, side))
        if say or dots or px - last.get(side, -math.inf) >= 9:
            last[side] = px
            said[side] = value if say else said.get(side)
            out.append(marks.draw(px, side, value, told(x, y), color, say))
    return "".join(out) + "</g>"


def line_chart(title, series, x_label, y_label, width=HALF, height=300, log=False, low=None, high=None, floor=None,
               x_format=short, y_format=short, x_log=False):
    """The chart, or None where no series has a point. Lines are cut at the frame, and what lies beyond is written there."""
    series = [s for s in series if s.points]
    if not series:
        return None
    entries = [(s.label, s.color, s.style) for s in series if s.label and s.in_legend]
    left, right = 66, width - 18
    keys, keys_height = legend(entries, left, right, 16)
    top = (keys_height if entries else 0) + 26
    plot_width, bottom = right - left, top + height - 90
    plot_height = bottom - top
    xs = [x for s in series for x, _ in s.points]
    ys = [y for s in series for _, y in finite(s.raw or s.points)]
    if x_log:
        x_scale = Scale(min(xs) / 1.1, max(xs) * 1.1, True)
    elif max(xs) > min(xs):
        x_scale = Scale(0 if min(xs) < 0.1 * max(xs) else min(xs), max(xs))
    else:
        x_scale = Scale(0, max(xs) or 1)
    y_scale = scale_for(ys, log, low, high, floor)

    def place(across, up):
        return left + plot_width * across, bottom - plot_height * up

    # What the page's script needs to tell the values below the pointer.
    scales = (left, bottom, plot_width, plot_height, x_scale.low, x_scale.high, y_scale.low, y_scale.high, int(log),
              int(x_log))
    marks = Marks(left, top, right, bottom)
    return "".join([
        svg_open(width, top + height - 90 + 44, title, f" data-scales='{' '.join(f'{v:.10g}' for v in scales)}'"), keys,
        frame(left, top, plot_width, plot_height, x_scale, y_scale, x_label, y_label, x_format, y_format),
        *(draw_series(s, x_scale, y_scale, marks, place, x_format, y_format) for s in series), "</svg>"])


# ---- heat maps ----

@dataclass
class Panel:
    title: str
    rows: list              # [row][column] multiples, None: no data; the first row is drawn on top
    row_labels: list        # [(row, label)]
    column_labels: list     # [(position 0..1, label)]


def ratio_bar(x, y, width, limit, what):
    """The colours' key: 1/limit to limit."""
    steps = 128
    rows = [[ratio_color(limit ** (2 * i / (steps - 1) - 1), limit) for i in range(steps)]]
    marks = [(0, f"≤ 1/{limit:g}"), (0.5, "1"), (1, f"≥ {limit:g}")]
    return image(rows, x, y, width, 10) + text(x - 10, y + 9, what, "end") + "".join(
        text(x + width * at, y + 24, label, "middle") for at, label in marks)


def heat_maps(title, panels, x_label, y_label, what, width=WIDE, panel_height=150, columns=3, limit=4.0,
              row_gutter=44):
    """Panels beside and below one another, one colour key for all of them."""
    if not panels:
        return None
    columns = 2 if len(panels) in (2, 4) else min(columns, len(panels))
    width = min(width, 18 + columns * 540)
    gap, top = 6, 48
    panel_width = (width - 18 - columns * row_gutter - (columns - 1) * gap) / columns
    cell_height = panel_height + 58
    n_rows = math.ceil(len(panels) / columns)
    height = top + n_rows * cell_height + 6
    out = [svg_open(width, height, title), ratio_bar(width - 250, 8, 200, limit, what)]
    for i, panel in enumerate(panels):
        x = row_gutter + (i % columns) * (panel_width + row_gutter + gap)
        y = top + (i // columns) * cell_height + 16
        out.append(text(x, y - 6, panel.title, fill="ink", weight="600"))
        pixels = [[ratio_color(value, limit) for value in row] for row in panel.rows]
        out.append(image(pixels, x, y, panel_width, panel_height))
        each = panel_height / len(panel.rows)
        for row, label in panel.row_labels:
            out.append(text(x - 5, y + each * (row + 0.5) + 4, label, "end", size=11))
        for at, label in panel.column_labels:
            anchor = "start" if at == 0 else "end" if at == 1 else "middle"
            out.append(text(x + panel_width * at, y + panel_height + 15, label, anchor, size=11))
        if i // columns == n_rows - 1 or i + columns >= len(panels):
            out.append(text(x + panel_width / 2, y + panel_height + 30, x_label, "middle", size=11))
        if i % columns == 0 and y_label:
            out.append(text(10, y + panel_height / 2, y_label, "middle", size=11, rotate=-90))
    out.append("</svg>")
    return "".join(out)
