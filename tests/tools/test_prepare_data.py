"""tools/prepare_data.py: run as a user runs it. Tests of Parquet and of Hugging Face tokenizers need those modules."""

import contextlib
import gzip
import importlib.util
import io
import json
import os
import random
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import unittest
from pathlib import Path
from unittest import mock

TOOLS = Path(__file__).resolve().parents[2] / "tools"
TOKENIZERS = TOOLS.parent / "tests" / "tokenizers"
sys.path.insert(0, str(TOOLS))

import documents  # noqa: E402
import prepare_data  # noqa: E402
import shards  # noqa: E402
import text_tokenizer  # noqa: E402
from console import UserError  # noqa: E402

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
            {key: meta[key] for key in ("tokenizer", "vocab_size", "eot_token", "begin_token", "dtype")},
            {"tokenizer": "bytes", "vocab_size": 257, "eot_token": 256, "begin_token": 256, "dtype": "uint16"},
        )
        size = sum(len(text.encode()) for text in texts)
        self.assertEqual(
            meta["splits"],
            {"train": {"documents": 30, "tokens": size + 30, "bytes": size, "shards": 1, "inputs": [str(source)],
                       "fingerprints": [documents.fingerprint(str(source))], "skipped": {}}},
        )

    def test_another_field_than_text(self):
        self.bytes_run(self.write_lines("a.jsonl", [{"body": "x", "text": 3}]), "--text-field", "body")
        self.assertEqual(self.tokens(), byte_tokens(["x"]))

    def test_empty_documents_and_blank_lines_are_no_documents(self):
        path = self.dir / "a.jsonl"
        path.write_text('{"text": "a"}\n\n{"text": ""}\n  \n{"text": "b"}')  # no line break at the end
        message = self.bytes_run(path)
        self.assertEqual(self.tokens(), byte_tokens(["a", "b"]))
        self.assertIn(f"1 empty (first: {path}:3: ", message)

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

    def test_a_split_that_no_choice_looks_at(self):
        texts = sample_texts(500)
        source = self.write_texts("a.jsonl", texts)
        self.bytes_run(source, "--val-fraction", 0.1)
        held_out = self.tokens("val")
        shutil.rmtree(self.out)
        self.bytes_run(source, "--val-fraction", 0.1, "--held-out", "test")
        self.bytes_run(self.write_texts("b.jsonl", ["val"]), "--split-name", "val", "--overwrite")
        self.assertEqual(self.tokens("test"), held_out)
        self.assertEqual(self.tokens("val"), byte_tokens(["val"]))
        self.assertEqual(set(self.meta()["splits"]), {"train", "val", "test"})
        for wrong in (["--held-out", "test"], ["--held-out", "test", "--val-fraction", "0.1", "--split-name", "test"]):
            self.assertRegex(self.bytes_run(source, *wrong, expect=2), "--held-out test needs|all of it is held out")

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

    def test_inputs_given_one_by_one_are_all_read(self):
        paths = [self.write_texts(f"{text}.jsonl", [text]) for text in ("first", "second")]
        self.bytes_run(paths[0], "--input", paths[1])
        self.assertEqual(self.tokens(), byte_tokens(["first", "second"]))

    def test_a_split_that_stays_is_known_by_its_content(self):
        """Not by a path as it was typed, which another working directory gives to another file."""
        here = os.getcwd()
        self.addCleanup(os.chdir, here)
        (self.dir / "other").mkdir()
        first, copy = self.write_texts("a.jsonl", sample_texts(9)), self.dir / "other" / "copy.jsonl"
        shutil.copy(first, copy)
        os.chdir(self.dir)
        self.bytes_run("a.jsonl", "--split-name", "val")
        self.assertEqual(self.meta()["splits"]["val"]["inputs"], [str(first)])
        self.assertIn("was made of it", self.bytes_run(copy, expect=2))
        os.chdir(self.dir / "other")
        self.assertIn("was made of it", self.bytes_run("../a.jsonl", expect=2))
        self.write_texts("other/a.jsonl", ["another text"])
        self.bytes_run("a.jsonl")
        self.assertEqual(self.tokens(), byte_tokens(["another text"]))

    def test_a_tokenizer_is_not_trained_where_another_split_stays(self):
        self.bytes_run(self.write_texts("a.jsonl", ["a"]), "--split-name", "val")
        said = self.run_tool("--input", self.write_texts("b.jsonl", ["b"]), "--train-bpe", 300, "--out", self.out, expect=2)
        self.assertIn("would not be that of val", said)
        self.assertEqual(len(said.splitlines()), 1, said)

    def test_files_without_a_row_are_counted_or_refused(self):
        full, empty = self.write_texts("a.jsonl", ["a"]), self.dir / "b.jsonl"
        empty.touch()
        for inputs in ([full, empty], [empty, full]):
            self.assertIn(f"1 empty (first: {empty}: has no row)", self.bytes_run(inputs, "--overwrite"))
            self.assertEqual(self.tokens(), byte_tokens(["a"]))
        shutil.rmtree(self.out)
        for name in ("b.json.gz", "b.jsonl.zst", "b.txt.gz"):
            (self.dir / name).touch()
            self.assertRegex(self.fails([full, self.dir / name]), f"{self.dir / name}: truncated (gzip|zstd) .it is empty")

    def test_a_pipe_is_read(self):
        """Plain and compressed: what cannot be asked for its position or its size."""
        for name in ("a.jsonl", "a.jsonl.gz"):
            texts = sample_texts(9)
            content = self.write_texts(f"of_{name}", texts).read_bytes()
            os.mkfifo(self.dir / name)
            writer = threading.Thread(target=(self.dir / name).write_bytes, args=(content,))
            writer.start()
            self.bytes_run(self.dir / name, "--overwrite")
            writer.join()
            self.assertEqual(self.tokens(), byte_tokens(texts))
            self.assertEqual(self.meta()["splits"]["train"]["fingerprints"], [None])

    def test_a_split_that_stays_shares_no_file_with_the_one_that_is_written(self):
        source = self.write_texts("a.jsonl", sample_texts(100))
        self.bytes_run(source, "--val-fraction", 0.2)
        before = {path.name: path.read_bytes() for path in self.out.iterdir()}
        for more in (["--overwrite"], ["--overwrite", "--val-fraction", "0.2", "--held-out", "test"]):
            said = self.bytes_run(source, *more, expect=2)
            self.assertIn("split val, which this run would keep, was made of it", said)
        self.assertEqual({path.name: path.read_bytes() for path in self.out.iterdir()}, before)

    def test_the_same_file_twice(self):
        path = self.write_texts("a.jsonl", ["x"])
        self.assertIn("more than once", self.fails([path, self.dir / "*.jsonl"]))
        (self.dir / "b.jsonl").symlink_to(path)
        self.assertIn("more than once", self.fails([path, self.dir / "b.jsonl"]))

    def test_unknown_formats(self):
        for name, data in (("a.jsonl.bz2", b"x"), ("a.bin", b"x"), ("a.dat", b"a\0b"), ("a.tar.gz", b"x"), ("a.csv", b"x"),
                           ("A.PDF", b"x"), ("a.csv.zst", b"x"), ("a.safetensors", b"x"), ("a.parquet.gz", b"x")):  # fmt: skip
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

    def test_a_field_that_no_row_has_names_those_that_are_there(self):
        path = self.write_lines("a.jsonl", [{"content": "x", "id": 1}, {"content": "y"}])
        message = self.fails(path)
        for part in (f"{path}:1: ", "'text'", "content, id", "--text-field"):
            self.assertIn(part, message)
        # a whole file of them is not left out quietly
        good = self.write_texts("b.jsonl", ["ok"])
        self.assertIn("no row at the file's beginning", self.fails([good, path]))
        self.bytes_run([good, path], "--on-error", "skip")
        self.assertEqual(self.meta()["splits"]["train"]["skipped"], {"missing": 2})

    def test_rows_without_text_are_left_out_and_counted(self):
        rows = [{"text": "a"}, {"text": None}, {"id": 3}, {"text": ""}, {"text": "b"}, {"text": None}]
        path = self.write_lines("a.jsonl", rows)
        for workers in (1, 2):
            message = self.bytes_run(path, "--workers", workers, "--overwrite")
            self.assertEqual(self.tokens(), byte_tokens(["a", "b"]))
            self.assertEqual(self.meta()["splits"]["train"]["skipped"], {"empty": 1, "missing": 1, "null": 2})
            for part in (f"2 null (first: {path}:2: ", f"1 missing (first: {path}:3: ", f"1 empty (first: {path}:4: "):
                self.assertIn(part, message)
        only_null = self.write_lines("b.jsonl", [{"text": None}])
        message = self.fails_anew(only_null)
        self.assertIn("no document", message)
        self.assertIn("1 null", message)

    def fails_anew(self, *arguments):
        shutil.rmtree(self.out)
        return self.fails(*arguments)

    def test_broken_rows_stop_or_are_skipped(self):
        path = self.dir / "a.jsonl"
        broken = {"not JSON": b"{", "not an object": b"[1]", "not a string": b'{"text": 3, "body": "x"}',
                  "not UTF-8": b'{"text": "\xff"}'}  # fmt: skip
        for row in broken.values():
            path.write_bytes(b'{"text": "a"}\n' + row + b"\n")
            message = self.fails(path)
            self.assertIn(f"{path}:2: ", message)
            self.assertIn("--on-error skip", message)
        path.write_bytes(b'{"text": "a"}\n' + b"\n".join(broken.values()) + b'\n{"text": "b"}\n{\n')
        latin = self.dir / "b.txt"
        latin.write_bytes(b"caf\xe9")
        message = self.bytes_run([path, latin], "--on-error", "skip")
        self.assertEqual(self.tokens(), byte_tokens(["a", "b"]))
        self.assertEqual(self.meta()["splits"]["train"]["skipped"],
                         {"not JSON": 2, "not UTF-8": 2, "not a string": 1, "not an object": 1})  # fmt: skip
        self.assertIn(f"2 not JSON (first: {path}:2: ", message)

    def test_a_field_that_is_not_text(self):
        for value, name in ((3, "number"), (["x"], "array"), ({"x": 1}, "object"), (True, "boolean")):
            path = self.write_lines("a.jsonl", [{"text": value, "body": "x"}])
            message = self.fails(path)
            self.assertIn(f"{path}:1: 'text' is a JSON {name}", message)
            self.assertIn("body", message)

    def test_files_that_are_not_what_their_name_says(self):
        pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        cases = [("a.jsonl", pointer, "git lfs pull"), ("a.parquet", pointer, "git lfs pull"), ("a.txt", pointer, "git lfs"),
                 ("a.json.gz", pointer, "git lfs pull"), ("b.json.gz", gzip.compress(pointer), "git lfs pull"),
                 ("b.jsonl", b"\n<!DOCTYPE html><html>", "web page"), ("b.parquet", b"<!doctype html>", "web page"),
                 ("c.json.gz", b"<html><body>", "web page"), ("c.jsonl", b"PK\x03\x04abc", "zip"),
                 ("c.parquet", b"PK\x03\x04abc", "zip"), ("d.json.gz", b"PK\x03\x04abc", "zip"),
                 ("d.jsonl", gzip.compress(b"{}"), ".gz"), ("e.txt", b"%PDF-1.4", "PDF"),
                 ("f.json.gz", gzip.compress(b"name".ljust(257, b"\0") + b"ustar"), "tar")]  # fmt: skip
        for name, data, part in cases:
            path = self.dir / name
            path.write_bytes(data)
            message = self.fails(path)
            self.assertIn(str(path), message)
            self.assertIn(part, message)
        page = self.dir / "page.html"  # a page may be what is to be learnt
        page.write_bytes(b"<!DOCTYPE html>")
        self.bytes_run(page)

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

    def started(self, *arguments):
        run = subprocess.Popen(self.command(*arguments, "--out", self.out), stderr=subprocess.PIPE, text=True)
        self.addCleanup(run.wait)
        self.addCleanup(run.kill)
        self.addCleanup(run.stderr.close)
        return run

    def wait_until(self, true, what):
        deadline = time.monotonic() + 60
        while not true():
            self.assertLess(time.monotonic(), deadline, what)
            time.sleep(0.01)

    def test_a_terminated_run_leaves_nothing_that_looks_whole(self):
        fifo = self.dir / "a.txt"
        os.mkfifo(fifo)  # nobody writes to it: the run waits for its input
        source = self.write_texts("a.jsonl", sample_texts(10))
        how = ("--tokenizer", "bytes", "--workers", 1)
        for inputs, begun, left in (
            ([fifo], "unfinished.json", []),
            ([source, fifo], "train_000000.bin.tmp", ["train_000000.bin.tmp", "unfinished.json"]),
        ):
            run = self.started("--input", *inputs, *how)
            self.wait_until(lambda: begun in self.left_behind(), begun)
            run.send_signal(signal.SIGTERM)
            _, stderr = run.communicate(timeout=60)
            self.assertEqual(run.returncode, 130)
            self.assertIn("--resume" if left else "nothing was kept", stderr)
            self.assertEqual(self.left_behind(), left)
            self.assertEqual(self.out.exists(), bool(left))

    def children(self, pid):
        found = set()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, parent = path.read_text().rpartition(")")[2].split()[:2]
                if int(parent) == pid and state != "Z":
                    found.add(int(path.parent.name))
        return found

    def alive(self, pids):
        """Those that run: a zombie waits for its new parent alone."""
        running = set()
        for pid in pids:
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                    running.add(pid)
        return running

    def test_workers_end_with_their_parent_however_it_ends(self):
        fifo = self.dir / "a.txt"
        os.mkfifo(fifo)
        sources = [self.write_texts(f"{name}.jsonl", ["x"]) for name in "abc"]
        for number in (signal.SIGKILL, signal.SIGINT):
            run = self.started("--input", *sources, fifo, "--tokenizer", "bytes", "--workers", 3, "--overwrite")
            self.wait_until(lambda: len(self.children(run.pid)) == 3, "three workers")
            workers = self.children(run.pid)
            run.send_signal(number)
            run.wait(timeout=60)
            self.wait_until(lambda: not self.alive(workers), f"workers are left after signal {number}")

    def test_an_idle_worker_ends_when_its_parent_is_killed(self):
        script = """\
import sys, time
sys.path.insert(0, sys.argv[1])
import documents, text_tokenizer, tokenizing, workers
worker = workers.Worker(tokenizing.BlockTokenizer(text_tokenizer.ByteTokenizer(), "text", 0.0, False))
worker.send(documents.Block("a", "rows", 1, [b"x"], 0))
worker.answer()
print(worker.process.pid, flush=True)
time.sleep(600)
"""
        parent = subprocess.Popen([sys.executable, "-B", "-c", script, str(TOOLS)], stdout=subprocess.PIPE, text=True)
        self.addCleanup(parent.stdout.close)
        worker = int(parent.stdout.readline())
        self.addCleanup(lambda: [os.kill(pid, signal.SIGKILL) for pid in self.alive({worker})])
        self.assertEqual(self.alive({worker}), {worker})
        parent.kill()
        parent.wait()
        self.wait_until(lambda: not self.alive({worker}), "the worker is left")

    # --- going on ----------------------------------------------------------------------------------------------------

    def files(self):
        return {path.name: path.read_bytes() for path in self.out.iterdir()}

    def long_run(self):
        """Arguments of a run of many blocks over two files, with rows that are left out, and what it writes."""
        rows = [{"text": text} for text in sample_texts(60)]
        rows[7] = {"text": None}
        rows[41] = {"text": 5}
        sources = [self.write_lines("a.json.gz", rows[:35]), self.write_lines("b.jsonl", rows[35:])]
        options = ("--val-fraction", 0.3, "--shard-tokens", 999, "--on-error", "skip")
        self.bytes_run(sources, *options)
        expected = self.files()
        shutil.rmtree(self.out)
        return (sources, *options), expected

    def killed(self, run, after):
        """Runs until the tool has taken `after` blocks, and leaves the directory as a kill does. -> whether it was killed"""
        taken = 0
        take = prepare_data.Preparation.take

        class Killed(BaseException):
            pass

        def until_killed(self, *arguments):
            nonlocal taken
            take(self, *arguments)
            taken += 1
            if taken == after:
                for writer in self.writers.values():
                    writer.close()  # so that more is on the disk than the record says
                raise Killed

        with mock.patch.object(prepare_data.Preparation, "take", until_killed), \
                mock.patch.object(prepare_data.Preparation, "leave", lambda *_: None):  # fmt: skip
            try:
                run()
            except Killed:
                return True
        return False

    def test_a_killed_run_goes_on_to_the_same_bytes(self):
        run, expected = self.long_run()
        with mock.patch("documents.BLOCK_BYTES", 700):
            for seconds, workers in ((0, 1), (1000, 1), (0, 2)):  # recorded after every block, and at ends of shards alone
                with mock.patch("prepare_data.RECORD_SECONDS", seconds):
                    for after in (1, 2, 5, 9, 13) if workers == 1 else (4,):
                        more = ["--workers", workers]
                        self.assertTrue(self.killed(lambda: self.bytes_run(*run, *more), after))
                        self.assertIn("unfinished.json", self.left_behind())
                        if seconds == 0:  # killed again
                            self.assertTrue(self.killed(lambda: self.bytes_run(*run, *more, "--resume"), 1))
                        self.bytes_run(*run, *more, "--resume")
                        self.assertEqual(self.files(), expected)
                        shutil.rmtree(self.out)

    def test_a_run_killed_while_files_get_their_names_goes_on(self):
        run, expected = self.long_run()
        other = (self.write_texts("c.jsonl", sample_texts(99, seed=3)), "--shard-tokens", 999)  # of more shards
        replace, remove = os.replace, os.remove
        for last in range(3, 60, 4):
            self.bytes_run(*other, "--overwrite")
            calls = 0

            def counted(function):
                def call(*arguments):
                    nonlocal calls
                    if calls == last:
                        raise KeyboardInterrupt
                    calls += 1
                    function(*arguments)

                return call

            with mock.patch("os.replace", counted(replace)), mock.patch("os.remove", counted(remove)), \
                    mock.patch.object(prepare_data.Preparation, "leave", lambda *_: None):  # fmt: skip
                code = self.code_of(*run, "--overwrite")
            if code == 0:
                break
            self.bytes_run(*run, "--resume" if "unfinished.json" in self.left_behind() else "--overwrite")
            self.assertEqual(self.files(), expected, last)
        self.assertGreater(last, 20)

    def code_of(self, inputs, *more):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return prepare_data.main(["--input", *map(str, inputs), "--tokenizer", "bytes", "--out", str(self.out),
                                      "--workers", "1", *map(str, more)])  # fmt: skip

    def test_an_interrupt_keeps_what_is_done_and_says_so(self):
        run, expected = self.long_run()
        with mock.patch("documents.BLOCK_BYTES", 700):
            with mock.patch("prepare_data.Progress.update", side_effect=[None] * 6 + [KeyboardInterrupt]):
                self.assertIn("--resume", self.bytes_run(*run, expect=130))
            self.assertIn("unfinished.json", self.left_behind())
            message = self.bytes_run(*run, expect=2)
            self.assertIn("--resume", message)
            self.assertIn("--overwrite", message)
            self.bytes_run(*run, "--resume")
            self.assertEqual(self.files(), expected)
            self.assertIn("is finished", self.bytes_run(*run, "--resume", expect=2))

    def test_an_error_keeps_finished_shards_and_a_mended_file_is_not_the_same(self):
        path = self.dir / "a.jsonl"
        lines = [json.dumps({"text": text}) for text in sample_texts(60)]
        path.write_text("\n".join([*lines[:50], "{", *lines[50:]]))
        with mock.patch("documents.BLOCK_BYTES", 700):
            message = self.bytes_run(path, "--shard-tokens", 999, expect=2)
            self.assertIn(f"{path}:51: ", message)
            self.assertIn("--resume", message)
            self.assertEqual(message.count("\n"), 1)
            # the remedy that the message names goes on from there
            self.bytes_run(path, "--shard-tokens", 999, "--resume", "--on-error", "skip")
        self.assertEqual(self.tokens(), byte_tokens(sample_texts(60)))

    def test_going_on_with_something_else_is_refused_by_name(self):
        run, _ = self.long_run()
        (first, second), options = run[0], run[1:]
        self.killed_early(run)
        before = self.files()
        swap = lambda option, value: [value if i and options[i - 1] == option else o for i, o in enumerate(options)]  # noqa: E731
        for inputs, changed, parts in (
            ([first], options, ["--input", str(second)]),
            ([second, first], options, ["--input", "order"]),
            ([first, second], swap("--shard-tokens", 998), ["--shard-tokens", "999", "998"]),
            ([first, second], swap("--val-fraction", 0.25), ["--val-fraction", "0.3", "0.25"]),
            ([first, second], [*options, "--text-field", "url"], ["--text-field", "url"]),
        ):
            message = self.bytes_run(inputs, *changed, "--resume", expect=2)
            for part in [*parts, "unfinished.json", "--overwrite"]:
                self.assertIn(part, message)
            self.assertEqual(self.files(), before)
        with open(second, "a") as file:
            file.write("\n")
        self.assertIn(f"{second} had ", self.bytes_run([first, second], *options, "--resume", expect=2))
        (self.out / "train_000000.bin.tmp").unlink()
        os.truncate(second, os.path.getsize(second) - 1)
        self.assertIn("was modified", self.bytes_run([first, second], *options, "--resume", expect=2))
        self.bytes_run([first, second], *options, "--overwrite")
        self.assertNotIn("unfinished.json", self.left_behind())

    def killed_early(self, run):
        with mock.patch("documents.BLOCK_BYTES", 700), mock.patch("prepare_data.RECORD_SECONDS", 0):
            self.assertTrue(self.killed(lambda: self.bytes_run(*run), 6))

    def test_shards_that_are_shorter_than_recorded(self):
        run, _ = self.long_run()
        self.killed_early(run)
        os.truncate(self.out / "train_000000.bin.tmp", 1100)
        self.assertIn("train_000000.bin.tmp", self.bytes_run(*run, "--resume", expect=2))
        (self.out / "unfinished.json").write_text("{")
        self.assertIn("unfinished.json", self.bytes_run(*run, "--resume", expect=2))

    def test_two_runs_into_one_directory(self):
        fifo = self.dir / "a.txt"
        os.mkfifo(fifo)
        self.started("--input", fifo, "--tokenizer", "bytes")
        self.wait_until(lambda: "unfinished.json" in self.left_behind(), "the first run")
        self.assertIn("another run", self.bytes_run(self.write_texts("a.jsonl", ["x"]), "--resume", expect=2))

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
        source = self.write_parquet("a.parquet", ["x", "y"])
        self.assertIn("token_count", self.fails(source, "--text-field", "body"))  # the columns that there are
        message = self.fails(source, "--text-field", "token_count")
        self.assertIn("not text", message)
        self.assertIn("text, id, dump", message)  # the columns that are
        source.write_bytes(source.read_bytes()[:-100])
        self.assertIn("Parquet", self.fails(source))

    @needs_pyarrow
    def test_two_columns_of_one_name(self):
        import pyarrow
        import pyarrow.parquet
        path = self.dir / "a.parquet"
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["text", "text"]), path)
        self.assertIn("2 columns have the name 'text'", self.fails(path))

    @needs_pyarrow
    def test_every_arrow_type_that_is_text(self):
        import pyarrow

        texts = ["a", None, "naïve", "a", ""]
        data = [text and text.encode() for text in texts]
        columns = {
            "large_string": pyarrow.array(texts, pyarrow.large_string()),
            "binary": pyarrow.array(data, pyarrow.binary()),
            "large_binary": pyarrow.array(data, pyarrow.large_binary()),
            "dictionary": pyarrow.array(texts).dictionary_encode(),
            "dictionary_of_bytes": pyarrow.array(data).dictionary_encode(),
        }
        for name, values in (("string_view", texts), ("binary_view", data)):
            if hasattr(pyarrow, name):
                columns[name] = pyarrow.array(values, getattr(pyarrow, name)())
        if hasattr(pyarrow, "json_"):
            columns["extension"] = pyarrow.array(texts, pyarrow.string()).cast(pyarrow.json_())
        source = self.write_parquet("a.parquet", texts, **columns)
        for name in ("text", *columns):
            self.bytes_run(source, "--text-field", name, "--overwrite")
            self.assertEqual(self.tokens(), byte_tokens(["a", "naïve", "a"]), name)
            self.assertEqual(self.meta()["splits"]["train"]["skipped"], {"empty": 1, "null": 1}, name)

    @needs_pyarrow
    def test_bytes_in_parquet_that_are_not_text(self):
        import pyarrow

        bad = pyarrow.array([b"ok", b"caf\xe9"])
        wrong = pyarrow.Array.from_buffers(pyarrow.string(), 2, bad.buffers())  # said to be text, and is not
        source = self.write_parquet("a.parquet", ["x", "y"], bad=bad, wrong=wrong)
        for name in ("bad", "wrong"):
            self.assertIn(f"row 2: '{name}' is not UTF-8 text (byte 3)", self.fails(source, "--text-field", name))
            self.bytes_run(source, "--text-field", name, "--on-error", "skip")
            self.assertEqual(self.tokens(), byte_tokens(["ok"]))
            shutil.rmtree(self.out)

    @needs_pyarrow
    def test_zstd(self):
        import pyarrow

        def compressed(data):
            return pyarrow.compress(data, "zstd", asbytes=True)

        texts = sample_texts(300)
        lines = "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()
        cut = len(lines) // 2
        skippable = struct.pack("<2I", 0x184D2A50, 3) + b"abc"
        whole = compressed(lines[:cut]) + skippable + compressed(lines[cut:])  # frames that cut a line, as pzstd's do
        for name in ("a.jsonl.zst", "a.json.zst", "a.ndjson.zst"):
            (self.dir / name).write_bytes(whole)
            self.bytes_run(self.dir / name, "--overwrite")
            self.assertEqual(self.tokens(), byte_tokens(texts))
        (self.dir / "a.txt.zst").write_bytes(compressed(b"one text"))
        self.bytes_run(self.dir / "a.txt.zst", "--overwrite")
        self.assertEqual(self.tokens(), byte_tokens(["one text"]))
        shutil.rmtree(self.out)
        path = self.dir / "b.jsonl.zst"
        for data in (whole[:-4], whole[: len(whole) // 2], whole + b"garbage", b"not zstd"):
            path.write_bytes(data)
            message = self.fails(path)
            self.assertIn(f"{path}: corrupt or truncated zstd", message)
        # a window of 2 GiB, as zstd --long=31 makes it, and a block of one byte
        path.write_bytes(b"\x28\xb5\x2f\xfd\0" + bytes([(31 - 10) << 3]) + b"\x09\0\0a")
        self.assertIn("--long=31", self.fails(path))
        path.write_bytes(compressed(b"version https://git-lfs.github.com/spec/v1\n"))
        self.assertIn("git lfs pull", self.fails(path))

    def test_what_documents_begin_with(self):
        for style, begin, eot in (("mixtral", 1, 2), ("llama3", 0, 1), ("gpt2", 0, 0), ("qwen2", 0, 0)):
            data = (TOKENIZERS / style / "tokenizer.json").read_bytes()
            made = lambda *more: text_tokenizer.FileTokenizer(style, data, *more)  # noqa: E731
            self.assertEqual((made().begin_token, made().eot_token), (begin, eot), style)
            self.assertEqual(made(None, "none").begin_token, eot)
            self.assertEqual(made(None, "7").begin_token, 7)
            self.assertEqual(made("9", "9").frame(), ([9], []))
        roberta = json.loads(data) | {"post_processor": {"type": "RobertaProcessing", "sep": ["x", 5], "cls": ["y", 4]}}
        self.assertEqual(text_tokenizer.FileTokenizer("r", json.dumps(roberta).encode()).begin_token, 4)
        two = json.loads((TOKENIZERS / "mixtral" / "tokenizer.json").read_text())
        two["post_processor"]["single"].insert(0, two["post_processor"]["single"][0])
        (self.dir / "tokenizer.json").write_text(json.dumps(two))
        self.assertEqual(text_tokenizer.FileTokenizer("t", (self.dir / "tokenizer.json").read_bytes()).own_begin, [1, 1])
        last = json.loads((TOKENIZERS / "mixtral" / "tokenizer.json").read_text())
        last["post_processor"]["single"].reverse()  # a template that puts its token behind the text
        self.assertEqual(text_tokenizer.FileTokenizer("r", json.dumps(last).encode()).begin_token, 2)

    @needs_tokenizers
    def test_documents_between_the_tokenizer_s_own_tokens(self):
        import tokenizers

        texts = [*sample_texts(20), "spelt </s> and <s>"]
        source = self.write_texts("a.jsonl", texts)
        for style, begin, end in (("mixtral", 1, [2]), ("llama3", 0, [1]), ("gpt2", 0, []), ("qwen2", 0, [])):
            place = TOKENIZERS / style
            how = ("--input", source, "--tokenizer", place, "--out", self.out, "--engine", "library", "--overwrite")
            self.run_tool(*how, "--workers", 2)
            model = tokenizers.Tokenizer.from_file(str(place / "tokenizer.json"))
            model.encode_special_tokens = True
            expected = []
            for text in texts:
                ids = model.encode(text).ids
                expected += [*([] if ids[0] == begin and end else [begin]), *ids, *end]
            self.assertEqual(self.tokens(), expected, style)
            self.assertEqual(self.meta()["begin_token"], begin)
            self.assertEqual(self.meta()["splits"]["train"]["bytes"], sum(len(text.encode()) for text in texts))
        self.run_tool(*how[:3], TOKENIZERS / "mixtral", *how[4:], "--begin-token", "none")
        self.assertEqual((self.tokens()[0], self.meta()["begin_token"], self.tokens().count(1)), (2, 2, 0))
        other = self.write_texts("b.jsonl", ["x"])
        message = self.run_tool("--input", other, "--tokenizer", TOKENIZERS / "mixtral", *how[4:], "--split-name", "val", expect=2)
        self.assertIn("begin_token 2", message)  # as train has it

    def write_program(self, answer):
        """A program that is called as `switchyard tokenize` is, with a body of its own."""
        program = self.dir / "program"
        program.write_text(f"#!{sys.executable}\nimport sys\nif '--help' in sys.argv: sys.exit(print('--special-as-text'))\n"
                           + answer)  # fmt: skip
        program.chmod(0o755)
        return mock.patch.dict(os.environ, {"SWITCHYARD_BIN": str(program)})

    @needs_tokenizers
    def test_both_engines_write_the_same_shards(self):
        program = text_tokenizer.find_program()
        if not program:
            self.skipTest("build/switchyard is not there or cannot tokenize")
        texts = sample_texts(200)
        for style in ("gpt2", "llama3", "qwen2", "mixtral", "prefix_digits"):
            cases = json.loads((TOKENIZERS / style / "cases.json").read_text())["cases"]
            source = self.write_texts("a.jsonl", [case["text"] for case in cases] + texts)
            place = TOKENIZERS / style
            how = ("--input", source, "--tokenizer", place, "--out", self.out, "--val-fraction", 0.2, "--overwrite")
            self.run_tool(*how, "--engine", "library", "--workers", 1)
            expected = self.files()
            with mock.patch.dict(sys.modules, {"tokenizers": None}):  # it is not needed
                for engine, workers in (("switchyard", 2), ("auto", 1)):
                    self.run_tool(*how, "--engine", engine, "--workers", workers)
                    self.assertEqual(self.files(), expected, (style, engine))

    def test_the_program_s_shards_hold_the_library_s_tokens(self):
        if not text_tokenizer.find_program():
            self.skipTest("build/switchyard is not there or cannot tokenize")
        for style, begin, end in (("mixtral", 1, [2]), ("llama3", 0, [1]), ("gpt2", 0, []), ("qwen2", 0, [])):
            cases = json.loads((TOKENIZERS / style / "cases.json").read_text())["cases"]
            cases = [case for case in cases if case["text"] and "<" not in case["text"]]  # special tokens are text here
            source = self.write_texts("a.jsonl", [case["text"] for case in cases])
            self.run_tool("--input", source, "--tokenizer", TOKENIZERS / style, "--out", self.out, "--overwrite",
                          "--engine", "switchyard", "--workers", 1)  # fmt: skip
            expected = [token for case in cases for token in [begin, *case["ids_without_special"], *end]]
            self.assertEqual(self.tokens(), expected, style)

    @needs_tokenizers
    def test_a_program_that_finds_other_tokens_is_not_used(self):
        source = self.write_texts("a.jsonl", sample_texts(5))
        how = ("--input", source, "--tokenizer", TOKENIZERS / "gpt2", "--out", self.out, "--overwrite", "--workers", 1)
        self.run_tool(*how, "--engine", "library")
        expected = self.files()
        answers = """\
while head := sys.stdin.buffer.read(4):
    sys.stdin.buffer.read(int.from_bytes(head, 'little'))
    sys.stdout.buffer.write(bytes([1, 0, 0, 0, 9, 0, 0, 0]))
    sys.stdout.buffer.flush()
"""
        with self.write_program(answers):
            self.assertIn("the library is used", self.run_tool(*how))
            self.assertEqual(self.files(), expected)
            self.run_tool(*how, "--engine", "switchyard")
            self.assertNotEqual(self.files(), expected)
        with self.write_program("sys.stdin.buffer.read(9)"):
            self.assertIn("--engine library", self.run_tool(*how, "--engine", "switchyard", expect=2))

    def test_what_the_program_refuses_is_refused(self):
        source = self.write_texts("a.jsonl", ["x"])
        how = ("--input", source, "--tokenizer", TOKENIZERS / "gpt2", "--out", self.out)
        with self.write_program("sys.exit('error: ' + sys.argv[2] + ': decoder: is odd')"):
            message = self.run_tool(*how, expect=2)
            self.assertIn("gpt2: switchyard generate does not read it exactly: decoder: is odd", message)
            self.assertFalse(self.out.exists())
        with mock.patch.dict(os.environ, {"SWITCHYARD_BIN": str(self.dir / "none")}):
            self.assertIn("SWITCHYARD_BIN", self.run_tool(*how, "--engine", "switchyard", expect=2))

    def test_tokenizers_that_generate_could_not_read(self):
        source = self.write_texts("a.jsonl", ["x"])
        whole = json.loads((TOKENIZERS / "qwen2" / "tokenizer.json").read_text())
        path = self.dir / "tokenizer.json"
        roberta = {"type": "RobertaProcessing", "sep": ["x", 5], "cls": ["y", 4]}
        for change, parts in (
            ({"model": whole["model"] | {"dropout": 0.1}}, ["model.dropout", "0.1", "random"]),
            ({"model": {"type": "Unigram", "vocab": [["a", 0.0]]}}, ["model.type", "Unigram"]),
            ({"normalizer": {"type": "Precompiled"}}, ["normalizer", "Precompiled"]),
            ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Odd"}]}},
             ["normalizer.normalizers[1]", "Odd"]),
            ({"pre_tokenizer": {"type": "UnicodeScripts"}}, ["pre_tokenizer", "UnicodeScripts"]),
            ({"decoder": {"type": "CTC"}}, ["decoder", "CTC"]),
            ({"post_processor": {"type": "Odd"}}, ["post_processor", "Odd"]),
            ({"post_processor": {"type": "Sequence", "processors": [roberta, roberta]}}, ["post_processor.processors[1]", "second"]),
        ):  # fmt: skip
            path.write_text(json.dumps(whole | change))
            self.assertRaisesRegex(UserError, re.escape(parts[0]), text_tokenizer.FileTokenizer, str(path), path.read_bytes())
            message = self.run_tool("--input", source, "--tokenizer", path, "--out", self.out, expect=2)
            self.assertEqual(message.count("\n"), 1, message)
            for part in [str(path), *parts]:
                self.assertIn(part, message)
            self.assertFalse(self.out.exists())

    @needs_tokenizers
    def test_a_hub_that_does_not_answer(self):
        source = self.write_texts("a.jsonl", ["x"])
        closed = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(self.dir)}  # the port of discard, where nobody listens
        run = subprocess.run(self.command("--input", source, "--tokenizer", "gpt2", "--out", self.out),
                             env={**os.environ, **closed}, capture_output=True, text=True, timeout=60)  # fmt: skip
        self.assertEqual((run.returncode, run.stderr.count("\n")), (2, 1), run.stderr)
        self.assertIn("Connection refused", run.stderr)

    @needs_tokenizers
    def test_an_interrupt_ends_the_training_of_a_bpe(self):
        fifo = self.dir / "b.txt"
        os.mkfifo(fifo)  # the training waits for its text
        run = self.started("--input", self.write_texts("a.jsonl", sample_texts(50)), fifo, "--train-bpe", 400)
        self.wait_until(lambda: self.children(run.pid), "the training")
        workers = self.children(run.pid)
        run.send_signal(signal.SIGINT)
        _, stderr = run.communicate(timeout=60)
        self.assertEqual(run.returncode, 130, stderr)
        self.assertIn("nothing was kept", stderr)
        self.wait_until(lambda: not self.alive(workers), "the training goes on")
        self.assertFalse(self.out.exists())

    @needs_tokenizers
    def test_the_training_of_a_bpe_tells_how_far_it_is(self):
        told = []
        source = self.write_texts("a.jsonl", sample_texts(300))
        with mock.patch("prepare_data.Progress") as progress:
            progress.return_value.update = lambda done, note: told.append((done, progress.return_value.total, note))
            self.run_tool("--input", source, "--train-bpe", 300, "--out", self.out, "--workers", 1)
        told = [one for one in told if one[2].startswith("BPE")]
        self.assertTrue(all(0 <= done <= total for done, total, _ in told), told)
        notes = [note for _, _, note in told]
        for stage in ("BPE: text", "BPE: compute merges"):
            self.assertTrue(any(stage in note for note in notes), notes)

    @needs_tokenizers
    def test_an_interrupted_run_keeps_its_bpe(self):
        source = self.write_texts("a.jsonl", sample_texts(300))
        how = ("--input", source, "--train-bpe", 300, "--out", self.out, "--workers", 1)
        self.run_tool(*how)
        expected = self.files()
        shutil.rmtree(self.out)
        with mock.patch("prepare_data.Preparation.tokenize", side_effect=KeyboardInterrupt):
            self.assertIn("--resume", self.run_tool(*how, expect=130))
        with mock.patch("prepare_data.train_bpe", side_effect=AssertionError("trained again")):
            self.run_tool(*how, "--resume")
        self.assertEqual(self.files(), expected)

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

        longer = self.write_texts("b.jsonl", [*texts, "more"])
        self.run_tool("--input", longer, "--tokenizer", self.out, "--out", self.out, "--split-name", "val", "--workers", 2)
        self.assertEqual(self.tokens("val")[:len(first)], first)
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

        model = tokenizers.Tokenizer(tokenizers.models.BPE({"</s>": 70000, "a": 1, "b": 69999}, []))
        (self.dir / "tokenizer.json").write_text(model.to_str())
        source = self.write_texts("a.jsonl", ["ab", "b"])
        self.run_tool("--input", source, "--tokenizer", self.dir / "tokenizer.json", "--out", self.out, "--workers", 1)
        self.assertEqual(self.tokens(), [70000, 1, 69999, 70000, 69999])
        self.assertEqual((self.out / "train_000000.bin").read_bytes()[:8], struct.pack("<2i", 20240801, 7))
        self.assertEqual((self.meta()["dtype"], self.meta()["vocab_size"]), ("uint32", 70001))

    @needs_tokenizers
    def test_which_token_ends_a_text(self):
        import tokenizers

        model = tokenizers.Tokenizer(tokenizers.models.BPE({"y": 0, "x": 1, "stop": 2}, []))
        place = self.dir / "model"
        place.mkdir()
        (place / "tokenizer.json").write_text(model.to_str())
        source = self.write_texts("a.jsonl", ["x"])
        how = ("--input", source, "--tokenizer", place, "--out", self.out, "--workers", 1, "--overwrite")
        self.assertIn("--eot-token", self.run_tool(*how, expect=2))
        self.assertIn("nothere", self.run_tool(*how, "--eot-token", "nothere", expect=2))
        for stop in ("stop", "2"):
            self.run_tool(*how, "--eot-token", stop)
            self.assertEqual(self.tokens(), [2, 1])
        self.assertIn("'3'", self.run_tool(*how, "--eot-token", "stop", "--begin-token", "3", expect=2))
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
