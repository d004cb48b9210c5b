"""What the end-to-end tests share: a learnable token process, tiny configurations, and runs of the built binary.

CTest sets SWITCHYARD_BIN (the binary) and SWITCHYARD_SANITIZE (empty in an ordinary build). Standard library only.
"""

import array
import contextlib
import copy
import ctypes
import json
import os
import pathlib
import random
import re
import struct
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = os.environ.get("SWITCHYARD_BIN", str(ROOT / "build" / "switchyard"))
SANITIZED = bool(os.environ.get("SWITCHYARD_SANITIZE"))
TIMEOUT = 120 if SANITIZED else 60  # seconds a command may take: a guard against a hang, not a measurement

VOCAB = 257
SEQ_LEN = 32
STEPS = 20
HEADER_BYTES = 1024
MAGIC = {2: (20240520, 1), 4: (20240801, 7)}  # bytes a token -> magic, version

# What a run measures with a clock: everything else in metrics.jsonl must repeat bit for bit.
TIMING_KEYS = {"tokens_per_second", "wall_time", "train_seconds", "memory_bytes", "product_rate_share", "step_seconds", "seconds",
               "memory_bytes_by_rank", "wait_seconds", "exchange_seconds"}


# --- data ---------------------------------------------------------------------------------------------------------

def learnable_tokens(count, seed=1, alphabet=24):
    """A cycle through `alphabet` tokens that jumps anywhere in it one time in ten: easy to learn, never certain."""
    rng = random.Random(seed)
    order = list(range(40, 40 + alphabet))
    random.Random(7).shuffle(order)
    position, tokens = 0, []
    for _ in range(count):
        position = rng.randrange(alphabet) if rng.random() < 0.1 else (position + 1) % alphabet
        tokens.append(order[position])
    return tokens


def shard_bytes(tokens, token_bytes=2, magic=None, version=None, claimed=None):
    default_magic, default_version = MAGIC[token_bytes]
    header = [magic if magic is not None else default_magic,
              version if version is not None else default_version,
              claimed if claimed is not None else len(tokens)]
    body = array.array("H" if token_bytes == 2 else "I", tokens)
    assert body.itemsize == token_bytes
    if sys.byteorder != "little":
        body.byteswap()
    return struct.pack("<256i", *header, *[0] * (256 - len(header))) + body.tobytes()


def write_shard(path, tokens, **kwargs):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(shard_bytes(tokens, **kwargs))
    return path


# --- configurations -----------------------------------------------------------------------------------------------

QWEN3_MOE = {
    "model_type": "qwen3_moe", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48,
    "moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2, "norm_topk_prob": True,
    "max_position_embeddings": 64,
}
MIXTRAL = {
    "model_type": "mixtral", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 16, "num_local_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 64,
}
OLMOE = {
    "model_type": "olmoe", "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 16, "num_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 64,
}
MODELS = {"qwen3_moe": QWEN3_MOE, "mixtral": MIXTRAL, "olmoe": OLMOE}


def tiny_config(model="qwen3_moe"):
    """A run of STEPS steps over the shards of Workplace; small enough for a fraction of a second."""
    return {
        "model": copy.deepcopy(MODELS[model]),
        "router": {"type": "softmax_topk", "balance_coef": 0.01, "z_loss_coef": 0.001},
        "data": {"train": [{"path": "data/train_*.bin"}], "validation": [{"path": "data/val.bin"}]},
        "train": {"seed": 3, "steps": STEPS, "seq_len": SEQ_LEN, "micro_batch_size": 2, "global_batch_size": 4,
                  "lr": 0.01, "schedule": "cosine", "warmup_ratio": 0.1},
        "parallel": {"threads": 2},
        "checkpoint": {"every": 5, "keep": 2},
    }


def deep_update(config, changes):
    """{"train.lr": 1} -> config["train"]["lr"] = 1; a value of None removes the key."""
    for path, value in changes.items():
        *parents, last = path.split(".")
        section = config
        for key in parents:
            section = section.setdefault(key, {})
        if value is None:
            section.pop(last, None)
        else:
            section[last] = value
    return config


# --- running the binary -------------------------------------------------------------------------------------------

