#!/usr/bin/env python3
"""Makes tokenizer.json files and the tokens that Hugging Face's `tokenizers` finds with them, for
tests/tokenizer_*_test.cpp to compare with: in the styles of GPT-2, Llama-3, Qwen2 and Mixtral, and one file a construct
(tokenizer_constructs.py).

  tools/check_tokenizer.py                               rewrites tests/tokenizers (small: it is part of the tests)
  tools/check_tokenizer.py --corpus 'c4*.json.gz' --out /tmp/t && SWITCHYARD_TOKENIZERS=/tmp/t build/tests/tokenizer_test
                                                         compares on texts of a corpus, with larger vocabularies
  tools/check_tokenizer.py --random 500 --seed 7         compares build/switchyard on random constructs and texts
  tools/check_tokenizer.py --code-points                 and on every code point
"""

import argparse
import glob
import gzip
import json
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import tokenizer_constructs as constructs
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

ROOT = Path(__file__).resolve().parent.parent
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")

TRICKY = [
    "", " ", "a", "Hello world", "  two leading spaces", "trailing  ", "tabs\t\tand\nnew\n\nlines\r\nCRLF\r\n",
    "I'm sure they'll say it's DON'T, WE'VE, y'all'd", "1234567890 3.14159 12,345 ½ ² ٣٤٥", "don’t “quote” — dash…",
    "Ünïcödé café cafe\u0301 e\u0301\u0327 A\u030a Å", "Привет, мир! Γειά σου Κόσμε", "你好，世界。こんにちは 안녕하세요 \u1112\u1161\u11ab",
    "नमस्ते दुनिया שלום مرحبا ไทย", "😀👍🏽👨‍👩‍👧‍👦🇩🇪 text", "\u00a0nbsp\u2003em\u3000wide\u180evowel\u0085next",
    "control \x00\x01\x7f bytes \ufeff bom", "<|endoftext|>start<|endoftext|> mid <|end", "<s>not</s> special?<unk>",
    "def f(x):\n    return x**2  # comment\n\n\n", "▁meta space▁", "x" * 70 + " " * 20 + "y", "ſ'S 'ſ K\u212a",
    "ﬁ ligature \u1e9b\u0323 \u0344 \ud55c\uae00", "\U0001d54f \U00020000 \u0378",
]
TRAINING = TRICKY + [
    "The court held that the contract was void, and that the plaintiff's claim should be dismissed.",
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all",
] * 4


def byte_level(trainer_size, texts, pre, normalizer=None, post=None, special=("<|endoftext|>",), plain=()):
    model = Tokenizer(models.BPE())
    if normalizer:
        model.normalizer = normalizer
    model.pre_tokenizer = pre
    model.decoder = decoders.ByteLevel()
    model.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=trainer_size, special_tokens=list(special), show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())))
    model.add_tokens(list(plain))
    if post:
        model.post_processor = post(model)
    return model


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def template(token):
    return lambda model: processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single=f"{token} $A", special_tokens=[(token, model.token_to_id(token))])])


def mixtral(size, texts):
    specials = ["<unk>", "<s>", "</s>"]
    model = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    model.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    model.pre_tokenizer = pre_tokenizers.Metaspace("▁", "never")  # so that training sees words; taken away below
    model.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=size, special_tokens=specials + [f"<0x{b:02X}>" for b in range(256)], limit_alphabet=60,
        show_progress=False))
    data = json.loads(model.to_str())
    data["pre_tokenizer"] = None
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] in specials]
    data["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    data["post_processor"] = {
        "type": "TemplateProcessing", "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    # The older form of merges: "a b".
    data["model"]["merges"] = [" ".join(m) if isinstance(m, list) else m for m in data["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(data)), json.dumps(data, ensure_ascii=False)


def styles(size, texts):
    gpt2 = byte_level(size, texts, pre_tokenizers.ByteLevel(add_prefix_space=False))
    prefix = byte_level(size, texts, pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=True)]))
    llama = byte_level(size, texts, split(LLAMA3), special=("<|begin_of_text|>", "<|end_of_text|>"),
                       post=template("<|begin_of_text|>"))
    data = json.loads(llama.to_str())
    data["model"]["ignore_merges"] = True
    llama = Tokenizer.from_str(json.dumps(data))
    qwen = byte_level(size, texts, split(QWEN2), normalizers.NFC(), special=("<|endoftext|>", "<|end"),
                      plain=(AddedToken("plaintiff", normalized=True), AddedToken("world", normalized=False)))
    result = {name: (model, model.to_str()) for name, model in
              (("gpt2", gpt2), ("prefix_digits", prefix), ("llama3", llama), ("qwen2", qwen))}
    result["mixtral"] = mixtral(size, texts)
    return result


