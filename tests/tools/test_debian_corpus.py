#!/usr/bin/env python3
"""tools/debian_corpus.py on packages that this test makes: what it takes out of them, and that it writes the same bytes
again. Needs dpkg-deb; without it the packages are left out."""

import contextlib
import gzip
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import debian_corpus as corpus  # noqa: E402


class Documents(unittest.TestCase):
    def test_a_page(self):
        text = ("<html><head><title>no</title></head><body><script>no()</script><h1>One &amp;\n two</h1><p>A  b.</p>"
                "<pre>x\n  y</pre></body></html>")
        self.assertEqual(corpus.page(text), ["One & two\n\nA b.\n\nx\n  y"])

    def test_a_manual_page(self):
        text = ('.\\" a comment\n.TH epoll 7 2023\n.SH NAME\nepoll \\- I/O\n.PP\nThe\n.BR epoll_wait (2)\n.B "a b"\n'
                "is \\fIgood\\fP\\(aqs \\[bu] \\f[B]x\\f[]\n.nf\n.IP \\[bu] 3\nlast")
        self.assertEqual(corpus.roff(text), [
            "NAME\nepoll - I/O\n\nThe\nepoll_wait(2)\na b\nis good's * x\n\n*\nlast"])

    def test_passages_are_put_together_and_lose_nothing(self):
        entries = [f"Word{i}\n   what it means, {i}" for i in range(500)]
        made = corpus.dictionary("\n".join(entries))
        self.assertGreater(len(made), 2)
        self.assertEqual("\n\n".join(made).split("\n\n"), entries)
        self.assertTrue(all(corpus.PASSAGE < len(passage) < corpus.PASSAGE + 500 for passage in made[:-1]))
        self.assertEqual(corpus.sayings("a\nb\n%\nc\n%\n"), ["a\nb\n\nc"])


