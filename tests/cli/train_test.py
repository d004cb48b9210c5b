"""`switchyard train`: it learns, writes the run directory, honours overrides, and repeats itself bit for bit."""

import json
import math
import os
import re
import unittest

import harness
from harness import CliTest, STEPS, tiny_config

STEP_KEYS = ("step", "tokens", "loss", "lr", "grad_norm", "tokens_per_second", "wall_time", "train_seconds",
             "memory_bytes", "product_rate_share", "epoch", "skipped", "rollbacks", "gini", "min_max", "cv", "max_vio",
             "utilisation", "layers")
LAYER_KEYS = ("gini", "min_max", "cv", "max_vio", "utilisation")


class Train(CliTest):
    def test_the_vocabulary_comes_from_the_data(self):
        (self.dir / "data" / "meta.json").write_text(json.dumps({"vocab_size": 250, "eot_token": 0}))
        config = json.loads((self.dir / self.write_config(train__steps=1)).read_text())
        del config["model"]["vocab_size"]
        (self.dir / "short.json").write_text(json.dumps(config))
        self.ok("train", "short.json", "--out", "run")
        resolved = json.loads((self.dir / "run" / "config.json").read_text())
        self.assertEqual(resolved["model"]["vocab_size"], 256)  # the next multiple of 64
        self.fails(2, "train", "short.json", "--set", "model.vocab_size=5", "--out", "small",
                   names=[r"vocabulary of 5 \(meta.json: vocab_size 250\)"])
        (self.dir / "data" / "meta.json").unlink()
        self.fails(2, "train", "short.json", "--out", "none", names=[r"error: short\.json: model.vocab_size: missing, and no meta.json"])

    def test_both_layouts_learn(self):
        for model in harness.MODELS:
            with self.subTest(model):
                self.ok("train", self.write_config(tiny_config(model)), "--out", f"run_{model}")
                losses = self.losses(f"run_{model}")
                # An untrained model knows nothing: ln(257) = 5.55 nats, give or take the small initial weights.
                self.assertAlmostEqual(losses[0], math.log(harness.VOCAB), delta=0.1)
                # That only 24 of 257 tokens occur is worth 2.4 nats, and it is learnt first.
                self.assertLess(losses[-1], losses[0] - 1.5)

    def test_dynamic_k_saves_what_it_was_asked_for(self):
        """With max_experts 4: of the experts' FLOPs, whose share of all is in eval's JSON."""
        for target in (0.125, 0.25, 0.375):
            with self.subTest(target):
                config = self.write_config(router={"type": "dynamic_k", "max_experts": 4, "flops_target": target,
                                                   "estimator": "router_entropy", "statistics_decay": 0.9},
                                           train__steps=150, checkpoint__every=150)
                run = f"run_{target}"
                self.ok("train", config, "--out", run)
                flops = json.loads(self.ok("eval", run, "--json", "-").out)["flops"]
                # A static layer is a dynamic one with all of its experts' slots.
                rest = sum(layer["attention"] + layer["router"] + layer["always"] for layer in flops["layers"])
                static = flops["per_token_static"]
                share = (static - flops["head"] - rest) / static
                self.assertGreater(share, 0.05)
                # In the last 50 steps the learning rate falls to its least, so that the running statistics (0.9 a step) are those of
                # the estimates that they are compared with. Complexities are 1/2 in the mean where estimates are spread evenly
                # about theirs; a skewed spread is off by some hundredths, times (max - min)/max <= 3/4, and rounding k to whole
                # numbers adds up to 1/8 of an expert in 4.
                saved = [record["flops_saved"] for record in self.metrics(run)][100:]
                self.assertAlmostEqual(sum(saved) / len(saved) / share, target, delta=0.05)
        self.fails(2, "train", config, "--set", "router.flops_target=0.4", "--out", "none",
                   names=[r"--set router\.flops_target=0\.4", "at most 0.375", "max_experts 4"])

    def test_dense_baseline_learns(self):
        config = self.write_config(model__mlp_only_layers=[0, 1])
        self.ok("train", config, "--out", "run")
        losses = self.losses("run")
        self.assertLess(losses[-1], losses[0] - 1.5)
        self.assertEqual(self.metrics("run")[-1]["layers"], [])

    @unittest.skipIf(harness.SANITIZED, "takes too long under the sanitizers")
    def test_fp8_learns_what_bfloat16_learns(self):
        """One dense layer and one of experts, wider than a tile of 128: the CPU rounds as the device does."""
        config = tiny_config()
        config["model"].update(hidden_size=144, head_dim=16, intermediate_size=160, moe_intermediate_size=48, mlp_only_layers=[0])
        config["train"].update(steps=300, micro_batch_size=4, lr=0.001)
        config["checkpoint"]["every"] = 300
        # No token twice: what learns by heart ends anywhere.
        harness.write_shard(self.dir / "data" / "long.bin", harness.learnable_tokens(60000, alphabet=100))
        config["data"] = {"train": [{"path": "data/long.bin"}]}
        path = self.write_config(config)
        done = self.ok("train", path, "--set", "train.dtype=fp8", "--out", "fp8")
        self.assertIn('train.dtype is "fp8", but a CPU has no FP8 products', done.err)
        self.ok("train", path, "--set", "train.dtype=bfloat16", "--out", "bfloat16")
        fp8, bfloat16 = self.losses("fp8"), self.losses("bfloat16")
        self.assertNotEqual(fp8[0], bfloat16[0])
        self.assertLess(fp8[-1], fp8[0] - 4)
        for first in range(0, 300, 50):
            one, other = (sum(losses[first:first + 50]) / 50 for losses in (fp8, bfloat16))
            # DeepSeek-V3 saw 0.25 % at most; here float32 and bfloat16 are 0.05 % apart.
            self.assertLess(abs(one - other), 5e-3 * other, f"steps {first + 1} to {first + 50}: {one} and {other}")

    def test_goes_on_when_nobody_reads_what_it_prints(self):
        for ranks in ([], ["--nproc", 2]):
            process = self.start("train", self.write_config(train__steps=600, checkpoint__every=0), "--out", f"run{len(ranks)}", *ranks)
            process.stdout.readline()
            process.stdout.close()
            _, err = process.communicate(timeout=harness.TIMEOUT)
            self.assertEqual(process.returncode, 0, err)
            self.assertEqual(err.count("warning: standard output cannot be written: Broken pipe; the run goes on without it"), 1, err)
            self.assertEqual(self.metrics(f"run{len(ranks)}")[-1]["step"], 600)

    def test_a_shard_that_is_cut_while_it_is_read(self):
        for ranks, begin in ([], "error: "), (["--nproc", 2], r"process \d+: "):
            shard = harness.write_shard(self.dir / "data" / "cut.bin", harness.learnable_tokens(20000))
            config = self.write_config(data__train=["data/cut.bin"], train__steps=100000, checkpoint__every=0)
            process = self.start("train", config, "--out", f"cut{len(ranks)}", *ranks)
            process.stdout.readline()
            os.truncate(shard, 1024)
            finished = self.finish(process)
            self.assertEqual(finished.code, 1, finished)
            self.assertRegex(finished.err, rf"(?m)^{begin}{re.escape(str(shard))}: was made shorter")

    def test_data_that_are_given_twice(self):
        said = self.ok("train", self.write_config(data__train=["data/train_*.bin", "data/train_001.bin"], train__steps=1,
                                                  data__validation=["data/train_*.bin"]), "--out", "twice").err
        self.assertIn("warning: data.train: data/train_001.bin holds the same tokens as data/train_001.bin of data.train", said)
        self.assertRegex(said, r"warning: data\.validation: .*train_000\.bin holds the same tokens as .*train_000\.bin of data\.train, and so do "
                               "1 more; a text that is trained on is no validation")
        self.assertNotIn("the same tokens", self.ok("train", self.write_config(train__steps=1), "--out", "once").err)

    def test_validation_that_is_too_short_for_its_share(self):
        def said(out, eval_tokens):
            data = {"data__train": [{"path": "data/train_000.bin", "domain": "a", "weight": 1}, {"path": "data/train_001.bin", "domain": "b", "weight": 9}],
                    "data__validation": [{"path": "data/long.bin", "domain": "a"}, {"path": "data/val.bin", "domain": "b"}]}
            harness.write_shard(self.dir / "data" / "long.bin", harness.learnable_tokens(2000, seed=9))
            return self.ok("train", self.write_config(train__steps=1, train__eval_mix="training", train__eval_tokens=eval_tokens, **data),
                           "--out", out).err
        # b: 15 windows of 32 are 0.9 of 533 tokens, which are those of two domains.
        self.assertRegex(said("short", 800), 'warning: train.eval_mix "training": the validation text of domain b is too short .* to 266')
        self.assertNotIn("too short", said("enough", 266))

    def test_run_directory(self):
        self.ok("train", self.write_config(), "--out", "run")
        run = self.dir / "run"
        resolved = json.loads((run / "config.json").read_text())
        self.assertEqual(resolved["train"]["steps"], STEPS)
        self.assertEqual(resolved["train"]["beta2"], 0.95, "defaults are filled in")
        self.assertEqual(resolved["model"]["num_experts"], 4)
        self.assertEqual([path.name for path in self.checkpoints("run")], ["step_000015", "step_000020"])
        self.assertEqual((run / "checkpoints" / "latest").resolve().name
                         if (run / "checkpoints" / "latest").is_symlink()
                         else (run / "checkpoints" / "latest").read_text().strip(), "step_000020")
        names = {path.name for path in self.latest("run").iterdir()}
        self.assertLessEqual({"config.json", "run.json"}, names)
        self.assertTrue(any(name.startswith("state") and name.endswith(".safetensors") for name in names), names)
        entries = {path.name for path in (run / "checkpoints").iterdir()}
        self.assertEqual(entries, {"step_000015", "step_000020", "latest", "best"})

        hf = json.loads((self.latest("run") / "config.json").read_text())
        self.assertEqual(hf["model_type"], "qwen3_moe")
        self.assertEqual(hf["num_experts"], 4)
        tensors = harness.read_safetensors(self.latest("run") / "model.safetensors")
        self.assertEqual(tensors["model.layers.1.mlp.experts.3.gate_proj.weight"][:2], ("F32", [16, 32]))
        self.assertEqual(tensors["model.embed_tokens.weight"][1], [257, 32])

    def test_metrics(self):
        self.ok("train", self.write_config(), "--out", "run")
        metrics = self.metrics("run")
        self.assertEqual([line["step"] for line in metrics], list(range(1, STEPS + 1)))
        for line in metrics:
            for key in STEP_KEYS:
                self.assertIn(key, line)
            self.assertEqual(line["tokens"], line["step"] * 4 * harness.SEQ_LEN)
            self.assertTrue(math.isfinite(line["loss"]) and line["grad_norm"] > 0)
            self.assertTrue(0 <= line["gini"] < 1 and 0 <= line["min_max"] <= 1 and 0 <= line["utilisation"] <= 1)
            self.assertEqual(len(line["layers"]), 2)
            for layer in line["layers"]:
                for key in LAYER_KEYS:
                    self.assertIn(key, layer)
            for key in LAYER_KEYS:  # the figure of a step is the mean over its layers
                mean = sum(layer[key] for layer in line["layers"]) / 2
                self.assertAlmostEqual(line[key], mean, delta=1e-6 * max(1.0, abs(mean)), msg=key)
            # Balanced or not, E sum f P is near 1 for a router that has learnt little; both terms are positive.
            self.assertGreater(line["balance_loss"], 0)
            self.assertGreater(line["z_loss"], 0)
        # Warm-up over a tenth of the steps, then a cosine down to a tenth of the peak.
        rates = [line["lr"] for line in metrics]
        self.assertAlmostEqual(max(rates), 0.01, delta=1e-9)
        self.assertLess(rates[0], rates[1] + 1e-12)
        self.assertLess(rates[-1], 0.0015)
        self.assertEqual(rates[2:], sorted(rates[2:], reverse=True))
        self.assertIn("val_loss", metrics[-1], "validation follows the last step")
        self.assertNotIn("val_loss", metrics[3])

    def test_validation_while_training(self):
        self.ok("train", self.write_config(train__eval_every=10), "--out", "run")
        metrics = self.metrics("run")
        self.assertEqual([line["step"] for line in metrics if "val_loss" in line], [10, 20])
        self.assertLess(metrics[-1]["val_loss"], 4.0)
        # The evaluator is one: eval of the last checkpoint finds the same figure. Single precision, other batch.
        report = json.loads(self.ok("eval", self.latest("run"), "--data", "data/val.bin", "--json", "-").out)
        self.assertAlmostEqual(report["loss"] / metrics[-1]["val_loss"], 1.0, delta=1e-5)

    def test_overrides(self):
        config = self.write_config()
        self.ok("train", config, "--out", "run", "--set", "train.steps=3", "--set", "train.lr=0.002",
                "--set", "train.schedule=constant", "--set", "train.warmup_ratio=0")
        metrics = self.metrics("run")
        self.assertEqual(len(metrics), 3)
        self.assertEqual([line["lr"] for line in metrics], [0.002] * 3)
        self.assertEqual(json.loads((self.dir / "run" / "config.json").read_text())["train"]["steps"], 3)

    def test_resolved_configuration_gives_the_same_run(self):
        self.ok("train", self.write_config(), "--out", "first")
        self.ok("train", "first/config.json", "--out", "second")
        self.assert_same_run("second", "first")

    def test_same_seed_same_bits(self):
        for model in harness.MODELS:
            with self.subTest(model):
                config = self.write_config(tiny_config(model))
                self.ok("train", config, "--out", f"{model}_1")
                self.ok("train", config, "--out", f"{model}_2")
                self.assert_same_run(f"{model}_2", f"{model}_1")
                self.ok("train", config, "--out", f"{model}_other", "--set", "train.seed=4")
                self.assertNotEqual(self.losses(f"{model}_other"), self.losses(f"{model}_1"))

    def test_the_seed_chooses_the_first_weights(self):
        heads = []
        for seed in (3, 4):  # a rate so small that one step leaves the weights where they began
            self.ok("train", self.write_config(), "--out", f"run{seed}", "--set", f"train.seed={seed}",
                    "--set", "train.steps=1", "--set", "train.lr=1e-12")
            heads.append(harness.read_safetensors(self.latest(f"run{seed}") / "model.safetensors")["lm_head.weight"][2])
        for head in heads:  # 8224 values of deviation 0.02: their own deviation is within 1 % of that, so 5 % is safe
            self.assertAlmostEqual(math.sqrt(sum(x * x for x in head) / len(head)), 0.02, delta=0.001)
        apart = math.sqrt(sum((a - b) ** 2 for a, b in zip(*heads)) / len(heads[0]))
        self.assertAlmostEqual(apart, 0.02 * math.sqrt(2), delta=0.002, msg="the two are independent")

    def test_accumulation(self):
        # A balance loss strong enough to be seen, over the global batch: the scope that accumulation must not change.
        config = self.write_config(train__steps=6, router__balance_coef=0.1, router__balance_scope="global_batch")
        self.ok("train", config, "--out", "whole", "--set", "train.micro_batch_size=4")
        self.ok("train", config, "--out", "parts", "--set", "train.micro_batch_size=1")
        for whole, parts in zip(self.metrics("whole"), self.metrics("parts")):
            # Sums of float32 in another order: 1e-6 a step at first; six updates of AdamW can widen that tenfold.
            self.assertAlmostEqual(parts["loss"] / whole["loss"], 1.0, delta=2e-5)
            self.assertAlmostEqual(parts["grad_norm"] / whole["grad_norm"], 1.0, delta=2e-3)
            self.assertAlmostEqual(parts["balance_loss"] / whole["balance_loss"], 1.0, delta=2e-4)

    def test_every_option_of_a_run(self):
        """Each schedule, scope and dtype, the document mask, tied embeddings, a window and mixed domains train."""
        harness.write_shard(self.dir / "data" / "legal.bin", harness.learnable_tokens(900, seed=5), token_bytes=4)
        domains = [{"path": "data/train_*.bin", "domain": "general", "weight": 0.75},
                   {"path": "data/legal.bin", "domain": "legal", "weight": 0.25}]
        cases = [
            {"train__schedule": "linear", "router__balance_scope": "layer"},
            {"train__schedule": "wsd", "router__balance_scope": "sequence"},
            {"train__schedule": "constant", "router__balance_scope": "model"},
            {"train__dtype": "bfloat16"},
            {"data__document_mask": True, "data__eot_token": 40},
            {"model__tie_word_embeddings": True},
            {"model__sliding_window": 8, "model__use_sliding_window": True},
            {"data__train": domains},
            {"model__decoder_sparse_step": 2},
        ]
        for number, case in enumerate(cases):
            with self.subTest(**case):
                self.ok("train", self.write_config(**case), "--out", f"run{number}")
                losses = self.losses(f"run{number}")
                self.assertLess(losses[-1], losses[0] - 1.0)

    def test_a_profile_adds_up_and_changes_nothing(self):
        # One micro-batch: of several the balance loss has all run forward once more.
        config = self.write_config(train__steps=6, train__global_batch_size=2)
        self.ok("train", config, "--out", "plain")
        done = self.ok("train", config, "--set", "log.profile=true", "--out", "profiled")
        self.assertEqual(self.losses("plain"), self.losses("profiled"))
        self.assertIn("share of the roofline", done.out)
        profile = json.loads((self.dir / "profiled" / "profile.json").read_text())
        self.assertEqual(profile["steps"], 3)
        rows = {row["name"]: row for row in profile["operators"]}
        for name in ("linear_forward", "attention_backward", "classifier_forward_backward", "adamw_update"):
            self.assertGreater(rows[name]["bytes"], 0)
            self.assertIn(name, done.out)
        # "outside operators" is what the others leave, so that the sum is the whole but for rounding.
        self.assertAlmostEqual(sum(row["seconds"] for row in rows.values()), profile["seconds"], delta=1e-9)
        self.assertGreaterEqual(rows["outside operators"]["seconds"], 0)
        # The formula gives attention's backward pass 4 products where 5 are computed, so that 7 stand for 6; all
        # else is exact: sums of whole numbers, divided by the tokens and multiplied again.
        attention = rows["attention_forward"]["flops"] + rows["attention_backward"]["flops"]
        counted = profile["flops"] - attention / 7
        metrics = self.metrics("profiled")
        formula = sum(3 * step["flops_per_token"] * (step["tokens"] - before["tokens"])
                      for before, step in zip(metrics[2:], metrics[3:]))
        self.assertAlmostEqual(counted / formula, 1, delta=1e-12)
        before = harness.snapshot(self.dir / "profiled")
        self.ok("train", config, "--set", "log.profile=true", "--out", "profiled", "--resume", "auto")
        self.assertTrue(before == harness.snapshot(self.dir / "profiled"), "nothing was to be done")

    def test_uint32_shards_are_the_same_data(self):
        self.ok("train", self.write_config(), "--out", "narrow")
        for name, count, seed in (("train_000", 1500, 1), ("train_001", 1100, 2)):
            harness.write_shard(self.dir / "data" / f"{name}.bin", harness.learnable_tokens(count, seed=seed),
                                token_bytes=4)
        self.ok("train", self.write_config(), "--out", "wide")
        self.assert_same_run("wide", "narrow")

    def test_help_teaches(self):
        for command in ((), ("train",), ("eval",), ("inspect",)):
            finished = self.ok(*command, "--help")
            self.assertGreater(len(finished.out), 200)
        self.assertIn("--set", self.ok("train", "--help").out)
        self.assertIn("--resume", self.ok("train", "--help").out)


if __name__ == "__main__":
    harness.main()
