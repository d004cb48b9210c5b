#!/usr/bin/env python3
"""Makes a corpus of five domains from the text of Debian's packages, which apt fetches without an account:

    tools/debian_corpus.py --out data/debian
    scripts/compare_routers.sh --corpus data/debian

It writes c4-train.DOMAIN.json.gz and c4-validation.DOMAIN.json.gz in C4's schema (text, timestamp, url) for prose,
reference, technical, legal and code, and manifest.json with version and SHA-256 of each package. The same packages give the
same bytes. The packages are those that apt has for this machine (bookworm's are noted here) and stay in DIR/packages; one
that lies there is not fetched again. Needs apt-get and dpkg-deb.
"""

import argparse
import gzip
import hashlib
import html.parser
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

from console import UserError, human_bytes

MOST_BYTES = 12_000_000  # of a domain
LEAST_BYTES = 200  # of a document
PASSAGE = 4000  # bytes that entries of a dictionary and sayings are put together to
VALIDATION = 16  # one document of so many


class PageText(html.parser.HTMLParser):
    """What a page or a licence in XML says, without what only its reader's program uses."""
    SILENT = {"script", "style", "head", "nav"}
    BLOCKS = {"p", "div", "br", "li", "tr", "pre", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "h6", "blockquote", "table",
              "section", "item", "title", "titletext"}

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.parts, self.silent, self.as_is = [], 0, 0

    def handle_starttag(self, tag, attributes):
        self.silent += tag in self.SILENT
        self.as_is += tag == "pre"
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.silent -= tag in self.SILENT and self.silent > 0
        self.as_is -= tag == "pre" and self.as_is > 0
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.silent:
            self.parts.append(data if self.as_is else re.sub(r"\s+", " ", data))


def page(text):
    parser = PageText()
    parser.feed(text)
    parser.close()
    # A single space is what is left of a line's end in the source.
    lines = [re.sub(r"^ (?! )", "", line).rstrip() for line in "".join(parser.parts).split("\n")]
    return [re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()]


# Escapes of roff that stand for a character, of those that manual pages use.
ROFF_SIGNS = {"(aq": "'", "(bu": "*", "[bu]": "*", "(em": "--", "(en": "-", "(lq": '"', "(rq": '"', "(dq": '"', "(co": "(c)",
              "(ha": "^", "(ti": "~", "(rs": "\\", "[aq]": "'", "[dq]": '"', "(oq": "'", "(cq": "'", "(mu": "x", "(+-": "+-",
              "(<=": "<=", "(>=": ">=", "(->": "->", "(ga": "`", "-": "-", "e": "\\", "&": "", "|": "", "^": "", "/": "",
              ",": "", " ": " ", "~": " ", "c": "", ":": "", "%": "", "0": " ", ".": ".", "'": "'", "`": "`"}


def roff(text):
    """A manual page as it reads, without fonts and without tables' layout."""
    def sign(match):
        escape = match[1]
        return "" if escape.startswith(("f", "s", "m", "*")) else ROFF_SIGNS.get(escape, "")

    def plain(line):
        return re.sub(r"\\(f(?:\[[^]]*\]|\(..|.)|s[-+]?\d+|m\[[^]]*\]|\*(?:\[[^]]*\]|\(..|.)|\[[^]]*\]|\(..|.)", sign, line)

    lines = []
    for line in text.split("\n"):
        if re.match(r"[.']\s*\\\"|'\\\"", line):
            continue
        line = re.sub(r'\\".*$', "", line)
        request = re.match(r"[.']\s*([A-Za-z]+)\s*(.*)", line)
        if request is None:
            lines.append(plain(line))
            continue
        name, rest = request[1], request[2]
        words = [quoted if quoted or plain_word == "" else plain_word
                 for quoted, plain_word in re.findall(r'"((?:[^"]|"")*)"|(\S+)', rest)]
        if name in ("SH", "SS"):
            lines += ["", plain(" ".join(words))]
        elif name in ("BR", "IR", "RB", "RI", "BI", "IB"):
            lines.append(plain("".join(words)))
        elif name in ("B", "I", "SM", "SB"):
            lines.append(plain(" ".join(words)))
        elif name in ("PP", "P", "LP", "TP", "sp", "HP"):
            lines.append("")
        elif name == "IP":
            lines += ["", plain(words[0]) if words else ""]
    return [re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()]


