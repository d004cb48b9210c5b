"""Input files -> documents. Reading is split in two, so that the costly half can run in worker processes:

read_blocks(path, field)                -> Blocks of a file, in order: raw JSON lines, rows of a Parquet file, or a whole text
documents_of(block, field, skip_broken) -> the documents in a block, and a count of the rows that hold none
"""

import contextlib
import gzip
import hashlib
import io
import json
import os
import zlib
from dataclasses import dataclass

from console import UserError, missing_module

BLOCK_BYTES = 1 << 20  # of JSON lines: small enough to keep many workers busy, large enough to be worth sending
PARQUET_ROWS = 512

COMPRESSED = (".gz", ".zst")
JSON_LINES = (".json", ".jsonl", ".ndjson")
FORMATS = (
    ".parquet, .jsonl, .json, .ndjson (one JSON object a line), .txt or other UTF-8 text; all but Parquet also .gz and .zst"
)

# Endings of what is no text, and what to do with such a file.
_ADVICE = {
    "a table: convert it to .jsonl or .parquet":
        ".csv .tsv .xls .xlsx .ods .arrow .feather .orc .avro .db .sqlite .sqlite3 .tfrecord .mdb .duckdb",
    "an archive: unpack it and give the files in it": ".zip .tar .tgz .tbz .tbz2 .txz .tzst .7z .rar .jar .whl .deb .rpm .iso",
    "a compression that is not read: compress it as .gz or .zst": ".bz2 .xz .lz4 .lzma .br .z .lzo .snappy .sz",
    "a document that is not plain text: extract its text first":
        ".pdf .doc .docx .ppt .pptx .odt .odp .rtf .epub .mobi .djvu .ps",
    "a picture, sound or film: there is no text to train on":
        ".png .jpg .jpeg .gif .bmp .tif .tiff .webp .ico .heic .mp3 .wav .flac .ogg .mp4 .mkv .avi .mov .webm",
    "numbers, tokens or weights: give the text that they were made from":
        ".bin .idx .npy .npz .pt .pth .ckpt .safetensors .gguf .ggml .onnx .h5 .hdf5 .pkl .pickle .msgpack .mat",
    "a program: give its source": ".exe .dll .so .o .a .class .pyc .wasm",
}  # fmt: skip
UNSUPPORTED = {ending: advice for advice, endings in _ADVICE.items() for ending in endings.split()}

