#!/usr/bin/env python3
"""Fetches public data: tasks for `switchyard eval --task`, and text for tools/prepare_data.py.

Without a name it lists what it knows. A file is written under a name that ends in .part, and gets its own once its size is
what the server says; a fetch that was cut short goes on where it stopped. What is there is left as it is.
"""

import argparse
import http.client
import json
import os
import sys
import urllib.error
import urllib.request
import zipfile
from dataclasses import dataclass

from console import Progress, UserError, human_bytes

GITHUB = "https://raw.githubusercontent.com"
HUB = "https://huggingface.co/datasets"
TIMEOUT = 60  # seconds without a byte
PIECE = 1 << 20
CONVERT = "then: tools/parquet_to_jsonl.py {directory}/*.parquet"


@dataclass(frozen=True)
class File:
    url: str
    name: str  # below the data set's directory
    size: int | None = None  # bytes, where known before the server is asked


@dataclass(frozen=True)
class DataSet:
    about: str
    files: tuple
    afterwards: str = ""  # what is left to do, {directory}
    finish: object = None  # a function of the directory: what to make of the files, -> paths


def join_piqa(directory):
    """PIQA's questions and answers lie in two files each; joins their lines."""
    path = os.path.join(directory, "physicaliqa-train-dev.zip")
    try:
        return joined_piqa(directory, path)
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: {error}; remove it and fetch it again") from None


def joined_piqa(directory, path):
    made = []
    with zipfile.ZipFile(path) as archive:
        members = {os.path.basename(name): name for name in archive.namelist() if "__MACOSX" not in name}
        for split in ("train", "dev"):
            try:
                questions = archive.read(members[f"{split}.jsonl"]).decode().splitlines()
                labels = archive.read(members[f"{split}-labels.lst"]).decode().split()
            except KeyError as error:
                raise UserError(f"{archive.filename}: has no {error}; the archive is not the one expected") from None
            if len(questions) != len(labels):
                raise UserError(f"{archive.filename}: {split} has {len(questions)} questions and {len(labels)} labels")
            path = os.path.join(directory, f"{split}.jsonl")
            with open(path + ".part", "w", encoding="utf-8") as out:
                for question, label in zip(questions, labels):
                    out.write(json.dumps({**json.loads(question), "label": int(label)}, ensure_ascii=False) + "\n")
            os.replace(path + ".part", path)
            made.append(path)
    return made


BBH = ("boolean_expressions", "causal_judgement", "date_understanding", "disambiguation_qa", "formal_fallacies",
       "geometric_shapes", "hyperbaton", "logical_deduction_five_objects", "logical_deduction_seven_objects",
       "logical_deduction_three_objects", "movie_recommendation", "navigate", "object_counting", "penguins_in_a_table",
       "reasoning_about_colored_objects", "ruin_names", "salient_translation_error_detection", "snarks",
       "sports_understanding", "temporal_sequences", "tracking_shuffled_objects_five_objects",
       "tracking_shuffled_objects_seven_objects", "tracking_shuffled_objects_three_objects", "web_of_lies")


def hub_files(repository, *names):
    return tuple(File(f"{HUB}/{repository}/resolve/main/{name}", name.replace("/", "_").replace("-00000-of-00001", ""))
                 for name in names)


