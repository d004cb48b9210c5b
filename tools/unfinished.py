"""The record of a run of prepare_data.py that has not come to its end: OUT/unfinished.json.

It says with what the run was begun and how far its shards on the disk reach, so that a later run with the same options and
inputs goes on from there and ends with the same bytes. Beside it are the shards as *.bin.tmp and tokenizer.json.tmp.
"""

import json
import os

from console import UserError
from shards import SPLITS, unfinished_shards

NAME = "unfinished.json"
TOKENIZER = "tokenizer.json"


def write_whole(path, data):
    with open(path + ".tmp", "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + ".tmp", path)


def described_inputs(paths):
    """What tells whether an input has changed."""
    found = []
    for path in paths:
        status = os.stat(path)
        found.append({"path": path, "bytes": status.st_size, "modified_ns": status.st_mtime_ns})
    return found


def record_path(out):
    return os.path.join(out, NAME)


def read(out):
    """-> the record, or None."""
    path = record_path(out)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        for key in ("run", "done", "publishing"):
            record[key]
        return record
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}: {error}); begin anew with --overwrite") from None


def write(out, run, done, publishing=None):
    """`run`: what it was begun with; `done`: how far it is; `publishing`: the meta.json to be, once all shards are whole."""
    record = {"run": run, "done": done, "publishing": publishing}
    write_whole(record_path(out), (json.dumps(record, indent=1) + "\n").encode())


def remove(out):
    """Removes what an unfinished run has left, the record last."""
    leftovers = [path for split in SPLITS for path in unfinished_shards(out, split)]
    for path in (*leftovers, *(os.path.join(out, name + ".tmp") for name in (TOKENIZER, "meta.json", NAME)), record_path(out)):
        if os.path.exists(path):
            os.remove(path)


def check_same(out, begun, now):
    """Refuses to go on with other options or inputs than those the run was begun with, naming what differs."""
    different = []
    for key in sorted(begun["options"].keys() | now["options"].keys()):
        before, after = begun["options"].get(key), now["options"].get(key)
        if before != after:
            different.append(f"{key} was {_shown(before)} and is {_shown(after)}")
    different += _changed_inputs(begun["inputs"], now["inputs"])
    if different:
        raise UserError(
            f"{record_path(out)}: cannot go on, for the run was begun otherwise: {'; '.join(different)}; give what it was "
            "begun with, or begin anew with --overwrite"
        )


def _shown(value):
    return "not given" if value is None else str(value)


def _changed_inputs(begun, now):
    before, after = [one["path"] for one in begun], [one["path"] for one in now]
    if before != after:
        gone = [path for path in before if path not in after]
        new = [path for path in after if path not in before]
        what = [f"without {path}" for path in gone] + [f"with {path}" for path in new]
        return [f"--input is {', '.join(what) or 'in another order'}"]
    changes = []
    for old, new in zip(begun, now):
        if old["bytes"] != new["bytes"]:
            changes.append(f"{old['path']} had {old['bytes']} bytes and has {new['bytes']}")
        elif old["modified_ns"] != new["modified_ns"]:
            changes.append(f"{old['path']} was modified since")
    return changes
