#!/usr/bin/env python3
"""tools/dashboard.py, run by Streamlit's own test harness; skipped where Streamlit is not installed."""

import importlib.util
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))


@unittest.skipUnless(importlib.util.find_spec("streamlit"),
                     "Streamlit is not installed (pip install -r tools/requirements-dashboard.txt)")
class Dashboard(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.run_directory = Path(directory.name) / "run"
        self.run_directory.mkdir()
        self.write(6)

    def write(self, steps, tail=""):
        figures = {"gini": 0.25, "min_max": 0.5, "cv": 0.3, "max_vio": 0.4, "utilisation": 1.0, "entropy": 0.9}
        lines = [{"step": step, "tokens": 10 * step, "loss": 5.0 / step, "lr": 1e-3, "grad_norm": 1.0,
                  "tokens_per_second": 1234.0, **figures, "layers": [{"layer": 0, **figures, "counts": [8, 12]}]}
                 for step in range(1, steps + 1)]
        (self.run_directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + tail)

    def app(self, *arguments, app=None):
        """Runs the page, or draws one that has run once more."""
        from streamlit.testing.v1 import AppTest

        with mock.patch.object(sys, "argv", ["dashboard.py", *map(str, arguments)]):
            app = (app or AppTest.from_file(str(TOOLS / "dashboard.py"), default_timeout=60)).run()
        self.assertEqual([error.value for error in app.exception], [])
        return app

    def metrics(self, app):
        return {metric.label: metric.value for metric in app.metric}

    def test_it_shows_a_run(self):
        app = self.app(self.run_directory)
        self.assertEqual(self.metrics(app), {"step": "6", "loss": "0.8333", "validation loss": "–", "Gini": "0.250",
                                             "min-max": "0.500", "tokens/s": "1,234"})
        self.assertIn("Expert load over time", [tab.label for tab in app.tabs])
        self.assertEqual(len(app.dataframe), 1)

    def test_it_follows(self):
        app = self.app(self.run_directory)
        self.write(9, tail='{"step": 10, "tok')
        app = self.app(self.run_directory, app=app)
        self.assertEqual(self.metrics(app)["step"], "9")
        self.assertTrue(any("cut short" in caption.value for caption in app.caption))

    def test_how_lines_are_drawn(self):
        app = self.app(self.run_directory)
        self.assertTrue(any("smoothed (0.9)" in caption.value for caption in app.caption))
        app.sidebar.slider[0].set_value(0.0)
        app.sidebar.selectbox[1].set_value("steps")
        app = self.app(self.run_directory, app=app)
        self.assertFalse(any("smoothed" in caption.value for caption in app.caption))
        self.assertEqual(len(app.warning), 0)
        app.sidebar.selectbox[1].set_value("hours")
        app = self.app(self.run_directory, app=app)
        self.assertIn("says nothing of time", app.warning[0].value)

    def test_a_run_that_has_just_begun_is_no_hindrance(self):
        begun = self.run_directory.parent / "begun"
        begun.mkdir()
        (begun / "metrics.jsonl").touch()
        app = self.app(begun, self.run_directory)
        self.assertIn("has the run begun?", app.warning[0].value)
        self.assertEqual(self.metrics(app)["step"], "6")

    def test_no_run(self):
        app = self.app(self.run_directory / "nothing")
        self.assertEqual(len(app.warning), 1)


if __name__ == "__main__":
    unittest.main()
