"""Text -> packed tokens: the built-in byte tokenizer, or one of Hugging Face's.

A document becomes [end-of-text, its tokens...], as in llm.c: the token begins a document, delimits it from the one
before, and is the first thing that a model sees.
"""

import hashlib
import json
import os
import sys

from console import UserError, missing_module
from shards import dtype_for, pack_tokens

END_OF_TEXT = "<|endoftext|>"
# Tokens with which known tokenizers end a text, looked for in this order after tokenizer_config.json's eos_token.
KNOWN_EOT = ("<|end_of_text|>", "<｜end▁of▁sentence｜>", "</s>", "<eos>", "<|eos|>", "[EOS]", "[SEP]")


class ByteTokenizer:
    """Byte values 0..255 are the tokens, 256 is end-of-text."""

    name = "bytes"
    sha256 = None
    json_bytes = None
    vocab_size = 257
    eot_token = 256
    dtype = "uint16"
    _EOT_HIGH_BYTE = 1  # 256 = 0x0100, little-endian

    def pack(self, texts, utf8_texts):
        """-> one bytes object a document."""
        packed = []
        for data in utf8_texts:
            document = bytearray(2 * (len(data) + 1))
            document[1] = self._EOT_HIGH_BYTE
            document[2::2] = data
            packed.append(document)
        return packed


class HuggingFaceTokenizer:
    """A tokenizer.json. Text that spells a special token is tokenized as text, never as that token."""

    def __init__(self, name, json_bytes, eot_text, beside=None):
        tokenizers = import_tokenizers()
        try:
            self.model = tokenizers.Tokenizer.from_str(json_bytes.decode())
        except Exception as error:  # the library raises plain Exception
            raise UserError(f"{name}: not a tokenizer.json that this version of tokenizers reads ({error})") from None
        self.model.no_truncation()
        self.model.no_padding()
        self.model.encode_special_tokens = True
        self.name = name
        self.json_bytes = json_bytes
        self.sha256 = hashlib.sha256(json_bytes).hexdigest()
        self.vocab_size = max(self.model.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.dtype = dtype_for(self.vocab_size)
        self.eot_token = self._find_eot(eot_text, beside)

    def _find_eot(self, eot_text, beside):
        if eot_text is not None:
            candidates = [eot_text]
        else:
            candidates = [END_OF_TEXT, *_configured_eos(beside), *KNOWN_EOT]
        for text in candidates:
            token = self.model.token_to_id(text)
            if token is not None:
                return token
        looked_for = ", ".join(candidates)
        raise UserError(f"{self.name}: no end-of-text token ({looked_for}) in its vocabulary; name it with --eot-token")

    def pack(self, texts, utf8_texts):
        encodings = self.model.encode_batch(texts, add_special_tokens=False)
        return [pack_tokens([self.eot_token, *encoding.ids], self.dtype) for encoding in encodings]


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


def load_tokenizer(name, eot_text=None):
    """`name`: "bytes", a tokenizer.json, a directory that holds one, or a name on the Hugging Face hub."""
    if name == "bytes":
        if eot_text is not None:
            raise UserError("--eot-token does not go with --tokenizer bytes, whose end-of-text token is 256")
        return ByteTokenizer()
    path = os.path.join(name, "tokenizer.json") if os.path.isdir(name) else name
    if os.path.exists(path):
        with open(path, "rb") as file:
            return HuggingFaceTokenizer(name, file.read(), eot_text, os.path.dirname(path) or ".")
    tokenizers = import_tokenizers()
    if path != name or name.endswith(".json") or name.startswith((".", "/", "~")):
        raise UserError(f"{path}: no such tokenizer; give 'bytes', a tokenizer.json, its directory or a hub name")
    try:
        text = tokenizers.Tokenizer.from_pretrained(name).to_str()
    except Exception as error:  # the library and the hub client raise many kinds
        reason = (str(error).splitlines() or ["no reason given"])[0]
        raise UserError(
            f"--tokenizer {name}: neither a file here nor to be had from the hub ({reason}); download it and give the path"
        ) from None
    return HuggingFaceTokenizer(name, text.encode(), eot_text)


def train_bpe(texts, vocab_size):
    """Trains a byte-level BPE of `vocab_size` tokens, end-of-text (token 0) and the 256 bytes among them."""
    tokenizers = import_tokenizers()
    from tokenizers import decoders, models, pre_tokenizers, trainers

    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=sys.stderr.isatty(),
    )
    model.train_from_iterator(texts, trainer=trainer)
    return HuggingFaceTokenizer(f"bpe-{vocab_size}", model.to_str(pretty=True).encode(), END_OF_TEXT)