def corpus_texts(pattern, limit):
    texts, total = [], 0
    paths = sorted(glob.glob(pattern))
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            share = 0
            for line in file:
                text = json.loads(line)["text"]
                texts.append(text)
                share += len(text)
                if share > limit / len(paths):
                    break
            total += share
    return texts, total


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n")


def tokens_of(model, text, **options):
    try:
        return model.encode(text, **options).ids
    except BaseException as error:  # a panic of the library's, which is no Exception
        if isinstance(error, KeyboardInterrupt):
            raise
        return None


def decoding_case(model, ids, continued):
    """What `ids` are as text; behind other text, so that nothing is done to a text's beginning."""
    if not continued:
        return model.decode(ids)
    before = [model.token_to_id("z")] * 2
    text = model.decode(before + ids)
    assert text.startswith("zz"), text
    return text[2:]


def write_constructs(directory):
    base, cases = constructs.base(), []
    for name, change in constructs.constructs():
        try:
            model = Tokenizer.from_str(json.dumps(constructs.changed(base, change)))
        except Exception as error:
            cases.append({"name": name, "change": change, "refused": str(error)})
            continue
        plain = [tokens_of(model, text, add_special_tokens=False) for text in constructs.TEXTS]
        framed = [tokens_of(model, text) for text in constructs.TEXTS]
        case = {"name": name, "change": change, "tokens": plain}
        cases.append(case if framed == plain else {**case, "with_special": framed})
    rng, decoding = random.Random(5), []
    for name, decoder, continued in constructs.decoders():
        model = Tokenizer.from_str(json.dumps(constructs.changed(base, {"decoder": decoder}) | {"decoder": decoder}))
        # Half of the tokens are bytes: such as are no ASCII, or named ones.
        most, some = (512, range(180, 256)) if "byte level" in name else (784, range(512, 768))
        ids = [[rng.choice([rng.randrange(most), rng.choice(some)]) for _ in range(rng.randrange(1, 30))]
               for _ in range(12)]
        decoding.append({"name": name, "decoder": decoder, "tokens": ids,
                         "texts": [decoding_case(model, one, continued) for one in ids]})
    write_json(directory / "constructs.json", {"tokenizers": tokenizers.__version__, "base": base,
                                               "texts": constructs.TEXTS, "cases": cases, "decoding": decoding})
    for folder, files in (("supported", constructs.supported()), ("refused", constructs.refused())):
        shutil.rmtree(directory / folder, ignore_errors=True)
        for i, (name, change) in enumerate(files):
            write_json(directory / folder / f"{name}={i}.json", constructs.changed(constructs.tiny(), change))
    print(f"{len(cases)} constructs, {len(constructs.TEXTS)} texts")


# --- a built binary against the library ---------------------------------------------------------------------------

def tokens_of_program(path, texts):
    """What `switchyard tokenize` finds: as many lists as it gets to."""
    documents = b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)
    binary = os.environ.get("SWITCHYARD_BIN", str(ROOT / "build" / "switchyard"))
    out = subprocess.run([binary, "tokenize", path], input=documents, capture_output=True).stdout
    tokens, at = [], 0
    while at < len(out):
        count, = struct.unpack_from("<I", out, at)
        tokens.append(list(struct.unpack_from(f"<{count}I", out, at + 4)))
        at += 4 + 4 * count
    return tokens


