"""What prepare_data.py's workers do: blocks of documents to tokens, and the training of a BPE."""

import hashlib
import json
import os
import threading
from dataclasses import dataclass, field

import documents
import text_tokenizer

ALPHABET = 257  # tokens of a byte-level BPE without merges: end-of-text and the bytes


@dataclass
class Tally:
    """What a split holds. `bytes` are those of the documents' text in UTF-8."""

    documents: int = 0
    tokens: int = 0
    bytes: int = 0
    packed: list = field(default_factory=list)  # token bytes, in the order of the documents


def is_validation(utf8_text, fraction):
    """Chosen by content, so that the same document is always on the same side, and copies of it as well."""
    digest = hashlib.blake2b(utf8_text, digest_size=8).digest()
    return int.from_bytes(digest, "little") < fraction * 2**64


@dataclass
class BlockTokenizer:
    """Called with a block: -> (tally of train, tally of val, documents.Skipped)"""

    tokenizer: object
    text_field: str
    val_fraction: float
    skip_broken: bool

    def begin(self, _=None):
        self.packer = self.tokenizer.open()

    def __call__(self, block):
        found, skipped = documents.documents_of(block, self.text_field, self.skip_broken)
        train, val = Tally(), Tally()
        width = 2 if self.tokenizer.dtype == "uint16" else 4
        texts, encoded = [text for text, _ in found], [data for _, data in found]
        for data, packed in zip(encoded, self.packer.pack(texts, encoded)):
            tally = val if self.val_fraction > 0 and is_validation(data, self.val_fraction) else train
            tally.documents += 1
            tally.tokens += len(packed) // width
            tally.bytes += len(data)
            tally.packed.append(packed)
        for tally in (train, val):
            tally.packed = [b"".join(tally.packed)]
        return train, val, skipped


@dataclass
class BpeTraining:
    """Called with None: -> (tokenizer.json, whether some text was left out). A byte-level BPE of `vocab_size` tokens,
    end-of-text (token 0) and the 256 bytes among them.

    While it works it reports (stage, done, total); of the text that is read in bytes, then of the merges.
    """

    paths: list
    text_field: str
    val_fraction: float
    skip_broken: bool
    vocab_size: int
    most_bytes: int

    def begin(self, report):
        self.report = report

    def _texts(self):
        """The documents that will be trained on, up to `most_bytes` of them."""
        self.cut = False
        all_bytes = max(sum(os.path.getsize(path) for path in self.paths), 1)
        before = taken = 0
        for path in self.paths:
            for block in documents.read_blocks(path, self.text_field):
                for text, data in documents.documents_of(block, self.text_field, self.skip_broken)[0]:
                    if self.val_fraction > 0 and is_validation(data, self.val_fraction):
                        continue
                    if taken + len(data) > self.most_bytes:
                        self.cut = True
                        return
                    taken += len(data)
                    yield text
                # How much text all files hold is seen from how much those read so far held.
                expected = taken * all_bytes // max(before + block.position, 1)
                self.report(("text", taken, min(expected, self.most_bytes)))
            before += os.path.getsize(path)

    def _follow(self, lines):
        """The library tells its progress in lines of JSON on standard error."""
        merges = max(self.vocab_size - ALPHABET, 0)  # the library counts the alphabet as well
        for line in lines:
            try:
                told = json.loads(line)
                stage = told["stage"].lower()
                self.report((stage, told["current"], min(told["total"], merges) if "merges" in stage else told["total"]))
            except (ValueError, KeyError, TypeError):
                os.write(1, line)  # where standard error was before, see workers.serve

    def __call__(self, _):
        tokenizers = text_tokenizer.import_tokenizers()
        from tokenizers import decoders, models, pre_tokenizers, trainers

        model = tokenizers.Tokenizer(models.BPE())
        model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        model.decoder = decoders.ByteLevel()
        follows = hasattr(trainers.BpeTrainer, "progress_format")  # older versions draw bars alone
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[text_tokenizer.END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=follows,
            **({"progress_format": "json"} if follows else {}),
        )
        reading, writing = os.pipe()
        os.dup2(writing, 2)
        os.close(writing)
        threading.Thread(target=self._follow, args=(os.fdopen(reading, "rb"),), daemon=True).start()
        model.train_from_iterator(self._texts(), trainer=trainer)
        return model.to_str(pretty=True).encode(), self.cut
