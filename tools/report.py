#!/usr/bin/env python3
"""Writes one self-contained HTML page about one or several runs: losses, expert load, balance, specialisation, work per
token and a table. Needs Python's standard library alone; --png also needs rsvg-convert or Chromium."""

import argparse
import html
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import figures
import svg_chart
from console import UserError
from run_metrics import load_runs

EXAMPLES = """\
examples:
  tools/report.py runs/quickstart                              writes report.html
  tools/report.py runs/mixtral runs/mixtral_lpr --out lpr.html    several runs, overlaid
  tools/report.py runs/quickstart --png figures                every figure as a PNG too
  tools/report.py runs/lpr_small/* --markdown                  the table on the terminal too

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
figure.empty{flex-basis:540px}
figure h3{font-size:15px;margin:6px 0 8px}
figure svg{display:block;max-width:100%%;height:auto}
figcaption{font-size:13px;width:0;min-width:100%%;margin-top:4px}
.wide{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:14px}
th,td{text-align:left;padding:6px 16px 6px 0;border-bottom:1px solid var(--grid);white-space:nowrap}
th{color:var(--muted);font-weight:600}
.number{text-align:right}
td:last-child,th:last-child{padding-left:12px}
.note{font-size:13px;margin:4px 0 0}
details{margin:10px 0}summary{cursor:pointer;color:var(--muted)}
"""


def figure_html(figure):
    caption = f"<figcaption>{html.escape(figure.caption)}</figcaption>" if figure.caption else ""
    empty = "" if figure.svg else " class=empty"
    return (f"<figure id='{figure.key}'{empty}><h3>{html.escape(figure.title)}</h3>"
            f"{figure.svg or ''}{caption}</figure>")


def page(runs, parts):
    style = STYLE % (svg_chart.palette_css(svg_chart.LIGHT, svg_chart.SERIES_LIGHT),
                     svg_chart.palette_css(svg_chart.DARK, svg_chart.SERIES_DARK))
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    about = f"{runs[0].label}, {runs[0].path}" if len(runs) == 1 else ", ".join(run.name for run in runs)
    out = ["<!doctype html><html lang=en><head><meta charset=utf-8>",
           "<meta name=viewport content='width=device-width,initial-scale=1'><meta name=color-scheme content='light dark'>",
           f"<title>switchyard: {html.escape(title)}</title><style>{style}</style></head><body><main>",
           f"<h1>{html.escape(title)}</h1><p class=about>{html.escape(about)}</p>",
           figures.html_table(*figures.summary_rows(runs))]
    for run in runs:
        out += [f"<p class=note>{html.escape(run.name)}: {html.escape(note)}.</p>" for note in run.notes]
    for heading, members in parts:
        if not members:
            continue
        out.append(f"<h2>{html.escape(heading)}</h2><div class=figures>")
        out += [figure_html(figure) for figure in members]
        out.append("</div>")
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
    out.append("</main></body></html>\n")
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


def write_whole(path, content):
    """All of it or nothing: a page is often written again while a browser shows it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, epilog=EXAMPLES,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run directory or its metrics.jsonl")
    parser.add_argument("--out", type=Path, default=Path("report.html"), metavar="FILE", help="the page (default: report.html)")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown too")
    parser.add_argument("--png", type=Path, metavar="DIR", help="write every figure as a PNG into this directory too")
    arguments = parser.parse_args()
    try:
        runs = load_runs(arguments.runs)
        parts = figures.sections(runs)
        write_whole(arguments.out, page(runs, parts))
        pngs = write_pngs(arguments.png, parts) if arguments.png else []
    except UserError as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"report.py: {error.filename or arguments.out}: {error.strerror}", file=sys.stderr)
        return 2
    for run in runs:
        for note in run.notes:
            print(f"{run.name}: {note}")
    if arguments.markdown:
        print(figures.markdown_table(*figures.summary_rows(runs)))
    print(f"{arguments.out}: {len(runs)} run{'s' if len(runs) > 1 else ''}, "
          f"{sum(1 for _, members in parts for figure in members if figure.svg)} figures"
          + (f"; {len(pngs)} PNGs in {arguments.png}" if pngs else ""))
    return 0


if __name__ == "__main__":
    sys.exit(main())
