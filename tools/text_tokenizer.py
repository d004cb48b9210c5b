"""Text -> packed tokens: the built-in byte tokenizer, or a tokenizer.json of Hugging Face's.

A document begins with the begin token. Where that is the end-of-text token, as in llm.c, a document is [eot] text; where
the tokenizer begins texts with a token of its own (<s>), it is [begin] text [eot], so that a model learns to stop.

A tokenizer here is plain values that travel to workers; its `open` gives what turns text into tokens.
"""

import hashlib
import itertools
import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from urllib.parse import urlsplit

from console import UserError, missing_module
from shards import dtype_for, pack_tokens

END_OF_TEXT = "<|endoftext|>"
# Tokens with which known tokenizers end a text, looked for in this order after tokenizer_config.json's eos_token.
KNOWN_EOT = ("<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")

# What `switchyard generate` reads, where the program is not there to be asked.
READABLE = {
    "normalizer": "NFC NFD NFKC NFKD Lowercase Strip StripAccents Nmt BertNormalizer ByteLevel Prepend Replace Sequence",
    "pre_tokenizer": "ByteLevel Split Metaspace FixedLength Digits Punctuation WhitespaceSplit Whitespace CharDelimiterSplit "
                     "BertPreTokenizer Sequence",
    "post_processor": "TemplateProcessing RobertaProcessing BertProcessing ByteLevel Sequence",
    "decoder": "ByteLevel ByteFallback Fuse Strip Replace Metaspace BPEDecoder Sequence",
}  # fmt: skip
PARTS = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers", "post_processor": "processors", "decoder": "decoders"}

HUB_SECONDS = 5  # to reach the hub


class ByteTokenizer:
    """Byte values 0..255 are the tokens, 256 is end-of-text."""

    name = "bytes"
    sha256 = None
    json_bytes = None
    vocab_size = 257
    eot_token = begin_token = 256
    own_begin = ()
    dtype = "uint16"
    _EOT_HIGH_BYTE = 1  # 256 = 0x0100, little-endian

    def open(self):
        return self

    def pack(self, texts, utf8_texts):
        """-> one bytes object a document."""
        packed = []
        for data in utf8_texts:
            document = bytearray(2 * (len(data) + 1))
            document[1] = self._EOT_HIGH_BYTE
            document[2::2] = data
            packed.append(document)
        return packed


class FileTokenizer:
    """A tokenizer.json. Text that spells a special token is tokenized as text, never as that token.

    `eot`, `begin`: a token's text or number, or None for the tokenizer's own; begin may be "none" for the end-of-text token.
    `program`: the switchyard binary that is to tokenize, or None for Hugging Face's library.
    """

    program = None
    path = None  # where the program finds json_bytes

    def __init__(self, name, json_bytes, eot=None, begin=None, beside=None):
        self.name = name
        self.json_bytes = json_bytes
        self.sha256 = hashlib.sha256(json_bytes).hexdigest()
        data = _parse(name, json_bytes)
        _check_readable(name, data)
        tokens = _vocabulary(name, data)
        self.vocab_size = max(tokens.values(), default=-1) + 1
        self.dtype = dtype_for(self.vocab_size)
        self.eot_token = self._find_eot(tokens, eot, beside)
        self.own_begin = _template_begin(name, data.get("post_processor"))
        if begin == "none" or (begin is None and not self.own_begin):
            self.begin_token = self.eot_token
        elif begin is None:
            self.begin_token = self.own_begin[0]
        else:
            self.begin_token = self._named(tokens, begin)
            if self.begin_token is None:
                raise UserError(f"{name}: no token '{begin}' in its vocabulary; give --begin-token a token's text or number")
        if not 0 <= self.begin_token < self.vocab_size:
            raise UserError(f"{name}: its template begins with token {self.begin_token}, which is not in its vocabulary; use --begin-token")

    def _named(self, tokens, text):
        """A token by its number or its text."""
        if text.isdecimal():
            return int(text) if int(text) < self.vocab_size else None
        return tokens.get(text)

    def _find_eot(self, tokens, eot, beside):
        candidates = [eot] if eot is not None else [END_OF_TEXT, *_configured_eos(beside), *KNOWN_EOT]
        for text in candidates:
            token = tokens.get(text) if eot is None else self._named(tokens, text)
            if token is not None:
                return token
        looked_for = ", ".join(candidates)
        raise UserError(f"{self.name}: no end-of-text token ({looked_for}) in its vocabulary; name it with --eot-token")

    def frame(self):
        """-> (tokens before a text, tokens behind it)"""
        return [self.begin_token], [] if self.begin_token == self.eot_token else [self.eot_token]

    def open(self):
        return _Program(self) if self.program else _Library(self)


