"""Runs of our own, exported, as `transformers` and switchyard read them: text, and routers. Used by check_export.py."""

import array
import hashlib
import json
import struct
import subprocess

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

SENTENCES = ("The court held that the claim was barred.", "A naive reading, then: \u00e9t\u00e9, \u65e5\u672c\u8a9e and \U0001f600.",
             "def f(x):\n    return x + 1\n", "  Two spaces,\ttabs, and 1,234 numbers.")
PROMPTS = ("The court held that", "  two  spaces\nand lines", "caf\u00e9 \u65e5\u672c \U0001f600!", "x")
# More than one expert a token where a router can; the second holds back what an expert takes.
ROUTERS = ({"type": "lpr", "bias": "quantile"}, {"type": "top_p"}, {"type": "dynamic_k"}, {"type": "quantile"},
           {"type": "expert_threshold"}, {"type": "kmeans"}, {"capacity_factor": 0.75})


def byte_tokenizer():
    return None, lambda text: list(text.encode()), 256, 256


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, 0, 0


def mixtral_like():
    """Words by Metaspace, bytes as a last resort, <s> before a text: data are `<s> text </s>`."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["\u2581"] + [chr(c) for c in range(33, 127)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, 1, 2


TOKENIZERS = {"bytes": byte_tokenizer, "byte-level BPE": byte_level_bpe, "BPE that begins with <s>": mixtral_like}


def write_data(place, make):
    """A shard of the sentences, over and over, and its meta.json and tokenizer.json."""
    tokenizer, encode, begin, end = make()
    documents = [[begin, *encode(text), *([end] if begin != end else [])] for text in SENTENCES]
    tokens = [token for _ in range(40) for document in documents for token in document]
    place.mkdir()
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    (place / "train_000000.bin").write_bytes(header + array.array("H", tokens).tobytes())
    content = b"bytes" if tokenizer is None else tokenizer.to_str().encode()
    if tokenizer is not None:
        (place / "tokenizer.json").write_bytes(content)
    (place / "meta.json").write_text(json.dumps({
        "tokenizer": "bytes" if tokenizer is None else "made here", "eot_token": end, "begin_token": begin,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(), "vocab_size": max(tokens) + 1}))


def switchyard(binary, *arguments):
    return subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True, text=True)


def train(binary, place, model, make, router, steps):
    """A run of a few steps in place/run, exported to place/exported."""
    write_data(place / "data", make)
    config = {"model": {**model, "vocab_size": 384}, "router": router, "data": {"train": [str(place / "data/train*.bin")]},
              "train": {"steps": steps, "seq_len": 32, "micro_batch_size": 4, "lr": 0.01}, "parallel": {"threads": 2}}
    (place / "run.json").write_text(json.dumps(config))
    switchyard(binary, "train", place / "run.json", "--out", place / "run")
    return switchyard(binary, "export", place / "run", "--out", place / "exported").stderr


def generated(binary, directory, prompt):
    report = json.loads(switchyard(binary, "generate", directory, "--prompt", prompt, "--greedy", "--max-new-tokens", 16,
                                   "--json").stdout)
    return report["prompt_tokens"], report["tokens"], report["text"]


def check_text(binary, place, model, make):
    """The run, its export and transformers on the export: the same tokens of a prompt, the same greedy text."""
    train(binary, place, model, make, {}, 60)
    exported = place / "exported"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ours = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    problems = []
    for prompt in PROMPTS:
        of_run, of_export = generated(binary, place / "run", prompt), generated(binary, exported, prompt)
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            whole = ours.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)[0].tolist()
        text = tokenizer.decode(whole, skip_special_tokens=True)[len(tokenizer.decode(ids, skip_special_tokens=True)):]
        theirs = (ids, whole[len(ids):], text)
        if of_run != of_export:
            problems.append(f"{prompt!r}: the run gives {of_run}, its export {of_export}")
        if of_export != theirs:
            problems.append(f"{prompt!r}: switchyard gives {of_export}, transformers {theirs}")
    if tokenizer.eos_token_id != ours.generation_config.eos_token_id:
        problems.append(f"eos is {tokenizer.eos_token_id}, in generation_config {ours.generation_config.eos_token_id}")
    return problems


def check_router(binary, place, model, router):
    """transformers refuses a router that it does not compute; switchyard computes it from the export alone."""
    said = train(binary, place, model, byte_tokenizer, router, 3)
    exported, problems = place / "exported", []
    if "--as-layout" not in said:
        problems.append(f"export does not warn: {said!r}")
    refused = f"switchyard_{model['model_type']}"
    for directory in (exported, place / "run" / "checkpoints" / "latest"):
        try:
            AutoModelForCausalLM.from_pretrained(directory)
            problems.append(f"from_pretrained opens {directory.name}")
        except ValueError as error:
            if refused not in str(error):
                problems.append(f"from_pretrained says {str(error)[:200]!r}")
    data = ("--data", place / "data/train_000000.bin", "--seq-len", 32, "--json", "-")
    losses = [json.loads(switchyard(binary, "eval", directory, *data).stdout)["loss"]
              for directory in (place / "run", exported)]
    if losses[0] != losses[1]:
        problems.append(f"the run's loss is {losses[0]}, its export's {losses[1]}")
    switchyard(binary, "export", exported, "--as-layout", "--out", place / "plain")
    AutoModelForCausalLM.from_pretrained(place / "plain")
    return problems


def cases(models):
    """(title, check of a binary in a place), over the layouts."""
    for layout, model in models.items():
        for name, make in TOKENIZERS.items():
            yield f"{layout}, text by {name}", lambda *at, model=model, make=make: check_text(*at, model, make)
        for router in ROUTERS:
            yield f"{layout}, router {json.dumps(router)}", lambda *at, model=model, router=router: check_router(
                *at, model, router)
