"""`switchyard generate`: the same seed gives the same text, options are checked, a run's data names its tokenizer."""

import json

import harness
from harness import CliTest

META = {"tokenizer": "bytes", "tokenizer_sha256": None, "vocab_size": 257, "eot_token": 256}


class Generate(CliTest):
    def setUp(self):
        super().setUp()
        (self.dir / "data" / "meta.json").write_text(json.dumps(META))
        self.ok("train", self.write_config(train__steps=8), "--out", "run")

    def report(self, *options, prompt=("--prompt", "8A")):
        return json.loads(self.ok("generate", "run", *prompt, "--max-new-tokens", 12, *options, "--json").out)

    def test_the_checkpoint_says_which_tokenizer(self):
        report = self.report("--greedy")
        self.assertEqual(report["prompt_tokens"], [256, ord("8"), ord("A")], "a document begins with end-of-text")
        self.assertEqual(len(report["tokens"]), 12)
        self.assertEqual(report["stop"], "max_new_tokens")
        self.assertEqual(self.report("--temperature", 0)["tokens"], report["tokens"])

    def test_seed(self):
        first = self.report("--seed", 5)["tokens"]
        self.assertEqual(self.report("--seed", 5)["tokens"], first)
        self.assertNotEqual(self.report("--seed", 6)["tokens"], first)

    def test_stream_is_the_text(self):
        plain = self.ok("generate", "run", "--prompt", "8A", "--max-new-tokens", 12, "--greedy")
        self.assertEqual(plain.out, self.report("--greedy")["text"] + "\n")
        self.assertIn("max_new_tokens", plain.err)

    def test_prompts(self):
        (self.dir / "prompt.txt").write_text("8A")
        expected = self.report("--greedy")
        self.assertEqual(self.report("--greedy", prompt=("--prompt-file", "prompt.txt"))["tokens"], expected["tokens"])
        self.assertEqual(self.report("--greedy", prompt=("--prompt-tokens", "256,56,65"))["tokens"], expected["tokens"])

    def test_end_of_text_stops(self):
        first = self.report("--greedy")["tokens"][0]
        checkpoint, directory = self.latest("run"), self.dir / "plain"
        directory.mkdir()
        for name in ("config.json", "model.safetensors"):
            (directory / name).write_bytes((checkpoint / name).read_bytes())
        (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, first]}))
        report = json.loads(self.ok("generate", "plain", "--prompt-tokens", "256,56,65", "--greedy", "--json").out)
        self.assertEqual((report["tokens"], report["stop"]), ([first], "end_of_text"))
        self.fails(2, "generate", "plain", "--prompt", "a", names=["--tokenizer"])

    def test_positions_end(self):
        report = json.loads(self.ok("generate", "run", "--prompt", "a" * 60, "--json").out)
        self.assertEqual(report["stop"], "max_position_embeddings")
        self.assertEqual(len(report["tokens"]), 64 - 61 + 1)
        self.fails(2, "generate", "run", "--prompt", "a" * 64, names=["65 tokens", "max_position_embeddings 64"])

    def test_bad_options(self):
        for options, name in ((("--temperature", "-1"), "temperature"), (("--top-p", "0"), "top-p"),
                              (("--top-p", "1.5"), "top-p"), (("--top-k", "-1"), "top-k"),
                              (("--max-new-tokens", "0"), "max-new-tokens"), (("--tokenizer", "none"), "none"),
                              (("--prompt-tokens", "1"), "prompt")):
            with self.subTest(options):
                self.fails(2, "generate", "run", "--prompt", "a", *options, names=[name])
        self.fails(2, "generate", "run", "--prompt", "", names=["empty"])
        self.fails(2, "generate", "run", names=["prompt"])
        self.fails(2, "generate", "run", "--prompt-tokens", "1,,2", names=["1,,2"])
        self.fails(2, "generate", "run", "--prompt-tokens", "257", names=["257"])
        self.fails(2, "generate", "nowhere", "--prompt", "a", names=["nowhere"])


if __name__ == "__main__":
    harness.main()
