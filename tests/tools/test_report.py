#!/usr/bin/env python3
"""tools/report.py: what is on the page, what it says of runs that are not whole, and that a browser draws it."""

import json
import re
import shutil
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
import run_metrics  # noqa: E402
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
            lines: [...figure.querySelectorAll('path')].map(path => path.getTotalLength()),
            images: [...document.querySelectorAll(`img[data-figure='${figure.id}']`)].map(
                image => image.naturalWidth * image.naturalHeight)};
  });
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
        self.assertNotIn("<svg", self.figure(page, "flops-saved"))
        self.assertIn("no flops_per_token", self.figure(page, "flops-saved"))

    def test_the_page_asks_for_nothing_else(self):
        _, page = self.report(self.write_run())
        without_images = re.sub(r"data:image/png;base64,[\w+/=]*", "", page)
        addresses = set(re.findall(r"(?:https?:)?//[\w.]+[^\s'\"<)]*", without_images))
        self.assertEqual(addresses, {"http://www.w3.org/2000/svg"})  # a name, not a request
        for link in re.findall(r"(?:href|src)\s*=\s*['\"]([^'\"]*)", page):
            self.assertTrue(link.startswith("data:image/png;base64,"), link[:60])
        self.assertNotIn("@import", page)
        self.assertNotIn("<script", page)

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
        self.assertIn("<svg", self.figure(page, "loss"))
        self.assertIn("dense", self.figure(page, "load-0"))
        for key in ("gini", "min-max", "experts-per-token", "specialisation", "domains-0"):
            self.assertNotIn("<svg", self.figure(page, key), key)

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

    def test_ticks(self):
        self.assertEqual(svg_chart.Scale(0, 1).ticks(5), [0, 0.2, 0.4, 0.6, 0.8, 1.0])
        self.assertEqual(svg_chart.Scale(1e-5, 1, log=True).ticks(), [1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1])
        self.assertEqual([svg_chart.short(v) for v in (0, 1500, 2.5e6, 0.05, 3e-7, 8)],
                         ["0", "1.5k", "2.5M", "0.05", "3e-7", "8"])

    @unittest.skipUnless(BROWSER, "Chromium is not installed (scripts/setup.sh --browser installs it)")
    def test_a_browser_draws_every_figure(self):
        _, page = self.report(self.write_run("one"), self.write_run("two"))
        probed = self.dir / "probed.html"
        probed.write_text(page.replace("</body>", PROBE + "</body>"))
        finished = subprocess.run(
            [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
             f"--user-data-dir={self.dir / 'profile'}", "--window-size=1200,4000", "--dump-dom", probed.as_uri()], capture_output=True, text=True, timeout=300)
        found = re.search(r'<pre id="probe">(.*?)</pre>', finished.stdout, re.S)
        self.assertIsNotNone(found, finished.stderr[-2000:])
        drawn = {figure["id"]: figure for figure in json.loads(found[1])}
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
        drawn = {found[1] for found in re.finditer(r"<figure id='([\w-]+)'><h3>.*?</h3><svg", page)}
        pictures = {path.stem: path.read_bytes() for path in (self.dir / "pictures").iterdir()}
        self.assertEqual(pictures.keys(), drawn)
        for name, raw in pictures.items():
            self.assertEqual(raw[:8], b"\x89PNG\r\n\x1a\n", name)
            width, height = struct.unpack(">II", raw[16:24])
            self.assertGreater(min(width, height), 300, name)
            self.assertGreater(len(raw), 3000, name)  # an empty one of this size has fewer

    def test_no_way_to_make_pngs(self):
        finished = subprocess.run(
            [sys.executable, TOOLS / "report.py", str(self.write_run()), "--png", "pictures"], capture_output=True,
            text=True, cwd=self.dir, env={"PATH": str(self.dir)})
        self.assertEqual(finished.returncode, 2)
        self.assertIn("librsvg2-bin", finished.stderr)


if __name__ == "__main__":
    unittest.main()
