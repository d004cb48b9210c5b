"""llm.c's token shards: a header of 256 little-endian int32 (magic, version, token count, zeros), then the tokens.

    dtype    magic     version  for vocabularies of
    uint16   20240520  1        up to 65,536
    uint32   20240801  7        more
"""

import glob
import os
import struct
import sys
from array import array

HEADER_BYTES = 1024
FORMATS = {"uint16": (20240520, 1, 2), "uint32": (20240801, 7, 4)}  # magic, version, bytes a token
ARRAY_CODE = {"uint16": "H", "uint32": "I"}
MAX_SHARD_TOKENS = 2**31 - 1  # the header's count is an int32


def dtype_for(vocab_size):
    return "uint16" if vocab_size <= 65536 else "uint32"


def pack_tokens(tokens, dtype):
    """A sequence of ints -> the bytes of a shard."""
    packed = array(ARRAY_CODE[dtype], tokens)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def shard_files(directory, split):
    return sorted(glob.glob(os.path.join(glob.escape(directory), f"{split}_*.bin")))


def read_shard(path):
    """-> (dtype, tokens as an array). Raises ValueError for what is not a whole shard."""
    with open(path, "rb") as file:
        header, body = file.read(HEADER_BYTES), file.read()
    if len(header) < HEADER_BYTES:
        raise ValueError(f"{path}: too small for a header")
    magic, version, count = struct.unpack_from("<3i", header)
    for dtype, (known_magic, known_version, width) in FORMATS.items():
        if (magic, version) == (known_magic, known_version):
            if len(body) != count * width:
                raise ValueError(f"{path}: {count} tokens in the header, {len(body)} bytes of tokens")
            tokens = array(ARRAY_CODE[dtype])
            tokens.frombytes(body)
            if sys.byteorder == "big":
                tokens.byteswap()
            return dtype, tokens
    raise ValueError(f"{path}: magic {magic} version {version} is not a token shard")


class ShardWriter:
    """Cuts a stream of packed tokens into shards SPLIT_000000.bin, ... of `shard_tokens` each.

    They are written as *.bin.tmp; `publish` gives all of them their names, `discard` removes them.
    """

    def __init__(self, directory, split, dtype, shard_tokens):
        self.directory, self.split, self.dtype = directory, split, dtype
        self.magic, self.version, self.width = FORMATS[dtype]
        self.shard_bytes = shard_tokens * self.width
        self.names = []  # the final ones
        self.file = None
        self.room = 0  # bytes left in the open shard
        for stale in glob.glob(os.path.join(glob.escape(directory), f"{split}_*.bin.tmp")):
            os.remove(stale)

    def write(self, packed):
        view = memoryview(packed)
        while view:
            if self.room == 0:
                self._finish()
                self._start()
            piece = view[: self.room]
            self.file.write(piece)
            self.room -= len(piece)
            view = view[len(piece) :]

    def _start(self):
        name = os.path.join(self.directory, f"{self.split}_{len(self.names):06d}.bin")
        self.file = open(name + ".tmp", "wb")
        self.names.append(name)
        self.file.write(bytes(HEADER_BYTES))
        self.room = self.shard_bytes

    def _finish(self):
        if self.file is None:
            return
        tokens = (self.shard_bytes - self.room) // self.width
        self.file.seek(0)
        self.file.write(struct.pack("<3i", self.magic, self.version, tokens))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.file = None

    def finish(self):
        self._finish()

    def publish(self):
        """Call `finish` first. Shards of this split from before are replaced, all of them."""
        for old in shard_files(self.directory, self.split):
            os.remove(old)
        for name in self.names:
            os.replace(name + ".tmp", name)

    def discard(self):
        if self.file is not None:
            try:
                self.file.close()
            except OSError:
                pass  # a full disk: what is left in the buffer is not wanted
            self.file = None
        for name in self.names:
            try:
                os.remove(name + ".tmp")
            except FileNotFoundError:
                pass