DATA_SETS = {
    "hellaswag": DataSet("HellaSwag, 10,042 validation questions and the training questions for shots", (
        File(f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_val.jsonl", "hellaswag_val.jsonl", 12246618),
        File(f"{GITHUB}/rowanz/hellaswag/master/data/hellaswag_train.jsonl", "hellaswag_train.jsonl", 47496131))),
    "arc": DataSet("ARC-Easy and ARC-Challenge, test and train", hub_files(
        "allenai/ai2_arc", *(f"{part}/{split}-00000-of-00001.parquet" for part in ("ARC-Easy", "ARC-Challenge")
                             for split in ("test", "train"))), CONVERT),
    "piqa": DataSet("PIQA, 1,838 validation questions (dev.jsonl) and train.jsonl", (
        File("https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip",
             "physicaliqa-train-dev.zip"),), finish=join_piqa),
    "mmlu": DataSet("MMLU, all subjects: test, and dev for shots", hub_files(
        "cais/mmlu", "all/test-00000-of-00001.parquet", "all/dev-00000-of-00001.parquet"), CONVERT),
    "bbh": DataSet("BIG-Bench Hard's multiple choice, a file a task", tuple(
        File(f"{GITHUB}/suzgunmirac/BIG-Bench-Hard/main/bbh/{name}.json", f"{name}.json") for name in BBH)),
    "gsm8k": DataSet("GSM8K, 1,319 test questions and train for shots", tuple(
        File(f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data/{split}.jsonl", f"{split}.jsonl", size)
        for split, size in (("test", 749738), ("train", 4166206)))),
    "c4-validation": DataSet("C4's English validation set, 8 files", tuple(
        File(f"{HUB}/allenai/c4/resolve/main/en/c4-validation.{i:05}-of-00008.json.gz",
             f"c4-validation.{i:05}-of-00008.json.gz") for i in range(8)),
        "then: tools/prepare_data.py --input '{directory}/*.json.gz' --split-name val --tokenizer bytes --out data/c4"),
    "fineweb": DataSet("a slice of FineWeb's 10-billion-token sample: its first file", (
        File(f"{HUB}/HuggingFaceFW/fineweb/resolve/main/sample/10BT/000_00000.parquet", "000_00000.parquet",
             2147292183),),
        "then: tools/prepare_data.py --input {directory}/000_00000.parquet --tokenizer bytes --val-fraction 0.001 "
        "--out data/fineweb"),
}


def say(text=""):
    print(text, flush=True)


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     epilog="data sets:\n" + "\n".join(listed()))
    parser.add_argument("names", metavar="NAME", nargs="*", help="data sets; 'all': every one")
    parser.add_argument("--out", metavar="DIR", default="data", help="each goes into a directory of its name in it "
                        "(default: data)")
    parser.add_argument("--dry-run", action="store_true", help="say what would be fetched, and ask no server")
    parser.add_argument("--replace", metavar="FROM=TO", action="append", default=[],
                        help="another beginning of addresses, as of a mirror: https://huggingface.co=https://MIRROR")
    return parser.parse_args(argv)


def listed():
    width = max(map(len, DATA_SETS))
    return [f"  {name:<{width}}  {data.about}" for name, data in DATA_SETS.items()]


def address(url, replacements):
    for text in replacements:
        old, equals, new = text.partition("=")
        if not equals or not old or not new:
            raise UserError(f"--replace {text}: must be FROM=TO")
        if url.startswith(old):
            url = new + url[len(old):]
    return url


def read_record(path):
    """What is known of a file that was begun, or {}."""
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        return record if isinstance(record, dict) else {}
    except (OSError, ValueError):
        return {}


def opened(url, begun, validator):
    """-> (answer, how many bytes of the file lie before it, bytes of the whole file or None)."""
    headers = {"User-Agent": "switchyard get_data.py", "Accept-Encoding": "identity"}
    if begun:
        headers |= {"Range": f"bytes={begun}-", "If-Range": validator}  # anew, where the file is another one by now
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    length = answer.headers.get("Content-Length")
    total = int(length) if length else None
    if answer.status != 206:
        return answer, 0, total
    first, _, whole = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
    if first.partition("-")[0] != str(begun):
        raise UserError(f"{url}: was asked for what follows byte {begun} and sent {first or 'something else'}; "
                        "remove the .part file and try again")
    return answer, begun, int(whole) if whole.isdigit() else (begun + total if total is not None else None)


def fetch(url, path, noted):
    """Fetches a file, on from what is there of it. -> its size."""
    part, record_path = path + ".part", path + ".part.json"
    record = read_record(record_path)
    begun = os.path.getsize(part) if os.path.exists(part) and record.get("url") == url and record.get("validator") else 0
    try:
        try:
            answer, begun, total = opened(url, begun, record.get("validator"))
        except urllib.error.HTTPError as error:
            if error.code != 416 or not begun:
                raise
            if error.headers.get("Content-Range") == f"bytes */{begun}":  # all of it is there but for its name
                os.replace(part, path)
                os.remove(record_path)
                return begun
            begun = 0  # more than the server has
            answer, begun, total = opened(url, begun, None)
    except urllib.error.HTTPError as error:
        raise UserError(f"{url}: {error.code} {error.reason}; check the address, or give another with --replace") from None
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise UserError(f"{url}: {getattr(error, 'reason', error)}; check the network") from None
    except http.client.InvalidURL as error:
        raise UserError(f"{url}: is no address ({error}); check --replace") from None
    except http.client.HTTPException as error:
        raise UserError(f"{url}: gave no answer in HTTP ({error!r}); check the address, or try again") from None
    except ValueError as error:
        raise UserError(f"{url}: is no address ({error}); check --replace") from None
    if noted is not None and total is not None and total != noted:
        say(f"  the server's file has {total:,} bytes, where {noted:,} are noted here: it has changed")
    # Of a weak validator a server may not say whether bytes are the same.
    validator = answer.headers.get("ETag") or answer.headers.get("Last-Modified") or ""
    with open(record_path, "w", encoding="utf-8") as file:
        json.dump({"url": url, "validator": "" if validator.startswith("W/") else validator}, file)
    if begun:
        say(f"  goes on behind {human_bytes(begun)}")
    done, progress = begun, Progress(total or 1, begun=begun)
    try:
        with answer, open(part, "ab" if begun else "wb") as file:
            while data := answer.read(PIECE):
                file.write(data)
                done += len(data)
                if total:
                    progress.update(done, human_bytes(done))
            file.flush()
            os.fsync(file.fileno())
    except (TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise UserError(f"{url}: {error or type(error).__name__} after {done:,} bytes; the same command goes on from there") from None
    finally:
        progress.close()
    if total is not None and done < total:
        raise UserError(f"{url}: ended after {done:,} of {total:,} bytes; the same command goes on from there")
    if total is not None and done > total:
        os.remove(part)
        raise UserError(f"{url}: gave {done:,} bytes where {total:,} were announced; nothing was kept")
    if total is None and noted is not None and done != noted:
        # Without an announced length an end is like a broken connection.
        raise UserError(f"{url}: ended after {done:,} bytes, and the server announced no length; {noted:,} are noted here: "
                        "nothing was kept but the .part file; try again, or another address with --replace")  # fmt: skip
    os.replace(part, path)
    os.remove(record_path)
    return done


def get(name, args):
    data = DATA_SETS[name]
    directory = os.path.join(args.out, name)
    say(f"{name}: {data.about}")
    if not args.dry_run:
        os.makedirs(directory, exist_ok=True)
    for file in data.files:
        url, path = address(file.url, args.replace), os.path.join(directory, file.name)
        size = "size not known here" if file.size is None else f"{file.size:,} bytes"
        if os.path.exists(path):
            say(f"  {path}: is there, {os.path.getsize(path):,} bytes")
        elif args.dry_run:
            begun = f", of which {os.path.getsize(path + '.part'):,} bytes are there" if os.path.exists(path + ".part") else ""
            say(f"  {url} -> {path} ({size}{begun})")
        else:
            say(f"  {url} -> {path}")
            say(f"  {path}: {fetch(url, path, file.size):,} bytes")
    if data.finish and args.dry_run:
        say("  then unpacks it")
    elif data.finish:
        for path in data.finish(directory):
            say(f"  {path}: made")
    if data.afterwards:
        say("  " + data.afterwards.format(directory=directory))


def main(argv=None):
    args = parse_arguments(argv)
    try:
        for text in args.replace:
            address("", [text])
        names = list(DATA_SETS) if args.names == ["all"] else args.names
        for name in names:
            if name not in DATA_SETS:
                raise UserError(f"{name}: no data set; there are {', '.join(DATA_SETS)}, and 'all'")
        if not names:
            say("\n".join(["data sets:", *listed()]))
        for name in names:
            get(name, args)
        return 0
    except UserError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        message, code = f"error: {error.filename or args.out}: {error.strerror or error}; check the path and the free space", 2
    except KeyboardInterrupt:
        message, code = "interrupted; the same command goes on from there", 130
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
