#!/usr/bin/env python3
"""Tokenizes text into the shards that switchyard (and llm.c) trains on. Run with --help; data/README.md tells more."""

import argparse
import contextlib
import fcntl
import glob
import json
import os
import signal
import sys
import time

import documents
import text_tokenizer
import unfinished
from console import Progress, UserError, human_bytes
from shards import MAX_SHARD_TOKENS, SPLITS, ShardWriter, publish_shards, shard_files
from tokenizing import BlockTokenizer, BpeTraining
from unfinished import write_whole
from workers import Worker, WorkerDied, ordered_answers

VERSION = "0.2.0"
RECORD_SECONDS = 2  # at most so much work is lost when a run is killed
COMPARED_BYTES = 1 << 18  # of text, on which the program and the library must agree

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


def say(message):
    print(message, file=sys.stderr, flush=True)


# --- the input ---------------------------------------------------------------------------------------------------------


def expand_inputs(patterns):
    paths = []
    for pattern in patterns:
        if os.path.isdir(pattern):
            raise UserError(f"--input {pattern}: is a directory; give its files, as in '{pattern.rstrip('/')}/*.json.gz'")
        found = [pattern] if os.path.exists(pattern) else sorted(p for p in glob.glob(pattern) if os.path.isfile(p))
        if not found:
            raise UserError(f"--input {pattern}: no such file, and as a pattern it matches none; check the path")
        paths.extend(found)
    seen = set()
    for path in paths:
        documents.check_file(path)
        if os.path.realpath(path) in seen:
            raise UserError(f"--input {path}: given more than once; its documents would be counted twice")
        seen.add(os.path.realpath(path))
    return paths


def all_blocks(paths, text_field, file=0, blocks=0):
    """The blocks of all files, from a place on: that many blocks of that file are left out. Their positions count
    through all files."""
    before = sum(os.path.getsize(path) for path in paths[:file])
    for number, path in enumerate(paths[file:], file):
        for count, block in enumerate(documents.read_blocks(path, text_field), 1):
            if number > file or count > blocks:
                block.position += before
                block.place = (number, count)
                yield block
        before += os.path.getsize(path)


# --- the tokenizer -----------------------------------------------------------------------------------------------------


def train_bpe(paths, args):
    """-> a FileTokenizer. In a process of its own, which an interrupt ends at once."""
    text_tokenizer.import_tokenizers()
    say(f"training a byte-level BPE of {args.train_bpe} tokens")
    worker = Worker(BpeTraining(paths, args.text_field, args.val_fraction, args.on_error == "skip", args.train_bpe,
                                args.train_bpe_mbytes * 10**6))  # fmt: skip
    try:
        worker.send(None)
        json_bytes, cut = follow_training(worker)
    finally:
        worker.end()
    if cut:
        say(f"the BPE is trained on the first {args.train_bpe_mbytes} MB of text (--train-bpe-mbytes)")
    tokenizer = text_tokenizer.FileTokenizer(f"bpe-{args.train_bpe}", json_bytes)
    if tokenizer.vocab_size < args.train_bpe:
        say(f"the text is too short for {args.train_bpe} tokens: the vocabulary has {tokenizer.vocab_size}")
    return tokenizer


def follow_training(worker):
    progress, stage = Progress(1), None
    try:
        while True:
            told = worker.answer()
            if len(told) == 2:
                return told
            if told[0] != stage:
                stage, progress = told[0], Progress(1)
            _, done, total = told
            progress.total = max(total, 1)
            counted = [human_bytes(n) if stage == "text" else f"{n:,}" for n in (done, total)]
            progress.update(done, f"BPE: {stage}  {' of '.join(counted)}")
    finally:
        progress.close()


def choose_engine(tokenizer, args, paths):
    """Sets tokenizer.program where the text is to be tokenized by switchyard. Both give the same tokens."""
    program = text_tokenizer.find_program()
    if program:
        text_tokenizer.check_with_program(program, tokenizer.name, tokenizer.path)
    if args.engine == "switchyard":
        if not program:
            raise UserError("--engine switchyard: build/switchyard is not there or cannot tokenize; build it, or name it in "
                            "SWITCHYARD_BIN")  # fmt: skip
        tokenizer.program = program
    elif args.engine == "auto" and program:
        tokenizer.program = program if agrees(program, tokenizer, args, paths) else None