class _Library:
    def __init__(self, tokenizer):
        tokenizers = import_tokenizers()
        try:
            self.model = tokenizers.Tokenizer.from_str(tokenizer.json_bytes.decode())
        except Exception as error:  # the library raises plain Exception
            raise UserError(
                f"{tokenizer.name}: not a tokenizer.json that this version of tokenizers reads ({error})"
            ) from None
        self.model.no_truncation()
        self.model.no_padding()
        self.model.encode_special_tokens = True
        # Without offsets where the library can leave them out.
        self.encode = getattr(self.model, "encode_batch_fast", self.model.encode_batch)
        self.before, self.behind = tokenizer.frame()
        self.dtype = tokenizer.dtype

    def pack(self, texts, utf8_texts):
        encodings = self.encode(texts, add_special_tokens=False)
        return [pack_tokens([*self.before, *encoding.ids, *self.behind], self.dtype) for encoding in encodings]


class _Program:
    """`switchyard tokenize`, which ends when its input does."""

    def __init__(self, tokenizer):
        self.dtype = tokenizer.dtype
        self.before, self.behind = (pack_tokens(tokens, self.dtype) for tokens in tokenizer.frame())
        self.command = [tokenizer.program, "tokenize", "--special-as-text", tokenizer.path]
        self.process = subprocess.Popen(self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        start_new_session=True)  # fmt: skip

    def pack(self, texts, utf8_texts):
        if any(len(data) >= 1 << 32 for data in utf8_texts):
            raise UserError("a document has 4 GiB of text or more; cut it, or use --engine library")
        # Written by a thread: the program answers while it is given more.
        writer = threading.Thread(target=self._write, args=(utf8_texts,))
        writer.start()
        try:
            return [self._answer() for _ in utf8_texts]
        finally:
            writer.join()

    def _write(self, utf8_texts):
        try:
            for data in utf8_texts:
                self.process.stdin.write(len(data).to_bytes(4, "little"))
                self.process.stdin.write(data)
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the reader says so

    def _read(self, size):
        data = self.process.stdout.read(size)
        if len(data) < size:
            raise UserError(f"{' '.join(self.command)}: ended early, see above; use --engine library")
        return data

    def _answer(self):
        tokens = self._read(4 * int.from_bytes(self._read(4), "little"))
        if self.dtype == "uint16":
            tokens = memoryview(tokens).cast("H")[::2].tobytes()  # the low halves
        return self.before + tokens + self.behind

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        try:
            self.process.stdin.close()
        except BrokenPipeError:
            pass


def _parse(name, json_bytes):
    try:
        data = json.loads(json_bytes)
        if not isinstance(data["model"], dict):
            raise TypeError("'model' is not an object")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{name}: not a tokenizer.json ({error}); give Hugging Face's file of that name") from None
    return data


def _vocabulary(name, data):
    """-> {text: token}"""
    try:
        tokens = dict(data["model"]["vocab"])
        tokens.update((added["content"], added["id"]) for added in data.get("added_tokens") or [])
        if not all(type(token) is int for token in tokens.values()):
            raise TypeError("a token is not a number")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{name}: no vocabulary that can be read ({error}); give a whole tokenizer.json") from None
    return tokens


def _check_readable(name, data):
    """Refuses a tokenizer that generate could not read, before a model is trained on its tokens."""
    model = data["model"]
    kind = model.get("type", "BPE" if "merges" in model else None)
    if kind != "BPE":
        raise UserError(f"{name}: model.type: {kind} is not supported by switchyard generate; BPE is; use another tokenizer")
    if model.get("dropout"):
        raise UserError(
            f"{name}: model.dropout: is {model['dropout']}, which makes the tokens of a text random; set it to null"
        )
    for part in READABLE:
        for path, component in _components(data.get(part), part):
            kind = component.get("type") if isinstance(component, dict) else component
            if kind not in READABLE[part].split():
                known = ", ".join(READABLE[part].split())
                raise UserError(
                    f"{name}: {path}: {kind} is not supported by switchyard generate; {known} are; use another tokenizer"
                )


def _components(value, path):
    """Yields (JSON path, component) of a part of a tokenizer.json and of what is in its sequences."""
    if value is None:
        return
    yield path, value
    if isinstance(value, dict) and value.get("type") == "Sequence":
        inner = PARTS[path.split(".")[0]]
        for number, component in enumerate(value.get(inner) or []):
            yield from _components(component, f"{path}.{inner}[{number}]")


