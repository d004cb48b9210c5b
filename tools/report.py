#!/usr/bin/env python3
"""Writes one self-contained HTML page about one or several runs: losses, expert load, balance, specialisation, work per
token and a table. Needs Python's standard library alone; --png also needs rsvg-convert or Chromium."""

import argparse
import csv
import html
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import figures
import svg_chart
from console import UserError
from run_metrics import AXES, config_differences, is_number, load_runs
from size_trend import load_trends

EXAMPLES = """\
examples:
  tools/report.py runs/quickstart                              writes report.html
  tools/report.py runs/mixtral runs/mixtral_lpr --out lpr.html    several runs, overlaid
  tools/report.py runs/quickstart --png figures                every figure as a PNG too
  tools/report.py runs/lpr_small/* --markdown                  the table on the terminal too
  tools/report.py runs/a runs/b --x hours --smooth none --log-y    over time, every step as it is, logarithmic losses
  tools/report.py runs/a runs/b --csv tables                   what the figures are drawn from
  tools/report.py --sizes runs/lpr_scale/sweep.json --markdown    whether a difference grows with the model
  tools/report.py --plan plan.json                             layouts of 'switchyard plan ... --search=1000 --json=plan.json'

A run is a directory with metrics.jsonl (config.json and eval.json beside it are used if they are there), or a
metrics.jsonl. It may still be going on: what is whole is used.
"""

STYLE = """
:root{%s}
@media (prefers-color-scheme:dark){:root{%s}}
*{box-sizing:border-box}
body{margin:0;background:var(--surface);color:var(--ink);font:15px/1.5 Inter,"Segoe UI",Helvetica,Arial,"DejaVu Sans",sans-serif}
main{max-width:1160px;margin:0 auto;padding:32px 24px 64px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}
h2{font-size:19px;margin:44px 0 10px;padding-bottom:6px;border-bottom:1px solid var(--grid)}
.about,figcaption,.note{color:var(--muted)}
.about{margin:0 0 20px}
.figures{display:flex;flex-wrap:wrap;gap:20px 28px}
figure{margin:0;flex:0 1 auto;min-width:0;max-width:100%%}
figure h3{font-size:15px;margin:6px 0 8px}
figure svg{display:block}
figcaption{font-size:13px;width:0;min-width:100%%;margin-top:4px}
.wide{overflow-x:auto;max-width:100%%}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{text-align:left;padding:6px 14px 6px 0;border-bottom:1px solid var(--grid);vertical-align:top;min-width:3em}
th{color:var(--muted);font-weight:600;vertical-align:bottom}
td:first-child,td:nth-child(2),td:last-child{overflow-wrap:anywhere;min-width:7em}
.number{text-align:right;white-space:nowrap;padding-right:14px}
th.number{white-space:normal}
.note{font-size:13px;margin:4px 0 0}
details{margin:10px 0}summary{cursor:pointer;color:var(--muted)}
.key{cursor:pointer}.key.off{opacity:.35}.series.off{display:none}
#single:checked~* .smooth{display:none}#single:checked~* .raw{opacity:1}
#tip{position:fixed;display:none;pointer-events:none;background:var(--surface);color:var(--ink);border:1px solid var(--muted);
border-radius:4px;padding:2px 7px;font-size:13px}
"""

