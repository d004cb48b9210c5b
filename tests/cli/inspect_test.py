"""`switchyard inspect`: what a shard, a checkpoint or a configuration holds."""

import json
import re

import harness
from harness import CliTest, ROOT


def numbers(value):
    """Every number in a JSON value, however deep."""
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers(item)]
    return [value] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def parameter_counts(model):
    """Total and active parameters of a Qwen3-MoE whose layers are all sparse, by hand."""
    hidden, heads, kv = model["hidden_size"], model["num_attention_heads"], model["num_key_value_heads"]
    head_dim = model["head_dim"]
    attention = hidden * head_dim * (2 * heads + 2 * kv) + 2 * head_dim
    expert = 3 * hidden * model["moe_intermediate_size"]
    rest = attention + hidden * model["num_experts"] + 2 * hidden
    embedding = model["vocab_size"] * hidden * (1 if model.get("tie_word_embeddings") else 2) + hidden
    layers = model["num_hidden_layers"]
    return (embedding + layers * (rest + model["num_experts"] * expert),
            embedding + layers * (rest + model["num_experts_per_tok"] * expert))


class Inspect(CliTest):
    def inspect(self, path):
        text = self.ok("inspect", path).out
        self.assertGreater(len(text.splitlines()), 1)
        return text, json.loads(self.ok("inspect", path, "--json").out)

    def test_shards(self):
        for token_bytes in (2, 4):
            harness.write_shard(self.dir / "shard.bin", harness.learnable_tokens(777), token_bytes=token_bytes)
            text, report = self.inspect("shard.bin")
            self.assertIn("777", text)
            self.assertIn(777, numbers(report))
            self.assertIn(token_bytes, numbers(report))

    def test_configuration(self):
        config = self.write_config()
        total, active = parameter_counts(harness.QWEN3_MOE)
        _, report = self.inspect(config)
        self.assertIn(total, numbers(report))
        self.assertIn(active, numbers(report))

    def test_checkpoint(self):
        self.ok("train", self.write_config(train__steps=2), "--out", "run")
        total, active = parameter_counts(harness.QWEN3_MOE)
        _, report = self.inspect(self.latest("run"))
        self.assertIn(total, numbers(report))
        self.assertIn(active, numbers(report))
        self.assertIn(2, numbers(report), "the step")
        tensors = harness.read_safetensors(self.latest("run") / "model.safetensors")
        elements = 0
        for _, shape, _ in tensors.values():
            count = 1
            for size in shape:
                count *= size
            elements += count
        self.assertEqual(elements, total, "what inspect counts is what the checkpoint holds")

    def test_benchmark_configuration(self):
        path = ROOT / "configs" / "bench_cpu_86m.json"
        model = json.loads(path.read_text())["model"]
        total, active = parameter_counts(model)
        self.assertEqual(round(total / 1e6), 86)
        text, report = self.inspect(path)
        self.assertIn(total, numbers(report))
        self.assertIn(active, numbers(report))
        self.assertIn("8", text)

    def test_every_shipped_configuration(self):
        paths = sorted((ROOT / "configs").glob("*.json"))
        self.assertTrue(paths)
        for path in paths:
            with self.subTest(path.name):
                self.ok("inspect", path)

    def test_tokenizers(self):
        _, report = self.inspect(ROOT / "tests" / "tokenizers" / "llama3" / "tokenizer.json")
        self.assertEqual((report["kind"], report["vocab_size"], report["special_tokens"]), ("tokenizer", 420, 2))
        self.assertEqual((report["pre_tokenizer"], report["tokens_before_text"]), ("Sequence(Split, ByteLevel)", [0]))
        for path in sorted((ROOT / "tests" / "tokenizers" / "refused").iterdir())[::5]:
            self.fails(2, "inspect", path, names=[re.escape(path.stem.partition("=")[0])])

    def test_what_cannot_be_inspected(self):
        self.fails(2, "inspect", "nowhere", names=["nowhere"])
        (self.dir / "note.txt").write_text("hello\n")
        self.fails(2, "inspect", "note.txt", names=[r"note\.txt"])
        (self.dir / "empty.bin").write_bytes(b"")
        self.fails(2, "inspect", "empty.bin", names=[r"empty\.bin"])
        (self.dir / "broken.json").write_text('{"model": {')
        self.fails(2, "inspect", "broken.json", names=[r"broken\.json"])
        (self.dir / "empty").mkdir()
        self.fails(2, "inspect", "empty", names=["empty"])


if __name__ == "__main__":
    harness.main()
