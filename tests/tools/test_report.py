#!/usr/bin/env python3
"""tools/report.py: what is on the page, what it says of runs that are not whole, and that a browser draws it."""

import argparse
import csv
import json
import math
import random
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import figures  # noqa: E402
import report  # noqa: E402
import run_metrics  # noqa: E402
import size_trend  # noqa: E402
import svg_chart  # noqa: E402

BROWSER = next((path for name in ("chromium", "chromium-browser", "google-chrome", "chrome")
                if (path := shutil.which(name))), None)
TOKENS_A_STEP, SLOTS = 100, 2

# Added to a copy of the page: says, in an element of its own, how large each figure is drawn, how long its lines are and
# how many pixels its images have. Each image is loaded once more, as one whose size can be asked for, before the page
# counts as loaded; a browser that dumps the page waits for that.
PROBE = """<script>
for (const image of document.querySelectorAll('figure image')) {
  const copy = document.createElement('img');
  copy.src = image.getAttribute('href');
  copy.dataset.figure = image.closest('figure').id;
  document.body.append(copy);
}
addEventListener('load', () => {
  const out = [...document.querySelectorAll('figure')].map(figure => {
    const box = figure.querySelector('svg')?.getBoundingClientRect();
    return {id: figure.id, width: box?.width ?? 0, height: box?.height ?? 0,
            lines: [...figure.querySelectorAll('.curve,.smooth')].map(path => path.getTotalLength()),
            images: [...document.querySelectorAll(`img[data-figure='${figure.id}']`)].map(
                image => image.naturalWidth * image.naturalHeight)};
  });
  const key = document.querySelector('#loss .key'), svg = document.querySelector('#loss svg');
  const path = svg.querySelector('.smooth'), at = path.getPointAtLength(path.getTotalLength());
  const place = new DOMPoint(at.x, at.y).matrixTransform(svg.getScreenCTM());
  const told = () => {
    svg.dispatchEvent(new MouseEvent('mousemove', {clientX: place.x, clientY: place.y}));
    return getComputedStyle(document.getElementById('tip')).display === 'none' ? null
        : document.getElementById('tip').textContent;
  };
  const seen = () => [...document.querySelectorAll('.series')].map(
      series => [series.dataset.name, getComputedStyle(series).display !== 'none']);
  out.push({id: 'page', told: told(), seen: seen(), width: document.querySelector('main').scrollWidth,
            window: innerWidth});
  out.push({id: 'text', least: Math.min(...[...document.querySelectorAll('svg text')].map(
      text => parseFloat(text.getAttribute('font-size'))
          * Math.hypot(text.getScreenCTM().a, text.getScreenCTM().b)))});
  key.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  out.push({id: 'hidden', name: key.dataset.name, seen: seen()});
  const element = document.createElement('pre');
  element.id = 'probe';
  element.textContent = JSON.stringify(out);
  document.body.append(element);
});
</script>"""


def step_line(step, counts_by_layer, **more):
    """A line as the trainer writes it. counts_by_layer: [layer][expert]."""
    figures_ = {"gini": 0.5 / step, "min_max": 0.1, "cv": 0.3, "max_vio": 0.4, "utilisation": 1.0, "entropy": 0.9}
    return {"step": step, "tokens": step * TOKENS_A_STEP, "loss": 5.0 / step, "lr": 1e-3, "grad_norm": 1.0,
            "tokens_per_second": 1000.0, **(figures_ if counts_by_layer else {}), "balance_loss": 0.0, "z_loss": 0.0,
            "layers": [{"layer": i, **figures_, "counts": counts} for i, counts in enumerate(counts_by_layer)], **more}


def validated(loss, counts_by_domain):
    bits = run_metrics.specialisation_bits(list(counts_by_domain.values()))
    return {"val_loss": loss, "val_tokens": 50, "val_balance": {"gini": 0.25, "min_max": 0.5},
            "val_loss_by_domain": {name: loss for name in counts_by_domain},
            "val_layers": [{"layer": i, "gini": 0.25, "min_max": 0.5, "specialisation": bits,
                            "counts_by_domain": counts_by_domain} for i in range(2)]}


