#!/usr/bin/env python3
"""Makes lines of JSON of Parquet files, a row a line, as `switchyard eval --task` reads them: X.parquet becomes X.jsonl.

Needs the Python module pyarrow. A file that is there already is replaced only with --overwrite.
"""

import argparse
import contextlib
import json
import math
import os
import sys

from console import UserError, missing_module

ROWS = 1024


def plain(value):
    """What JSON has a word for: a number that is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: plain(member) for key, member in value.items()}
    return [plain(member) for member in value] if isinstance(value, list) else value


def convert(path, overwrite):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise missing_module("pyarrow", f"{path}: reading Parquet") from None
    if not path.endswith(".parquet"):
        raise UserError(f"{path}: its name does not end in .parquet")
    out = path.removesuffix(".parquet") + ".jsonl"
    if os.path.exists(out) and not overwrite:
        raise UserError(f"{out}: is there already; remove it or give --overwrite")
    rows = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file, open(out + ".part", "w", encoding="utf-8") as lines:
            for batch in file.iter_batches(batch_size=ROWS):
                for row in batch.to_pylist():
                    lines.write(json.dumps(plain(row), ensure_ascii=False, allow_nan=False) + "\n")
                    rows += 1
    except (pyarrow.ArrowException, TypeError, OSError) as error:
        with contextlib.suppress(OSError):
            os.remove(out + ".part")
        if isinstance(error, OSError) and error.errno is not None:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if isinstance(error, TypeError):
            raise UserError(f"{path}: a column has no form in JSON ({reason}); write the file without it") from None
        raise UserError(f"{path}: cannot be read as Parquet ({reason}); fetch or make the file again") from None
    os.replace(out + ".part", out)
    print(f"{out}: {rows} rows")


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", metavar="FILE.parquet", nargs="+")
    parser.add_argument("--overwrite", action="store_true")
    args = parser.parse_args(argv)
    try:
        for path in args.files:
            convert(path, args.overwrite)
        return 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or '?'}: {error.strerror or error}; check the path", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
