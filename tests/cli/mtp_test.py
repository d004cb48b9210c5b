"""Multi-token prediction from the command line: it trains, resumes bit for bit, and its checkpoints are usable."""

import json
import math

import harness
from harness import CliTest, tiny_config

DEEPSEEK = {
    "model_type": "deepseek_v3", "vocab_size": harness.VOCAB, "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4,
    "v_head_dim": 4, "intermediate_size": 24, "moe_intermediate_size": 12, "first_k_dense_replace": 1,
    "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "num_nextn_predict_layers": 2,
}


class Mtp(CliTest):
    def config(self, coef=0.3):
        config = tiny_config()
        config["model"] = DEEPSEEK
        config.pop("router", None)
        config["train"]["mtp_loss_coef"] = coef
        return self.write_config(config)

    def test_learns_and_its_checkpoint_is_usable(self):
        self.ok("train", self.config(), "--out", "run")
        lines = self.metrics("run")
        self.assertAlmostEqual(lines[0]["mtp_loss"], math.log(harness.VOCAB), delta=0.1)
        self.assertLess(lines[-1]["mtp_loss"], lines[0]["mtp_loss"] - 1.0)
        self.assertEqual([layer["layer"] for layer in lines[-1]["layers"]], [1, 2, 3])
        hf = json.loads((self.latest("run") / "config.json").read_text())
        self.assertEqual(hf["num_nextn_predict_layers"], 2)

        self.ok("eval", "run", "--data", "data/val.bin", "--json", "eval.json")
        balance = json.loads((self.dir / "eval.json").read_text())["balance"]
        self.assertEqual([layer["layer"] for layer in balance["layers"]], [1], "the main model alone is evaluated")

        info = json.loads(self.ok("inspect", "run", "--tensors", "--json").out)
        weights = sum(math.prod(tensor["shape"]) for tensor in info["tensors"]
                      if tensor["file"].startswith("model"))
        self.assertEqual(info["parameters"]["total"] + info["parameters"]["mtp"], weights)

    def test_resumes_bit_for_bit(self):
        # A schedule that does not depend on the number of steps, so that a shorter run is the beginning of a longer.
        steady = ["--set", "train.schedule=constant", "--set", "train.warmup_ratio=0"]
        config = self.config()
        self.ok("train", config, "--out", "whole", *steady)
        self.ok("train", config, "--out", "parts", *steady, "--set", "train.steps=10")
        self.write_config(json.loads((self.dir / "whole" / "config.json").read_text()), "resumed.json")
        self.ok("train", "resumed.json", "--out", "parts", "--resume", "auto")
        for file in ("model.safetensors", "state.safetensors"):
            self.assertEqual((self.latest("parts") / file).read_bytes(), (self.latest("whole") / file).read_bytes())

    def test_layers_without_their_loss_are_not_made(self):
        self.ok("train", self.config(coef=0), "--out", "run")
        self.assertNotIn("mtp_loss", self.metrics("run")[-1])
        hf = json.loads((self.latest("run") / "config.json").read_text())
        self.assertEqual(hf["num_nextn_predict_layers"], 0)

    def test_bad_values(self):
        config = self.config()
        for overrides, names in (
                (["train.mtp_loss_coef=-1"], ["train.mtp_loss_coef"]),
                (["model.num_nextn_predict_layers=0"], ["train.mtp_loss_coef", "num_nextn_predict_layers"]),
                (["model.num_nextn_predict_layers=1000000"], ["num_nextn_predict_layers"]),
                (["train.seq_len=2"], ["train.seq_len"])):
            with self.subTest(overrides):
                flags = [part for override in overrides for part in ("--set", override)]
                self.fails(2, "train", config, "--out", "bad", *flags, names=names)
        self.fails(2, "train", self.write_config(tiny_config()), "--out", "bad", "--set", "train.mtp_loss_coef=0.3",
                   names=["train.mtp_loss_coef", "qwen3_moe"])


if __name__ == "__main__":
    harness.main()
