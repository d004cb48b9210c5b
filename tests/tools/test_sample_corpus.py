"""tools/make_sample_corpus.py: the same seed gives the same bytes, in C4's schema, and the code in it is code."""

import ast
import contextlib
import gzip
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import make_sample_corpus  # noqa: E402


def make(directory, *arguments):
    with contextlib.redirect_stdout(io.StringIO()):
        code = make_sample_corpus.main(["--out", str(directory), *map(str, arguments)])
    return code, {path.name: path.read_bytes() for path in Path(directory).iterdir()} if code == 0 else {}


class SampleCorpus(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.scratch = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls.scratch.cleanup)
        cls.dir = Path(cls.scratch.name)
        _, cls.files = make(cls.dir / "one", "--mbytes", 0.4)

    def texts(self, name):
        return [json.loads(line)["text"] for line in gzip.decompress(self.files[name]).splitlines()]

    def test_a_file_a_domain_and_split_of_the_size_asked_for(self):
        names = {f"{d}-{s}.json.gz" for d in ("finance", "legal", "code", "general") for s in ("train", "validation")}
        self.assertEqual(set(self.files), names)
        for name in names:
            size = sum(len(text.encode()) for text in self.texts(name))
            wanted = 0.1e6 * (1.0 if "train" in name else 0.03)
            self.assertGreaterEqual(size, wanted)
            self.assertLess(size, wanted + 20000)  # the last document may be long

    def test_c4_s_schema(self):
        for data in self.files.values():
            for line in gzip.decompress(data).splitlines():
                self.assertEqual(set(json.loads(line)), {"text", "timestamp", "url"})

    def test_the_seed_decides_every_byte(self):
        _, again = make(self.dir / "again", "--mbytes", 0.4)
        self.assertEqual(again, self.files)
        _, other = make(self.dir / "other", "--mbytes", 0.4, "--seed", 2)
        for name, data in other.items():
            self.assertNotEqual(data, self.files[name])

    def test_no_slot_is_left_unfilled(self):
        for name in self.files:
            if not name.startswith("code"):
                for text in self.texts(name):
                    self.assertNotRegex(text, r"[{}]|\bNone\b")

    def test_python_in_the_code_domain_parses(self):
        python = [text for text in self.texts("code-train.json.gz") if not text.startswith("/*")]
        self.assertGreater(len(python), 10)
        for text in python:
            ast.parse(text)

    def test_validation_documents_are_not_training_documents(self):
        for domain in ("finance", "legal", "code", "general"):
            train = set(self.texts(f"{domain}-train.json.gz"))
            self.assertFalse(train & set(self.texts(f"{domain}-validation.json.gz")), domain)

    def test_a_place_that_cannot_be_written(self):
        (self.dir / "file").write_text("")
        with contextlib.redirect_stderr(io.StringIO()) as stderr:
            self.assertEqual(make(self.dir / "file")[0], 2)
        self.assertIn("error: ", stderr.getvalue())


if __name__ == "__main__":
    unittest.main()
