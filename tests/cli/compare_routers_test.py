"""scripts/compare_routers.sh: trains each router with each seed, does nothing twice, and means are of the seeds.

The script runs in a copy of what it needs, with a model and data of a fraction of their size.
"""

import json
import shutil
import subprocess

import harness
from harness import BINARY, ROOT, CliTest

DOMAINS = ("prose", "reference", "technical", "legal", "code")


class CompareRouters(CliTest):
    def setUp(self):
        super().setUp()
        for part in ("scripts", "tools", "configs/lpr_tiny"):
            shutil.copytree(ROOT / part, self.dir / part, ignore=shutil.ignore_patterns("__pycache__"))
        path = self.dir / "configs" / "lpr_tiny" / "qwen3_moe.json"
        config = json.loads(path.read_text())
        config["model"] |= {"hidden_size": 16, "head_dim": 8, "num_experts": 16}
        config["train"] |= {"steps": 3, "seq_len": 16, "micro_batch_size": 2, "global_batch_size": 2, "eval_every": 0,
                            "eval_tokens": 64}
        path.write_text(json.dumps(config))
        for i, domain in enumerate(DOMAINS):
            shards = self.dir / "data" / "corpus_bytes" / domain
            harness.write_shard(shards / "train_000000.bin", harness.learnable_tokens(600, seed=i))
            harness.write_shard(shards / "val_000000.bin", harness.learnable_tokens(90, seed=10 + i))
            (shards / "meta.json").write_text('{"splits": {"train": {}, "val": {}}}')

    def script(self, *options, code=0):
        finished = subprocess.run([str(self.dir / "scripts" / "compare_routers.sh"), *options], capture_output=True,
                                  text=True, cwd=self.dir, env={**harness.environment(), "SWITCHYARD_BIN": BINARY})
        self.assertEqual(finished.returncode, code, finished.stdout + finished.stderr)
        return finished

    def evaluation(self, run):
        return json.loads((self.dir / "runs" / "lpr_tiny" / run / "eval.json").read_text())

    def test_means_and_nothing_twice(self):
        options = ("--only", "^(softmax_topk|lpr_quantile)$", "--seeds", "1 4")
        output = self.script(*options).stdout
        rows = {cells[0].strip(): [cell.strip() for cell in cells] for cells in
                (line.split("|")[1:-1] for line in output.splitlines() if line.startswith("|"))}
        for name in ("softmax_topk", "lpr_quantile"):
            losses = [self.evaluation(f"{name}_seed{seed}")["loss"] for seed in (1, 4)]
            self.assertNotEqual(*losses)
            self.assertEqual(rows[name][1:4], ["1 4", f"{sum(losses) / 2:.4f}", " ".join(f"{loss:.4f}" for loss in losses)])
        config = json.loads((self.dir / "runs/lpr_tiny/lpr_quantile_seed4/config.json").read_text())
        self.assertEqual((config["router"]["type"], config["router"]["bias"], config["router"]["bias_ema"],
                          config["router"]["reg_coef"], config["train"]["seed"]), ("lpr", "quantile", 0.9, 0.1, 4))
        metrics = self.dir / "runs/lpr_tiny/softmax_topk_seed1/metrics.jsonl"
        before = metrics.read_bytes()
        self.assertIn("softmax_topk, seed 1: finished", self.script(*options).stdout)
        self.assertEqual(metrics.read_bytes(), before)

    def test_every_router_can_be_trained(self):
        output = self.script("--seeds", "1").stdout
        table = output[output.rindex("| router"):]
        self.assertEqual(len([line for line in table.splitlines() if line.startswith("|")]) - 2, 8, table)

    def test_runs_judged_differently_are_not_compared(self):
        self.script("--only", "^softmax_topk$", "--seeds", "1")
        finished = self.script("--only", "^softmax_topk$", "--seeds", "1 2", "--eval-tokens", "20", code=2)
        self.assertIn("evaluate all alike", finished.stderr)

    def test_bad_use(self):
        shutil.rmtree(self.dir / "data" / "corpus_bytes" / "legal")
        for options, named in ((("--seeds",), "needs a value"), (("--seeds", "a"), "--seeds"),
                               (("--eval-tokens", "0"), "--eval-tokens"), (("--threads", "x"), "--threads"),
                               ((), "--corpus"), (("--only", "nothing"), "nothing"),
                               (("--bananas",), "--bananas")):
            with self.subTest(options):
                finished = self.script(*options, code=2)
                self.assertIn(named, finished.stderr)
                self.assertEqual(finished.stderr.count("\n"), 1)


if __name__ == "__main__":
    harness.main()