# A legend's key hides its run in all figures; a line tells the value below the pointer, read back from what is drawn.
SCRIPT = """
for (const key of document.querySelectorAll('.key')) key.addEventListener('click', () => {
  const off = key.classList.toggle('off');
  for (const other of document.querySelectorAll('.key,.series'))
    if (other.dataset.name === key.dataset.name) other.classList.toggle('off', off);
});
const tip = document.body.appendChild(document.createElement('div'));
tip.id = 'tip';
const short = v => {
  for (const [limit, unit] of [[1e12, 'T'], [1e9, 'B'], [1e6, 'M'], [1e3, 'k']])
    if (Math.abs(v) >= limit) return +(v / limit).toPrecision(4) + unit;
  return '' + +v.toPrecision(4);
};
for (const svg of document.querySelectorAll('svg[data-scales]')) {
  const [left, bottom, width, height, x0, x1, y0, y1, log, xLog] = svg.dataset.scales.split(' ').map(Number);
  const dot = svg.appendChild(document.createElementNS(svg.namespaceURI, 'circle'));
  svg.addEventListener('mouseleave', () => { tip.style.display = 'none'; dot.setAttribute('r', 0); });
  svg.addEventListener('mousemove', event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    let least = 30 ** 2, found = null;
    const lines = document.getElementById('single')?.checked ? '.curve,.raw' : '.curve,.smooth';
    for (const path of svg.querySelectorAll(lines)) {
      if (path.closest('.off')) continue;
      path.vertices ??= path.getAttribute('d').split(/[ML]/).slice(1).map(pair => pair.split(' ').map(Number));
      for (const [x, y] of path.vertices) {
        const distance = (x - at.x) ** 2 + (y - at.y) ** 2;
        if (distance < least) { least = distance; found = [path, x, y]; }
      }
    }
    tip.style.display = found ? 'block' : 'none';
    dot.setAttribute('r', found ? 4 : 0);
    if (!found) return;
    const [path, x, y] = found, up = (bottom - y) / height;
    const value = log ? y0 * (y1 / y0) ** up : y0 + (y1 - y0) * up;
    dot.setAttribute('cx', x), dot.setAttribute('cy', y), dot.setAttribute('fill', path.getAttribute('stroke'));
    const along = (x - left) / width, where = xLog ? x0 * (x1 / x0) ** along : x0 + (x1 - x0) * along;
    tip.textContent = `${path.parentNode.dataset.name}: ${short(value)} at ${short(where)}`;
    tip.style.left = Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 4) + 'px';
    tip.style.top = event.clientY + 14 + 'px';
  });
}
"""


def figure_html(figure):
    caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>" if figure.caption else ""
    return (f"<figure id='{figure.key}'><h3>{html.escape(figure.title)}</h3>"
            f"<div class=wide>{figure.svg}</div>{caption}</figure>")


def load_plan(path):
    """What `switchyard plan --search --json` wrote."""
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: is not JSON; 'switchyard plan CONFIG --search=1000 --json=FILE' writes such a file") from None
    if not isinstance(plan, dict) or not plan.get("layouts") or "device" not in plan:
        raise UserError(f"{path}: has no layouts; 'switchyard plan CONFIG --search=1000 --json=FILE' writes them")
    try:
        figures.plan_figure(plan, 0)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path}: is not what 'switchyard plan CONFIG --search=1000 --json=FILE' writes "
                        f"({type(error).__name__}: {error})") from None
    return plan


def page(runs, parts, view, plans=(), trends=()):
    style = STYLE % (svg_chart.palette_css(svg_chart.LIGHT, svg_chart.SERIES_LIGHT),
                     svg_chart.palette_css(svg_chart.DARK, svg_chart.SERIES_DARK))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs" if runs else "planned layouts" if plans else "sizes"
    about = ", ".join(filter(None, [runs[0].label, str(runs[0].path)]) if len(runs) == 1 else [run.name for run in runs])
    out = ["<!doctype html><html lang=en><head><meta charset=utf-8>",
           "<meta name=viewport content='width=device-width,initial-scale=1'><meta name=color-scheme content='light dark'>",
           f"<title>switchyard: {html.escape(title)}</title><style>{style}</style></head><body><main>",
           f"<h1>{html.escape(title)}</h1><p class=about>{html.escape(about)}</p>",
           figures.html_table(*figures.summary_rows(runs), 2, -1) if runs else ""]
    for run in runs:
        out += [f"<p class=note>{html.escape(run.name)}: {html.escape(note)}.</p>" for note in run.notes]
    differences = config_differences(runs) if runs else ([], [])
    if differences[1]:
        out.append(f"<details><summary>In what the configurations differ: {len(differences[1])} keys</summary>"
                   f"{figures.html_table(*differences, len(differences[0]))}</details>")
    if view.smooth and runs:
        out.append("<input type=checkbox id=single> <label for=single class=note>single steps in place of smoothed lines"
                   "</label>")
    for heading, members in parts:
        if not members:
            continue
        out.append(f"<h2>{html.escape(heading)}</h2><div class=figures>")
        out += [figure_html(figure) for figure in members if figure.svg]
        out.append("</div>")
        out += [f"<p class=note>{html.escape(sentence)}</p>" for sentence in figures.missing(members)]
        if heading.startswith("Planned"):
            out += [figures.html_table(*figures.plan_rows(plan), 4) for plan in plans]
        if heading.startswith("Sizes"):
            out += [figures.html_table(*figures.trend_rows(found), 1) for found in trends]
        if heading.startswith("Work"):
            for run in runs:
                table = figures.flop_table(run)
                if table:
                    out.append(f"<details><summary>Forward FLOPs a token by layer: {html.escape(run.name)}</summary>"
                               f"{figures.html_table(*table, 1)}</details>")
        if heading.startswith("Specialisation"):
            for run in runs:
                tables = figures.domain_count_tables(run)
                if tables:
                    out.append(f"<details><summary>Counts by domain: {html.escape(run.name)}</summary>")
                    out += [f"<p class=note>{html.escape(name)}</p>{figures.html_table(header, rows, 1)}"
                            for name, header, rows in tables]
                    out.append("</details>")
    out.append(f"</main><script>{SCRIPT}</script></body></html>\n")
    return "".join(out)


