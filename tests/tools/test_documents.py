#!/usr/bin/env python3
"""What the documents and comments point to is there: pages, their sections, links with their anchors, files of the
repository."""

import re
import unittest
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("src", "cuda", "tests", "tools", "scripts", "docs", "configs", "data", ".ci")
SUFFIXES = {".md", ".h", ".cpp", ".cu", ".py", ".sh", ".txt", ".cmake"}
EXAMPLE = re.compile(r"[a-z]\.md|summary\.md")  # a reader's own file, and what scripts/gpu_check.sh writes


def documents():
    """Every text of the repository that a person reads; what data/ holds beside README.md was prepared there."""
    found = [path for path in ROOT.iterdir() if path.suffix in SUFFIXES]
    for folder in FOLDERS:
        found += [path for path in (ROOT / folder).rglob("*") if path.suffix in SUFFIXES and path.is_file()
                  and (folder != "data" or path.suffix == ".md")]
    return sorted(path for path in found if path != Path(__file__).resolve())


def anchors(path):
    """The names that GitHub gives to a page's headings."""
    text = re.sub(r"^( *)```.*?^\1```", "", path.read_text(), flags=re.S | re.M)
    heads = re.findall(r"^#+ +(.*)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).strip().replace(" ", "-") for head in heads}


class Documents(unittest.TestCase):
    def test_cited_pages_and_sections(self):
        cited = 0
        for path in documents():
            # A comment's line may end between a page and its section.
            text = re.sub(r"\n\s*(//|#|\*)?\s*", " ", path.read_text())
            for name, section in re.findall(r"(?<![\w/.-])([\w./-]*\w\.md)\b(?:, section (\d+))?", text):
                if EXAMPLE.fullmatch(name):
                    continue
                page = next((base / name for base in (ROOT, path.parent, ROOT / "docs") if (base / name).is_file()), None)
                with self.subTest(path=path.relative_to(ROOT), page=name, section=section):
                    self.assertIsNotNone(page, "no such page")
                    if section:
                        self.assertTrue(re.search(rf"^#+ {section}\. ", page.read_text(), re.M), "no such section")
                cited += 1
        self.assertGreater(cited, 50)

    def test_links(self):
        links = 0
        for path in (path for path in documents() if path.suffix == ".md"):
            for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
                if re.match(r"[a-z]+:", target):
                    continue
                name, _, anchor = target.partition("#")
                page = path.parent / name if name else path
                with self.subTest(path=path.relative_to(ROOT), target=target):
                    self.assertTrue(page.exists(), "leads nowhere")
                    if anchor:
                        self.assertIn(anchor, anchors(page))
                links += 1
        self.assertGreater(links, 20)

    def test_named_files(self):
        """A path that begins with a folder of the repository and ends like a source is one of its files."""
        named = 0
        pattern = r"(?<![\w/.$}{*-])((?:src|tests|tools|scripts|docs|configs|\.ci)/[\w./-]+\.(?:py|sh|cpp|h|cu|json|txt))\b"
        for path in documents():
            for name in re.findall(pattern, path.read_text()):
                if re.search(r"/[A-Z]+/", name):  # tests/golden/CASE/...: one of many
                    continue
                with self.subTest(path=path.relative_to(ROOT), name=name):
                    self.assertTrue((ROOT / name).exists(), "no such file")
                named += 1
        self.assertGreater(named, 100)

    def test_what_is_run_by_its_name_may_be_run(self):
        """The pages call tools and scripts by their names alone."""
        programs = [path for folder in ("tools", "scripts", "tests") for path in (ROOT / folder).rglob("*")
                    if path.suffix in {".py", ".sh"} and path.read_bytes().startswith(b"#!")]
        self.assertGreater(len(programs), 30)
        self.assertEqual([str(path.relative_to(ROOT)) for path in programs if not path.stat().st_mode & 0o100], [])


if __name__ == "__main__":
    unittest.main()