def passages(pieces):
    """Pieces that are too short for a document, put together in their order."""
    made, size = [[]], 0
    for piece in pieces:
        if size > PASSAGE:
            made.append([])
            size = 0
        made[-1].append(piece)
        size += len(piece)
    return ["\n\n".join(passage) for passage in made if passage]


def dictionary(text):
    """An entry begins at the margin."""
    entries = re.split(r"\n(?=\S)", text)
    return passages([entry.strip("\n") for entry in entries if "\n" in entry.strip("\n")])


def sayings(text):
    return passages([saying.strip("\n") for saying in text.split("\n%\n") if saying.strip()])


def paragraphs(text):
    return passages([paragraph.strip("\n") for paragraph in re.split(r"\n{2,}", text) if paragraph.strip()])


def whole(text):
    return [text.strip()]


@dataclass(frozen=True)
class Source:
    package: str
    version: str  # in bookworm
    sha256: str
    paths: str  # a regular expression of the files' paths
    documents: object  # a function of a file's text, -> documents


DOMAINS = {
    "prose": (
        Source("anarchism", "15.3-3", "cf21c10948b00e923c62eb31c39a3390413fa26c5ee0e3b925feb0ec7fe42948", r"usr/share/doc/anarchism/html/[^/]*\.html", page),
        Source("fortunes", "1:1.99.1-7.3", "41d0551dc0ff52f875a2ecef7c39da2f672ab468c37e170119f7e0245a9d63c5", r"usr/share/games/fortunes/[a-z-]+", sayings)),
    "reference": (
        Source("dict-gcide", "0.48.5+nmu2", "7b0af5cfde3cbdef5e9d6e78f92ec335ced7c2790f37a40f49bebc6f7347ac0f", r".*\.dict\.dz", dictionary),
        Source("dict-foldoc", "20230119-1", "745cbedb55c2da609cc88ee0284e9d11a67a11ae3709daf7bad0e895ac3294c3", r".*\.dict\.dz", dictionary)),
    "technical": (
        Source("manpages", "6.03-2", "efa1ba4cd19ad7baeae959c9209a7eb74be2ebb858bcabb412597bfc9f588c91", r"usr/share/man/man\d/.*\.gz", roff),
        Source("manpages-dev", "6.03-2", "96f55cb5e26231d5567c89b692bced63825a14a2d5bd18fdf16ea2ed44eb9838", r"usr/share/man/man\d/.*\.gz", roff)),
    "legal": (
        Source("ruby-licensee", "9.15.2-4", "871ba9e8728ccf9e7a10f1c36a6c105a65b5595a3db9733361adf9838b14ee01", r".*/license-list-XML/src/.*\.xml", page),
        Source("debian-policy", "4.6.2.0", "ef9d01b625c3b87c3a845c2cd1b66f1a16e9240b2b9e5bee53472a00e8457a39", r".*/policy\.txt\.gz", paragraphs)),
    "code": (
        Source("python3-sympy", "1.11.1-1", "b437232be31819aafd267ddf2132c16293ef75e02fd58b4ad31eee3ef1d5b49e", r".*\.py", whole),
        Source("libeigen3-dev", "3.4.0-4", "1a167bb381acb90c1d8450a8f3e66a09d216dbc64b33ac8a082a0912513ef939", r"usr/include/eigen3/.*/[A-Za-z0-9_]+\.h", whole)),
}


DAMAGED = "the package is damaged: remove it, and it is fetched again"
APT_ADVICE = "run apt-get update, and look whether this machine's Debian has it"


def run(command, advice=APT_ADVICE, **options):
    try:
        done = subprocess.run(command, capture_output=True, check=False, **options)
    except FileNotFoundError:
        raise UserError(f"{command[0]}: no such program; this needs Debian's apt and dpkg") from None
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["failed"]
        raise UserError(f"{' '.join(command)}: {lines[-1]}; {advice}")
    return done.stdout