def converter():
    """How an SVG file becomes a PNG file: a function of (svg path, png path, width, height)."""
    if shutil.which("rsvg-convert"):
        return lambda svg, png, width, height: ["rsvg-convert", "--zoom=2", "--output", str(png), str(svg)]
    for browser in ("chromium", "chromium-browser", "google-chrome"):
        if shutil.which(browser):
            return lambda svg, png, width, height: [
                browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                "--force-device-scale-factor=2", f"--window-size={width},{height}", f"--screenshot={png}",
                svg.as_uri()]
    raise UserError("--png needs rsvg-convert (Debian: librsvg2-bin) or Chromium; install one, or leave --png out")


def write_pngs(directory, parts):
    command_for = converter()
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    with tempfile.TemporaryDirectory() as scratch:
        for figure in (figure for _, members in parts for figure in members if figure.svg):
            svg, png = Path(scratch) / f"{figure.key}.svg", directory.resolve() / f"{figure.key}.png"
            svg.write_text(svg_chart.standalone(figure.svg))
            width, height = (round(float(figure.svg.split(f" {side}='")[1].split("'")[0])) for side in ("width", "height"))
            command = command_for(svg, png, width, height)
            finished = subprocess.run(command, capture_output=True, text=True)
            if finished.returncode or not png.exists():
                raise UserError(f"{png}: '{command[0]}' made no picture: {(finished.stderr.strip() or '?').splitlines()[-1]}")
            written.append(png)
    return written


def flat(value, prefix):
    """[(name, value)] of a number, or of the numbers in an object. null is a number that is not finite."""
    if isinstance(value, dict):
        return [pair for key, member in value.items() for pair in flat(member, f"{prefix}.{key}")]
    return [(prefix, value if is_number(value) else "nan")] if value is None or isinstance(value, (int, float)) else []


def write_csv(path, header, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])


def write_csvs(directory, runs):
    """The table, the differences of configurations, and of each run its steps and its layers."""
    directory.mkdir(parents=True, exist_ok=True)
    tables = [figures.summary_values(run) for run in runs]
    write_csv(directory / "table.csv", list(tables[0]), [table.values() for table in tables])
    write_csv(directory / "configurations.csv", *config_differences(runs))
    stems = [re.sub(r"[^\w.-]+", "_", run.name).strip("_") or "run" for run in runs]
    for number, run in enumerate(runs):
        stem = stems[number]
        if stem in ("table", "configurations") or stems.count(stem) > 1:
            stem += f"_{number}"
        seen = {id(v.line): [*flat(v.balance, "val_balance"), *flat(v.loss_by_domain, "val_loss_by_domain")]
                for v in run.validations}
        rows = [dict([pair for key, value in line.items() for pair in flat(value, key)] + seen.get(id(line), []))
                for line in run.steps]
        keys = list(dict.fromkeys(key for row in rows for key in row))
        write_csv(directory / f"{stem}.csv", keys, [[row.get(key, "") for key in keys] for row in rows])
        layers = [{"step": line["step"], "layer": layer.number, **dict(
            pair for key, value in layer.figures.items() for pair in flat(value, key))}
            for line, found in zip(run.steps, run.layers) for layer in found]
        if layers:
            keys = list(dict.fromkeys(key for row in layers for key in row))
            write_csv(directory / f"{stem}.layers.csv", keys, [[row.get(key, "") for key in keys] for row in layers])