def environment():
    return {**os.environ, "OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "passive", "LC_ALL": "C.UTF-8"}


def processes_of(*words, program=None):
    """The numbers of all processes whose command lines hold each of the words, and begin with the program."""
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes().split(b"\0")
        except OSError:
            continue
        if program in (None, line[0].decode(errors="replace")) and all(word.encode() in line for word in words):
            found.append(int(entry.parent.name))
    return found


class Finished:
    """A command that has ended."""

    def __init__(self, arguments, code, out, err):
        self.arguments, self.code, self.out, self.err = arguments, code, out, err

    def __str__(self):
        command = " ".join([BINARY, *self.arguments])
        return f"$ {command}\nexit code {self.code}\n--- standard output\n{self.out}\n--- standard error\n{self.err}"


class CliTest(unittest.TestCase):
    """A test with a directory of its own, which holds train and validation shards and is where commands run."""

    maxDiff = 2000
    # What another way to compute adds: its program, arguments of every command, variables of the environment, and how much
    # longer a command may take.
    binary, always, variables, patience = BINARY, [], {}, 1

    def setUp(self):
        self.assertTrue(os.access(BINARY, os.X_OK), f"{BINARY} is not there; build it, or set SWITCHYARD_BIN")
        directory = tempfile.TemporaryDirectory(prefix="switchyard cli ")  # a space: paths may hold one
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        write_shard(self.dir / "data" / "train_000.bin", learnable_tokens(1500, seed=1))
        write_shard(self.dir / "data" / "train_001.bin", learnable_tokens(1100, seed=2))
        write_shard(self.dir / "data" / "val.bin", learnable_tokens(501, seed=3))

    def write_config(self, config=None, name="config.json", **changes):
        """Writes the tiny configuration with changes ("train__lr"=...: a double underscore stands for the dot)."""
        config = copy.deepcopy(config) if config is not None else tiny_config()
        deep_update(config, {key.replace("__", "."): value for key, value in changes.items()})
        path = self.dir / name
        path.write_text(json.dumps(config, indent=1))
        return str(path)

    def start(self, *arguments, **popen):
        arguments = [str(argument) for argument in arguments]
        return subprocess.Popen([self.binary, *arguments, *self.always], cwd=self.dir, env={**environment(), **self.variables},
                                **{"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE,
                                   "text": True, **popen})

    def finish(self, process):
        try:
            out, err = process.communicate(timeout=TIMEOUT * self.patience)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            self.fail(f"no end after {TIMEOUT * self.patience} s: {' '.join(process.args)}\n{out}\n{err}")
        finished = Finished(process.args[1:], process.returncode, out, err)
        for trace in ("Sanitizer", "runtime error:", "terminate called", "std::", "core dumped"):
            self.assertNotIn(trace, err, finished)
        return finished

    def run_binary(self, *arguments, **popen):
        return self.finish(self.start(*arguments, **popen))

    def ok(self, *arguments, **popen):
        finished = self.run_binary(*arguments, **popen)
        self.assertEqual(finished.code, 0, finished)
        return finished

    def fails(self, code, *arguments, names=(), **popen):
        """Runs a command that must end with `code` and one line of error that holds each of `names` (regular
        expressions). Bad input (2) is found before any work, so that line is all there is."""
        finished = self.run_binary(*arguments, **popen)
        self.assertEqual(finished.code, code, finished)
        lines = [line for line in finished.err.splitlines() if line.strip()]
        errors = [line for line in lines if re.match(r"(switchyard: )?error\b", line)]
        self.assertEqual(len(errors), 1, finished)
        for name in names:
            self.assertRegex(errors[0], name, finished)
        finished.error = errors[0]
        finished.lines = lines
        return finished

    # --- what a run left

    def metrics(self, run):
        text = (pathlib.Path(self.dir) / run / "metrics.jsonl").read_text()
        self.assertTrue(text.endswith("\n"), "metrics.jsonl ends in the middle of a line")
        return [json.loads(line) for line in text.splitlines()]

    def losses(self, run):
        return [line["loss"] for line in self.metrics(run)]

    def checkpoints(self, run):
        """The checkpoints by name; anything else in the directory is not one (a temporary name, `latest`)."""
        directory = self.dir / run / "checkpoints"
        if not directory.is_dir():
            return []
        return sorted(entry for entry in directory.iterdir() if re.fullmatch(r"step_\d{6,}", entry.name))

    def latest(self, run):
        return self.checkpoints(run)[-1]

    def weights(self, run):
        """The bytes of the newest checkpoint's weights, one entry a file."""
        files = sorted(self.latest(run).glob("model*.safetensors"))
        self.assertTrue(files, f"no weights in {self.latest(run)}")
        return {file.name: file.read_bytes() for file in files}

    def assert_same_run(self, run, reference):
        """Losses, every other figure that no clock made, and final weights: bit for bit."""
        ours, theirs = self.metrics(run), self.metrics(reference)
        self.assertEqual([line["step"] for line in ours], [line["step"] for line in theirs])
        for line, expected in zip(ours, theirs):
            self.assertEqual(without_timing(line), without_timing(expected))
        self.assertEqual(self.latest(run).name, self.latest(reference).name)
        weights, expected = self.weights(run), self.weights(reference)
        self.assertEqual(sorted(weights), sorted(expected))
        for name, content in weights.items():
            self.assertTrue(content == expected[name], f"{name} differs from that of {reference}")

    def assert_holds_no_file(self, directory):
        left = [str(entry) for entry in pathlib.Path(directory).rglob("*") if not entry.is_dir()]
        self.assertEqual(left, [], "left behind by a command that failed")


def without_timing(line):
    return {key: value for key, value in line.items() if key not in TIMING_KEYS}


def snapshot(directory):
    """Every file below a directory with its content, to prove that a command changed nothing."""
    directory = pathlib.Path(directory)
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def write_tokens(path, *sequences):
    """The tokens that `dump` reads: sequences of one length."""
    tokens = [token for sequence in sequences for token in sequence]
    header = json.dumps({"tokens": {"dtype": "I32", "shape": [len(sequences), len(sequences[0])],
                                    "data_offsets": [0, 4 * len(tokens)]}}).encode()
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(header)) + header + struct.pack(f"<{len(tokens)}i", *tokens))


def read_safetensors(path):
    """name -> (dtype, shape, values as a list of floats for F32, else raw bytes)."""
    content = pathlib.Path(path).read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        raw = content[8 + header_bytes + begin:8 + header_bytes + end]
        values = list(struct.unpack(f"<{len(raw) // 4}f", raw)) if entry["dtype"] == "F32" else raw
        tensors[name] = (entry["dtype"], entry["shape"], values)
    return tensors


@contextlib.contextmanager
def small_disk(path, size):
    """A tmpfs of `size` bytes at `path`; yields False where the system does not let us mount one."""
    path.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b"none", os.fsencode(path), b"tmpfs", 0, f"size={size}".encode()) == 0
    try:
        yield mounted
    finally:
        if mounted:
            libc.umount2(os.fsencode(path), 2)  # MNT_DETACH


def main():
    unittest.main(verbosity=2)