def differences(change, texts, directory):
    """The texts whose tokens differ; None where only one of the two reads the file."""
    path, content = os.path.join(directory, "tokenizer.json"), json.dumps(constructs.changed(constructs.base(), change))
    Path(path).write_text(content)
    try:
        model = Tokenizer.from_str(content)
    except Exception:
        return None if tokens_of_program(path, ["a"]) else []
    found, wrong = tokens_of_program(path, texts), []
    if not found and not tokens_of_program(path, ["a"]):
        return None
    for i, text in enumerate(texts):
        # The program ends at a text on which it fails.
        ours = found[i] if i < len(found) else (tokens_of_program(path, [text]) or [None])[0]
        if ours != tokens_of(model, text, add_special_tokens=False):
            wrong.append(text)
    return wrong


def compare_random(count, seed):
    rng, bad, refused = random.Random(seed), 0, 0
    with tempfile.TemporaryDirectory() as directory:
        for i in range(count):
            change = constructs.random_change(rng)
            wrong = differences(change, [constructs.random_text(rng) for _ in range(25)], directory)
            if wrong is None:
                refused += 1
                print(f"read by one of the two alone: {json.dumps(change, ensure_ascii=False)}")
            elif wrong:
                bad += len(wrong)
                print(f"{ascii(wrong[0])}: {json.dumps(change, ensure_ascii=False)}")
    print(f"{count} files, {25 * count} texts: {bad} differ; {refused} files are read by one of the two alone")
    return 1 if bad else 0


def compare_code_points():
    codes, bad = [chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000], 0
    with tempfile.TemporaryDirectory() as directory:
        for name, change in constructs.constructs_of_properties():
            texts = ["".join(f"B{c}\u0323 " for c in codes[i:i + 512]) for i in range(0, len(codes), 512)]
            wrong = differences(change, texts, directory)
            bad += len(wrong)
            print(f"{name}: {len(wrong)} of {len(texts)} blocks of code points differ", flush=True)
    return 1 if bad else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "tests" / "tokenizers")
    parser.add_argument("--corpus", help="C4 files; without, only the texts of this file")
    parser.add_argument("--characters", type=int, default=3_000_000, help="of the corpus")
    parser.add_argument("--random", type=int, metavar="FILES", help="compare a built binary on so many random files")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--code-points", action="store_true", help="compare a built binary on every code point")
    arguments = parser.parse_args()
    if arguments.random:
        sys.exit(compare_random(arguments.random, arguments.seed))
    if arguments.code_points:
        sys.exit(compare_code_points())
    texts, training, size = TRICKY, TRAINING, 420
    if arguments.corpus:
        more, total = corpus_texts(arguments.corpus, arguments.characters)
        if not more:
            sys.exit(f"check_tokenizer.py: --corpus {arguments.corpus}: no such file")
        print(f"{len(more)} texts, {total} characters")
        texts, training, size = TRICKY + more, TRICKY + more, 8000
    else:
        write_constructs(arguments.out)
    for name, (model, text) in styles(size, training).items():
        cases = []
        for one in texts:
            ids, plain = model.encode(one).ids, model.encode(one, add_special_tokens=False).ids
            case = {"text": one, "ids": ids, "ids_without_special": plain}
            if name in ("gpt2", "llama3") and "<|" not in one:
                case["bytes_back"] = one
            cases.append(case)
        directory = arguments.out / name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(json.dumps(json.loads(text), ensure_ascii=False, separators=(",", ":")))
        (directory / "cases.json").write_text(json.dumps(
            {"tokenizers": tokenizers.__version__, "cases": cases}, ensure_ascii=False, separators=(",", ":")) + "\n")
        print(f"{name}: {model.get_vocab_size()} tokens, {len(cases)} texts")


if __name__ == "__main__":
    main()
