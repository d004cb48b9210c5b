#!/usr/bin/env python3
"""Writes a small corpus of English-like text in four domains, to try switchyard on without any download."""

import argparse
import gzip
import json
import os
import sys

from sample_corpus import code, finance, general, legal
from sample_corpus.grammar import Writer, a_or_an

DOMAINS = {"finance": finance, "legal": legal, "code": code, "general": general}
SPLITS = {"train": 1.0, "validation": 0.03}  # each one's size, as a share of the training text
TIMESTAMP = "2024-01-01T00:00:00Z"


def documents(domain, split, seed, size):
    """Records in C4's schema until their text has `size` bytes."""
    module = DOMAINS[domain]
    writer = Writer(f"{seed}/{domain}/{split}", module.RULES)
    number = 0
    while size > 0:
        writer.forget()
        _, text = module.write_document(writer)
        if module is not code:
            text = a_or_an(text)
        yield {"text": text, "timestamp": TIMESTAMP, "url": f"sample://{domain}/{split}/{number}"}
        size -= len(text.encode())
        number += 1


def write_file(path, records):
    """The same records give the same bytes: the gzip header carries no name and no time."""
    with open(path + ".tmp", "wb") as raw:
        with gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0) as file:
            for record in records:
                file.write(json.dumps(record).encode() + b"\n")
    os.replace(path + ".tmp", path)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description="Writes DIR/DOMAIN-train.json.gz and DIR/DOMAIN-validation.json.gz for the domains "
        f"{', '.join(DOMAINS)}, in the schema of C4: gzipped JSON lines with text, timestamp and url. The text is made up "
        "by rules; the same seed gives the same text.",
        epilog="example:\n  tools/make_sample_corpus.py --out data/sample\n"
        "  tools/prepare_data.py --input data/sample/code-train.json.gz --tokenizer bytes --out data/sample_bytes/code",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--mbytes", type=float, default=8.0, metavar="N",
                        help="megabytes of training text, shared evenly by the domains (default: 8)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    if not 0 < args.mbytes < 1e6:
        parser.error("--mbytes must be above 0")
    try:
        os.makedirs(args.out, exist_ok=True)
        for domain in DOMAINS:
            for split, share in SPLITS.items():
                size = args.mbytes * 1e6 / len(DOMAINS) * share
                path = os.path.join(args.out, f"{domain}-{split}.json.gz")
                write_file(path, documents(domain, split, args.seed, size))
                print(f"{path}: {os.path.getsize(path):,} bytes")
    except OSError as error:
        print(f"error: {error.filename or args.out}: {error.strerror}; choose another --out", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