class Report(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="switchyard report ")
        self.addCleanup(directory.cleanup)
        self.dir = Path(directory.name)

    def write_run(self, name="run", lines=None, steps=12, tail="", config=True, evaluation=None):
        run = self.dir / name
        run.mkdir(parents=True)
        if lines is None:
            lines = [step_line(step, [[50, 150, 0, 0], [50, 50, 50, 50]]) for step in range(1, steps + 1)]
            lines[5] |= validated(2.0, {"law": [10, 10, 0, 0], "code": [0, 0, 10, 10]})
            lines[-1] |= validated(1.25, {"law": [20, 20, 0, 0], "code": [0, 0, 20, 20]})
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)
        if config:
            (run / "config.json").write_text(json.dumps(
                {"model": {"model_type": "mixtral"}, "router": {"type": "softmax_topk"}, "train": {"steps": len(lines)}}))
        if evaluation:
            (run / "eval.json").write_text(json.dumps(evaluation))
        return run

    def report(self, *runs, code=0, options=()):
        out = self.dir / "report.html"
        finished = subprocess.run([sys.executable, TOOLS / "report.py", *map(str, runs), "--out", str(out), *options],
                                  capture_output=True, text=True, cwd=self.dir)
        self.assertEqual(finished.returncode, code, finished.stderr)
        return finished, out.read_text() if out.exists() else None

    def figure(self, page, key):
        found = re.search(rf"<figure id='{key}'.*?</figure>", page, re.S)
        self.assertIsNotNone(found, key)
        return found[0]

    def test_every_figure_is_there(self):
        _, page = self.report(self.write_run())
        for key in ("loss", "gini", "min-max", "load-0", "domains-0", "specialisation", "experts-per-token",
                    "tokens-per-second", "grad-norm", "lr"):
            self.assertIn("<svg", self.figure(page, key), key)
        self.assertNotIn("<figure id='flops-saved'", page)
        self.assertIn("<p class=note>FLOPs saved: these runs&#x27; metrics have no flops_per_token.</p>", page)

    def test_the_page_asks_for_nothing_else(self):
        _, page = self.report(self.write_run())
        without_images = re.sub(r"data:image/png;base64,[\w+/=]*", "", page)
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s'\"<)]*", without_images))
        self.assertEqual(addresses, {"http://www.w3.org/2000/svg"})  # a name, not a request
        for link in re.findall(r"(?:href|src)\s*=\s*['\"]([^'\"]*)", page):
            self.assertTrue(link.startswith("data:image/png;base64,"), link[:60])
        self.assertNotIn("@import", page)
        self.assertEqual(re.findall(r"<script[^>]*>", page), ["<script>"])
        for way in ("fetch", "XMLHttpRequest", "import", "WebSocket", "Image"):
            self.assertNotIn(way, page[page.index("<script>"):], way)

    def test_the_table(self):
        by_validation = self.write_run("seen")
        evaluation = {"loss": 1.5, "tokens": 4242, "balance": {"gini": 0.125, "min_max": 3.33e-6, "layers": []}}
        by_eval = self.write_run("judged", evaluation=evaluation)
        _, page = self.report(by_validation, by_eval)
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td.*?</tr>", page)][:2]
        self.assertEqual(rows[0], ["seen", "mixtral + softmax_topk", "12", "1.2k", "1.2500", "0.250", "0.500", "2.00", "–",
                                   "validation at step 12, 50 tokens"])
        self.assertEqual(rows[1][4:7], ["1.5000", "0.125", "3.33e-06"])
        self.assertEqual(rows[1][-1], "eval.json, 4,242 tokens")

    def test_several_runs_have_a_line_each(self):
        runs = [self.write_run(f"run{i}") for i in range(3)]
        _, page = self.report(*runs)
        gini = self.figure(page, "gini")
        for i in range(3):
            self.assertIn(f">run{i}<", gini)
            self.assertIn(f"stroke='var(--c{i})'", gini)
            self.assertIn("<image", self.figure(page, f"load-{i}"))

    def test_runs_of_one_name_are_told_apart(self):
        first, second = self.write_run("a/run"), self.write_run("b/run")
        runs = run_metrics.load_runs([first, second])
        self.assertEqual([run.name for run in runs], [str(first), str(second)])

    def test_a_run_that_was_cut(self):
        half = json.dumps(step_line(13, [[1, 2, 3, 4]]))[:80]
        whole, cut = self.write_run("whole/run"), self.write_run("cut/run", tail=half)
        finished, page = self.report(cut)
        self.assertIn("line 13 was cut short and is skipped", finished.stdout)
        self.assertIn("run: line 13 was cut short and is skipped.", page)
        # Everything else is as if the last line had not been begun.
        drawn = [[(figure.key, figure.svg) for _, members in figures.sections([run_metrics.load_run(run)])
                  for figure in members] for run in (whole, cut)]
        self.assertEqual(drawn[0], drawn[1])

    def test_a_run_cut_anywhere(self):
        run = self.write_run()
        metrics = run / "metrics.jsonl"
        raw = metrics.read_bytes()
        first = raw.index(b"\n") + 1
        for end in range(first, len(raw), 997):
            metrics.write_bytes(raw[:end])
            loaded = run_metrics.load_run(run)
            whole = raw[:end].count(b"\n")
            self.assertIn(len(loaded.steps), (whole, whole + 1))  # one more: cut at the very end of a line
            self.assertEqual(any("cut short" in note for note in loaded.notes), len(loaded.steps) == whole
                             and not raw[:end].endswith(b"\n"))

    def test_lines_that_are_no_steps(self):
        run = self.write_run(tail="[1, 2]\n{\"step\": \"x\"}\n" + json.dumps(step_line(13, [[1, 2], [2, 1]])) + "\n")
        finished, _ = self.report(run)
        for number in (13, 14):
            self.assertIn(f"line {number} is not a step's JSON object and is skipped", finished.stdout)
        self.assertEqual(run_metrics.load_run(run).steps[-1]["step"], 13)

    def test_a_run_that_goes_on_says_so(self):
        run = self.write_run()
        (run / "config.json").write_text(json.dumps({"train": {"steps": 500}}))
        self.assertIn("at step 12 of 500", self.report(run)[0].stdout)

    def test_nothing_to_report(self):
        (self.dir / "empty").mkdir()
        (self.dir / "empty" / "metrics.jsonl").write_text('{"step": 1, "tok')
        for path, named in ((self.dir / "empty", "no whole line"), (self.dir / "nowhere", "metrics.jsonl")):
            finished, page = self.report(path, code=2)
            self.assertEqual(finished.stderr.count("\n"), 1, finished.stderr)
            self.assertIn(named, finished.stderr)
            self.assertIn(str(path), finished.stderr)
            self.assertIsNone(page)

    def test_a_line_that_comes_twice(self):
        lines = [step_line(step, [[1, 3]]) for step in (1, 2, 3, 2, 3, 4)]
        run = run_metrics.load_run(self.write_run(lines=lines))
        self.assertEqual([line["step"] for line in run.steps], [1, 2, 3, 4])
        self.assertTrue(any("follows step 3" in note for note in run.notes))

    def test_dense_runs_and_missing_values(self):
        lines = [step_line(step, []) for step in range(1, 5)]
        lines[1]["loss"] = None  # what the trainer writes for a number that is not finite
        _, page = self.report(self.write_run(lines=lines))
        self.assertIn("\u2715 not finite", self.figure(page, "loss"))
        for key in ("load-0", "gini", "min-max", "experts-per-token", "specialisation", "domains-0"):
            self.assertNotIn(f"<figure id='{key}'", page, key)
        self.assertIn("Gini coefficient, Min-max ratio: no expert counts: dense models have none.", page)
        self.assertEqual(page.count("o counts by domain"), 1)

    def test_a_single_step(self):
        _, page = self.report(self.write_run(lines=[step_line(1, [[1, 3]])]))
        self.assertIn("<circle", self.figure(page, "loss"))

    def test_work_per_token(self):
        lines = [step_line(step, [[100, 100], [50, 50]], flops_per_token=75.0, flops_per_token_static=100.0,
                           flops_saved=0.25) for step in range(1, 4)]
        run = run_metrics.load_run(self.write_run(lines=lines))
        # 200 slots in one layer, 100 in the other, 100 tokens.
        self.assertEqual(run.experts_per_token(), [(100, 1.5), (200, 1.5), (300, 1.5)])
        self.assertEqual(run.saved_share(), [(100, 0.25), (200, 0.25), (300, 0.25)])
        _, page = self.report(self.dir / "run")
        self.assertIn("<svg", self.figure(page, "flops-saved"))
        self.assertIn(">25 %<", page)

    def test_ranks(self):
        lines = [step_line(step, [[100, 100], [50, 50]], tokens_per_second=50.0, wait_seconds=[0.5, 1.0], rank_load=[1.0, 1.5])
                 for step in range(1, 4)]
        run = run_metrics.load_run(self.write_run(lines=lines))
        # A step is 100 tokens, which take two seconds.
        self.assertEqual(run.waits_by_rank(), [[(100, 0.25), (200, 0.25), (300, 0.25)], [(100, 0.5), (200, 0.5), (300, 0.5)]])
        self.assertEqual(run.loads_by_layer(), [[(100, 1.0), (200, 1.0), (300, 1.0)], [(100, 1.5), (200, 1.5), (300, 1.5)]])
        _, page = self.report(self.dir / "run")
        self.assertIn("rank 1", self.figure(page, "waits-0"))
        self.assertIn("layer 1", self.figure(page, "rank-load-0"))

    def test_a_run_on_one_rank_has_no_figures_of_ranks(self):
        _, page = self.report(self.write_run(lines=[step_line(1, [[1, 3]])]))
        self.assertNotIn("Ranks", page)

    def test_an_evaluation_of_an_earlier_step_is_not_taken_for_the_end(self):
        for step, shown in ((12, "1.5000"), (11, "1.2500")):  # the run has 12 steps, and a validation at the last
            run = self.write_run(f"step{step}", evaluation={"step": step, "loss": 1.5, "tokens": 42, "balance": {"layers": []}})
            finished, _ = self.report(run, options=["--markdown"])
            self.assertIn(f" {shown} ", finished.stdout)
            self.assertEqual("judges step 11, and the run has gone on" in finished.stdout, step == 11)

    def test_work_of_an_evaluation(self):
        layer = {"layer": 0, "attention": 10.0, "router": 1.0, "experts": 30.0, "always": 9.0, "static": 80.0}
        flops = {"per_token": 70.0, "per_token_static": 100.0, "saved": 0.3, "head": 20.0, "layers": [layer]}
        run = self.write_run(evaluation={"loss": 1.0, "tokens": 5, "balance": {}, "flops": flops})
        _, page = self.report(run)
        cells = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td.*?</tr>", page)]
        self.assertEqual(cells[0][8], "30 %")
        self.assertIn(["layer 0", "10", "1", "30", "9", "50", "80", "37.5 %"], cells)
        self.assertIn(["all", "", "", "", "", "70", "100", "30 %"], cells)

    def test_load_over_time(self):
        lines = [step_line(step, [[0, 4, 2, 2] if step <= 6 else [2, 2, 2, 2]]) for step in range(1, 13)]
        run = run_metrics.load_run(self.write_run(lines=lines))
        edges, table = run.load_over_time(0, 4)
        self.assertEqual(edges, [0, 300, 600, 900, 1200])
        self.assertEqual(table, [[0, 2, 1, 1], [0, 2, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]])

    def test_specialisation(self):
        self.assertAlmostEqual(run_metrics.specialisation_bits([[5, 0], [0, 5]]), 1.0, delta=1e-12)
        self.assertAlmostEqual(run_metrics.specialisation_bits([[1, 2], [10, 20]]), 0.0, delta=1e-12)
        self.assertEqual(run_metrics.specialisation_bits([[0, 0], [0, 0]]), 0.0)
        # The first expert takes 3 of 4 of one domain and 1 of 4 of the other, half of all.
        self.assertEqual(figures.lift_rows({"a": [3, 1], "b": [1, 3]}), [[1.5, 0.5], [0.5, 1.5]])
        _, page = self.report(self.write_run())
        self.assertIn("layer 0: 1.000 bits", self.figure(page, "domains-0"))
        table = re.search(r"<details>.*?</details>", page, re.S)[0]
        self.assertIn("<tr><td>0</td><td class=number>20</td><td class=number>0</td><td class=number>20</td></tr>", table)

    def test_names_are_escaped(self):
        _, page = self.report(self.write_run("<b>&'run"))
        self.assertNotIn("<b>&'run", page)
        self.assertIn("&lt;b&gt;&amp;", page)

    def test_pixels(self):
        pixels = [[(1, 2, 3), (250, 0, 7)], [(9, 8, 7), (0, 0, 0)]]
        raw = svg_chart.png(pixels)
        self.assertEqual(raw[:8], b"\x89PNG\r\n\x1a\n")
        self.assertEqual(struct.unpack(">II", raw[16:24]), (2, 2))
        (length,) = struct.unpack(">I", raw[33:37])
        data = zlib.decompress(raw[41:41 + length])
        self.assertEqual(data, bytes([0, 1, 2, 3, 250, 0, 7, 0, 9, 8, 7, 0, 0, 0]))
        self.assertEqual(svg_chart.png([[(1, 2, 3), (4, 5, 6)]], 2, 3),
                         svg_chart.png([[(1, 2, 3)] * 2 + [(4, 5, 6)] * 2] * 3))
        grey, idle, busy = (svg_chart.ratio_color(ratio) for ratio in (1.0, 0.0, 4.0))
        self.assertEqual(max(grey) - min(grey), 4)
        self.assertGreater(idle[2], idle[0])
        self.assertGreater(busy[0], busy[2])

    def positions(self, svg):
        """(circles, [line]) of a chart, as values read back from where they are drawn; the frame is checked."""
        left, bottom, width, height, x0, x1, y0, y1, log, _ = map(float, re.search(r"data-scales='([^']*)'", svg)[1].split())

        def value(x, y):
            self.assertTrue(left - 0.1 <= x <= left + width + 0.1 and bottom - height - 0.1 <= y <= bottom + 0.1, (x, y))
            up = (bottom - y) / height
            return x0 + (x1 - x0) * (x - left) / width, y0 * (y1 / y0) ** up if log else y0 + (y1 - y0) * up
        drawn = svg[svg.index("<g class='series'"):]
        circles = [value(float(x), float(y)) for x, y in re.findall(r"<circle cx='([\d.-]+)' cy='([\d.-]+)'", drawn)]
        lines = [[value(*map(float, pair.split())) for pair in part.split("L")]
                 for d in re.findall(r"<path d='M([^']*)' fill='none'", drawn) for part in d.split("M")]
        return circles, lines

    def beyond(self, svg):
        return re.findall(r"<text class='beyond'[^>]*>([^<]*)<", svg)

    def loss_svg(self, runs, smooth=None, log=False):
        return figures.loss_figure(runs, figures.View(smooth, log)).svg

    def test_what_lies_beyond_the_frame_is_not_drawn_in_it(self):
        good = [step_line(step, [], loss=2.0 + 1.0 / step) for step in range(1, 101)]
        bad = [step_line(step, [], loss=2.2 if step < 5 else 9.7e12) for step in range(1, 11)]
        for lines in (good, bad):
            for line in lines[4::5]:
                line |= {"val_loss": line["loss"] + 0.5, "val_tokens": 1}
        bad[9]["val_loss"] = None
        runs = run_metrics.load_runs([self.write_run("good", good), self.write_run("bad", bad)])
        svg = self.loss_svg(runs)
        circles, lines = self.positions(svg)
        expected = [(line["tokens"], line["val_loss"]) for line in good[4::5]]
        self.assertEqual(len(circles), len(expected))
        for (x, y), (right_x, right_y) in zip(circles, expected):  # drawn to 0.1 pixels of 1026 and 290
            self.assertAlmostEqual(x, right_x, delta=2)
            self.assertAlmostEqual(y, right_y, delta=0.01)
        self.assertEqual(self.beyond(svg), ["\u25b2 3", "\u25b2 9.7T", "\u25b2 9.7T", "\u2715 not finite"])
        # The line of the bad run leaves the frame where it crosses: at once behind step 4, and does not come back.
        upper = max(y for line in lines for _, y in line)
        self.assertAlmostEqual(lines[2][-1][0], 400, delta=2)
        self.assertAlmostEqual(lines[2][-1][1], upper, delta=0.01)
        # A logarithmic scale holds all of it.
        self.assertEqual(self.beyond(self.loss_svg(runs, log=True)), ["\u2715 not finite"])

    def test_the_scale_holds_every_validation(self):
        """A long run, and short ones that end where it began."""
        def lines(n):
            return [step_line(step, [], loss=3.5 + 3.6 / step) | ({"val_loss": 3.5 + 3.6 / step, "val_tokens": 1}
                                                                  if step in (1, n) else {}) for step in range(1, n + 1)]
        svg = self.loss_svg(run_metrics.load_runs([self.write_run("long", lines(500)), self.write_run("short", lines(2))]))
        circles, _ = self.positions(svg)
        self.assertEqual([round(y, 1) for _, y in circles], [7.1, 3.5, 7.1, 5.3])
        self.assertEqual(self.beyond(svg), [])

    def test_the_first_steps_of_one_run(self):
        run = run_metrics.load_run(self.write_run(lines=[step_line(step, [], loss=1.0 + 4.56 / step)
                                                         for step in range(1, 301)]))
        svg = self.loss_svg([run])
        _, (line,) = self.positions(svg)
        self.assertEqual(self.beyond(svg), ["\u25b2 5.56"])
        upper = line[0][1]
        self.assertLess(upper, 3)
        step = next(step for step in range(1, 301) if 1.0 + 4.56 / step < upper)  # between the one before it and this
        before, after = (1.0 + 4.56 / at for at in (step - 1, step))
        crossing = step - (upper - after) / (before - after)
        self.assertAlmostEqual(line[0][0], crossing * TOKENS_A_STEP, delta=30)  # a pixel is 29 tokens
        self.assertGreater(line[1][1], 0.5)

    def test_nothing_has_no_logarithm(self):
        lines = [step_line(step, [[1, 3]], min_max=0.0 if step == 3 else 0.1) for step in range(1, 6)]
        svg = figures.min_max_figure([run_metrics.load_run(self.write_run(lines=lines))]).svg
        _, drawn = self.positions(svg)
        self.assertIn("\u25bc 0", self.beyond(svg))
        falls = drawn[1]  # the mean over layers: straight down behind step 2
        self.assertAlmostEqual(falls[-1][0], 200, delta=2)
        self.assertLess(falls[-1][1], 0.1)

    def test_lines_are_cut_where_they_cross(self):
        nan = math.nan
        self.assertEqual(svg_chart.clipped([(0, 2), (1, 0), (2, -2), (3, -2), (4, 2)]),
                         [[(0.5, 1), (1, 0)], [(3.5, 0), (3.75, 1)]])
        self.assertEqual(svg_chart.clipped([(0, 0.5), (1, nan), (2, 0.5), (3, 0.25), (4, nan), (5, 7)]),
                         [[(0, 0.5)], [(2, 0.5), (3, 0.25)]])
        self.assertEqual(svg_chart.clipped([(0, 3), (1, 3)]), [])
        self.assertEqual(svg_chart.excursions([(0, 5), (1, 6), (2, 0.5), (3, -4), (4, nan), (5, nan)],
                                              [5, 6, 0.5, -4, nan, nan])[:2], [(1, 6, 1), (3, -4, -1)])

    def test_smoothing(self):
        straight = [(x, 5.0 - 0.1 * x) for x in range(60)]
        for (_, y), (_, smooth) in zip(straight, svg_chart.smoothed(straight, 0.9)):  # rounding of some sums
            self.assertAlmostEqual(y, smooth, delta=1e-12)
        fall = [(x, 5.0 / x) for x in range(1, 200)]  # curved most where it begins, which is where it must not be shifted
        for (_, y), (_, smooth) in zip(fall, svg_chart.smoothed(fall, 0.9)):
            self.assertLess(abs(smooth / y - 1), 0.06)  # a third of what lies behind on either side: 1.5 log 2 - 1 = 0.04
        noise = [(x, 1.0 + (-1) ** x) for x in range(100)]
        self.assertLess(max(abs(y - 1.0) for _, y in svg_chart.smoothed(noise, 0.9)[12:]), 0.2)
        self.assertLess(abs(svg_chart.smoothed(noise, 0.9)[-1][1] - 1.0), 0.2)  # the last as well
        self.assertEqual(svg_chart.smoothed(noise, None), noise)
        draw = random.Random(1)
        runs = [svg_chart.smoothed([(x, draw.gauss(0, 1)) for x in range(100)], 0.9) for _ in range(200)]
        inside, end = (statistics.pstdev(run[at][1] for run in runs) for at in (50, -1))
        self.assertAlmostEqual(inside, 19 ** -0.5, delta=0.05)  # a mean of 19; 200 draws know it to a twentieth
        self.assertLess(end, 1.5 * inside)  # 1.3 times by theory; with a slope of the last 19 alone 1.9 times
        broken = svg_chart.smoothed([(0, 1.0), (1, math.nan), (2, 3.0)], 0.9)
        self.assertEqual([broken[0][1], broken[2][1]], [1.0, 3.0])
        self.assertTrue(math.isnan(broken[1][1]))

    def test_a_spike_survives_thinning(self):
        points = [(x, 1.0) for x in range(20_000)]
        points[7_654], points[9_999] = (7_654, 99.0), (9_999, math.nan)
        few = svg_chart.decimated(points)
        self.assertLess(len(few), 1_000)
        self.assertIn((7_654, 99.0), few)
        self.assertTrue(any(math.isnan(y) for _, y in few))
        self.assertEqual((few[0], few[-1]), (points[0], points[-1]))

    def test_one_choice_of_smoothing_for_all(self):
        one, two = self.write_run("one"), self.write_run("two")
        for runs in ((one,), (one, two)):
            self.assertIn("class='smooth'", self.figure(self.report(*runs)[1], "loss"))
        self.assertNotIn("class='smooth'", self.report(one, options=("--smooth", "none"))[1])
        self.assertIn("'1' is neither", self.report(one, code=2, options=("--smooth", "1"))[0].stderr)
        for word in ("-0.1", "nan", "much"):
            with self.assertRaises(argparse.ArgumentTypeError):
                report.smoothing(word)

    def test_axes(self):
        lines = [step_line(step, [[1, 3]], train_seconds=seconds)
                 for step, seconds in enumerate((1800, 3600, 1800, 5400), 1)]  # resumed behind the second
        run = self.write_run(lines=lines)
        self.assertEqual([x for x, _ in run_metrics.load_runs([run], "steps")[0].series("loss")], [1, 2, 3, 4])
        self.assertEqual([x for x, _ in run_metrics.load_runs([run], "hours")[0].series("loss")], [0.5, 1.0, 1.5, 2.5])
        dated = self.write_run("dated", [step_line(step, [], wall_time=1.79e9 + 3600 * step) for step in range(1, 4)])
        self.assertEqual([x for x, _ in run_metrics.load_runs([dated], "hours")[0].series("loss")], [0, 1, 2])
        self.assertIn("hours of training", self.report(run, dated, options=("--x", "hours"))[1])
        finished, _ = self.report(self.write_run("timeless"), code=2, options=("--x", "hours"))
        self.assertIn("says nothing of time", finished.stderr)

    def test_differences_of_configurations(self):
        runs = [self.write_run(name) for name in ("a", "b")]
        config = json.loads((runs[1] / "config.json").read_text())
        (runs[1] / "config.json").write_text(json.dumps(config | {"data": {"train": ["x", "y"]}, "model": {
            "model_type": "qwen3_moe"}}))
        header, rows = run_metrics.config_differences(run_metrics.load_runs(runs))
        self.assertEqual(header, ["key", "a", "b"])
        self.assertEqual(rows, [["model.model_type", '"mixtral"', '"qwen3_moe"'], ["data.train.0", "–", '"x"'],
                                ["data.train.1", "–", '"y"']])
        self.assertIn("differ: 3 keys", self.report(*runs)[1])
        self.assertNotIn("differ:", self.report(runs[0])[1])

    def test_csv(self):
        lines = [step_line(step, [[1, 3]]) for step in range(1, 4)]
        lines[1] |= validated(2.0, {"law": [1, 3]}) | {"grad_norm": None}
        self.report(self.write_run("a/run", lines), self.write_run("b/run", lines), options=("--csv", "tables"))
        tables = {path.name: list(csv.DictReader(path.read_text().splitlines()))
                  for path in (self.dir / "tables").iterdir()}
        (steps, layers) = ([name for name in sorted(tables) if name.endswith(ending)] for ending in
                           ("a_run.csv", "a_run.layers.csv"))
        rows = tables[steps[0]]
        self.assertEqual([row["step"] for row in rows], ["1", "2", "3"])
        self.assertEqual([float(row["loss"]) for row in rows], [line["loss"] for line in lines])
        self.assertEqual([row["grad_norm"] for row in rows], ["1.0", "nan", "1.0"])
        self.assertEqual([row["val_loss_by_domain.law"] for row in rows], ["", "2.0", ""])
        self.assertEqual(tables[layers[0]][2]["gini"], str(lines[2]["layers"][0]["gini"]))
        self.assertEqual([row["test loss"] for row in tables["table.csv"]], ["2.0", "2.0"])
        self.assertEqual(len(tables), 6)

    def test_csv_of_runs_that_are_named_like_its_tables(self):
        runs = [self.write_run(name, [step_line(1, [[1, 3]])]) for name in ("table", "configurations")]
        self.report(*runs, options=("--csv", "tables"))
        self.assertEqual(sorted(path.name for path in (self.dir / "tables").iterdir()),
                         ["configurations.csv", "configurations_1.csv", "configurations_1.layers.csv", "table.csv", "table_0.csv",
                          "table_0.layers.csv"])
        self.assertIn("test loss", (self.dir / "tables" / "table.csv").read_text())
        self.assertIn("--csv", self.report(options=("--csv", "other", "--plan", self.plan()), code=2)[0].stderr)

    def test_an_evaluation_of_a_task_is_not_one_of_a_loss(self):
        finished, page = self.report(self.write_run(evaluation={"task": "piqa", "accuracy": 0.5}))
        self.assertIn("validation at step 12", page)
        self.assertIn("eval.json has no loss", finished.stdout)

    def test_lines_of_deep_brackets_are_skipped(self):
        finished, _ = self.report(self.write_run(tail="[" * 100_000 + "\n"))
        self.assertIn("line 13 is not a step's JSON object and is skipped", finished.stdout)

    def test_a_directory_in_place_of_the_page(self):
        run = self.write_run()
        finished = subprocess.run([sys.executable, TOOLS / "report.py", run, "--out", self.dir], capture_output=True, text=True)
        self.assertEqual((finished.returncode, finished.stderr.count("\n")), (2, 1), finished.stderr)
        self.assertFalse(Path(f"{self.dir}.tmp").exists())

    def test_ticks(self):
        self.assertEqual(svg_chart.Scale(0, 1).ticks(5), [0, 0.2, 0.4, 0.6, 0.8, 1.0])
        self.assertEqual(svg_chart.Scale(1e-5, 1, log=True).ticks(), [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
        self.assertEqual([svg_chart.short(v) for v in (0, 1500, 2.5e6, 0.05, 3e-7, 8)],
                         ["0", "1.5k", "2.5M", "0.05", "3e-7", "8"])
        self.assertEqual([svg_chart.short(v) for v in (999.7, 999_600, 9.7e12, 5e20)], ["1k", "1M", "9.7T", "5e20"])

    def probe(self, path, width):
        finished = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             f"--user-data-dir={self.dir / 'profile'}", f"--window-size={width},4000", "--dump-dom", path.as_uri()],
            capture_output=True, text=True, timeout=300)
        found = re.search(r'<pre id="probe">(.*?)</pre>', finished.stdout, re.S)
        self.assertIsNotNone(found, finished.stderr[-2000:])
        return {part["id"]: part for part in json.loads(found[1])}

    @unittest.skipUnless(BROWSER, "Chromium is not installed (scripts/setup.sh --browser installs it)")
    def test_a_browser_draws_every_figure(self):
        _, page = self.report(self.write_run("one"), self.write_run("two"))
        probed = self.dir / "probed.html"
        probed.write_text(page.replace("</body>", PROBE + "</body>"))
        drawn = self.probe(probed, 1200)
        self.assertEqual(drawn["page"]["told"], "one: 0.4167 at 1.2k")
        self.assertTrue(all(shown for _, shown in drawn["page"]["seen"]))
        self.assertEqual(drawn["hidden"]["name"], "one")
        for name, shown in drawn["hidden"]["seen"]:
            self.assertEqual(shown, name != "one")
        narrow = self.probe(probed, 420)  # as wide as a telephone: figures scroll, and are not made small
        self.assertLessEqual(narrow["page"]["width"], narrow["page"]["window"])
        self.assertGreaterEqual(narrow["text"]["least"], 10.9)
        for key in ("loss", "gini", "min-max", "specialisation", "experts-per-token", "load-0", "load-1", "domains-0",
                    "domains-1"):
            self.assertGreater(drawn[key]["width"], 300, key)
            self.assertGreater(drawn[key]["height"], 100, key)
        for key in ("loss", "gini", "min-max"):
            self.assertTrue(drawn[key]["lines"] and min(drawn[key]["lines"]) > 50, key)
        for key in ("load-0", "load-1"):  # the colours' key, then a panel for each layer
            self.assertEqual(len(drawn[key]["images"]), 3, key)
            self.assertGreater(min(drawn[key]["images"]), 1000, key)

    @unittest.skipUnless(BROWSER or shutil.which("rsvg-convert"), "neither Chromium nor rsvg-convert is installed")
    def test_pngs(self):
        finished, page = self.report(self.write_run(), options=("--png", "pictures"))
        drawn = {found[1] for found in re.finditer(r"<figure id='([\w-]+)'><h3>.*?</h3><div class=wide><svg", page)}
        pictures = {path.stem: path.read_bytes() for path in (self.dir / "pictures").iterdir()}
        self.assertEqual(pictures.keys(), drawn)
        for name, raw in pictures.items():
            self.assertEqual(raw[:8], b"\x89PNG\r\n\x1a\n", name)
            width, height = struct.unpack(">II", raw[16:24])
            self.assertGreater(min(width, height), 300, name)
            self.assertGreater(len(raw), 3000, name)  # an empty one of this size has fewer

    def plan(self):
        """Four layouts: one that does not fit, and of the others one that another beats in both."""
        layout = {"ranks": 8, "global_batch": 64, "seq_len": 4096, "precision": "bfloat16", "expert": 8, "zero": 1, "tensor": 1,
                  "pipeline": 1, "context": 1, "micro_batch": 1, "recompute": "none"}
        places = [(40e9, 1000, True, "block"), (60e9, 900, True, "swiglu"), (70e9, 3000, True, "none"), (90e9, 4000, False, "act")]
        path = self.dir / "plan.json"
        path.write_text(json.dumps({
            "device": {"name": "H100", "memory": 80e9}, "layout": layout,
            "layouts": [{"peak": peak, "fits": fits, "layout": layout | {"recompute": recompute},
                         "step": {"tokens_per_second_per_device": speed, "mfu": 0.3, "bottleneck": "experts"}}
                        for peak, speed, fits, recompute in places]}))
        return path

    def test_planned_layouts(self):
        finished, page = self.report(options=["--plan", self.plan()])
        self.assertIn("0 runs, 1 figures", finished.stdout)
        drawn = self.figure(page, "plan-0")
        self.assertEqual(drawn.count("<circle"), 4 + 2)  # and two in the legend
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td.*?</tr>", page)]
        self.assertEqual([(row[0], row[1], row[-1]) for row in rows], [("40.0", "1,000", "block"), ("70.0", "3,000", "none")])
        _, page = self.report(self.write_run(), options=["--plan", self.plan()])
        self.assertIn("<svg", self.figure(page, "loss"))
        self.assertIn("<svg", self.figure(page, "plan-0"))

    def test_a_plan_without_layouts(self):
        for text in ("{}", "nothing", '{"layouts": []}', '{"layouts": [1], "device": {}}', "[" * 100_000):
            (self.dir / "bad.json").write_text(text)
            finished, _ = self.report(options=["--plan", self.dir / "bad.json"], code=2)
            self.assertIn("--search", finished.stderr)
        finished, _ = self.report(code=2)
        self.assertIn("RUN", finished.stderr)

    def sizes(self, **changes):
        """A sweep over two sizes: lpr gains 0.01 with each factor e of parameters, of two seeds 0.002 apart."""
        rows = []
        for size, parameters in (("small", 1_000_000), ("large", 10_000_000)):
            gain = -0.01 * math.log(parameters / 1e6)
            rows += [{"name": size, "parameters": {"total": parameters}},
                     {"name": f"{size}_lpr", "parameters": {"total": parameters + 7}, "against": {
                         "name": size, "loss_difference": {"each": [gain - 0.001, gain + 0.001]}}}]
        path = self.dir / "sweep.json"
        path.write_text(json.dumps({"variants": rows} | changes))
        return path

    def test_differences_by_size(self):
        finished, page = self.report(options=["--sizes", self.sizes(), "--markdown"])
        self.assertIn("0 runs, 1 figures", finished.stdout)
        drawn = self.figure(page, "trend-0")
        self.assertEqual(drawn.count("<circle"), 4 + 1)  # and one in the legend
        rows = [re.findall(r"<td[^>]*>(.*?)</td>", row) for row in re.findall(r"<tr><td.*?</tr>", page)]
        self.assertEqual([row[:3] for row in rows], [["lpr", "1,000,000", "2"], ["lpr", "10,000,000", "2"],
                                                     ["lpr", "600,000,000, extrapolated", ""]])
        self.assertEqual(rows[0][3], "+0.0000 ± 0.0010")
        self.assertEqual(rows[2][3], f"{-0.01 * math.log(600):+.4f}")
        self.assertIn("| lpr | 10,000,000 | 2 | -0.0230 ± 0.0010 | -0.0240 -0.0220 |", finished.stdout)

    def test_a_sweep_without_sizes(self):
        for path, named in ((self.sizes(variants=[]), "two sizes"), (self.dir / "none.json", "none.json")):
            finished, _ = self.report(options=["--sizes", path], code=2)
            self.assertIn(named, finished.stderr)
        for text in ("{}", "nothing", '{"variants": [{"name": 1}]}', '{"variants": 3}'):
            (self.dir / "bad.json").write_text(text)
            finished, _ = self.report(options=["--sizes", self.dir / "bad.json"], code=2)
            self.assertIn("bad.json", finished.stderr)
            self.assertEqual(len(finished.stderr.splitlines()), 1)

    def test_no_way_to_make_pngs(self):
        finished = subprocess.run(
            [sys.executable, TOOLS / "report.py", str(self.write_run()), "--png", "pictures"], capture_output=True,
            text=True, cwd=self.dir, env={"PATH": str(self.dir)})
        self.assertEqual(finished.returncode, 2)
        self.assertIn("librsvg2-bin", finished.stderr)