@unittest.skipUnless(shutil.which("dpkg-deb"), "without dpkg-deb")
class Packages(unittest.TestCase):
    def setUp(self):
        place = tempfile.TemporaryDirectory()
        self.addCleanup(place.cleanup)
        self.dir = Path(place.name)
        self.package("words", {"usr/share/w.dict.dz": gzip.compress(
            "".join(f"Entry{i}\n   has the meaning {i * i}\n" for i in range(20000)).encode())})
        self.package("source", {f"usr/lib/m{i}.py": (f"def f{i}():\n    return {i}\n" * 20).encode() for i in range(80)}
                     | {"usr/lib/latin.py": b"# caf\xe9\n" * 40, "usr/lib/short.py": b"x = 1\n", "usr/lib/copy.py": (
                         "def f3():\n    return 3\n" * 20).encode(), "usr/share/doc/changelog": b"no\n" * 200})
        domains = {"reference": (corpus.Source("words", "1", "0", r".*\.dict\.dz", corpus.dictionary),),
                   "code": (corpus.Source("source", "1", "0", r".*\.py", corpus.whole),)}
        change = mock.patch.object(corpus, "DOMAINS", domains)
        change.start()
        self.addCleanup(change.stop)

    def package(self, name, files):
        tree = self.dir / f"tree-{name}"
        for path, content in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN/control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: nobody <a@b.c>\nDescription: made here\n")
        (self.dir / "out/packages").mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tree, self.dir / f"out/packages/{name}_1_all.deb"],
                       check=True, capture_output=True)

    def make(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            return corpus.main(["--out", str(self.dir / "out")]), said.getvalue()

    def lines(self, name):
        with gzip.open(self.dir / "out" / name, "rt", encoding="utf-8") as file:
            return [json.loads(line) for line in file]

    def test_every_document_is_on_one_side_once(self):
        code, said = self.make()
        self.assertEqual(code, 0, said)
        train, validation = self.lines("c4-train.code.json.gz"), self.lines("c4-validation.code.json.gz")
        texts = [line["text"] for line in train + validation]
        self.assertEqual(len(texts), 81)  # 80 and the one in Latin-1; neither the short one nor the copy
        self.assertEqual(len(set(texts)), 81)
        self.assertIn("# caf\u00e9\n# caf\u00e9", "".join(texts))
        self.assertTrue(validation and all(set(line) == {"text", "timestamp", "url"} for line in train))
        self.assertEqual({line["url"].split("/")[0] for line in train}, {"debian:source"})
        manifest = json.loads((self.dir / "out/manifest.json").read_text())
        self.assertEqual([each["package"] for each in manifest["packages"]], ["words", "source"])
        self.assertEqual(manifest["domains"]["code"]["train"]["documents"], len(train))
        self.assertIn(manifest["packages"][0]["sha256"], said)
        self.assertIn("not 1, which is noted", said)

    def test_the_same_packages_give_the_same_bytes(self):
        self.make()
        names = [f"c4-{split}.{domain}.json.gz" for split in ("train", "validation") for domain in ("reference", "code")]
        before = [(self.dir / "out" / name).read_bytes() for name in names]
        for name in names:
            (self.dir / "out" / name).unlink()
        self.make()
        self.assertEqual([(self.dir / "out" / name).read_bytes() for name in names], before)

    def test_what_is_not_there_is_named(self):
        with mock.patch.object(corpus, "MOST_BYTES", 1):
            code, said = self.make()
        self.assertEqual(code, 2)
        self.assertRegex(said, "error: reference: has no document for (train|validation)")
        shutil.copy(self.dir / "out/packages/words_1_all.deb", self.dir / "out/packages/words_2_all.deb")
        code, said = self.make()
        self.assertEqual(code, 2)
        self.assertIn("has 2 files words_*.deb; leave one", said)
        (self.dir / "out/packages/words_1_all.deb").write_bytes(b"nothing")
        (self.dir / "out/packages/words_2_all.deb").unlink()
        code, said = self.make()
        self.assertEqual(code, 2)
        self.assertIn("error: dpkg-deb -f", said)
        self.assertIn("the package is damaged: remove it, and it is fetched again", said)

    def test_a_fetch_that_is_cut_off_leaves_nothing_to_be_taken_for_the_whole(self):
        package = self.dir / "out/packages/words_1_all.deb"
        whole = package.read_bytes()
        package.unlink()
        program = self.dir / "bin" / "apt-get"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\nhead -c 100 /dev/zero > words_1_all.deb\nkill -INT $PPID\nsleep 5\n")
        program.chmod(0o755)
        with mock.patch.dict("os.environ", {"PATH": f"{program.parent}:{os.environ['PATH']}"}):
            code, said = self.make()
            self.assertEqual((code, said.splitlines()[-1].split(";")[0]), (130, "interrupted"), said)
            self.assertEqual([path.name for path in (self.dir / "out/packages").iterdir()], ["source_1_all.deb"])
            (self.dir / "whole").write_bytes(whole)
            program.write_text(f"#!/bin/sh\ncp {self.dir}/whole words_1_all.deb\n")
            self.assertEqual(self.make()[0], 0)
        self.assertEqual(package.read_bytes(), whole)

    def test_without_apt_it_says_so(self):
        (self.dir / "out/packages/words_1_all.deb").unlink()
        with mock.patch.dict("os.environ", {"PATH": "/nowhere"}):
            code, said = self.make()
        self.assertEqual(code, 2)
        self.assertIn("error: apt-get: no such program; this needs Debian's apt and dpkg", said)


class Listed(unittest.TestCase):
    def test_a_dry_run_fetches_nothing(self):
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            self.assertEqual(corpus.main(["--dry-run"]), 0)
        self.assertEqual([line.split(":")[0] for line in said.getvalue().splitlines()],
                         ["prose", "reference", "technical", "legal", "code"])
        for sources in corpus.DOMAINS.values():
            for source in sources:
                self.assertRegex(source.sha256, "^[0-9a-f]{64}$")


if __name__ == "__main__":
    unittest.main()
