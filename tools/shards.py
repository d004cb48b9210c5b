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

SPLITS = ("train", "val", "test")
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

    They are written as *.bin.tmp; `publish` gives all of them their names. `place` says how far it is, and a writer of
    the same options that is given this place goes on from there.
    """

    def __init__(self, directory, split, dtype, shard_tokens, place=None):
        self.directory, self.split, self.dtype = directory, split, dtype
        self.magic, self.version, self.width = FORMATS[dtype]
        self.shard_bytes = shard_tokens * self.width
        self.names = []  # the final ones
        self.file = None
        self.room = 0  # bytes left in the open shard
        if place:
            self._go_on(place)
        for stale in set(unfinished_shards(directory, split)) - {name + ".tmp" for name in self.names}:
            os.remove(stale)

    def place(self):
        return {"shards": len(self.names), "bytes_in_last": self.shard_bytes - self.room if self.names else 0}

    def _name(self, number):
        return os.path.join(self.directory, f"{self.split}_{number:06d}.bin")

    def _go_on(self, place):
        """Raises ValueError where the files do not reach to the place."""
        self.names = [self._name(number) for number in range(place["shards"])]
        for name in self.names:
            body = place["bytes_in_last"] if name == self.names[-1] else self.shard_bytes
            size = os.path.getsize(name + ".tmp")
            if size < HEADER_BYTES + body:
                raise ValueError(f"{name}.tmp: has {size} bytes of {HEADER_BYTES + body}")
        if self.names:
            self.file = open(self.names[-1] + ".tmp", "r+b")
            self.file.truncate(HEADER_BYTES + place["bytes_in_last"])
            self.file.seek(0, os.SEEK_END)
            self.room = self.shard_bytes - place["bytes_in_last"]

    def write(self, packed):
        view = memoryview(packed)
        while view:
            if self.room == 0:
                self.finish()
                self._start()
            piece = view[: self.room]
            self.file.write(piece)
            self.room -= len(piece)
            view = view[len(piece) :]

    def _start(self):
        name = self._name(len(self.names))
        self.file = open(name + ".tmp", "wb")
        self.names.append(name)
        self.file.write(bytes(HEADER_BYTES))
        self.room = self.shard_bytes

    def sync(self):
        """What was written is on the disk then."""
        if self.file is not None:
            self.file.flush()
            os.fsync(self.file.fileno())

    def finish(self):
        """The open shard is whole then."""
        if self.file is None:
            return
        tokens = (self.shard_bytes - self.room) // self.width
        self.file.seek(0)
        self.file.write(struct.pack("<3i", self.magic, self.version, tokens))
        self.sync()
        self.file.close()
        self.file = None

    def close(self):
        if self.file is not None:
            try:
                self.file.close()
            except OSError:
                pass  # a full disk: what is left in the buffer is not wanted
            self.file = None


def unfinished_shards(directory, split):
    return glob.glob(os.path.join(glob.escape(directory), f"{split}_*.bin.tmp"))


def publish_shards(directory, split, count):
    """Gives the finished shards of a split their names. Those of this split from before are replaced, all of them.
    Cut off at any moment it can be called again."""
    names = [os.path.join(directory, f"{split}_{number:06d}.bin") for number in range(count)]
    for name in names:
        if os.path.exists(name + ".tmp"):
            os.replace(name + ".tmp", name)
    for old in set(shard_files(directory, split)) - set(names):
        os.remove(old)