class SizeTrend(unittest.TestCase):
    def test_quantiles_are_those_of_published_tables(self):
        # To the digits that are printed there (NIST/SEMATECH e-Handbook, 1.3.6.7.2).
        for freedom, p, value in ((1, 0.975, 12.706), (2, 0.975, 4.303), (7, 0.975, 2.365), (30, 0.975, 2.042), (5, 0.95, 2.015),
                                  (4, 0.5, 0.0)):
            self.assertAlmostEqual(size_trend.t_quantile(p, freedom), value, delta=6e-4)

    def test_the_band_is_that_of_least_squares(self):
        # By hand: x = 0, 1, 2, y = 0, 1, 0: mean 1/3, slope 0, squares left 2/3 of one degree of freedom.
        trend = size_trend.Trend("r", [(1, 0), (math.e, 1), (math.e**2, 0)])
        for x, share in ((1, 1 / 3), (0, 1 / 3 + 1 / 2), (5, 1 / 3 + 16 / 2)):
            line, half = trend.at(math.exp(x))
            self.assertAlmostEqual(line, 1 / 3, delta=1e-12)  # rounding
            self.assertAlmostEqual(half, 12.7062 * math.sqrt(2 / 3 * share), delta=1e-3)  # of six digits of the quantile

    def test_what_has_no_line(self):
        self.assertFalse(size_trend.Trend("r", [(1, 0), (2, 1)]).fitted())  # through two points any line goes
        self.assertFalse(size_trend.Trend("r", [(2, 0), (2, 1), (2, 2)]).fitted())
        self.assertTrue(size_trend.Trend("r", [(1, 0), (2, 1), (2, 2)]).fitted())