def smoothing(word):
    """--smooth: None, or a weight."""
    try:
        weight = 0.0 if word == "none" else float(word)
    except ValueError:
        weight = math.nan
    if not 0 <= weight <= 0.99:
        raise argparse.ArgumentTypeError(f"'{word}' is neither 'none' nor a weight from 0 to 0.99")
    return weight or None


def write_whole(path, content):
    """All of it or nothing: a page is often written again while a browser shows it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise UserError(f"--out {path}: is a directory; name a file in it")
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run directory or its metrics.jsonl")
    parser.add_argument("--plan", action="append", type=Path, default=[], metavar="FILE",
                        help="speed against memory of the layouts that 'switchyard plan --search=1000 --json=FILE' wrote; may be "
                        "repeated, and needs no RUN")
    parser.add_argument("--sizes", action="append", type=Path, default=[], metavar="FILE",
                        help="differences in loss by the size of the model, from the sweep.json of a sweep over sizes, and where "
                        "they lead; may be repeated, and needs no RUN")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown too")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write every figure as a PNG into this directory too")
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write tables and metrics as CSV into this directory too")
    parser.add_argument("--x", choices=AXES, default="tokens", help="the x axis of every figure (default: tokens)")
    parser.add_argument("--smooth", type=smoothing, default=0.9, metavar="W",
                        help="weight of the average that lines of single steps are smoothed by, from 0 to 0.99, or none: the "
                        "same for every run (default: 0.9, which is over 19 steps)")
    parser.add_argument("--log-y", action="store_true", help="logarithmic scales for losses and the figures of the run itself")
    arguments = parser.parse_args()
    if not arguments.runs and not arguments.plan and not arguments.sizes:
        parser.error("the following arguments are required: RUN, --plan FILE or --sizes FILE")
    if arguments.csv and not arguments.runs:
        parser.error("--csv writes what runs have logged, and no RUN is given")
    try:
        runs = load_runs(arguments.runs, arguments.x) if arguments.runs else []
        plans = [load_plan(path) for path in arguments.plan]
        trends = [load_trends(path) for path in arguments.sizes]
        view = figures.View(arguments.smooth, arguments.log_y)
        parts = figures.sections(runs, view) if runs else []
        if plans:
            parts.append(("Planned layouts", [figures.plan_figure(plan, i) for i, plan in enumerate(plans)]))
        if trends:
            parts.append(("Sizes", [figures.trend_figure(found, i) for i, found in enumerate(trends)]))
        write_whole(arguments.out, page(runs, parts, view, plans, trends))
        pngs = write_pngs(arguments.png, parts) if arguments.png else []
        if arguments.csv:
            write_csvs(arguments.csv, runs)
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: {error.filename or arguments.out}: {error.strerror}", file=sys.stderr)
        return 2
    for run in runs:
        for note in run.notes:
            print(f"{run.name}: {note}")
    if arguments.markdown and runs:
        print(figures.markdown_table(*figures.summary_rows(runs)))
    if arguments.markdown:
        for found in trends:
            print(figures.markdown_table(*figures.trend_rows(found)))
    print(f"{arguments.out}: {len(runs)} run{'' if len(runs) == 1 else 's'}, "
          f"{sum(1 for _, members in parts for figure in members if figure.svg)} figures"
          + (f"; {len(pngs)} PNGs in {arguments.png}" if pngs else "")
          + (f"; CSV files in {arguments.csv}" if arguments.csv else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
