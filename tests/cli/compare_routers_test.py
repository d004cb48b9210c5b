"""scripts/compare_routers.sh: trains each router with each seed, does nothing twice, and draws what it trained.

The script runs in a copy of what it needs, with a model and data of a fraction of their size.
"""

import json
import shutil
import subprocess
import sys

import harness
from harness import BINARY, ROOT, CliTest

sys.path.insert(0, str(ROOT / "tools"))
import documents  # noqa: E402

DOMAINS = ("prose", "reference", "technical", "legal", "code")


class CompareRouters(CliTest):
    def setUp(self):
        super().setUp()
        for part in ("scripts", "tools", "configs/lpr_tiny", "configs/sweeps"):
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

    def script(self, *options, code=0, cwd="."):
        finished = subprocess.run([str(self.dir / "scripts" / "compare_routers.sh"), *options], capture_output=True,
                                  text=True, cwd=self.dir / cwd, env={**harness.environment(), "SWITCHYARD_BIN": BINARY})
        self.assertEqual(finished.returncode, code, finished.stdout + finished.stderr)
        return finished

    def test_every_router_is_trained_and_nothing_twice(self):
        output = self.script("--seeds", "4", "--jobs", "2").stdout
        rows = [line.split("|")[1].strip() for line in output.splitlines() if line.startswith("|")][2:]
        self.assertEqual(rows, ["softmax_topk", "softmax_topk_balance", "sigmoid_group", "quantile", "quantile_ema", "lpr", "lpr_quantile", "lpr_dot_quantile"])
        config = json.loads((self.dir / "runs/lpr_tiny/lpr_quantile_seed4/config.json").read_text())
        self.assertEqual((config["router"]["type"], config["router"]["bias"], config["router"]["bias_ema"],
                          config["router"]["reg_coef"], config["train"]["seed"]), ("lpr", "quantile", 0.9, 0.1, 4))
        self.assertIn("lpr_dot_quantile_seed4", (self.dir / "runs/lpr_tiny/report.html").read_text())
        metrics = self.dir / "runs/lpr_tiny/softmax_topk_seed4/metrics.jsonl"
        before = metrics.read_bytes()
        self.assertIn("0 of 8 runs to do", self.script("--seeds", "4").stderr)
        self.assertEqual(metrics.read_bytes(), before)

    def test_tokens_of_another_text_are_not_taken_for_those_of_the_corpus(self):
        corpus = self.dir / "corpus"
        metas = [(self.dir / "data" / "corpus_bytes" / domain / "meta.json", domain) for domain in DOMAINS]
        for path, domain in metas:  # one as an absolute path, one as seen from the checkout
            path.write_text(json.dumps({"splits": {
                "train": {"inputs": [str(corpus / f"c4-train.{domain}.json.gz")]},
                "val": {"inputs": [f"corpus/c4-validation.{domain}.json.gz"]}}}))
        self.script("--corpus", "corpus", "--only", "^softmax_topk$", "--seeds", "1")
        path, domain = metas[2]
        path.write_text(path.read_text().replace("c4-validation", "other-validation"))
        finished = self.script("--corpus", "corpus", "--only", "^softmax_topk$", "--seeds", "1", code=2)
        self.assertIn("data/corpus_bytes/technical: split val was made of corpus/other-validation.technical.json.gz", finished.stderr)
        self.assertEqual(finished.stderr.count("\n"), 1)

    def test_a_corpus_that_has_changed_is_told_by_its_content(self):
        corpus = self.dir / "corpus"
        corpus.mkdir()
        metas = {}
        for domain in DOMAINS:
            made = {}
            for split, name in (("train", "train"), ("val", "validation")):
                file = corpus / f"c4-{name}.{domain}.json.gz"
                file.write_bytes(f"{name} {domain}".encode())
                made[split] = {"inputs": [str(file)], "fingerprints": [documents.fingerprint(file)]}
            metas[domain] = self.dir / "data" / "corpus_bytes" / domain / "meta.json"
            metas[domain].write_text(json.dumps({"splits": made}))
        options = ("--corpus", "corpus", "--only", "^softmax_topk$", "--seeds", "1", "--dry-run")
        self.script(*options)
        file.write_bytes(file.read_bytes()[::-1])
        self.assertIn(f"split val was made of {file} before that was changed", self.script(*options, code=2).stderr)

    def test_paths_are_seen_from_where_the_caller_is(self):
        """From another directory; and where a run fails, the page shows the others."""
        (self.dir / "other").mkdir()
        path = self.dir / "configs" / "sweeps" / "lpr_tiny.json"
        broken = '"variants": [{"name": "broken", "set": {"model.initializer_range": 100, "train.lr": 1000, "train.steps": 30, "train.clip_norm": 0}},'
        path.write_text(path.read_text().replace('"variants": [', broken))
        self.script("--out", "runs", "--only", "^(softmax_topk|broken)$", "--seeds", "1", cwd="other", code=1)
        self.assertTrue((self.dir / "other" / "runs" / "softmax_topk_seed1").is_dir())
        page = (self.dir / "other" / "runs" / "report.html").read_text()
        self.assertIn("softmax_topk_seed1", page)
        self.assertEqual([path.name for path in (self.dir / "runs").glob("*")] if (self.dir / "runs").exists() else [], [])

    def test_bad_use(self):
        self.assertIn("nothing", self.script("--only", "nothing", code=2).stderr)
        shutil.rmtree(self.dir / "data" / "corpus_bytes" / "legal")
        for options, named in ((("--corpus",), "needs a value"), ((), "--corpus")):
            with self.subTest(options):
                finished = self.script(*options, code=2)
                self.assertIn(named, finished.stderr)
                self.assertEqual(finished.stderr.count("\n"), 1)


if __name__ == "__main__":
    harness.main()