def agrees(program, tokenizer, args, paths):
    """Whether the program finds the library's tokens in the first documents; true where there is no library to ask."""
    try:
        library = tokenizer.open()
    except UserError:
        return True
    if not os.path.isfile(paths[0]):
        return False  # a pipe cannot be read twice
    texts, size = [], 0
    for text, data in (found for block in all_blocks(paths[:1], args.text_field)
                       for found in documents.documents_of(block, args.text_field, True)[0]):  # fmt: skip
        texts.append(text[:COMPARED_BYTES])
        size += len(data)
        if size > COMPARED_BYTES:
            break
    encoded = [text.encode() for text in texts]
    tokenizer.program = program
    with contextlib.closing(tokenizer.open()) as other:
        same = library.pack(texts, encoded) == other.pack(texts, encoded)
    tokenizer.program = None
    if not same:
        say(f"{program} finds other tokens than Hugging Face's library in {paths[0]}: the library is used; please report it")
    return same


# --- what is there, and meta.json --------------------------------------------------------------------------------------


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


def kept_splits(out, writes, paths):
    """-> (meta.json, the splits in it that this run leaves as they are). No document of theirs may be in this run's."""
    old = read_meta(out)
    kept = {name: split for name, split in old["splits"].items() if name not in writes} if old else {}
    if kept:
        here = {os.path.realpath(path): path for path in paths} | {documents.fingerprint(path): path for path in paths}
        for name, split in kept.items():
            theirs = [os.path.realpath(path) for path in split.get("inputs", [])]
            for known in split.get("fingerprints") or theirs:
                if known is not None and known in here:
                    raise UserError(
                        f"--input {here[known]}: {os.path.join(out, 'meta.json')} says that its split {name}, which this run "
                        "would keep, was made of it, too, so that documents would be in both; write both at once "
                        "(--val-fraction), or choose another --out"
                    )
    return old, kept


def merged_meta(out, tokenizer, writes, paths):
    """The meta.json to be, without the splits that this run writes. What it shares with other splits must match."""
    meta = {
        "tool_version": VERSION,
        "tokenizer": tokenizer.name,
        "tokenizer_sha256": tokenizer.sha256,
        "vocab_size": tokenizer.vocab_size,
        "eot_token": tokenizer.eot_token,
        "begin_token": tokenizer.begin_token,
        "dtype": tokenizer.dtype,
        "splits": {},
    }
    old, kept = kept_splits(out, writes, paths)
    if not kept:
        return meta
    old.setdefault("begin_token", old.get("eot_token"))
    for key in ("tokenizer_sha256", "vocab_size", "eot_token", "begin_token", "dtype"):
        if old.get(key) != meta[key]:
            raise UserError(
                f"{os.path.join(out, 'meta.json')}: {', '.join(kept)} was prepared with tokenizer "
                f"'{old.get('tokenizer')}' ({key} {old.get(key)}), this run has '{meta['tokenizer']}' ({key} "
                f"{meta[key]}); use the same tokenizer and options or another --out"
            )
    meta["tokenizer"] = old["tokenizer"]
    meta["splits"] = kept
    return meta


def check_output(args, writes, record):
    """Refuses to mix with what is there, before any work is done."""
    if args.overwrite or (args.resume and record):
        return
    if record:
        raise UserError(f"{unfinished.record_path(args.out)}: a run into this directory has not come to its end; go on with "
                        "it with --resume, or begin anew with --overwrite")  # fmt: skip
    for split in writes:
        there = shard_files(args.out, split)
        if there:
            what = "is finished, there is nothing to go on with" if args.resume else "exists"
            raise UserError(f"{there[0]}: {what}; choose another --out, or replace this split with --overwrite")


@contextlib.contextmanager
def output_directory(out):
    """Makes it, for this run alone. What was made is removed again if nothing is in it at the end."""
    missing, path = [], os.path.abspath(out)
    while not os.path.exists(path):
        missing.append(path)
        path = os.path.dirname(path)
    lock = None
    try:
        os.makedirs(out, exist_ok=True)
        lock = os.open(out, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"--out {out}: another run is writing there; wait for it or choose another --out") from None
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        if lock is not None:
            os.close(lock)
        with contextlib.suppress(OSError):
            for path in missing:
                os.rmdir(path)


# --- the work ----------------------------------------------------------------------------------------------------------


