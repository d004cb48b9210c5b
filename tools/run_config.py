"""A run's configuration as `switchyard train` reads it: comments left out, and what it extends under it
(docs/configuration.md). Defaults are not filled in: `switchyard inspect --json CONFIG` does that."""
import json
import re
import sys
from pathlib import Path

TYPES = ("type", "model_type", "rope_type")


def without_comments(text):
    """JSON: a comment goes from // to the end of its line, outside of strings."""
    return re.sub(r'("(?:[^"\\\n]|\\.)*")|//[^\n]*', lambda match: match[1] or "", text)


def merged(base, top):
    """`top` over `base`: objects key by key, but for one that names another type."""
    if not isinstance(base, dict) or not isinstance(top, dict):
        return top
    if any(key in top and base.get(key) != top[key] for key in TYPES):
        return top
    return {**base, **{key: merged(base[key], value) if key in base else value for key, value in top.items()}}


def read(path, extended_by=()):
    """Raises OSError or ValueError, which names the file."""
    path = Path(path)
    if path.resolve() in extended_by:
        raise ValueError(f"{path}: extends itself")
    try:
        config = json.loads(without_comments(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    if not isinstance(config, dict) or "extends" not in config:
        return config
    base = read(path.parent / config.pop("extends"), (*extended_by, path.resolve()))
    return merged(base, config)


if __name__ == "__main__":  # one value by its path: run_config.py CONFIG train.steps
    value = read(sys.argv[1])
    for part in sys.argv[2].split("."):
        value = value[part]
    print(json.dumps(value))