def fetched(package, directory):
    """The package's file, which is fetched where none is there."""
    files = sorted(directory.glob(f"{package}_*.deb"))
    if not files:
        print(f"  fetches {package}", flush=True)
        # Apt writes under the last name: what is cut off must not be taken for the whole the next time.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".fetch_") as scratch:
            run(["apt-get", "download", "-q", package], cwd=scratch)
            for file in Path(scratch).glob("*.deb"):
                os.replace(file, directory / file.name)
        files = sorted(directory.glob(f"{package}_*.deb"))
    if len(files) != 1:
        raise UserError(f"{directory}: has {len(files)} files {package}_*.deb; leave one")
    return files[0]


def texts_of(file, paths):
    """(path, text) of what fits, by path."""
    wanted, found = re.compile(r"\./" + paths), []
    with tarfile.open(fileobj=io.BytesIO(run(["dpkg-deb", "--fsys-tarfile", str(file)], DAMAGED))) as archive:
        for member in archive:
            if not member.isfile() or not wanted.fullmatch(member.name):
                continue
            content = archive.extractfile(member).read()
            if content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            try:
                found.append((member.name[2:], content.decode().replace("\r\n", "\n")))
            except UnicodeDecodeError:
                found.append((member.name[2:], content.decode("latin-1").replace("\r\n", "\n")))
    return sorted(found)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def documents_of(source, file):
    """{hash of the text: line}"""
    made = {}
    for path, text in texts_of(file, source.paths):
        for document in source.documents(text):
            if len(document.encode()) >= LEAST_BYTES:
                made.setdefault(digest(document), {"text": document, "timestamp": "1970-01-01T00:00:00Z",
                                                   "url": f"debian:{source.package}/{path}"})
    return made


def write_lines(path, lines):
    """The same bytes whenever it is done."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as out, gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as packed:
        for line in lines:
            packed.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
    os.replace(part, path)


def make_domain(domain, sources, out, packages):
    """Writes a domain's two files. -> what the manifest says of it."""
    documents = {}
    for source in sources:
        file = fetched(source.package, out / "packages")
        version = run(["dpkg-deb", "-f", str(file), "Version"], DAMAGED).decode().strip()
        sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
        noted = "as noted" if sha256 == source.sha256 else f"not {source.version}, which is noted: its text may differ"
        print(f"  {source.package} {version}, SHA-256 {sha256} ({noted})", flush=True)
        packages.append({"package": source.package, "version": version, "sha256": sha256})
        found = documents_of(source, file)
        if not found:
            raise UserError(f"{file}: has no text where {source.package} {source.version} has it; fetch that version")
        documents |= {key: line for key, line in found.items() if key not in documents}
    # By the hash of their text: an order that mixes packages, and a choice that no change of one document moves.
    split, size = {"train": [], "validation": []}, {"train": 0, "validation": 0}
    for key in sorted(documents):
        if sum(size.values()) >= MOST_BYTES:
            break
        name = "validation" if int(key[-8:], 16) % VALIDATION == 0 else "train"
        split[name].append(documents[key])
        size[name] += len(documents[key]["text"].encode())
    for name, lines in split.items():
        if not lines:
            raise UserError(f"{domain}: has no document for {name}; there is too little text in its packages")
        write_lines(out / f"c4-{name}.{domain}.json.gz", lines)
    print(f"{domain}: " + ", ".join(f"{name} {len(split[name]):,} documents of {human_bytes(size[name])}" for name in split),
          flush=True)
    return {name: {"documents": len(split[name]), "bytes": size[name]} for name in split}


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("data/debian"), help="(default: data/debian)")
    parser.add_argument("--dry-run", action="store_true", help="say which packages, and fetch nothing")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse_arguments(argv)
    try:
        if args.dry_run:
            for domain, sources in DOMAINS.items():
                print(f"{domain}: " + ", ".join(f"{source.package} {source.version}" for source in sources))
            return 0
        (args.out / "packages").mkdir(parents=True, exist_ok=True)
        packages, domains = [], {}
        for domain, sources in DOMAINS.items():
            domains[domain] = make_domain(domain, sources, args.out, packages)
        (args.out / "manifest.json").write_text(json.dumps({"packages": packages, "domains": domains}, indent=2) + "\n")
        print(f"{args.out}: made; then: scripts/compare_routers.sh --corpus {args.out}")
        return 0
    except UserError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        message, code = f"error: {error.filename or args.out}: {error.strerror or error}; check the path and the free space", 2
    except KeyboardInterrupt:
        message, code = "interrupted; packages that are whole stay, and the same command goes on with them", 130
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