class Preparation:
    """A run, from its first block or from where an unfinished one came to."""

    def __init__(self, args, paths, writes):
        self.args, self.paths, self.writes = args, paths, writes
        self.kept = False  # whether there is something for --resume to go on with
        self.writers = {}
        self.run = None  # what the record says that it was begun with
        self.done = {"file": 0, "blocks": 0, "skipped": {"counts": {}, "firsts": {}},
                     "splits": {split: {"documents": 0, "tokens": 0, "bytes": 0, "place": None} for split in writes}}  # fmt: skip
        self.recorded = None  # the `done` that is on the disk

    def prepare(self):
        with output_directory(self.args.out):
            record = None if self.args.overwrite else unfinished.read(self.args.out)
            check_output(self.args, self.writes, record)
            run = self.described()
            if record:
                unfinished.check_same(self.args.out, record["run"] | {"options": self.comparable(record, run)}, run)
                self.kept, self.done = True, record["done"]
            try:
                if record and record["publishing"]:
                    self.meta = record["publishing"]
                else:
                    self.begin(record, run)
                    self.tokenize()
                    self.finish()
            except BaseException as error:
                self.leave(error)
                raise
            self.publish()

    def described(self):
        names = ("tokenizer", "train_bpe", "text_field", "shard_tokens", "split_name", "val_fraction", "held_out", "eot_token",
                 "begin_token", "on_error")  # fmt: skip
        options = {"--" + name.replace("_", "-"): getattr(self.args, name) for name in names}
        options["--train-bpe-mbytes"] = self.args.train_bpe_mbytes if self.args.train_bpe else None
        options["the tool's version"] = VERSION
        return {"options": options, "inputs": unfinished.described_inputs(self.paths)}

    def comparable(self, record, run):
        """Its options. A run that has met no broken row is the same whatever was to be done with them."""
        options = dict(record["run"]["options"])
        if not documents.Skipped(**record["done"]["skipped"]).has_broken():
            options["--on-error"] = run["options"]["--on-error"]
        return options

    def begin(self, record, run):
        out, args = self.args.out, self.args
        beside = os.path.join(out, unfinished.TOKENIZER + ".tmp")
        _, kept = kept_splits(out, self.writes, self.paths)
        if args.train_bpe is not None and kept:
            raise UserError(f"{os.path.join(out, 'meta.json')}: a tokenizer that is trained anew would not be that of {', '.join(kept)}, "
                            "which this run would keep; give --tokenizer, or choose another --out")  # fmt: skip
        if args.train_bpe is None:
            tokenizer = text_tokenizer.load_tokenizer(args.tokenizer, args.eot_token, args.begin_token)
        elif record:
            with open(beside, "rb") as file:
                tokenizer = text_tokenizer.FileTokenizer(f"bpe-{args.train_bpe}", file.read())
        else:
            tokenizer = train_bpe(self.paths, args)
        run["tokenizer_sha256"] = tokenizer.sha256
        if record and record["run"]["tokenizer_sha256"] != tokenizer.sha256:
            raise UserError(f"{unfinished.record_path(out)}: cannot go on, for tokenizer '{tokenizer.name}' is another than the "
                            "run was begun with; give that one, or begin anew with --overwrite")  # fmt: skip
        if args.begin_token is None and len(tokenizer.own_begin) > 1:
            say(f"{tokenizer.name}: its template begins with {len(tokenizer.own_begin)} tokens; documents begin with the "
                f"first alone ({tokenizer.begin_token})")  # fmt: skip
        self.meta = merged_meta(out, tokenizer, self.writes, self.paths)
        self.tokenizer = tokenizer
        self.run = run
        if not record:
            unfinished.remove(out)
        if tokenizer.json_bytes is not None:
            write_whole(beside, tokenizer.json_bytes)
            tokenizer.path = beside
            choose_engine(tokenizer, args, self.paths)
        elif args.engine == "switchyard":
            raise UserError("--engine switchyard does not go with --tokenizer bytes")
        try:
            self.writers = {split: ShardWriter(out, split, tokenizer.dtype, args.shard_tokens, held["place"])
                            for split, held in self.done["splits"].items()}  # fmt: skip
        except (ValueError, FileNotFoundError) as error:
            raise UserError(f"{unfinished.record_path(out)}: cannot go on ({error}); begin anew with --overwrite") from None
        self.record()
        self.kept = self.kept or args.train_bpe is not None  # hours of training perhaps

    def tokenize(self):
        args = self.args
        work = BlockTokenizer(self.tokenizer, args.text_field, args.val_fraction, args.on_error == "skip")
        sizes = [os.path.getsize(path) for path in self.paths]
        total = sum(sizes)
        progress = Progress(total, begun=sum(sizes[: self.done["file"]]))
        blocks = all_blocks(self.paths, args.text_field, self.done["file"], self.done["blocks"])
        recorded_at = time.monotonic()
        try:
            with contextlib.closing(tokenized(blocks, work, args.workers)) as answers:
                for block, answer in answers:
                    finished_before = self.finished_shards()
                    self.take(block, *answer)
                    if self.finished_shards() > finished_before or time.monotonic() - recorded_at > RECORD_SECONDS:
                        self.record()
                        recorded_at = time.monotonic()
                    tokens = sum(held["tokens"] for held in self.done["splits"].values())
                    note = f"{tokens / 1e6:.1f} M tokens  {human_bytes(block.position)} of {human_bytes(total)}"
                    progress.update(block.position, note)
        finally:
            progress.close()

    def finished_shards(self):
        return sum(max(len(writer.names) - 1, 0) for writer in self.writers.values())

    def take(self, block, train, val, skipped):
        """Writes what a block gave. `done` changes at once, so that an interrupt finds it whole."""
        splits = {}
        for split, tally in zip((self.args.split_name, self.args.held_out), (train, val)):
            if split not in self.writers or split in splits:
                continue
            self.writers[split].write(tally.packed[0])
            held = self.done["splits"][split]
            splits[split] = {
                "documents": held["documents"] + tally.documents,
                "tokens": held["tokens"] + tally.tokens,
                "bytes": held["bytes"] + tally.bytes,
                "place": self.writers[split].place(),
            }
        total = documents.Skipped(**{key: dict(value) for key, value in self.done["skipped"].items()})
        total.merge(skipped)
        file, blocks = block.place
        self.done = {"file": file, "blocks": blocks, "skipped": vars(total), "splits": splits}

    def record(self):
        for writer in self.writers.values():
            writer.sync()
        done = self.done
        unfinished.write(self.args.out, self.run, done)
        self.recorded = done

    def leave(self, error):
        """After an error: what --resume can go on with is kept, and nothing else."""
        if self.run is None:
            return  # nothing of this run is there
        with contextlib.suppress(OSError):
            if isinstance(error, KeyboardInterrupt) and self.writers:
                self.record()
        for writer in self.writers.values():
            writer.close()
        if self.recorded and any(held["documents"] for held in self.recorded["splits"].values()):
            self.kept = True
        if isinstance(error, NoDocuments):
            self.kept = False  # it would end alike
        if not self.kept:
            unfinished.remove(self.args.out)

    def finish(self):
        args, skipped = self.args, documents.Skipped(**self.done["skipped"])
        held = self.done["splits"]
        if not held[args.split_name]["documents"]:
            left_out = f"; left out: {skipped}" if skipped.counts else ""
            raise NoDocuments(f"no document for '{args.split_name}' in {', '.join(args.input)}{left_out}; check the input, "
                              "--text-field and --val-fraction")  # fmt: skip
        if args.val_fraction > 0 and not held[args.held_out]["documents"]:
            raise NoDocuments(f"--val-fraction {args.val_fraction} chose none of {held[args.split_name]['documents']} documents; "
                              f"use a larger one, or prepare a file of its own with --split-name {args.held_out}")  # fmt: skip
        inputs = {"inputs": [os.path.abspath(path) for path in self.paths],
                  "fingerprints": [documents.fingerprint(path) for path in self.paths]}
        for split, writer in self.writers.items():
            writer.finish()
            counts = {key: held[split][key] for key in ("documents", "tokens", "bytes")}
            self.meta["splits"][split] = counts | {"shards": len(writer.names)} | inputs
        self.meta["splits"][args.split_name]["skipped"] = skipped.sorted_counts()
        unfinished.write(args.out, self.run, self.done, self.meta)
        self.recorded = self.done

    def publish(self):
        """Gives everything its name. Cut off at any moment it can be done again."""
        out = self.args.out
        tokenizer = os.path.join(out, unfinished.TOKENIZER)
        if self.meta["tokenizer_sha256"] is None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(tokenizer)  # of shards that this run has replaced
        elif os.path.exists(tokenizer + ".tmp"):
            os.replace(tokenizer + ".tmp", tokenizer)
        for split in self.writes:
            publish_shards(out, split, self.meta["splits"][split]["shards"])
        write_whole(os.path.join(out, "meta.json"), (json.dumps(self.meta, indent=2) + "\n").encode())
        unfinished.remove(out)
        if self.done["skipped"]["counts"]:
            say(f"left out: {documents.Skipped(**self.done['skipped'])}")
        for split in self.writes:
            held = self.meta["splits"][split]
            print(f"{out}/{split}_*.bin: {held['tokens']:,} tokens of {held['documents']:,} documents "
                  f"({held['bytes']:,} bytes of text) in {held['shards']} {self.meta['dtype']} shards")  # fmt: skip