class TradeOff(unittest.TestCase):
    def test_the_edge_is_of_the_runs_that_no_other_beats_in_both(self):
        self.assertEqual(figures.unbeaten([(2, 1), (1, 3), (3, 2), (1, 3), (4, 0.5), (2, 4)]), [(1, 3), (2, 1), (4, 0.5)])

    def test_runs_of_one_variant_share_a_colour_and_no_line_joins_them(self):
        class Run:
            def __init__(self, name, loss, gini, tokens=10):
                self.name, self.figures = name, {"loss": loss, "gini": gini, "tokens": tokens}

            def final(self):
                return self.figures

        runs = [Run("a_seed1", 2.0, 0.5), Run("a_seed2", 2.1, 0.4), Run("b_seed1", 2.2, 0.1)]
        figure = figures.trade_off_figure(runs)
        self.assertEqual(re.findall("class='series' data-name='(.*?)'", figure.svg), ["no other is better in both", "a", "b"])
        self.assertEqual((figure.svg.count("<circle cx") - 2, figure.svg.count("class='curve'")), (3, 1))  # 2: in the legend
        self.assertNotIn("tokens", figure.caption)
        self.assertIn("Not all", figures.trade_off_figure([*runs, Run("c", 1.0, 0.3, tokens=11)]).caption)
        self.assertIsNone(figures.trade_off_figure(runs[:1] + [Run("dense", 1.0, None)]))


if __name__ == "__main__":
    unittest.main()
