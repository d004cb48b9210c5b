"""scripts/reproduce_lpr.sh: its configurations are ones that can be trained, and what is done is not done again.

The script runs in a copy of what it needs, with models and data of a fraction of their size.
"""

import json
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


class ReproduceLpr(CliTest):
    def setUp(self):
        super().setUp()
        for part in ("scripts", "tools", "configs"):
            shutil.copytree(ROOT / part, self.dir / part, ignore=shutil.ignore_patterns("__pycache__"))
        configs = {path: run_config.read(path) for path in (self.dir / "configs" / "lpr_small").iterdir()}
        for path, config in configs.items():
            config["model"] |= SMALL_MODEL
            if "settle_tokens" in config.get("router", {}):
                config["router"]["settle_tokens"] = 64  # most of the work, otherwise
            path.write_text(json.dumps(harness.deep_update(config, SMALL_TRAIN)))
        for i, domain in enumerate(DOMAINS):
            shards = self.dir / "data" / "lpr_small" / domain
            harness.write_shard(shards / "train_000000.bin", harness.learnable_tokens(600, seed=i))
            harness.write_shard(shards / "val_000000.bin", harness.learnable_tokens(90, seed=10 + i))
            harness.write_shard(shards / "test_000000.bin", harness.learnable_tokens(70, seed=20 + i))
            (shards / "meta.json").write_text('{"splits": {"train": {}, "val": {}, "test": {}}}')

    def script(self, *options, code=0):
        finished = subprocess.run([str(self.dir / "scripts" / "reproduce_lpr.sh"), *options], capture_output=True,
                                  text=True, cwd=self.dir, env={**harness.environment(), "SWITCHYARD_BIN": BINARY})
        self.assertEqual(finished.returncode, code, finished.stdout + finished.stderr)
        return finished

    def run_path(self, name):
        return self.dir / "runs" / "lpr_small" / name

    def rows(self, output):
        return [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("|")][2:]

    def test_all_of_them_with_the_routers_that_they_are_named_after(self):
        names = [layout + ending for layout in LAYOUTS for ending in ("", "_balance", "_quantile", "_prototypes", "_lpr")]
        names.insert(names.index("qwen3_moe_quantile"), "qwen3_moe_normalised")
        self.assertEqual(self.rows(self.script("--scale", "small").stdout), names)
        for layout in LAYOUTS:
            report = json.loads((self.run_path(layout + "_seed1") / "eval.json").read_text())
            self.assertEqual(report["tokens"], 5 * 69)
            report = json.loads((self.run_path(layout + "_seed1") / "eval_validation.json").read_text())
            self.assertEqual(report["tokens"], 5 * 89)
            for ending in ("quantile", "lpr"):
                config = json.loads((self.run_path(f"{layout}_{ending}_seed1") / "config.json").read_text())
                self.assertEqual(config["router"]["type"], ending)
                self.assertEqual(config["router"]["bias_solves"], 2)
            config = json.loads((self.run_path(f"{layout}_prototypes_seed1") / "config.json").read_text())
            self.assertFalse(config["router"]["prototype_routing"])
        config = json.loads((self.run_path("deepseek_v3_seed1") / "config.json").read_text())
        self.assertEqual(config["router"]["balance_coef"], 0)
        self.assertEqual(config["router"]["bias_update_speed"], 0)
        page = (self.dir / "runs" / "lpr_small" / "report.html").read_text()
        self.assertIn("<figure id='load-2'", page)

    def test_every_configuration_is_valid(self):
        for path in sorted((ROOT / "configs").glob("lpr_*/*.json")):
            with self.subTest(path.name):
                self.ok("inspect", path)

    def test_what_is_done_is_not_done_again(self):
        options = ("--scale", "small", "--only", "^mixtral$")
        self.script(*options)
        run = self.run_path("mixtral_seed1")
        before = (run / "metrics.jsonl").read_bytes(), (run / "eval.json").stat().st_mtime_ns
        self.assertIn("0 of 1 runs to do", self.script(*options).stderr)
        self.assertEqual(before, ((run / "metrics.jsonl").read_bytes(), (run / "eval.json").stat().st_mtime_ns))

    def test_runs_of_another_length_are_not_mixed_in(self):
        options = ("--scale", "small", "--only", "^mixtral$")
        self.script(*options, "--steps", "2")
        self.assertIn("train.steps is 2 there and 4 here", self.script(*options, code=2).stderr)

    def test_the_published_set_up_under_mpirun(self):
        output = self.script("--scale", "paper", "--dry-run", "--launcher", "mpirun -np 8", "--seeds", "1,2").stdout
        for layout in LAYOUTS:
            self.assertIn(f"mpirun -np 8 switchyard train configs/{layout}_0.6b.json --out runs/lpr_paper/{layout}_seed2 ",
                          output)
            self.assertIn(f"train configs/{layout}_lpr_0.6b.json --out runs/lpr_paper/{layout}_lpr_init_seed1 ", output)
            self.assertRegex(output, rf"train configs/{layout}_lpr_0.6b.json --out runs/lpr_paper/{layout}_prototypes_seed1 .*"
                                     r"router.prototype_routing=false .*router.similarity=dot .*router.bias=quantile ")
            self.assertIn(f"train configs/{layout}_quantile_0.6b.json --out runs/lpr_paper/{layout}_quantile_seed1 ", output)
        self.assertIn("hf download HuggingFaceFW/fineweb", output)
        self.assertFalse((self.dir / "runs").exists())

    def test_bad_use(self):
        for options, named in (((), "--scale"), (("--scale", "huge"), "--scale"), (("--scale",), "needs a value"),
                               (("--scale", "small", "--steps", "0"), "train.steps"),
                               (("--scale", "small", "--seeds", "x"), "--seeds"),
                               (("--scale", "small", "--only", "nothing"), "nothing"),
                               (("--scale", "paper"), "data/fineweb"),
                               (("--scale", "small", "--bananas"), "--bananas")):
            with self.subTest(options):
                finished = self.script(*options, code=2)
                self.assertIn(named, finished.stderr)
                self.assertEqual(finished.stderr.count("\n"), 1)
        shutil.rmtree(self.dir / "data" / "lpr_small" / "legal")
        for options, named in ((("--scale", "small"), "--corpus"),
                               (("--scale", "small", "--corpus", "nowhere"), "nowhere/c4-train.prose.json.gz")):
            with self.subTest(options):
                self.assertIn(named, self.script(*options, code=2).stderr)


if __name__ == "__main__":
    harness.main()
