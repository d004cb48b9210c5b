"""`switchyard generate`: the same seed gives the same text, options are checked, a run's data names its tokenizer."""

import hashlib
import json
import os
import shutil
import signal
import struct
import subprocess

import harness
from harness import CliTest, tiny_config
from mtp_test import DEEPSEEK

META = {"tokenizer": "bytes", "tokenizer_sha256": None, "vocab_size": 257, "eot_token": 256}
TOKENIZER = harness.ROOT / "tests" / "tokenizers" / "gpt2" / "tokenizer.json"


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
        recorded = json.loads((self.latest("run") / "tokenizer_meta.json").read_text())
        self.assertEqual(recorded, {**META, "begin_token": 256})
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
        with open(self.dir / "prompt.txt", "rb") as file:
            report = json.loads(self.ok("generate", "run", "--prompt", "-", "--max-new-tokens", 12, "--greedy",
                                        "--json", stdin=file).out)
        self.assertEqual((report["prompt_tokens"], report["tokens"]), (expected["prompt_tokens"], expected["tokens"]))
        self.fails(2, "generate", "run", "--prompt", "-", names=["empty"])
        self.fails(2, "generate", "run", "--prompt-file", "nowhere.txt", names=["nowhere.txt"])

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

    def test_end_of_text_is_a_token_of_the_model(self):
        directory = self.dir / "plain"
        directory.mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(self.latest("run") / name, directory / name)
        config = json.loads((directory / "config.json").read_text())
        for name, file in (("config.json", config), ("generation_config.json", {})):
            for bad in (-1, 257, 2**32 + 12, 2**63, 2**64 - 1, 1e30, "a", True, [3, -1], [[3]]):
                with self.subTest(name=name, bad=bad):
                    (directory / name).write_text(json.dumps({**file, "eos_token_id": bad}))
                    self.fails(2, "generate", "plain", "--prompt-tokens", "1", names=[rf"{name}: eos_token_id", "257"])
            for good in (None, [], 256, [3, 256]):
                (directory / name).write_text(json.dumps({**file, "eos_token_id": good}))
                self.ok("generate", "plain", "--prompt-tokens", "1", "--max-new-tokens", 1)
        meta = directory / "tokenizer_meta.json"
        meta.write_text(json.dumps({**META, "eot_token": 257}))
        self.fails(2, "generate", "plain", "--prompt", "a", names=["eot_token", "257"])
        meta.write_text(json.dumps({**META, "begin_token": 7}))
        self.assertEqual(json.loads(self.ok("generate", "plain", "--prompt", "8A", "--max-new-tokens", 1, "--json").out)
                         ["prompt_tokens"], [7, ord("8"), ord("A")], "a document begins with its own token")

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
        (self.dir / "empty.txt").touch()
        self.fails(2, "generate", "run", "--prompt-file", "empty.txt", names=["--prompt-file empty.txt: is empty"])
        self.fails(2, "generate", "run", names=["prompt"])
        self.fails(2, "generate", "run", "--prompt-tokens", "1,,2", names=["1,,2"])
        self.fails(2, "generate", "run", "--prompt-tokens", "257", names=["257"])
        self.fails(2, "generate", "nowhere", "--prompt", "a", names=["nowhere"])

    def chunks(self, process):
        """What arrives on the standard output, as it arrives."""
        while chunk := os.read(process.stdout.fileno(), 1 << 16):
            yield chunk

    def train_long(self, positions):
        config = self.write_config(train__steps=8, model__max_position_embeddings=positions)
        self.ok("train", config, "--out", "long")

    def test_every_write_is_utf8(self):
        self.train_long(4096)
        process = self.start("generate", "long", "--prompt", "8A", "--max-new-tokens", 2000, "--temperature", 30,
                             "--seed", 4)
        text = "".join(chunk.decode("utf-8") for chunk in self.chunks(process))  # throws where a character is cut
        self.finish(process)
        self.assertEqual(process.returncode, 0)
        self.assertIn("\N{REPLACEMENT CHARACTER}", text, "bytes that are almost uniform are no text")
        self.assertTrue(any("\x7f" < letter < "\N{REPLACEMENT CHARACTER}" for letter in text), text)

    def test_interrupted(self):
        self.train_long(200_000)
        process = self.start("generate", "long", "--prompt", "8A", "--max-new-tokens", 200_000, "--greedy")
        chunks = self.chunks(process)
        text = next(chunks)  # the first of many: by then a signal only asks for an end
        process.send_signal(signal.SIGINT)
        text += b"".join(chunks)
        finished = self.finish(process)
        self.assertEqual(finished.code, 130, finished)
        self.assertIn("stopped by interrupted", finished.err)
        self.assertTrue(text.endswith(b"\n"), text[-20:])
        self.assertLess(len(text), 200_000)
        # One character a token: what was written is the beginning of the text that would have been.
        whole = self.ok("generate", "long", "--prompt", "8A", "--max-new-tokens", len(text) - 1, "--greedy").out
        self.assertEqual(text.decode(), whole)

    def test_multi_token_prediction(self):
        config = tiny_config()
        config.pop("router")
        config["model"] = DEEPSEEK
        config["train"].update(mtp_loss_coef=0.3, steps=8)
        self.ok("train", self.write_config(config), "--out", "mtp")
        report = json.loads(self.ok("generate", "mtp", "--prompt", "8A", "--max-new-tokens", 12, "--greedy",
                                    "--json").out)
        self.assertEqual(len(report["tokens"]), 12)

    def test_routers(self):
        """Those that keep a state or ask the attention: a text goes on the same way from each of its beginnings."""
        for options in ({"type": "dynamic_k", "estimator": "attention_entropy", "max_experts": 3},
                        {"type": "lpr", "latent_dim": 4}, {"type": "expert_threshold", "max_experts": 3},
                        {"type": "quantile"}):
            with self.subTest(options["type"]):
                run = options["type"]
                self.ok("train", self.write_config(router=options, train__steps=8), "--out", run)
                generated = json.loads(self.ok("generate", run, "--prompt", "8A", "--max-new-tokens", 12, "--greedy",
                                               "--json").out)
                self.assertEqual(len(generated["tokens"]), 12)
                # Token for token: what follows each beginning of the text.
                for n in (1, 7):
                    tokens = generated["prompt_tokens"] + generated["tokens"][:n]
                    rest = json.loads(self.ok("generate", run, "--prompt-tokens", ",".join(map(str, tokens)),
                                              "--max-new-tokens", 12 - n, "--greedy", "--json").out)
                    self.assertEqual(rest["tokens"], generated["tokens"][n:])


