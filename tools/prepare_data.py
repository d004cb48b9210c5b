#!/usr/bin/env python3
"""Tokenizes text into the shards that switchyard (and llm.c) trains on. Run with --help; data/README.md tells more."""

import argparse
import concurrent.futures
import glob
import hashlib
import json
import multiprocessing
import os
import signal
import sys
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field

import documents
import text_tokenizer
from console import Progress, UserError, human_bytes
from shards import MAX_SHARD_TOKENS, ShardWriter, shard_files

VERSION = "0.1.0"
SPLITS = ("train", "val")

EXAMPLES = """\
examples:
  C4's .json.gz files, byte tokenizer (Python's standard library is enough):
    tools/prepare_data.py --input 'c4-train.*.json.gz' --tokenizer bytes --out data/c4

  a validation set of its own, into the same directory:
    tools/prepare_data.py --input 'c4-validation.*.json.gz' --tokenizer bytes --out data/c4 --split-name val

  FineWeb's Parquet with a tokenizer.json that is on disk, one document in a thousand kept for validation:
    tools/prepare_data.py --input fineweb/*.parquet --tokenizer gpt2/tokenizer.json --out data/fineweb \\
        --val-fraction 0.001

  a byte-level BPE of 32,000 tokens trained on the input first; it is saved as data/books/tokenizer.json:
    tools/prepare_data.py --input books/*.txt --train-bpe 32000 --out data/books --val-fraction 0.01

input formats: """ + documents.FORMATS + """.
A text file is one document; in the others, a line or a row is.
"""


@dataclass
class Tally:
    """What a split holds. `bytes` are those of the documents' text in UTF-8."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    packed: list = field(default_factory=list)  # token bytes, in the order of the documents


# What a worker process works with: set once, before its first block.
_tokenizer = None
_text_field = None
_val_fraction = 0.0


def start_process(*arguments):
    """In a process of its own: an interrupt is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    start_worker(*arguments)


def start_worker(spec, text_field, val_fraction):
    global _tokenizer, _text_field, _val_fraction
    # The work is spread over processes; threads within each would only get in each other's way.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    if spec is None:
        _tokenizer = text_tokenizer.ByteTokenizer()
    else:
        _tokenizer = text_tokenizer.HuggingFaceTokenizer(*spec)
    _text_field, _val_fraction = text_field, val_fraction


