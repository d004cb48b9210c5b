"""`switchyard plan`: what it says of a run before anything is allocated, its options, and what it refuses."""

import json
import unittest

import harness
from harness import CliTest, ROOT

QWEN = ROOT / "configs" / "hf" / "qwen3_30b_a3b.json"
MODEL = ("--seq-len", 4096, "--micro-batch", 1)


class Plan(CliTest):
    def plan(self, *arguments):
        finished = self.ok("plan", *arguments, "--json")
        self.assertEqual(finished.err, "")
        return json.loads(finished.out)

    def test_a_run_is_planned_without_its_data(self):
        config = self.write_config(data__train=[{"path": "nowhere.bin"}], data__validation=[])
        report = self.plan(config, "--device", "H100")
        layout = report["layout"]
        self.assertEqual((layout["ranks"], layout["micro_batch"], layout["global_batch"], layout["seq_len"], layout["precision"]),
                         (1, 2, 4, harness.SEQ_LEN, "float32"))
        self.assertTrue(layout["runs_in_switchyard"])
        self.assertTrue(report["fits"])
        # The activations are the program's own count, which `train` prints too.
        self.assertTrue(report["activations_counted"])
        tokens = harness.STEPS * 4 * harness.SEQ_LEN
        self.assertEqual(report["tokens"], tokens)
        speed = report["step"]["tokens_per_second_per_device"]
        self.assertAlmostEqual(report["hours"], tokens / speed / 3600)
        # 12 bytes a parameter; keep 2, the best, and the one that is being written.
        total = json.loads(self.ok("inspect", config, "--json").out)["parameters"]["total"]
        self.assertEqual(report["parameters"]["total"], total)
        self.assertEqual(report["checkpoint_bytes"], 4 * 12 * total)

    def test_checkpoints_that_are_kept(self):
        def kept(**options):
            options = {f"checkpoint__{key}": value for key, value in {"every_minutes": 0, **options}.items()}
            report = self.plan(self.write_config(train__steps=100, **options), "--device", "H100")
            return report["checkpoint_bytes"] / (12 * report["parameters"]["total"])
        # Always one more, which is being written.
        self.assertEqual(kept(every=10, keep=2, keep_best=False), 2 + 1)
        self.assertEqual(kept(every=10, keep=2), 3 + 1)
        self.assertEqual(kept(every=10, keep=0), 10 + 1)
        self.assertEqual(kept(every=10, keep=1, keep_best=False, keep_every=20), 1 + 5 + 1)
        self.assertEqual(kept(every=0, keep=2), 1 + 1)

    def test_memory_is_what_training_takes(self):
        config = self.write_config(train__steps=1)
        memory = self.plan(config, "--device", "cpu")["memory"]
        trained = self.ok("train", config, "--out", "run")
        table = dict(line.rsplit(None, 2)[0:2] for line in (trained.out + trained.err).splitlines()
                     if line.endswith(" MiB") and len(line.split()) >= 3)
        table = {name.split()[-1]: float(value) for name, value in table.items()}
        self.assertAlmostEqual(memory["activations"] / 2**20, table["activations"], delta=0.06)  # printed with one digit
        # Rows are padded to whole cache lines: at most 64 values a row group, some 40 of them.
        self.assertAlmostEqual(memory["parameters"] / 2**20, table["parameters"], delta=0.06 + 40 * 256 / 2**20)

    def test_the_page(self):
        text = self.ok("plan", QWEN, *MODEL, "--device", "H200", "--ranks", 16, "--expert", 8, "--zero", 1, "--tokens", "1e12",
                       "--price", 3, "--recompute", "block").out
        for expected in ("30,532,122,624 parameters, 3,353,032,704 active", "GFLOP a token: 6 x", "H200", "memory of a rank", "peak",
                         "time of a step", "bottleneck", "tokens/s a device", "MFU", "kWh", "cost", "a checkpoint"):
            self.assertIn(expected, text)
        self.assertNotIn("for comparison", text)
        self.assertIn("for comparison", self.ok("plan", QWEN, *MODEL, "--tensor", 2, "--ranks", 2).out)

    def test_every_option_moves_what_it_should(self):
        base = ("--device", "H100", "--ranks", 64, "--global-batch", 256, *MODEL)
        plain = self.plan(QWEN, *base)

        def changed(*options):
            pairs = zip(base[::2], base[1::2])
            return self.plan(QWEN, *(word for pair in pairs if pair[0] != options[0] for word in pair), *options)
        self.assertLess(changed("--expert", 8)["memory"]["steady"], plain["memory"]["steady"])
        self.assertGreater(changed("--zero", 0)["memory"]["moments"], plain["memory"]["moments"])
        self.assertLess(changed("--zero", 2)["memory"]["gradients"], plain["memory"]["gradients"])
        self.assertLess(changed("--recompute", "block")["memory"]["activations"], plain["memory"]["activations"])
        for scheme in ("megatron", "fsdp", "torch"):
            self.assertEqual(changed("--scheme", scheme)["layout"]["scheme"], scheme)
        self.assertLess(changed("--scheme", "fsdp")["memory"]["steady"], changed("--scheme", "megatron")["memory"]["steady"])
        self.assertGreater(changed("--scheme", "torch")["step"]["seconds"], changed("--scheme", "fsdp")["step"]["seconds"])
        pipelined = changed("--pipeline", 4, "--scheme", "megatron")
        self.assertEqual(len(pipelined["stages"]), 4)
        self.assertGreater(pipelined["step"]["parts"]["bubble"], 0)
        pieces = changed("--pipeline", 4, "--chunks", 3, "--scheme", "megatron")
        self.assertLess(pieces["step"]["parts"]["bubble"], pipelined["step"]["parts"]["bubble"])
        self.assertGreater(changed("--tensor", 2)["step"]["sent_bytes_per_rank"]["tensor"], 0)
        self.assertGreater(changed("--context", 2)["step"]["sent_bytes_per_rank"]["context"], 0)
        self.assertEqual(changed("--expert", 4, "--expert-tensor", 2)["layout"]["expert_tensor"], 2)
        self.assertGreater(changed("--expert", 8)["step"]["seconds"], changed("--expert", 8, "--routing", "balanced")["step"]["seconds"])
        self.assertGreater(changed("--expert", 8)["step"]["seconds"], changed("--expert", 8, "--overlap")["step"]["seconds"])
        self.assertLess(changed("--precision", "fp8")["step"]["parts"]["products"], plain["step"]["parts"]["products"])
        self.assertEqual(changed("--precision", "bf16")["layout"]["precision"], "bfloat16")
        self.assertEqual(changed("--micro-batch", 4)["layout"]["micro_batch"], 4)
        twice = changed("--tokens", "2e9", "--price", 5)
        self.assertAlmostEqual(twice["cost"], 5 * twice["device_hours"])
        self.assertAlmostEqual(twice["energy_kwh"], 0.7 * twice["device_hours"])  # 700 W
        self.assertEqual(changed("--device", "H100,memory=96")["device"]["memory"], 96e9)
        (self.dir / "mine.json").write_text('{"network": 0.1}')
        apart = changed("--expert", 16)["step"]["seconds"]
        self.assertGreater(changed("--expert", 16, "--calibration", "mine.json")["step"]["seconds"], apart)
        self.ok("plan", QWEN, *base, "--json=plan.json")
        self.assertEqual(json.loads((self.dir / "plan.json").read_text()), plain)
        config = self.write_config()
        self.assertEqual(self.plan(config, "--set", "train.micro_batch_size=4", "--device", "H100")["layout"]["micro_batch"], 4)

    def test_what_does_not_fit_is_said_with_what_would(self):
        report = self.plan(QWEN, *MODEL, "--device", "H100", "--ranks", 8)
        self.assertFalse(report["fits"])
        self.assertAlmostEqual(report["lacks_bytes"], report["memory"]["peak"] - report["device"]["memory"])
        self.assertTrue(report["would_fit"])
        # What is proposed fits, as it is written.
        options = report["would_fit"][0].split()
        proposed = ["--device", "H100", *MODEL]
        if "--ranks" not in options:
            proposed += ["--ranks", 8]
        for name in options[::2]:
            if name in proposed:
                at = proposed.index(name)
                del proposed[at:at + 2]
        self.assertTrue(self.plan(QWEN, *proposed, *options)["fits"], options)
        self.assertIn("does not fit", self.ok("plan", QWEN, *MODEL, "--ranks", 8).out)

    def test_published_failures_do_not_fit(self):
        """Qwen3-30B on eight GPUs of 80 GB: not under Megatron with experts over eight ranks, but under FSDP with everything
        computed again and micro-batches of four (Megatron-LM issue 2762, NeMo AutoModel's performance summary)."""
        base = (QWEN, "--device", "H100", "--ranks", 8, "--expert", 8, "--seq-len", 4096, "--routing", "balanced")
        self.assertFalse(self.plan(*base, "--micro-batch", 1, "--scheme", "megatron")["fits"])
        self.assertTrue(self.plan(*base, "--micro-batch", 4, "--scheme", "fsdp", "--recompute", "full")["fits"])
        # Qwen3-32B over 4 x 8 GPUs of 96 GB fits at local batches of 32, not of 64 (torchtitan pull request 1690).
        model = json.loads(QWEN.read_text()) | {"num_hidden_layers": 64, "hidden_size": 5120, "num_attention_heads": 64,
                                                "num_key_value_heads": 8, "intermediate_size": 25600, "mlp_only_layers": list(range(64))}
        (self.dir / "qwen3_32b.json").write_text(json.dumps(model))
        base = ("qwen3_32b.json", "--device", "H100,memory=96", "--ranks", 32, "--tensor", 8, "--seq-len", 4096, "--scheme", "torch",
                "--recompute", "full")
        self.assertTrue(self.plan(*base, "--micro-batch", 32)["fits"])
        self.assertFalse(self.plan(*base, "--micro-batch", 64)["fits"])

    def test_a_search_is_best_first(self):
        report = self.plan(QWEN, *MODEL, "--device", "H200", "--ranks", 16, "--global-batch", 64, "--search=6")
        layouts = report["layouts"]
        self.assertEqual(len(layouts), 6)
        speeds = [each["step"]["tokens_per_second_per_device"] for each in layouts if each["fits"]]
        self.assertEqual(speeds, sorted(speeds, reverse=True))
        self.assertTrue(all(each["layout"]["runs_in_switchyard"] for each in layouts))
        wide = self.plan(QWEN, *MODEL, "--device", "H100", "--ranks", 4096, "--global-batch", 8192, "--scheme", "megatron", "--search")
        self.assertEqual(len(wide["layouts"]), 10)
        self.assertIn("layout", self.ok("plan", QWEN, *MODEL, "--ranks", 16, "--search").out)

    def test_the_cpu_is_measured(self):
        report = self.plan(self.write_config(), "--device", "cpu")
        self.assertGreater(report["device"]["peak_flops"], 1e9)
        self.assertGreater(report["device"]["memory"], 1e8)
        self.assertGreater(report["step"]["seconds"], 0)
        # Ranks of one machine share it: half, but for what other programs take or give back meanwhile.
        shared = self.plan(self.write_config(), "--device", "cpu", "--ranks", 2)
        self.assertLess(shared["device"]["memory"], 0.75 * report["device"]["memory"])

    def test_auto_is_the_largest_micro_batch_that_fits(self):
        config = self.write_config(train__micro_batch_size="auto", train__global_batch_size=12)
        whole = self.plan(config, "--device", "H100")
        self.assertEqual(whole["layout"]["micro_batch"], 12)
        # Just above what six sequences take, of which nine tenths are used.
        six = self.plan(config, "--device", "H100", "--micro-batch", 6)["memory"]["peak"]
        report = self.plan(config, "--device", f"H100,memory={six / 0.899 / 1e9}")
        self.assertEqual(report["layout"]["micro_batch"], 6)

    def test_what_is_refused(self):
        def refused(*arguments, names=()):
            self.fails(2, "plan", *arguments, names=names)
        refused("nothing.json", names=["nothing.json"])
        refused(QWEN, names=["--seq-len and --micro-batch"])
        refused(QWEN, *MODEL, "--set", "train.steps=3", names=["--set"])
        refused(QWEN, *MODEL, "--device", "H10", names=["H10", "A100, H100, H800, H200, B200, B300, GB200, GB300, MI300X"])
        refused(QWEN, *MODEL, "--device", "H100,memory=lots", names=["memory"])
        refused(QWEN, *MODEL, "--ranks", 12, "--expert", 8, names=["--ranks", "12", "8"])
        refused(QWEN, *MODEL, "--ranks", 96, "--expert", 48, names=["--expert", "128 experts"])
        refused(QWEN, *MODEL, "--ranks", 16, "--global-batch", 24, names=["--global-batch", "16"])
        refused(QWEN, *MODEL, "--price", -1, names=["--price", "0 or more"])
        refused(QWEN, *MODEL, "--tokens", 0, names=["--tokens"])
        refused(QWEN, *MODEL, "--zero", 3, names=["--zero"])
        refused(QWEN, *MODEL, "--ranks", 0, names=["--ranks"])
        refused(QWEN, *MODEL, "--scheme", "deepspeed", names=["--scheme", "megatron"])
        refused(QWEN, *MODEL, "--recompute", "some", names=["--recompute", "some", "block"])
        refused(QWEN, *MODEL, "--precision", "int8", names=["--precision", "fp8"])
        refused(QWEN, *MODEL, "--precision", "fp8", "--device", "A100", names=["--precision", "A100"])
        refused(QWEN, *MODEL, "--chunks", 2, names=["--chunks", "--pipeline"])
        refused(QWEN, *MODEL, "--calibration", "none.json", names=["none.json"])
        (self.dir / "bad.json").write_text('{"speed": 1}')
        refused(QWEN, *MODEL, "--calibration", "bad.json", names=["speed"])
        refused(self.write_config(train__steps=0), names=["steps"])
        refused(self.write_config(), "--seq-len", 65, names=["--seq-len 65", "max_position_embeddings 64"])


if __name__ == "__main__":
    unittest.main()
