"""`switchyard inspect`: what a shard, a checkpoint or a configuration holds."""

import json
import re
import sys

import harness
from harness import CliTest, ROOT

sys.path.insert(0, str(ROOT / "tools"))
import run_config


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

    def facts(self, text):
        """name -> value of a page; a value that goes on below itself is one."""
        facts, name = {}, ""
        for line in text.splitlines():
            name = line[:13].strip() or name
            facts[name] = facts.get(name, "") + " " + line[13:]
        return facts

    def test_page_of_a_checkpoint(self):
        meta = {"tokenizer": "bytes", "tokenizer_sha256": None, "vocab_size": 257, "eot_token": 256}
        (self.dir / "data" / "meta.json").write_text(json.dumps(meta))
        self.ok("train", self.write_config(train__steps=3), "--out", "run")
        text, report = self.inspect("run")
        lines = text.splitlines()
        self.assertLessEqual(len(lines), 45)
        self.assertLessEqual(max(map(len, lines)), 120)
        self.assertNotIn("exp_avg", text)
        total, active = parameter_counts(harness.QWEN3_MOE)
        loss = self.metrics("run")[-1]["loss"]
        facts = self.facts(text)
        for name, values in (
                ("path", ["run/checkpoints/step_000003"]), ("kind", ["checkpoint"]), ("size", ["KB"]),
                ("parameters", [f"{total:,} in total", f"{active:,} active", "experts 12,288", "router 256"]),
                ("weights", ["45 tensors of F32", "model.safetensors"]),
                ("progress", ["step 3 of 3", f"{3 * 4 * harness.SEQ_LEN:,} tokens", "hours"]),
                ("updates", ["3 of the weights"]),
                ("loss", [f"training {loss:.4f}", f"validation {report['val_loss']:.4f}"]),
                ("layout", ["qwen3_moe", "hidden_size 32", "num_hidden_layers 2"]),
                ("layers", ["0-1: 4 experts x 16, 2 a token"]), ("experts", ["num_experts_per_tok 2"]),
                ("router", ["softmax_topk", "balance_coef 0.01", "z_loss_coef 0.001"]),
                ("data", ["default: data/train_*.bin"]), ("validation", ["data/val.bin"]), ("tokenizer", ["bytes, begin token 256, end token 256"])):
            for value in values:
                with self.subTest(name, value=value):
                    self.assertIn(value, facts[name])
        self.assertEqual((report["step"], report["steps"], report["updates"], report["skipped"]), (3, 3, 3, 0))
        self.assertEqual(report["loss"], loss)
        self.assertEqual(report["config"]["model"]["hidden_size"], 32)
        self.assertFalse({"model", "tensors"} & set(report), "the configuration once, tensors where asked for")

    def test_tensors_are_listed_where_asked_for(self):
        self.ok("train", self.write_config(train__steps=2), "--out", "run")
        held = harness.read_safetensors(self.latest("run") / "model.safetensors")
        state = harness.read_safetensors(self.latest("run") / "state.safetensors")
        for option, expected in (("--tensors", set(held)), ("--tensors=all", set(held) | set(state))):
            with self.subTest(option):
                page = self.ok("inspect", "run", option).out
                names = [line.split()[1] for line in page.partition(" tensors\n")[2].splitlines()]
                self.assertEqual(sorted(names), sorted(expected))
                listed = json.loads(self.ok("inspect", "run", option, "--json").out)["tensors"]
                self.assertEqual(sorted(tensor["name"] for tensor in listed), sorted(expected))
        self.fails(2, "inspect", self.write_config(), "--tensors", names=["--tensors"])

    def test_page_groups_equal_layers_and_data(self):
        model = {**harness.QWEN3_MOE, "num_hidden_layers": 5, "mlp_only_layers": [0, 1, 4]}
        config = self.write_config(train__steps=1, model=model, router={"type": "top_p"})
        domains = [{"path": "data/val.bin", "domain": f"d{number}"} for number in range(9)]
        self.ok("train", config, "--out", "run", "--set", "data.validation=" + json.dumps(domains))
        text = self.ok("inspect", "run").out
        facts = self.facts(text)
        self.assertIn("0-1, 4: dense 48", facts["layers"])
        self.assertIn("2-3: 4 experts x 16, up to 2 a token", facts["layers"])
        self.assertIn("and 3 more domains", facts["validation"])
        self.assertNotIn("d6", text)

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
        paths = sorted(path for path in (ROOT / "configs").rglob("*.json") if path.parent.name not in ("hf", "sweeps"))
        self.assertTrue(paths)
        for path in paths:
            with self.subTest(path.name):
                config = json.loads(self.ok("inspect", path, "--json").out)["config"]
                # As the Python tools read it; there are no defaults in that, and paths may be short for objects.
                for section, keys in run_config.read(path).items():
                    for key, value in keys.items():
                        if section != "data":
                            self.assertEqual(config[section][key], value, f"{section}.{key}")

    def test_comments_and_what_is_extended(self):
        (self.dir / "base.json").write_text('{"a": {"type": "x", "o": 1, "p": [1, 2]}, "b": {"c": {"d": 1, "e": 2}}}')
        (self.dir / "top.json").write_text('{"extends": "base.json", // "a": 3\n"a": {"p": [3], "u": "http://"},'
                                           ' "b": {"c": {"d": 5}}}')
        (self.dir / "third.json").write_text('{"extends": "top.json", "a": {"type": "y", "q": "\\"//"}}//')
        self.assertEqual(run_config.read(self.dir / "top.json"),
                         {"a": {"type": "x", "o": 1, "p": [3], "u": "http://"}, "b": {"c": {"d": 5, "e": 2}}})
        self.assertEqual(run_config.read(self.dir / "third.json")["a"], {"type": "y", "q": '"//'})
        (self.dir / "base.json").write_text('{"extends": "third.json"}')
        with self.assertRaisesRegex(ValueError, "top.json: extends itself"):
            run_config.read(self.dir / "top.json")

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
