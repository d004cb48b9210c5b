"""`switchyard bench`: which parts are measured of what, that table and JSON are there, and what is refused."""

import json
import shutil
import unittest

from harness import CliTest, tiny_config

SMALL = ["--rounds", "2", "--prompt", "12", "--new-tokens", "4", "--batch", "3"]


class BenchTest(CliTest):
    def bench(self, *arguments):
        finished = self.ok("bench", *arguments, *SMALL, "--json", "-")
        return json.loads(finished.out), finished.err

    def parts(self, report):
        return [(part["part"], part["static"], part["sequences"]) for part in report["parts"]]

    def test_a_configuration_needs_no_data(self):
        config = self.write_config()
        shutil.rmtree(self.dir / "data")
        before = sorted(self.dir.rglob("*"))
        report, table = self.bench(config)
        self.assertEqual(self.parts(report), [("training", False, 4), ("prefill", False, 1), ("decode", False, 1),
                                              ("prefill", False, 3), ("decode", False, 3)])
        self.assertEqual(report["weights"], "random")
        self.assertEqual(report["not_measured"], [])
        for part in report["parts"]:
            rate = part["tokens_per_second"]
            self.assertEqual(len(rate["rounds"]), 2)
            self.assertTrue(0 < rate["low"] <= rate["median"] <= rate["high"], part)
            self.assertEqual(part["experts_per_token"], 2)
            for share in ("share_of_product_rate", "share_of_copy_rate", "share_of_roofline"):
                self.assertGreater(part[share], 0, part)
        latency = report["parts"][2]["milliseconds_per_token"]
        self.assertEqual(latency["timed"], 2 * 4)
        self.assertLessEqual(latency["p50"], latency["p99"])
        for word in ("training", "prefill", "decode", "p99", "roofline", "peak resident", "random weights"):
            self.assertIn(word, table)
        self.assertEqual(sorted(self.dir.rglob("*")), before)

    def test_the_table_goes_to_standard_output_and_json_to_a_file(self):
        finished = self.ok("bench", self.write_config(), *SMALL, "--no-training", "--json", "bench.json")
        self.assertIn("tokens/s", finished.out)
        self.assertIn("not measured: --no-training", finished.out)
        report = json.loads((self.dir / "bench.json").read_text())
        self.assertEqual([part["part"] for part in report["not_measured"]], ["training"])

    def test_a_run_and_its_export(self):
        self.ok("train", self.write_config(train__steps=2), "--out", "run")
        report, _ = self.bench("run", "--set", "train.micro_batch_size=1")
        self.assertEqual(report["weights"], "its")
        self.assertEqual(self.parts(report)[0], ("training", False, 4))
        self.ok("export", "run", "--out", "model")
        report, table = self.bench("model")
        self.assertEqual(self.parts(report)[0], ("prefill", False, 1))
        self.assertIn("--training", report["not_measured"][0]["why"])
        self.assertIn("not measured", table)
        report, _ = self.bench("model", "--training", "--set", "train.seq_len=16")
        self.assertEqual(self.parts(report)[0], ("training", False, 4))
        self.assertEqual(report["parts"][0]["tokens"], 4 * 16)
        report, _ = self.bench("model/config.json")
        self.assertEqual(report["weights"], "random")

    def test_a_dynamic_router_beside_a_static_one(self):
        config = self.write_config(router__type="dynamic_k", router__max_experts=4, router__estimator="router_entropy")
        report, table = self.bench(config, "--compare", "static")
        self.assertEqual(report["static_k"], 4)
        self.assertEqual([(each["part"], each["sequences"]) for each in report["comparison"]],
                         [("training", 4), ("prefill", 1), ("decode", 1), ("prefill", 3), ("decode", 3)])
        for each in report["comparison"]:
            self.assertTrue(1 <= each["experts_per_token"] < 4, each)
            self.assertTrue(0.25 < each["flops_ratio"] < 1, each)
            self.assertTrue(0 < each["time_ratio_low"] <= each["time_ratio"] <= each["time_ratio_high"], each)
        self.assertEqual([part["experts_per_token"] for part in report["parts"] if part["static"]], [4] * 5)
        self.assertIn("time, saved", table)
        report, _ = self.bench(config, "--compare", "static", "--static-k", "1", "--no-training")
        for each in report["comparison"]:
            self.assertGreaterEqual(each["flops_ratio"], 1, each)

    def test_latent_attention_and_bfloat16(self):
        config = tiny_config()
        config["model"] = {
            "model_type": "deepseek_v3", "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "num_key_value_heads": 2, "intermediate_size": 48, "moe_intermediate_size": 16,
            "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
            "first_k_dense_replace": 1, "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8, "v_head_dim": 8, "max_position_embeddings": 64}
        config["router"] = {"type": "sigmoid_group"}
        report, _ = self.bench(self.write_config(config), "--dtype", "bf16")
        self.assertEqual({part["dtype"] for part in report["parts"]}, {"bfloat16"})
        self.assertEqual(len(report["parts"]), 5)

    def test_a_dense_model(self):
        config = self.write_config(model__mlp_only_layers=[0, 1], router=None)
        report, _ = self.bench(config)
        self.assertEqual(report["parts"][0]["experts_per_token"], 0)
        self.fails(2, "bench", config, "--compare", "static", names=["--compare static", "no layer with experts"])

    def test_what_cannot_be_measured_is_refused(self):
        config = self.write_config()
        self.fails(2, "bench", "nowhere.json", names=["nowhere.json", "no such file or directory"])
        self.fails(2, "bench", config, "--compare", "static",
                   names=["--compare static", "softmax_topk", "static already", "top_p, dynamic_k, expert_threshold"])
        self.fails(2, "bench", config, "--static-k", "2", names=["--static-k", "--compare static"])
        self.fails(2, "bench", config, "--prompt", "60", "--new-tokens", "5",
                   names=["--prompt 60", "max_position_embeddings 64"])
        self.fails(2, "bench", config, "--rounds", "0", names=["--rounds"])
        self.fails(2, "bench", config, "--set", "train.stepz=1", names=["--set train.stepz=1"])
        self.fails(2, "bench", config, "--set", "router.type=top_p", "--compare", "static", "--static-k", "5",
                   names=["--static-k", "5", "4"])
        huge = ["--set", "model.vocab_size=2147483647", "--set", "model.hidden_size=64"]  # 1 TiB
        self.fails(2, "bench", config, *huge, names=["too little memory", r"training takes \d+", "--no-training"])
        self.fails(2, "bench", config, *huge, "--no-training",
                   names=["too little memory", r"inference takes \d+", "--batch"])
        self.ok("train", config, "--set", "train.steps=1", "--out", "run")
        self.fails(2, "bench", "run", "--set", "model.hidden_size=64", names=["model.hidden_size=64", "run"])


if __name__ == "__main__":
    unittest.main()