# How a file begins that is not what its name says.
_POINTER = "a Git LFS pointer, not the file itself; run git lfs install, then git lfs pull"
_WEB_PAGE = "a web page or a server's message, not data; fetch the file again and look at what was saved"
_CONTENTS = (
    (b"PK\x03\x04", "a zip archive; unpack it and give the files in it"),
    (b"%PDF-", "a PDF; extract its text first"),
    (b"\x1f\x8b", "compressed by gzip; give it a name that ends in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; give it a name that ends in .zst"),
    (b"BZh91AY&SY", "compressed by bzip2; compress it as .gz or .zst"),
    (b"\xfd7zXZ", "compressed by xz; compress it as .gz or .zst"),
    (b"PAR1\x15", "Parquet; give it a name that ends in .parquet"),
    (b"ARROW1\0\0", "an Arrow file; convert it to .parquet"),
)
_OWN_BEGINNING = {".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".parquet": b"PAR1"}

# Rows that hold no text, which are left out and counted; any other reason is that of a broken row.
WITHOUT_TEXT = ("null", "missing", "empty")


@dataclass
class Block:
    path: str
    kind: str  # "json", "rows" or "text"
    first: int  # number of the first line or row, from 1
    data: object  # json: bytes, rows: list of bytes or None, text: bytes
    position: int  # bytes of the input read so far, for the progress display
    place: tuple = (0, 0)  # where it ends: number of the file from 0, blocks of that file including this one


class RowError(Exception):
    """A row that is no document. `reason` is the word it is counted under; the text says what is there."""

    def __init__(self, reason, text):
        super().__init__(text)
        self.reason = reason


class Skipped:
    """Rows that were left out: for each reason how many, and the first of them in the order of the input."""

    def __init__(self, counts=None, firsts=None):
        self.counts = counts or {}
        self.firsts = firsts or {}

    def add(self, reason, example, count=1):
        self.counts[reason] = self.counts.get(reason, 0) + count
        self.firsts.setdefault(reason, example)

    def merge(self, later):
        for reason, count in later.counts.items():
            self.add(reason, later.firsts[reason], count)

    def sorted_counts(self):
        return dict(sorted(self.counts.items()))

    def has_broken(self):
        return any(reason not in WITHOUT_TEXT for reason in self.counts)

    def __str__(self):
        parts = (f"{count} {reason} (first: {self.firsts[reason]})" for reason, count in self.sorted_counts().items())
        return "; ".join(parts)


def _endings(path):
    """-> (the ending that says what is inside, that of the compression or "")"""
    stem, last = os.path.splitext(os.path.basename(path).lower())
    return (os.path.splitext(stem)[1], last) if last in COMPRESSED else (last, "")


def kind_of(path):
    """"parquet", "json" or "text", by the file's name."""
    ending, compression = _endings(path)
    if ending in UNSUPPORTED:
        raise UserError(f"{path}: unknown format '{ending}' ({UNSUPPORTED[ending]}); known are {FORMATS}")
    if ending == ".parquet":
        if compression:
            raise UserError(f"{path}: unknown format '{ending}{compression}'; decompress it: Parquet is compressed within")
        return "parquet"
    return "json" if ending in JSON_LINES else "text"


def check_file(path):
    """Refuses a file by its name or by how it begins, before any work is done."""
    kind_of(path)
    if os.path.isfile(path):  # a pipe cannot be looked into twice
        with open(path, "rb") as file:
            _check_beginning(path, file.read(512), _endings(path)[1])


def fingerprint(path):
    """Tells a file from one of other content: its size, and a hash of its first and last MiB (gzip has a sum of all at its end).
    None of a pipe."""
    if not os.path.isfile(path):
        return None
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        ends = hashlib.sha256(file.read(1 << 20))
        file.seek(max(size - (1 << 20), 0))
        ends.update(file.read(1 << 20))
    return f"{size}-{ends.hexdigest()}"


def _check_beginning(path, data, compression):
    """`data`: how the file begins; `compression`: "" where that is what is inside."""
    kind = kind_of(path)
    own = _OWN_BEGINNING.get(compression or _endings(path)[0])
    if own and data.startswith(own):
        return
    what = None
    if data.startswith(b"version https://git-lfs"):
        what = _POINTER
    elif (kind != "text" or compression) and data.lstrip()[:9].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        what = _WEB_PAGE  # an uncompressed text file may be a page that is meant
    else:
        what = next((content for magic, content in _CONTENTS if data.startswith(magic)), None)
        if what is None and data[257:262] == b"ustar":
            what = "a tar archive; unpack it and give the files in it"
    if what:
        raise UserError(f"{path}: is {what}")


@contextlib.contextmanager
def _decompressed(path, raw):
    """The content of an open file. Corrupt and truncated ones are errors of the reading."""
    if path.lower().endswith(".gz"):
        with gzip.GzipFile(fileobj=raw) as file:
            yield file
    elif path.lower().endswith(".zst"):
        pyarrow = _import_pyarrow(f"{path}: reading .zst")
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd") as stream:
            yield io.BufferedReader(_Readable(path, stream), BLOCK_BYTES)
    else:
        yield raw


class _Readable(io.RawIOBase):
    """Arrow's stream as a raw file, with its errors told as ours."""

    def __init__(self, path, stream):
        self.path, self.stream = path, stream

    def readable(self):
        return True

    def readinto(self, buffer):
        try:
            data = self.stream.read(len(buffer))
        except OSError as error:  # Arrow's own have no errno; those of the file keep theirs
            if error.errno is not None:
                raise
            advice = "fetch or make the file again"
            if "too much memory" in str(error):
                advice = "it was made with --long; decompress it by zstd -d --long=31 and compress it without"
            raise UserError(f"{self.path}: corrupt or truncated zstd ({_first_line(error)}); {advice}") from None
        buffer[: len(data)] = data
        return len(data)


def _position(raw):
    return raw.tell() if raw.seekable() else 0


def read_blocks(path, field):
    kind = kind_of(path)
    if kind == "parquet":
        yield from _parquet_blocks(path, field)
        return
    if _endings(path)[1] and os.path.isfile(path) and os.path.getsize(path) == 0:
        kind = {".gz": "gzip"}.get(_endings(path)[1], "zstd")
        raise UserError(f"{path}: truncated {kind} (it is empty); fetch or make the file again")
    try:
        with open(path, "rb") as raw, _decompressed(path, raw) as file:
            if kind == "text":
                data = file.read()
                _check_beginning(path, data[:512], "")
                yield Block(path, kind, 1, data, _position(raw))
                return
            line = 1
            while True:
                data = file.read(BLOCK_BYTES)
                if not data and line > 1:
                    return
                data += file.readline()
                if line == 1:
                    _check_beginning(path, data[:512], "")
                yield Block(path, kind, line, data, _position(raw))
                line += data.count(b"\n")
                if not data:
                    return  # an empty file is one block, so that it is counted
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: corrupt or truncated gzip ({error}); fetch or make the file again") from None


def _import_pyarrow(needed_for):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_module("pyarrow", needed_for) from None
    return pyarrow


def _first_line(error):
    return (str(error).splitlines() or [type(error).__name__])[0]


def _parquet_blocks(path, field):
    pyarrow = _import_pyarrow(f"{path}: reading Parquet")
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            _check_column(pyarrow, path, schema, field)
            size, done = os.path.getsize(path), 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
                texts = _column_bytes(pyarrow, batch.column(0))
                yield Block(path, "rows", done + 1, texts, size * (done + len(texts)) // max(rows, 1))
                done += len(texts)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({_first_line(error)}); fetch or make the file again") from None


def _check_column(pyarrow, path, schema, field):
    if schema.names.count(field) > 1:
        raise UserError(f"{path}: {schema.names.count(field)} columns have the name '{field}'; write the file with one")
    if field not in schema.names:
        raise UserError(f"{path}: no column '{field}'; it has {', '.join(schema.names)}; name the text with --text-field")
    if _is_text(pyarrow, schema.field(field).type):
        return
    texts = [column.name for column in schema if _is_text(pyarrow, column.type)]
    advice = f"text is in {', '.join(texts)}: name one with --text-field" if texts else "no column of this file is text"
    raise UserError(f"{path}: column '{field}' is {schema.field(field).type}, not text; {advice}")


def _is_text(pyarrow, column):
    """Whether an Arrow type holds text, or bytes that may be text."""
    if isinstance(column, pyarrow.BaseExtensionType):
        return _is_text(pyarrow, column.storage_type)
    if pyarrow.types.is_dictionary(column):
        return _is_text(pyarrow, column.value_type)
    names = ("null", "string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    tests = (getattr(pyarrow.types, "is_" + name, None) for name in names)  # the views are missing in old versions
    return any(test(column) for test in tests if test)


def _column_bytes(pyarrow, column):
    """The values of a column of text as bytes, None where they are null."""
    if isinstance(column, pyarrow.ExtensionArray):
        return _column_bytes(pyarrow, column.storage)
    if pyarrow.types.is_dictionary(column.type):
        return _column_bytes(pyarrow, column.dictionary_decode())
    return [value.as_buffer().to_pybytes() if value.is_valid else None for value in column]


def documents_of(block, field, skip_broken):
    """-> ([(text, its UTF-8 bytes)], Skipped). A broken row is an error, unless such rows are to be skipped."""
    documents, skipped = [], Skipped()
    if block.kind == "json" and not block.data:
        skipped.add("empty", f"{block.path}: has no row")
    read = {"json": _json_text, "rows": _row_text, "text": _file_text}[block.kind]
    for where, raw in _rows(block):
        try:
            text, data = utf8(read(raw, field))
            if not data:
                raise RowError("empty", f"'{field}' is empty" if block.kind != "text" else "empty")
            documents.append((text, data))
        except RowError as error:
            example = f"{where}: {error}"
            if error.reason not in WITHOUT_TEXT and not skip_broken:
                raise UserError(f"{example}; mend it, or leave such rows out with --on-error skip") from None
            skipped.add(error.reason, example)
    if block.first == 1 and not skip_broken and list(skipped.counts) == ["missing"] and not documents:
        raise UserError(f"{skipped.firsts['missing']}; no row at the file's beginning has it; name the text with --text-field")
    return documents, skipped


def _rows(block):
    """(where, raw row), without blank lines."""
    if block.kind == "rows":
        for number, value in enumerate(block.data, block.first):
            yield f"{block.path}: row {number}", value
    elif block.kind == "json":
        for number, line in enumerate(block.data.split(b"\n"), block.first):
            if line and not line.isspace():
                yield f"{block.path}:{number}", line
    else:
        yield block.path, block.data


def _decoded(data, what, codec="utf-8"):
    try:
        return data.decode(codec)
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"{what} is not UTF-8 text (byte {error.start})") from None


def _file_text(data, _):
    if b"\0" in data:
        raise RowError("not text", f"unknown format (not text: it holds zero bytes); known are {FORMATS}")
    return _decoded(data, "the file", "utf-8-sig")


def _row_text(value, field):
    if value is None:
        raise RowError("null", f"'{field}' is null")
    return _decoded(value, f"'{field}'")


def _json_text(line, field):
    try:
        record = json.loads(line)
    except UnicodeDecodeError as error:
        raise RowError("not UTF-8", f"not UTF-8 (byte {error.start} of the line)") from None
    except (ValueError, RecursionError) as error:
        raise RowError("not JSON", f"malformed JSON ({error}); one JSON object a line is expected") from None
    if not isinstance(record, dict):
        raise RowError("not an object", f"a JSON {_json_name(record)}; one JSON object a line is expected")
    if field not in record:
        fields = ", ".join(record) or "no field at all"
        raise RowError("missing", f"no field '{field}'; it has {fields}")
    text = record[field]
    if text is None:
        raise RowError("null", f"'{field}' is null")
    if not isinstance(text, str):
        strings = [name for name, value in record.items() if isinstance(value, str)]
        others = f"; strings are in {', '.join(strings)} (--text-field)" if strings else ""
        raise RowError("not a string", f"'{field}' is a JSON {_json_name(text)}, not a string{others}")
    return text


def _json_name(value):
    names = {dict: "object", list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def utf8(text):
    """-> (text, its UTF-8 bytes). Half surrogate pairs, which JSON can spell but UTF-8 cannot, become U+FFFD."""
    try:
        return text, text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text, text.encode()