class NoDocuments(UserError):
    """The input is read to its end and there is nothing to write."""


def tokenized(blocks, work, workers):
    """Yields (block, what the work made of it) in the blocks' order."""
    if workers > 1 or work.tokenizer.json_bytes is not None:
        yield from ordered_answers(blocks, workers, work)
        return
    work.begin()
    for block in blocks:
        yield block, work(block)


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
        "they hold. Every document begins with a token of its own, see --begin-token.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--input", nargs="+", action="extend", required=True, metavar="FILE",
                        help="files or patterns, read in this order; may be given several times")  # fmt: skip
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
    parser.add_argument("--held-out", choices=SPLITS[1:], default="val",
                        help="the split that --val-fraction fills (default: val); 'test' beside a validation file of its own")  # fmt: skip
    parser.add_argument("--eot-token", metavar="TOKEN",
                        help="the end-of-text token of a Hugging Face tokenizer, its text or number (default: <|endoftext|> "
                        "or, where it has none, its eos token)")  # fmt: skip
    parser.add_argument("--begin-token", metavar="TOKEN",
                        help="what documents begin with: a token's text or number, or 'none' for the end-of-text token "
                        "(default: what the tokenizer itself puts before a text, such as <s>, else the end-of-text token). "
                        "Behind a begin token of their own, documents end with the end-of-text token")  # fmt: skip
    parser.add_argument("--on-error", choices=("stop", "skip"), default="stop",
                        help="what to do about a row that is broken: not JSON, not UTF-8, its text not a string (default: "
                        "stop). Rows whose text is null, missing or empty are left out and counted in any case")  # fmt: skip
    parser.add_argument("--train-bpe-mbytes", type=at_least(1), default=1000, metavar="N",
                        help="at most so much text is read to train the BPE (default: 1000)")  # fmt: skip
    parser.add_argument("--workers", type=at_least(1), default=len(os.sched_getaffinity(0)), metavar="N",
                        help="processes; the output does not depend on it (default: one a core)")  # fmt: skip
    parser.add_argument("--engine", choices=("auto", "library", "switchyard"), default="auto",
                        help="what turns text into the tokens of a tokenizer.json: Hugging Face's library, or build/switchyard "
                        "(or SWITCHYARD_BIN), which finds the same ones (default: switchyard where it is built and agrees with "
                        "the library on the first documents)")  # fmt: skip
    begun = parser.add_mutually_exclusive_group()
    begun.add_argument("--resume", action="store_true",
                       help="go on with a run that was interrupted or killed, or begin where there is none; the output is that of "
                       "an undisturbed run")  # fmt: skip
    begun.add_argument("--overwrite", action="store_true", help="replace the shards of this split, whole or unfinished")
    args = parser.parse_args(argv)
    if args.val_fraction > 0 and args.split_name == args.held_out:
        parser.error(f"--val-fraction does not go with --split-name {args.held_out}: all of it is held out")
    if args.val_fraction == 0 and args.held_out != "val":
        parser.error(f"--held-out {args.held_out} needs --val-fraction, the share of documents that it gets")
    if args.train_bpe is not None and args.split_name != "train":
        parser.error(f"--train-bpe does not go with --split-name {args.split_name}: give the tokenizer.json that train was "
                     "made with")  # fmt: skip
    if args.train_bpe is not None and (args.eot_token is not None or args.begin_token is not None):
        parser.error("--eot-token and --begin-token do not go with --train-bpe, whose one special token is <|endoftext|>")
    return args


def main(argv=None):
    args = parse_arguments(argv)
    run = None
    try:
        run = Preparation(args, expand_inputs(args.input), [args.split_name] + ([args.held_out] if args.val_fraction > 0 else []))
        run.prepare()
        return 0
    except UserError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        what = error.filename or args.out
        message = f"error: {what}: {error.strerror or error}; check the path, its permissions and the free space"
        code = 2
    except WorkerDied:
        message = "error: a worker process was killed, most likely for want of memory; use fewer --workers"
        code = 1
    except KeyboardInterrupt:
        message, code = "interrupted" if run and run.kept else "interrupted; nothing was kept", 130
    kept = "; what was done is kept: the same command with --resume goes on from there" if run and run.kept else ""
    say(message + kept)
    return code


def interrupt(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)  # so that what was begun is put in order then as well
    sys.exit(main())
