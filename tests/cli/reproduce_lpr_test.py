"""scripts/reproduce_lpr.sh: its configurations are ones that can be trained, and what is done is not done again.

The script runs in a copy of what it needs, with models and data of a fraction of their size.
"""

import json
import os
import shutil
import subprocess
import sys

import harness
from harness import BINARY, ROOT, CliTest

sys.path.insert(0, str(ROOT / "tools"))
import run_config

LAYOUTS = ("mixtral", "qwen3_moe", "deepseek_v3")
DOMAINS = ("prose", "reference", "technical", "legal", "code")
SMALL_MODEL = {"vocab_size": harness.VOCAB, "hidden_size": 32, "num_hidden_layers": 2}
SMALL_TRAIN = {"train.steps": 4, "train.seq_len": harness.SEQ_LEN, "train.micro_batch_size": 2,
               "train.global_batch_size": 2, "train.eval_every": 2, "train.eval_tokens": 64, "checkpoint.every": 2,
               "checkpoint.keep": 0}


def knows_lpr():
    return subprocess.run([BINARY, "inspect", str(ROOT / "configs/lpr_small/mixtral_lpr.json")],
                          capture_output=True).returncode == 0


class ReproduceLpr(CliTest):
    def setUp(self):
        super().setUp()
        for part in ("scripts", "tools", "configs"):
            shutil.copytree(ROOT / part, self.dir / part, ignore=shutil.ignore_patterns("__pycache__"))
        configs = {path: run_config.read(path) for path in (self.dir / "configs" / "lpr_small").iterdir()}
        for path, config in configs.items():
            config["model"] |= SMALL_MODEL
            path.write_text(json.dumps(harness.deep_update(config, SMALL_TRAIN)))
        for i, domain in enumerate(DOMAINS):
            shards = self.dir / "data" / "lpr_small" / domain
            harness.write_shard(shards / "train_000000.bin", harness.learnable_tokens(600, seed=i))
            harness.write_shard(shards / "val_000000.bin", harness.learnable_tokens(90, seed=10 + i))
            (shards / "meta.json").write_text('{"splits": {"train": {}, "val": {}}}')

    def script(self, *options, code=0):
        finished = subprocess.run([str(self.dir / "scripts" / "reproduce_lpr.sh"), *options], capture_output=True,
                                  text=True, cwd=self.dir, env={**harness.environment(), "SWITCHYARD_BIN": BINARY})
        self.assertEqual(finished.returncode, code, finished.stdout + finished.stderr)
        return finished

    def run_path(self, name):
        return self.dir / "runs" / "lpr_small" / name

    def table(self, output):
        rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in output.splitlines()
                if line.startswith("|")]
        return {row[0]: dict(zip(rows[0], row)) for row in rows[2:]}

    def test_baselines_and_their_table(self):
        output = self.script("--scale", "small", "--only", "^(mixtral|qwen3_moe|deepseek_v3)$").stdout
        table = self.table(output)
        self.assertEqual(list(table), list(LAYOUTS))
        for name, row in table.items():
            report = json.loads((self.run_path(name) / "eval.json").read_text())
            self.assertEqual(report["tokens"], 5 * 89)
            self.assertEqual(row["test loss"], f"{report['loss']:.4f}")
            self.assertEqual(row["Gini"], f"{report['balance']['gini']:.3f}")
            self.assertEqual(row["steps"], "4")
        config = json.loads((self.run_path("deepseek_v3") / "config.json").read_text())
        self.assertEqual(config["router"]["balance_coef"], 0)
        self.assertEqual(config["router"]["bias_update_speed"], 0)
        page = (self.dir / "runs" / "lpr_small" / "report.html").read_text()
        self.assertIn("<figure id='load-2'", page)

    def test_all_nine(self):
        if not knows_lpr():
            self.skipTest("this binary has no router lpr")
        table = self.table(self.script("--scale", "small").stdout)
        self.assertEqual(list(table), [layout + ending for layout in LAYOUTS for ending in ("", "_lpr", "_lpr_init")])
        for layout in LAYOUTS:
            for ending, unit_ball in (("_lpr", False), ("_lpr_init", True)):
                config = json.loads((self.run_path(layout + ending) / "config.json").read_text())
                self.assertEqual(config["router"]["type"], "lpr")
                self.assertEqual(config["router"]["unit_ball"], unit_ball)

    def test_every_configuration_is_valid(self):
        for path in sorted((ROOT / "configs").glob("lpr_*/*.json")):
            if json.loads(path.read_text()).get("router", {}).get("type") == "lpr" and not knows_lpr():
                continue  # test_all_nine says that it is skipped
            with self.subTest(path.name):
                self.ok("inspect", path)

    def test_what_is_done_is_not_done_again(self):
        options = ("--scale", "small", "--only", "^mixtral$")
        self.script(*options)
        metrics = self.run_path("mixtral") / "metrics.jsonl"
        before = metrics.read_bytes(), self.run_path("mixtral").joinpath("eval.json").stat().st_mtime_ns
        self.assertIn("mixtral: finished", self.script(*options).stdout)
        self.assertEqual(before, (metrics.read_bytes(), (self.run_path("mixtral") / "eval.json").stat().st_mtime_ns))

    def test_an_interrupted_run_goes_on(self):
        options = ("--scale", "small", "--only", "^mixtral$")
        self.script(*options)
        run = self.run_path("mixtral")
        whole = [harness.without_timing(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        shutil.rmtree(run / "checkpoints" / "step_000004")
        (run / "checkpoints" / "latest").unlink()
        os.symlink("step_000002", run / "checkpoints" / "latest")
        self.assertIn("mixtral: step 2 of 4", self.script(*options).stdout)
        again = [harness.without_timing(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        self.assertEqual(again, whole)

    def test_runs_of_another_length_are_not_mixed_in(self):
        options = ("--scale", "small", "--only", "^mixtral$")
        self.script(*options, "--steps", "2")
        self.assertIn("a run of 2 steps, not of 4", self.script(*options, code=2).stderr)

    def test_another_seed_has_its_own_runs(self):
        self.script("--scale", "small", "--only", "^mixtral$", "--seed", "3")
        config = json.loads((self.run_path("mixtral_seed3") / "config.json").read_text())
        self.assertEqual(config["train"]["seed"], 3)

    def test_dry_run(self):
        output = self.script("--scale", "paper", "--dry-run").stdout
        for layout in LAYOUTS:
            self.assertIn(f"{BINARY} train configs/{layout}_0.6b.json --out runs/lpr_paper/{layout} ", output)
            self.assertIn(f"train configs/{layout}_lpr_0.6b.json --out runs/lpr_paper/{layout}_lpr_init ", output)
        self.assertIn("huggingface-cli download HuggingFaceFW/fineweb", output)
        self.assertFalse((self.dir / "runs").exists())

    def test_bad_use(self):
        shutil.rmtree(self.dir / "data" / "lpr_small" / "legal")
        for options, named in (((), "--scale"), (("--scale", "huge"), "--scale"), (("--scale",), "needs a value"),
                               (("--scale", "small", "--steps", "0"), "--steps"),
                               (("--scale", "small", "--seed", "x"), "--seed"),
                               (("--scale", "small", "--only", "nothing"), "nothing"),
                               (("--scale", "small"), "--corpus"),
                               (("--scale", "small", "--corpus", "nowhere"), "nowhere/c4-train.prose.json.gz"),
                               (("--scale", "paper"), "data/fineweb"), (("--bananas",), "--bananas")):
            with self.subTest(options):
                finished = self.script(*options, code=2)
                self.assertIn(named, finished.stderr)
                self.assertEqual(finished.stderr.count("\n"), 1)


if __name__ == "__main__":
    harness.main()