def _template_begin(name, post_processor):
    """The tokens that the tokenizer itself puts before a text."""
    adding = [(path, part) for path, part in _components(post_processor, "post_processor")
              if part["type"] not in ("Sequence", "ByteLevel")]  # fmt: skip
    if len(adding) > 1:
        raise UserError(f"{name}: {adding[1][0]}: a second part that adds tokens is not supported by switchyard generate; use "
                        "another tokenizer")  # fmt: skip
    tokens = []
    try:
        for _, part in adding:
            if part["type"] == "TemplateProcessing":
                before = itertools.takewhile(lambda piece: "SpecialToken" in piece, part["single"])
                for piece in before:
                    tokens += part["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
            else:  # RobertaProcessing, BertProcessing
                tokens.append(part["cls"][1])
        return [int(token) for token in tokens]
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise UserError(f"{name}: post_processor: malformed ({error}); mend it or use another tokenizer") from None


def _configured_eos(beside):
    """The eos_token of the tokenizer_config.json in a directory, if there is one."""
    path = beside and os.path.join(beside, "tokenizer_config.json")
    if not path or not os.path.exists(path):
        return []
    try:
        with open(path, encoding="utf-8") as file:
            eos = json.load(file).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise UserError(f"{path}: malformed ({error}); mend it or name the token with --eot-token") from None
    if isinstance(eos, dict):
        eos = eos.get("content")
    return [eos] if eos else []


def import_tokenizers():
    try:
        import tokenizers
    except ImportError:
        raise missing_module("tokenizers", "a tokenizer other than 'bytes'") from None
    return tokenizers


def load_tokenizer(name, eot=None, begin=None):
    """`name`: "bytes", a tokenizer.json, a directory that holds one, or a name on the Hugging Face hub."""
    if name == "bytes":
        for option, value in (("--eot-token", eot), ("--begin-token", begin)):
            if value is not None:
                raise UserError(f"{option} does not go with --tokenizer bytes, whose one special token is 256")
        return ByteTokenizer()
    path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
    if os.path.exists(path):
        with open(path, "rb") as file:
            return FileTokenizer(name, file.read(), eot, begin, os.path.dirname(path) or ".")
    if path != name or name.endswith(".json") or name.startswith((".", "/", "~")):
        raise UserError(f"{path}: no such tokenizer; give 'bytes', a tokenizer.json, its directory or a hub name")
    return FileTokenizer(name, _from_hub(name), eot, begin)


def _from_hub(name):
    tokenizers = import_tokenizers()
    unreachable = _hub_unreachable()
    if unreachable:
        os.environ["HF_HUB_OFFLINE"] = "1"  # what was fetched before is found; nothing is tried again and again
    try:
        return tokenizers.Tokenizer.from_pretrained(name).to_str().encode()
    except Exception as error:  # the library and the hub client raise many kinds
        reason = unreachable or (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"--tokenizer {name}: neither a file here nor to be had from the hub ({reason}); download it and give the path"
        ) from None


def _hub_unreachable():
    """Why the hub does not answer, or None where it does or cannot be asked directly."""
    if os.environ.get("HF_HUB_OFFLINE"):
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY")):
        return None
    hub = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    reason = [f"{hub.hostname} does not answer within {HUB_SECONDS} s"]

    def reach():
        try:
            port = hub.port or (80 if hub.scheme == "http" else 443)
            socket.create_connection((hub.hostname, port), HUB_SECONDS).close()
            reason[0] = None
        except OSError as error:
            reason[0] = f"{hub.hostname}: {error.strerror or error}"

    looking_up = threading.Thread(target=reach, daemon=True)  # names are looked up without a limit of time
    looking_up.start()
    looking_up.join(HUB_SECONDS)
    return reason[0]


# --- switchyard tokenize -----------------------------------------------------------------------------------------------


def find_program():
    """The switchyard binary that can tokenize, or None."""
    program = os.environ.get("SWITCHYARD_BIN") or str(Path(__file__).resolve().parent.parent / "build" / "switchyard")
    if not os.access(program, os.X_OK):
        return None
    try:
        asked = subprocess.run([program, "tokenize", "--help"], capture_output=True)
    except OSError:
        return None  # built for another machine
    return program if asked.returncode == 0 and b"--special-as-text" in asked.stdout else None


def check_with_program(program, name, path):
    """Refuses what the program does not read."""
    asked = subprocess.run([program, "tokenize", path], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if asked.returncode != 0:
        reason = (asked.stderr.strip().splitlines() or [f"exit code {asked.returncode}"])[-1]
        reason = reason.removeprefix("error: ").removeprefix(f"{path}: ")
        raise UserError(f"{name}: switchyard generate does not read it exactly: {reason}; use another tokenizer")
