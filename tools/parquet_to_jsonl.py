#!/usr/bin/env python3
"""Makes lines of JSON of Parquet files, a row a line, as `switchyard eval --task` reads them: X.parquet becomes X.jsonl.

Needs the Python module pyarrow. A file that is there already is replaced only with --overwrite.
"""

import argparse
import json
import os
import sys

from console import UserError, missing_module

ROWS = 1024


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
                    lines.write(json.dumps(row, ensure_ascii=False) + "\n")
                    rows += 1
    except (pyarrow.ArrowException, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        os.remove(out + ".part")
        raise UserError(f"{path}: cannot be written as JSON ({reason}); fetch the file again") from None
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
