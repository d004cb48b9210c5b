"""Input files -> documents. Reading is split in two, so that the costly half can run in worker processes:

read_blocks(path, field)   -> Blocks of a file, in order: raw JSON lines, rows of a Parquet file, or a whole text
texts_of(block, field)     -> the documents in a block, as (text, where) with where = "file:line" for errors
"""

import gzip
import json
import os
import zlib
from dataclasses import dataclass

from console import UserError, missing_module

BLOCK_BYTES = 1 << 20  # of JSON lines: small enough to keep many workers busy, large enough to be worth sending
PARQUET_ROWS = 512

FORMATS = ".parquet, .jsonl, .json, .ndjson (one JSON object a line), .txt or other UTF-8 text; all but Parquet also .gz"
UNSUPPORTED = (".zst", ".bz2", ".xz", ".lz4", ".zip", ".tar", ".tgz", ".7z", ".arrow", ".bin", ".safetensors")


@dataclass
class Block:
    path: str
    kind: str  # "json", "rows" or "text"
    first: int  # number of the first line or row, from 1
    data: object  # json: bytes, rows: list, text: bytes
    position: int  # bytes of the input file read so far, for the progress display


def kind_of(path):
    """"parquet", "json" or "text", by the file's name."""
    name = os.path.basename(path).lower()
    stem = name[:-3] if name.endswith(".gz") else name
    extension = os.path.splitext(stem)[1]
    if extension in UNSUPPORTED or (extension == ".parquet" and stem != name):
        raise UserError(f"{path}: unknown format '{extension}'; known are {FORMATS}")
    if extension == ".parquet":
        return "parquet"
    return "json" if extension in (".json", ".jsonl", ".ndjson") else "text"


def read_blocks(path, field):
    kind = kind_of(path)
    if kind == "parquet":
        yield from _parquet_blocks(path, field)
        return
    try:
        with open(path, "rb") as raw:
            file = gzip.GzipFile(fileobj=raw) if path.lower().endswith(".gz") else raw
            if kind == "text":
                yield Block(path, kind, 1, file.read(), raw.tell())
                return
            line = 1
            while True:
                data = file.read(BLOCK_BYTES)
                if not data:
                    return
                data += file.readline()
                yield Block(path, kind, line, data, raw.tell())
                line += data.count(b"\n")
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"{path}: corrupt or truncated gzip ({error}); fetch or make the file again") from None


def _parquet_blocks(path, field):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_module("pyarrow", f"{path}: reading Parquet") from None
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            if field not in schema.names:
                raise UserError(
                    f"{path}: no column '{field}'; it has {', '.join(schema.names)}; name the text with --text-field"
                )
            column = schema.field(field).type
            if not (pyarrow.types.is_string(column) or pyarrow.types.is_large_string(column)):
                raise UserError(f"{path}: column '{field}' is {column}, not text; name the text with --text-field")
            size, done = os.path.getsize(path), 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS, columns=[field]):
                texts = batch.column(0).to_pylist()
                yield Block(path, "rows", done + 1, texts, size * (done + len(texts)) // max(rows, 1))
                done += len(texts)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); fetch or make the file again") from None


def texts_of(block, field):
    if block.kind == "rows":
        for row, text in enumerate(block.data, block.first):
            yield _checked(text, field, f"{block.path}: row {row}"), f"{block.path}: row {row}"
    elif block.kind == "json":
        for number, line in enumerate(block.data.split(b"\n"), block.first):
            if line and not line.isspace():
                where = f"{block.path}:{number}"
                yield _json_text(line, field, where), where
    else:
        if b"\0" in block.data:
            raise UserError(f"{block.path}: unknown format (not text: it holds zero bytes); known are {FORMATS}")
        try:
            yield block.data.decode("utf-8-sig"), block.path
        except UnicodeDecodeError as error:
            raise UserError(
                f"{block.path}: not UTF-8 text (byte {error.start}); convert it, or use one of {FORMATS}"
            ) from None


def _json_text(line, field, where):
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: malformed JSON ({error}); one JSON object a line is expected") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a JSON {type(record).__name__}; one JSON object a line is expected")
    if field not in record:
        fields = ", ".join(record) or "no field at all"
        raise UserError(f"{where}: no field '{field}'; it has {fields}; name the text with --text-field")
    return _checked(record[field], field, where)


def _checked(text, field, where):
    if not isinstance(text, str):
        raise UserError(f"{where}: '{field}' is {type(text).__name__}, not a string; name the text with --text-field")
    return text


def utf8(text):
    """-> (text, its UTF-8 bytes). Half surrogate pairs, which JSON can spell but UTF-8 cannot, become U+FFFD."""
    try:
        return text, text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        return text, text.encode()
