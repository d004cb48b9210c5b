"""tools/check_plan.py: the planner stays within its bars on published runs, and its table is of the command itself."""

import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import check_plan


class CheckPlan(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        if not os.access(check_plan.BINARY, os.X_OK):
            raise unittest.SkipTest(f"{check_plan.BINARY} is not built")
        cls.runs = check_plan.load(check_plan.RUNS)
        with tempfile.TemporaryDirectory() as directory:
            cls.found = check_plan.plans(cls.runs, directory)
        cls.errors = check_plan.Errors(cls.runs, cls.found)

    def test_within_the_bars(self):
        figures = self.errors.figures()
        for name, bar in check_plan.BARS.items():
            self.assertLess(figures[name], bar, name)

    def test_layouts_of_one_source_are_in_its_order(self):
        orders = self.errors.orders()
        self.assertEqual(len(orders), len(check_plan.ORDERS))
        self.assertEqual([study for study, right in orders if not right], [])

    def test_most_runs_are_planned_and_the_others_have_a_reason(self):
        self.assertGreaterEqual(len(self.errors.speeds), 50)
        self.assertGreaterEqual(len(self.errors.flops), 28)
        self.assertGreaterEqual(len(self.errors.steady), 7)
        for name, reason in self.errors.unplanned:
            self.assertNotIn("error:", reason, name)
        self.assertLessEqual(len(check_plan.LEFT_OUT), 2)

    def test_every_run_has_a_source(self):
        self.assertEqual(len({run["id"] for run in self.runs}), len(self.runs))
        for run in self.runs:
            self.assertGreater(len(run["source"]), 10, run["id"])

    def test_other_runs_are_held_to_the_same_bars(self):
        """A run that is twice as fast as planned makes the command fail."""
        run = next(run for run in self.runs if run["id"] == "mb-q30-h100-hybridep")
        with tempfile.TemporaryDirectory() as directory:
            path = pathlib.Path(directory) / "runs.json"
            for factor, code in ((1, 0), (2, 1)):
                path.write_text(json.dumps([run | {"tokens_per_s_per_gpu": factor * run["tokens_per_s_per_gpu"]}]))
                done = subprocess.run([sys.executable, str(ROOT / "tools" / "check_plan.py"), str(path)], capture_output=True,
                                      text=True)
                self.assertEqual(done.returncode, code, done.stdout + done.stderr)

    def test_what_plans_nothing_has_not_met_the_bars(self):
        """A program that fails, one that refuses every run, a file without runs, and what is no file of runs."""
        with tempfile.TemporaryDirectory() as directory:
            def check(code, *words, binary=None, runs=None):
                arguments, environment = [], dict(os.environ)
                if binary is not None:
                    program = pathlib.Path(directory) / "program"
                    program.write_text(f"#!/bin/sh\n{binary}\n")
                    program.chmod(0o755)
                    environment["SWITCHYARD_BIN"] = str(program)
                if runs is not None:
                    arguments = [str(pathlib.Path(directory) / "runs.json")]
                    pathlib.Path(arguments[0]).write_text(runs)
                done = subprocess.run([sys.executable, str(ROOT / "tools" / "check_plan.py"), *arguments], capture_output=True,
                                      text=True, env=environment)
                self.assertEqual(done.returncode, code, done.stdout + done.stderr)
                self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
                for word in words:
                    self.assertIn(word, done.stderr)
            check(1, "ended with 1", "something is wrong", binary="echo 'error: something is wrong' >&2; exit 1")
            check(1, "none of these runs could be planned", binary="echo 'error: no' >&2; exit 2")
            check(2, "has no run", runs="[]")
            check(2, "not a list of runs", runs="[{")
            check(2, "not a list of runs", runs='{"a": 1}')

    def test_windows_that_alternate_count_as_one(self):
        """128 keys in every other layer and all in the others: as many keys as one window of all layers has."""
        length, window = 4096, check_plan.mean_window(True, 128, 4096)
        keys = window - window * window / (2 * length)
        self.assertTrue(math.isclose(keys, (length / 2 + 128 - 128 * 128 / (2 * length)) / 2, rel_tol=1e-3))

    def test_solves_equations(self):
        self.assertEqual([round(x, 9) for x in check_plan.solve([[0.0, 2.0], [3.0, 1.0]], [4.0, 5.0])], [1.0, 2.0])


if __name__ == "__main__":
    unittest.main()
