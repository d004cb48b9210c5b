"""tools/prepare_data.py: run as a user runs it. Tests of Parquet and of Hugging Face tokenizers need those modules."""

import contextlib
import gzip
import importlib.util
import io
import json
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path
from unittest import mock

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import prepare_data  # noqa: E402
import shards  # noqa: E402

EOT = 256
needs_tokenizers = unittest.skipUnless(importlib.util.find_spec("tokenizers"), "the module tokenizers is not installed")
needs_pyarrow = unittest.skipUnless(importlib.util.find_spec("pyarrow"), "the module pyarrow is not installed")


def byte_tokens(texts):
    tokens = []
    for text in texts:
        tokens += [EOT, *(text if isinstance(text, bytes) else text.encode())]
    return tokens


def sample_texts(count, seed=1):
    """Texts with multi-byte characters, line breaks, quotes and backslashes."""
    rng = random.Random(seed)
    pieces = ["the river ", "a mill\n", "\"quoted\" ", "naïve ", "日本 ", "back\\slash ", "\t", "🙂 ", "end. "]
    return [f"document {i}: " + "".join(rng.choice(pieces) for _ in range(rng.randint(1, 60))) for i in range(count)]


class PrepareData(unittest.TestCase):
    def setUp(self):
        scratch = tempfile.TemporaryDirectory()
        self.addCleanup(scratch.cleanup)
        self.dir = Path(scratch.name)
        self.out = self.dir / "out"

    def run_tool(self, *arguments, expect=0):
        """-> what it wrote to standard error. Runs in this process, for speed."""
        stderr = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(stderr):
            try:
                code = prepare_data.main([str(argument) for argument in arguments])
            except SystemExit as error:  # argparse
                code = error.code
        self.assertEqual(code, expect, stderr.getvalue())
        return stderr.getvalue()

    def bytes_run(self, inputs, *more, **how):
        inputs = inputs if isinstance(inputs, list) else [inputs]
        return self.run_tool("--input", *inputs, "--tokenizer", "bytes", "--out", self.out, "--workers", 1, *more, **how)

    def fails(self, inputs, *more):
        """The error of a run that must fail: one line, exit code 2, and nothing left that looks whole."""
        message = self.bytes_run(inputs, *more, expect=2)
        self.assertEqual(message.count("\n"), 1, message)
        self.assertTrue(message.startswith("error: "), message)
        self.assertEqual(self.left_behind(), [])
        return message

    def left_behind(self):
        return sorted(path.name for path in self.out.glob("*")) if self.out.exists() else []

    def write_lines(self, name, records):
        data = "".join(json.dumps(record) + "\n" for record in records).encode()
        path = self.dir / name
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return path

    def write_texts(self, name, texts):
        return self.write_lines(name, [{"text": text, "timestamp": "2020-01-01", "url": "u"} for text in texts])

    def tokens(self, split="train"):
        found = []
        for path in shards.shard_files(str(self.out), split):
            found += shards.read_shard(path)[1].tolist()
        return found

    def meta(self):
        return json.loads((self.out / "meta.json").read_text())

    # --- what is written ---------------------------------------------------------------------------------------------

    def test_json_lines_with_and_without_gzip(self):
        texts = sample_texts(50)
        for name in ("c4.json.gz", "c4.jsonl.gz", "c4.json", "c4.jsonl", "c4.ndjson"):
            self.bytes_run(self.write_texts(name, texts), "--overwrite")
            self.assertEqual(self.tokens(), byte_tokens(texts), name)

    def test_the_header_is_llm_c_s(self):
        self.bytes_run(self.write_texts("a.jsonl", ["ab"]))
        data = (self.out / "train_000000.bin").read_bytes()
        self.assertEqual(data[:12], struct.pack("<3i", 20240520, 1, 3))
        self.assertEqual(data[12:1024], bytes(1012))
        self.assertEqual(data[1024:], bytes.fromhex("0001" "6100" "6200"))

    def test_a_text_file_is_a_document(self):
        (self.dir / "a.txt").write_bytes("first\nécole\n".encode())
        (self.dir / "b.md").write_bytes(b"\xef\xbb\xbfsecond")  # with a byte order mark, which is no text
        (self.dir / "c.txt.gz").write_bytes(gzip.compress(b"third"))
        self.bytes_run([self.dir / "a.txt", self.dir / "b.md", self.dir / "c.txt.gz"])
        self.assertEqual(self.tokens(), byte_tokens(["first\nécole\n", "second", "third"]))

    def test_patterns_are_expanded_and_order_is_kept(self):
        for name in ("x2.txt", "x1.txt", "y.txt"):
            (self.dir / name).write_text(name)
        self.bytes_run([self.dir / "y.txt", self.dir / "x*.txt"])
        self.assertEqual(self.tokens(), byte_tokens(["y.txt", "x1.txt", "x2.txt"]))

    def test_shards_are_cut_anywhere_and_hold_everything(self):
        texts = sample_texts(8)
        source = self.write_texts("a.jsonl", texts)
        expected = byte_tokens(texts)
        for size in (1000, 97, len(expected), len(expected) - 1):
            self.bytes_run(source, "--shard-tokens", size, "--overwrite")
            sizes = [len(shards.read_shard(path)[1]) for path in shards.shard_files(str(self.out), "train")]
            self.assertTrue(all(held == size for held in sizes[:-1]) and 0 < sizes[-1] <= size, sizes)
            self.assertEqual(self.tokens(), expected)
            self.assertEqual(self.meta()["splits"]["train"]["shards"], len(sizes))

    def test_meta_json(self):
        texts = sample_texts(30)
        source = self.write_texts("a.jsonl", texts)
        self.bytes_run(source)
        meta = self.meta()
        self.assertEqual(
            {key: meta[key] for key in ("tokenizer", "vocab_size", "eot_token", "dtype")},
            {"tokenizer": "bytes", "vocab_size": 257, "eot_token": 256, "dtype": "uint16"},
        )
        size = sum(len(text.encode()) for text in texts)
        self.assertEqual(
            meta["splits"],
            {"train": {"documents": 30, "tokens": size + 30, "bytes": size, "shards": 1, "inputs": [str(source)]}},
        )

    def test_another_field_than_text(self):
        self.bytes_run(self.write_lines("a.jsonl", [{"body": "x", "text": 3}]), "--text-field", "body")
        self.assertEqual(self.tokens(), byte_tokens(["x"]))

    def test_empty_documents_and_blank_lines_are_no_documents(self):
        path = self.dir / "a.jsonl"
        path.write_text('{"text": "a"}\n\n{"text": ""}\n  \n{"text": "b"}')  # no line break at the end
        message = self.bytes_run(path)
        self.assertEqual(self.tokens(), byte_tokens(["a", "b"]))
        self.assertIn("1 empty document", message)

    def test_half_a_surrogate_pair_becomes_a_replacement_character(self):
        path = self.dir / "a.jsonl"
        path.write_text('{"text": "a\\ud83d b \\ud83d\\ude42"}\n')
        self.bytes_run(path)
        self.assertEqual(self.tokens(), byte_tokens(["a\ufffd b 🙂"]))

    def test_the_output_does_not_depend_on_the_number_of_workers(self):
        texts = sample_texts(400)
        sources = [self.write_texts("a.json.gz", texts[:300]), self.write_texts("b.jsonl", texts[300:])]
        written = {}
        with mock.patch("documents.BLOCK_BYTES", 5000):  # many blocks
            for workers in (1, 2, 3):
                self.bytes_run(sources, "--workers", workers, "--val-fraction", 0.2, "--overwrite", "--shard-tokens", 9999)
                written[workers] = {path.name: path.read_bytes() for path in self.out.iterdir()}
        self.assertGreater(len(written[1]), 5)
        self.assertEqual(written[1], written[2])
        self.assertEqual(written[1], written[3])

    def test_val_fraction_splits_by_content(self):
        texts = sample_texts(2000)
        self.bytes_run(self.write_texts("a.jsonl", texts), "--val-fraction", 0.1)
        splits = self.meta()["splits"]
        # 2,000 draws with a chance of a tenth: 200, give or take 13.4; five times that is allowed
        self.assertAlmostEqual(splits["val"]["documents"], 200, delta=67)
        self.assertEqual(splits["val"]["documents"] + splits["train"]["documents"], 2000)
        first_val = self.tokens("val")
        self.assertEqual(sorted(first_val + self.tokens()), sorted(byte_tokens(texts)))
        # the same documents in another order: the same ones are chosen
        self.bytes_run(self.write_texts("b.jsonl", texts[::-1]), "--val-fraction", 0.1, "--overwrite")
        self.assertEqual(sorted(self.tokens("val")), sorted(first_val))

    def test_a_validation_file_of_its_own(self):
        train, val = self.write_texts("a.jsonl", ["train"]), self.write_texts("b.jsonl", ["val"])
        self.bytes_run(train)
        self.bytes_run(val, "--split-name", "val")
        self.assertEqual((self.tokens(), self.tokens("val")), (byte_tokens(["train"]), byte_tokens(["val"])))
        self.assertEqual(sorted(self.meta()["splits"]), ["train", "val"])

    def test_what_is_there_is_replaced_only_when_asked_and_then_wholly(self):
        self.bytes_run(self.write_texts("a.jsonl", ["a long text of several shards"]), "--shard-tokens", 5)
        before = {path.name: path.read_bytes() for path in self.out.iterdir()}
        other = self.write_texts("b.jsonl", ["short"])
        self.assertIn("--overwrite", self.bytes_run(other, expect=2))
        self.assertEqual({path.name: path.read_bytes() for path in self.out.iterdir()}, before)
        self.bytes_run(other, "--overwrite")
        self.assertEqual(self.left_behind(), ["meta.json", "train_000000.bin"])
        self.assertEqual(self.tokens(), byte_tokens(["short"]))

    # --- what is refused ---------------------------------------------------------------------------------------------

    def test_missing_input_and_pattern(self):
        self.assertIn("none.jsonl", self.fails(self.dir / "none.jsonl"))
        self.assertIn("*.parquet", self.fails(self.dir / "*.parquet"))
        self.assertIn("is a directory", self.fails(self.dir))

    def test_the_same_file_twice(self):
        path = self.write_texts("a.jsonl", ["x"])
        self.assertIn("more than once", self.fails([path, self.dir / "*.jsonl"]))

    def test_unknown_formats(self):
        for name, data in (("a.zst", b"x"), ("a.jsonl.bz2", b"x"), ("a.bin", b"x"), ("a.dat", b"a\0b"), ("a.tar.gz", b"x")):
            path = self.dir / name
            path.write_bytes(data)
            message = self.fails(path)
            self.assertIn("unknown format", message)
            self.assertIn(str(path), message)

    def test_text_that_is_not_utf8(self):
        path = self.dir / "a.txt"
        path.write_bytes(b"caf\xe9 noir")
        self.assertIn("byte 3", self.fails(path))

    def test_a_malformed_line_is_named(self):
        path = self.dir / "a.jsonl"
        for bad in ('{"text": "x"', "[1, 2]", '"x"', "\xff", "["):
            path.write_bytes(b'{"text": "ok"}\n\n' + bad.encode("latin-1") + b'\n{"text": "ok"}\n')
            self.assertIn(f"{path}:3: ", self.fails(path))

    def test_a_malformed_line_is_named_in_any_block_and_from_any_worker(self):
        path = self.dir / "a.jsonl"
        lines = [json.dumps({"text": text}) for text in sample_texts(300)]
        lines[250] = "{"
        path.write_text("\n".join(lines))
        with mock.patch("documents.BLOCK_BYTES", 2000):
            for workers in (1, 2):
                self.assertIn(f"{path}:251: ", self.fails(path, "--workers", workers))

    def test_a_missing_field_names_those_that_are_there(self):
        path = self.write_lines("a.jsonl", [{"text": "ok"}, {"content": "x", "id": 1}])
        message = self.fails(path)
        for part in (f"{path}:2: ", "'text'", "content, id", "--text-field"):
            self.assertIn(part, message)

    def test_a_field_that_is_not_text(self):
        for value in (None, 3, ["x"]):
            path = self.write_lines("a.jsonl", [{"text": value}])
            self.assertIn(f"{path}:1: 'text' is {type(value).__name__}", self.fails(path))

    def test_corrupt_gzip(self):
        whole = self.write_texts("a.json.gz", sample_texts(500)).read_bytes()
        flipped = bytearray(whole)
        flipped[len(whole) // 2] ^= 0xFF
        for data in (whole[: len(whole) // 2], whole[:-4], bytes(flipped), whole[:10] + b"\xff" * 99, b"not gzip", b""):
            path = self.dir / "b.json.gz"
            path.write_bytes(data)
            message = self.fails(path)
            self.assertIn(str(path), message)
            self.assertTrue("gzip" in message or "no document" in message, message)

    def test_nothing_to_write(self):
        (self.dir / "a.txt").write_text("")
        self.assertIn("no document", self.fails(self.dir / "a.txt"))
        self.assertIn("--val-fraction", self.fails(self.write_texts("b.jsonl", ["x"]), "--val-fraction", 1e-9))

    def test_another_tokenizer_in_the_same_directory(self):
        self.bytes_run(self.write_texts("a.jsonl", ["x"]))
        meta = self.meta()
        meta["vocab_size"] = 50257
        (self.out / "meta.json").write_text(json.dumps(meta))
        message = self.bytes_run(self.write_texts("b.jsonl", ["y"]), "--split-name", "val", expect=2)
        for part in ("meta.json", "50257", "257"):
            self.assertIn(part, message)
        self.assertEqual(self.left_behind(), ["meta.json", "train_000000.bin"])

    def test_a_foreign_meta_json(self):
        self.out.mkdir()
        for text in ("{", "[]", '{"splits": 3}'):
            (self.out / "meta.json").write_text(text)
            self.assertIn("meta.json", self.bytes_run(self.write_texts("a.jsonl", ["x"]), expect=2))

    def test_an_output_place_that_is_none(self):
        source = self.write_texts("a.jsonl", ["x"])
        self.out.write_text("a file")
        message = self.bytes_run(source, expect=2)
        self.assertIn(str(self.out), message)
        self.assertEqual(message.count("\n"), 1)

    def test_a_full_disk_leaves_nothing(self):
        source = self.write_texts("a.jsonl", sample_texts(100))
        with mock.patch("shards.os.fsync", side_effect=OSError(28, "No space left on device")):
            self.assertIn("No space left on device", self.bytes_run(source, expect=2))
        self.assertEqual(self.left_behind(), [])

    def test_arguments_that_do_not_go_together(self):
        source = self.write_texts("a.jsonl", ["x"])
        for more in (["--val-fraction", "1"], ["--val-fraction", "0.1", "--split-name", "val"], ["--shard-tokens", "0"],
                     ["--workers", "0"], ["--train-bpe", "300"], ["--eot-token", "</s>"]):  # fmt: skip
            self.bytes_run(source, *more, expect=2)
        self.assertEqual(self.left_behind(), [])

    def test_missing_modules_are_named_with_the_remedy(self):
        parquet = self.dir / "a.parquet"
        parquet.write_bytes(b"PAR1")
        with mock.patch.dict(sys.modules, {"pyarrow": None, "tokenizers": None}):
            for message in (
                self.fails(parquet),
                self.run_tool("--input", self.write_texts("a.jsonl", ["x"]), "--train-bpe", 300, "--out", self.out, expect=2),
            ):
                self.assertIn("pip install -r tools/requirements.txt", message)

    # --- as a process ------------------------------------------------------------------------------------------------

    def command(self, *arguments):
        return [sys.executable, "-B", str(TOOLS / "prepare_data.py"), *map(str, arguments)]

    def test_from_the_command_line_with_nothing_but_the_standard_library(self):
        texts = sample_texts(20)
        source = self.write_texts("a.json.gz", texts)
        subprocess.run([sys.executable, "-I", "-S", "-B", "-c",
                        "import runpy, sys; sys.path.insert(0, sys.argv[1]); sys.argv = sys.argv[2:]; "
                        "runpy.run_path(sys.argv[0], run_name='__main__')", str(TOOLS),
                        *self.command("--input", source, "--tokenizer", "bytes", "--out", self.out, "--workers", 1)[2:]],
                       check=True, capture_output=True)  # fmt: skip
        self.assertEqual(self.tokens(), byte_tokens(texts))

    def test_help_shows_examples(self):
        done = subprocess.run(self.command("--help"), check=True, capture_output=True, text=True)
        for part in ("examples:", "--split-name val", "--train-bpe 32000", ".parquet"):
            self.assertIn(part, done.stdout)

    def test_a_terminated_run_leaves_nothing_that_looks_whole(self):
        fifo = self.dir / "a.txt"
        os.mkfifo(fifo)  # nobody writes to it: the run waits for its input
        source = self.write_texts("a.jsonl", sample_texts(10))
        run = subprocess.Popen(self.command("--input", source, fifo, "--tokenizer", "bytes", "--out", self.out, "--workers", 1),
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
        deadline = time.monotonic() + 60
        while not self.left_behind() and time.monotonic() < deadline:
            time.sleep(0.01)
        self.assertEqual(self.left_behind(), ["train_000000.bin.tmp"])
        run.send_signal(signal.SIGTERM)
        _, stderr = run.communicate(timeout=60)
        self.assertEqual(run.returncode, 130)
        self.assertIn("nothing was kept", stderr)
        self.assertEqual(self.left_behind(), [])

    # --- Parquet and Hugging Face tokenizers -------------------------------------------------------------------------

    def write_parquet(self, name, texts, **columns):
        import pyarrow
        import pyarrow.parquet

        count = len(texts)
        fineweb = {
            "text": texts, "id": [f"<urn:uuid:{i}>" for i in range(count)], "dump": ["CC-MAIN-2024-10"] * count,
            "url": ["http://example.org/"] * count, "date": ["2024-02-21T00:00:00Z"] * count,
            "file_path": ["s3://"] * count, "language": ["en"] * count, "language_score": [0.9] * count,
            "token_count": [1] * count,
        }  # fmt: skip
        path = self.dir / name
        pyarrow.parquet.write_table(pyarrow.table(fineweb | columns), path, row_group_size=200)
        return path

    @needs_pyarrow
    def test_parquet_in_fineweb_s_schema(self):
        texts = sample_texts(1300)
        source = self.write_parquet("000_00000.parquet", texts)
        for workers in (1, 2):
            self.bytes_run(source, "--workers", workers, "--overwrite")
            self.assertEqual(self.tokens(), byte_tokens(texts))

    @needs_pyarrow
    def test_parquet_errors(self):
        source = self.write_parquet("a.parquet", ["x", "y"], odd=[None, "z"])
        self.assertIn("token_count", self.fails(source, "--text-field", "body"))  # the columns that there are
        self.assertIn("not text", self.fails(source, "--text-field", "token_count"))
        self.assertIn("row 1", self.fails(source, "--text-field", "odd"))
        source.write_bytes(source.read_bytes()[:-100])
        self.assertIn("Parquet", self.fails(source))

    @needs_tokenizers
    def test_train_a_bpe_and_use_it_again(self):
        import tokenizers

        texts = sample_texts(300)
        source = self.write_texts("a.jsonl", texts)
        self.run_tool("--input", source, "--train-bpe", 300, "--out", self.out, "--workers", 1)
        self.assertEqual(self.left_behind(), ["meta.json", "tokenizer.json", "train_000000.bin"])
        self.assertEqual((self.meta()["vocab_size"], self.meta()["eot_token"]), (300, 0))
        model = tokenizers.Tokenizer.from_file(str(self.out / "tokenizer.json"))
        documents = []
        for token in self.tokens():
            if token == 0:
                documents.append([])
            else:
                documents[-1].append(token)
        self.assertEqual([model.decode(document) for document in documents], texts)
        first = self.tokens()

        self.run_tool("--input", source, "--tokenizer", self.out, "--out", self.out, "--split-name", "val", "--workers", 2)
        self.assertEqual(self.tokens("val"), first)
        message = self.bytes_run(source, "--overwrite", expect=2)  # val is there, made with the BPE
        self.assertIn("use the same tokenizer", message)

    @needs_tokenizers
    def test_text_that_spells_a_special_token_stays_text(self):
        text = "before <|endoftext|> after"
        source = self.write_texts("a.jsonl", [text, *sample_texts(50)])
        self.run_tool("--input", source, "--train-bpe", 300, "--out", self.out, "--workers", 1)
        self.assertEqual(self.tokens().count(0), 51)

    @needs_tokenizers
    def test_large_vocabularies_are_uint32(self):
        import tokenizers

        vocabulary = {"</s>": 70000, "[UNK]": 0, "a": 1, "b": 69999}
        model = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
        model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        (self.dir / "tokenizer.json").write_text(model.to_str())
        source = self.write_texts("a.jsonl", ["a b", "b"])
        self.run_tool("--input", source, "--tokenizer", self.dir / "tokenizer.json", "--out", self.out, "--workers", 1)
        self.assertEqual(self.tokens(), [70000, 1, 69999, 70000, 69999])
        self.assertEqual((self.out / "train_000000.bin").read_bytes()[:8], struct.pack("<2i", 20240801, 7))
        self.assertEqual((self.meta()["dtype"], self.meta()["vocab_size"]), ("uint32", 70001))

    @needs_tokenizers
    def test_which_token_ends_a_text(self):
        import tokenizers

        model = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "x": 1, "stop": 2}, unk_token="[UNK]"))
        place = self.dir / "model"
        place.mkdir()
        (place / "tokenizer.json").write_text(model.to_str())
        source = self.write_texts("a.jsonl", ["x"])
        how = ("--input", source, "--tokenizer", place, "--out", self.out, "--workers", 1, "--overwrite")
        self.assertIn("--eot-token", self.run_tool(*how, expect=2))
        self.assertIn("nothere", self.run_tool(*how, "--eot-token", "nothere", expect=2))
        self.run_tool(*how, "--eot-token", "stop")
        self.assertEqual(self.tokens(), [2, 1])
        (place / "tokenizer_config.json").write_text('{"eos_token": {"content": "x"}}')
        self.run_tool(*how)
        self.assertEqual(self.tokens(), [1, 1])

    @needs_tokenizers
    def test_tokenizers_that_are_none(self):
        source = self.write_texts("a.jsonl", ["x"])
        broken = self.dir / "tokenizer.json"
        broken.write_text("{}")
        for name in (broken, self.dir / "none.json", self.dir):
            message = self.run_tool("--input", source, "--tokenizer", name, "--out", self.out, expect=2)
            self.assertEqual(message.count("\n"), 1, message)
            self.assertIn("tokenizer", message)
            broken.unlink(missing_ok=True)


if __name__ == "__main__":
    unittest.main()