class GenerateBpe(CliTest):
    """Shards made by a BPE tokenizer, which lies beside them as tools/prepare_data.py leaves it."""

    def setUp(self):
        super().setUp()
        content = TOKENIZER.read_bytes()
        meta = {"tokenizer": "gpt2", "tokenizer_sha256": hashlib.sha256(content).hexdigest(), "vocab_size": 420,
                "eot_token": 0}
        (self.dir / "data" / "meta.json").write_text(json.dumps(meta))
        (self.dir / "data" / "tokenizer.json").write_bytes(content)
        self.ok("train", self.write_config(model__vocab_size=432, train__steps=harness.STEPS), "--out", "run")
        # The same model without its tokenizer.
        (self.dir / "plain").mkdir()
        for name in ("config.json", "model.safetensors"):
            shutil.copy(self.latest("run") / name, self.dir / "plain" / name)
        self.hello = self.case("Hello world")

    def case(self, text):
        cases = json.loads((TOKENIZER.parent / "cases.json").read_text())["cases"]
        return next(case["ids"] for case in cases if case["text"] == text)

    def report(self, *arguments):
        return json.loads(self.ok("generate", *arguments, "--max-new-tokens", 12, "--greedy", "--json").out)

    def test_the_checkpoint_brings_its_tokenizer(self):
        shutil.rmtree(self.dir / "data")
        report = self.report("run", "--prompt", "Hello world")
        self.assertEqual(report["prompt_tokens"], [0, *self.hello], "a document begins with end-of-text")
        vocabulary = json.loads(TOKENIZER.read_text())["model"]["vocab"]
        letters = {token: letter for letter, token in vocabulary.items()}
        # The shards hold the tokens 40 to 63 alone: single letters and signs of ASCII.
        self.assertTrue(set(report["tokens"]) <= set(range(40, 64)), report)
        self.assertEqual(report["text"], "".join(letters[token] for token in report["tokens"]))

    def test_another_tokenizer(self):
        of_run = self.report("run", "--prompt-tokens", ",".join(map(str, self.hello)))
        for path in (TOKENIZER, TOKENIZER.parent):
            report = self.report("plain", "--prompt", "Hello world", "--tokenizer", path)
            self.assertEqual(report["prompt_tokens"], self.hello)
            self.assertEqual((report["tokens"], report["text"]), (of_run["tokens"], of_run["text"]))
        self.fails(2, "generate", "plain", "--prompt", "Hello", names=["--tokenizer"])
        self.ok("train", self.write_config(model__vocab_size=257), "--out", "small")
        self.fails(2, "generate", "small", "--prompt", "a", "--tokenizer", TOKENIZER, names=["419", "257"])

    def test_data_of_a_tokenizer_that_cannot_be_read(self):
        path = self.dir / "data" / "tokenizer.json"
        tokenizer = json.loads(TOKENIZER.read_text())
        tokenizer["model"]["dropout"] = 0.1
        path.write_text(json.dumps(tokenizer))
        config = self.write_config(model__vocab_size=432)
        self.fails(2, "train", config, "--out", "refused", names=[r"tokenizer\.json: model\.dropout", "take this file away"])
        self.assertFalse((self.dir / "refused").exists())
        path.unlink()
        self.ok("train", config, "--out", "refused")
        # Beside a model that was made elsewhere.
        self.ok("export", "refused", "--out", "model")
        (self.dir / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
        prompt = ("generate", "model", "--prompt-tokens", "40,41", "--max-new-tokens", 3, "--json")
        self.fails(2, *prompt, names=[r"tokenizer\.json: model\.dropout.*; give another one with --tokenizer"])
        self.assertEqual(json.loads(self.ok(*prompt, "--tokenizer", "bytes").out)["prompt_tokens"], [40, 41])

    def test_tokens_for_other_programs(self):
        cases = json.loads((TOKENIZER.parent / "cases.json").read_text())["cases"]
        documents = [case["text"].encode() for case in cases]
        framed = b"".join(struct.pack("<I", len(document)) + document for document in documents)
        expected = b"".join(struct.pack(f"<{1 + len(tokens)}I", len(tokens), *tokens)
                            for tokens in (case["ids_without_special"] for case in cases))
        process = subprocess.Popen([harness.BINARY, "tokenize", TOKENIZER], stdin=subprocess.PIPE,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        # The first document is answered before the second one is there.
        size = 4 + len(documents[2])
        begin = sum(4 + len(document) for document in documents[:2])
        process.stdin.write(framed[:begin + size])
        process.stdin.flush()
        tokens = sum(1 + len(case["ids_without_special"]) for case in cases[:3])
        first = process.stdout.read(4 * tokens)
        rest, err = process.communicate(framed[begin + size:], timeout=harness.TIMEOUT)
        self.assertEqual((process.returncode, err), (0, b""))
        self.assertEqual(first + rest, expected)
        for name, content, named in (("cut", struct.pack("<I", 2) + b"a", "within document 0"),
                                     ("bad", struct.pack("<I", 2) + b"a\xff", r"document 0: .*byte 1 \(0xFF\)")):
            (self.dir / name).write_bytes(content)
            with open(self.dir / name, "rb") as file:
                self.fails(2, "tokenize", TOKENIZER, names=[named], stdin=file)

    def test_a_prompt_that_is_not_utf8(self):
        (self.dir / "prompt.txt").write_bytes(b"caf\xe9 noir")
        named = [r"not UTF-8 at byte 3 \(0xE9\)"]
        self.fails(2, "generate", "run", "--prompt", os.fsdecode(b"caf\xe9 noir"), names=named)
        self.fails(2, "generate", "run", "--prompt-file", "prompt.txt", names=named)
        with open(self.dir / "prompt.txt", "rb") as file:
            self.fails(2, "generate", "run", "--prompt", "-", names=named, stdin=file)
        self.report("run", "--prompt", "caf\u00e9 noir")


if __name__ == "__main__":
    harness.main()