def is_validation(utf8_text, fraction):
    """Chosen by content, so that the same document is always on the same side, and copies of it as well."""
    digest = hashlib.blake2b(utf8_text, digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


def tokenize_block(block):
    """-> (tally of train, tally of val, number of empty documents)"""
    train, val, empty = Tally(), Tally(), 0
    texts, encoded = [], []
    for text, _ in documents.texts_of(block, _text_field):
        text, data = documents.utf8(text)
        if data:
            texts.append(text)
            encoded.append(data)
        else:
            empty += 1
    width = 2 if _tokenizer.dtype == "uint16" else 4
    for data, packed in zip(encoded, _tokenizer.pack(texts, encoded)):
        tally = val if _val_fraction > 0 and is_validation(data, _val_fraction) else train
        tally.documents += 1
        tally.tokens += len(packed) // width
        tally.bytes += len(data)
        tally.packed.append(packed)
    for tally in (train, val):
        tally.packed = [b"".join(tally.packed)]
    return train, val, empty


def tokenized_blocks(blocks, workers, *worker_arguments):
    """Yields (block position, tokenize_block(block)) in the blocks' order, with a bounded number of them in flight."""
    if workers == 1:
        start_worker(*worker_arguments)
        for block in blocks:
            yield block.position, tokenize_block(block)
        return
    context = multiprocessing.get_context("spawn")  # forking is not safe once a library has started threads
    with concurrent.futures.ProcessPoolExecutor(workers, context, start_process, worker_arguments) as pool:
        flying = deque()
        try:
            for block in blocks:
                flying.append((block.position, pool.submit(tokenize_block, block)))
                if len(flying) > 2 * workers:
                    position, future = flying.popleft()
                    yield position, future.result()
            while flying:
                position, future = flying.popleft()
                yield position, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def expand_inputs(patterns):
    paths = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            raise UserError(f"--input {pattern}: is a directory; give its files, as in '{pattern.rstrip('/')}/*.json.gz'")
        found = [pattern] if os.path.exists(pattern) else sorted(p for p in glob.glob(pattern) if os.path.isfile(p))
        if not found:
            raise UserError(f"--input {pattern}: no such file, and as a pattern it matches none; check the path")
        paths.extend(found)
    for path in paths:
        documents.kind_of(path)
        if paths.count(path) > 1:
            raise UserError(f"--input {path}: given more than once; its documents would be counted twice")
    return paths


def all_blocks(paths, text_field):
    """The blocks of all files; their positions count through all of them."""
    before = 0
    for path in paths:
        for block in documents.read_blocks(path, text_field):
            block.position += before
            yield block
        before += os.path.getsize(path)


def bpe_training_texts(paths, args):
    """The documents that will be trained on, up to --train-bpe-mbytes of them."""
    room = args.train_bpe_mbytes * 10**6
    for block in all_blocks(paths, args.text_field):
        for text, _ in documents.texts_of(block, args.text_field):
            text, data = documents.utf8(text)
            if args.val_fraction > 0 and is_validation(data, args.val_fraction):
                continue
            if len(data) > room:
                say(f"the BPE is trained on the first {args.train_bpe_mbytes} MB of text (--train-bpe-mbytes)")
                return
            room -= len(data)
            yield text


def say(message):
    print(message, file=sys.stderr, flush=True)


def read_meta(out):
    path = os.path.join(out, "meta.json")
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            meta = json.load(file)
        if not isinstance(meta["splits"], dict):
            raise ValueError("'splits' is not an object")
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a meta.json of this tool ({error}); remove it or choose another --out") from None
    return meta


def check_output(args, writes):
    """Refuses to mix with what is there, before any work is done."""
    for split in writes:
        there = shard_files(args.out, split)
        if there and not args.overwrite:
            raise UserError(f"{there[0]}: exists; choose another --out, or replace this split with --overwrite")


def merged_meta(args, tokenizer, writes):
    """The meta.json to be, without the splits that this run writes. What it shares with other splits must match."""
    meta = {
        "tool_version": VERSION,
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": tokenizer.eot_token,
        "dtype": tokenizer.dtype,
        "splits": {},
    }
    old = read_meta(args.out)
    kept = {name: split for name, split in old["splits"].items() if name not in writes} if old else {}
    if not kept:
        return meta
    for key in ("tokenizer_sha256", "vocab_size", "eot_token", "dtype"):
        if old.get(key) != meta[key]:
            raise UserError(
                f"{os.path.join(args.out, 'meta.json')}: {', '.join(kept)} was prepared with tokenizer "
                f"'{old.get('tokenizer')}' ({key} {old.get(key)}), this run has '{meta['tokenizer']}' ({key} "
                f"{meta[key]}); use the same tokenizer or another --out"
            )
    meta["tokenizer"] = old["tokenizer"]
    meta["splits"] = kept
    return meta


def write_whole(path, data):
    with open(path + ".tmp", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def prepare(args):
    paths = expand_inputs(args.input)
    writes = [args.split_name] + (["val"] if args.val_fraction > 0 else [])
    check_output(args, writes)
    if args.train_bpe is not None:
        say(f"training a byte-level BPE of {args.train_bpe} tokens")
        tokenizer = text_tokenizer.train_bpe(bpe_training_texts(paths, args), args.train_bpe)
        if tokenizer.vocab_size < args.train_bpe:
            say(f"the text is too short for {args.train_bpe} tokens: the vocabulary has {tokenizer.vocab_size}")
    else:
        tokenizer = text_tokenizer.load_tokenizer(args.tokenizer, args.eot_token)
    meta = merged_meta(args, tokenizer, writes)

    os.makedirs(args.out, exist_ok=True)
    spec = None
    if tokenizer.json_bytes is not None:
        spec = (tokenizer.name, tokenizer.json_bytes, tokenizer.model.id_to_token(tokenizer.eot_token))
    writers = {split: ShardWriter(args.out, split, tokenizer.dtype, args.shard_tokens) for split in writes}
    totals = {split: Tally() for split in writes}
    empty = 0
    total_bytes = sum(os.path.getsize(path) for path in paths)
    progress = Progress(total_bytes)
    try:
        blocks = all_blocks(paths, args.text_field)
        results = tokenized_blocks(blocks, args.workers, spec, args.text_field, args.val_fraction)
        for position, (train, val, block_empty) in results:
            empty += block_empty
            for split, tally in zip((args.split_name, "val"), (train, val)):
                if not tally.documents:
                    continue
                writers[split].write(tally.packed[0])
                total = totals[split]
                total.documents += tally.documents
                total.tokens += tally.tokens
                total.bytes += tally.bytes
            done = sum(total.tokens for total in totals.values())
            progress.update(position, f"{done / 1e6:.1f} M tokens  {human_bytes(position)} of {human_bytes(total_bytes)}")
        progress.close()
        if not totals[args.split_name].documents:
            raise UserError(f"no document for '{args.split_name}' in {', '.join(args.input)} ({empty} empty ones); "
                            "check the input and --val-fraction")  # fmt: skip
        if args.val_fraction > 0 and not totals["val"].documents:
            raise UserError(f"--val-fraction {args.val_fraction} chose none of {totals['train'].documents} documents; "
                            "use a larger one, or prepare a validation file with --split-name val")  # fmt: skip
        for split in writes:
            writers[split].finish()
            total = totals[split]
            meta["splits"][split] = {
                "documents": total.documents,
                "tokens": total.tokens,
                "bytes": total.bytes,
                "shards": len(writers[split].names),
                "inputs": paths,
            }
        if tokenizer.json_bytes is not None:
            write_whole(os.path.join(args.out, "tokenizer.json"), tokenizer.json_bytes)
        for split in writes:
            writers[split].publish()
        write_whole(os.path.join(args.out, "meta.json"), (json.dumps(meta, indent=2) + "\n").encode())
    except BaseException:
        progress.close()
        for writer in writers.values():
            writer.discard()
        raise
    if empty:
        say(f"{empty} empty documents were left out")
    for split in writes:
        held = meta["splits"][split]
        print(f"{args.out}/{split}_*.bin: {held['tokens']:,} tokens of {held['documents']:,} documents "
              f"({held['bytes']:,} bytes of text) in {held['shards']} {tokenizer.dtype} shards")  # fmt: skip


def parse_arguments(argv):
    def at_least(minimum, maximum=None):
        def parse(text):
            value = int(text.replace("_", "").replace(",", ""))
            if value < minimum or (maximum is not None and value > maximum):
                limit = f"at least {minimum}" if maximum is None else f"{minimum} to {maximum}"
                raise argparse.ArgumentTypeError(f"{text}: must be {limit}")
            return value

        parse.__name__ = "integer"
        return parse

    def share(text):
        value = float(text)
        if not 0.0 <= value < 1.0:
            raise argparse.ArgumentTypeError(f"{text}: must be at least 0 and below 1")
        return value

    parser = argparse.ArgumentParser(
        description="Tokenizes text into token shards: OUT/train_000000.bin, ..., and OUT/meta.json, which says what "
        "they hold. Every document is preceded by the end-of-text token.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", required=True, metavar="FILE", help="files or patterns, read in this order")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tokenizer", metavar="NAME_OR_PATH",
                       help="'bytes' (257 tokens, nothing to install), a tokenizer.json, a directory that holds one, "
                       "or a name on the Hugging Face hub")  # fmt: skip
    which.add_argument("--train-bpe", type=at_least(257), metavar="N",
                       help="train a byte-level BPE with N tokens on the input; saved as OUT/tokenizer.json")  # fmt: skip
    parser.add_argument("--out", required=True, metavar="DIR", help="where the shards go")
    parser.add_argument("--text-field", default="text", metavar="NAME",
                        help="field or column that holds the text (default: text)")  # fmt: skip
    parser.add_argument("--shard-tokens", type=at_least(1, MAX_SHARD_TOKENS), default=100_000_000, metavar="N",
                        help="tokens in a shard; a document may straddle two (default: 100000000)")  # fmt: skip
    parser.add_argument("--split-name", choices=SPLITS, default="train",
                        help="which split the input is (default: train)")  # fmt: skip
    parser.add_argument("--val-fraction", type=share, default=0.0, metavar="F",
                        help="about this share of the documents goes to val_*.bin instead, chosen by a hash of their "
                        "content (default: 0)")  # fmt: skip
    parser.add_argument("--eot-token", metavar="TEXT",
                        help="the end-of-text token of a Hugging Face tokenizer (default: <|endoftext|> or, where it "
                        "has none, its eos token)")  # fmt: skip
    parser.add_argument("--train-bpe-mbytes", type=at_least(1), default=1000, metavar="N",
                        help="at most so much text is read to train the BPE (default: 1000)")  # fmt: skip
    parser.add_argument("--workers", type=at_least(1), default=len(os.sched_getaffinity(0)), metavar="N",
                        help="processes; the output does not depend on it (default: one a core)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace the shards of this split")
    args = parser.parse_args(argv)
    if args.val_fraction > 0 and args.split_name == "val":
        parser.error("--val-fraction does not go with --split-name val: all of it is validation")
    if args.train_bpe is not None and args.split_name == "val":
        parser.error("--train-bpe does not go with --split-name val: give the tokenizer.json that train was made with")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    try:
        prepare(args)
        return 0
    except UserError as error:
        say(f"error: {error}")
        return 2
    except OSError as error:
        what = error.filename or args.out
        say(f"error: {what}: {error.strerror or error}; check the path, its permissions and the free space")
        return 2
    except BrokenProcessPool:
        say("error: a worker process was killed, most likely for want of memory; use fewer --workers")
        return 1
    except KeyboardInterrupt:
        say("interrupted; nothing was kept")
        return 130


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)  # so that what was begun is removed then as well
    sys.exit(main())
