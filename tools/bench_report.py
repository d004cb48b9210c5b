#!/usr/bin/env python3
"""Runs the CPU benchmark and prints its figures; scripts/bench_cpu.sh builds what it needs first. Linux only."""

import argparse
import array
import bisect
import itertools
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time

import run_config

SHARD_TOKENS = 2_000_000
WARM_UP = 3  # steps that are not counted: memory is touched first and caches are filled then


def make_shard(path, vocab_size):
    """Tokens with the frequencies of a language (Zipf: the n-th most frequent word is 1/n as frequent), seeded."""
    if os.path.exists(path):
        return
    cumulative = list(itertools.accumulate(1.0 / rank for rank in range(1, vocab_size + 1)))
    rng = random.Random(1)
    tokens = array.array("H" if vocab_size <= 65536 else "I",
                         (bisect.bisect(cumulative, rng.random() * cumulative[-1]) % vocab_size
                          for _ in range(SHARD_TOKENS)))
    if sys.byteorder == "big":
        tokens.byteswap()
    magic, version = (20240520, 1) if tokens.itemsize == 2 else (20240801, 7)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path + ".tmp", "wb") as file:
        file.write(struct.pack("<256i", magic, version, SHARD_TOKENS, *[0] * 253))
        tokens.tofile(file)
    os.replace(path + ".tmp", path)


def counts(model):
    """(all parameters, parameters that a token meets in a matrix product) of a Qwen3-MoE or Mixtral configuration."""
    hidden, heads, layers = model["hidden_size"], model["num_attention_heads"], model["num_hidden_layers"]
    head_dim = model.get("head_dim") or hidden // heads
    qwen = model["model_type"] == "qwen3_moe"
    experts = model["num_experts"] if qwen else model["num_local_experts"]
    width = model["moe_intermediate_size"] if qwen else model["intermediate_size"]
    attention = 2 * hidden * head_dim * (heads + model["num_key_value_heads"])
    norms = 2 * hidden + (2 * head_dim if qwen else 0)
    router, expert, head = hidden * experts, 3 * hidden * width, model["vocab_size"] * hidden
    total = head * (1 if model.get("tie_word_embeddings") else 2) + hidden
    total += layers * (attention + norms + router + experts * expert)
    active = head + layers * (attention + router + model["num_experts_per_tok"] * expert)
    return total, active


def status_kib(pid, key):
    try:
        with open(f"/proc/{pid}/status") as file:
            for line in file:
                if line.startswith(key + ":"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        pass
    return None


def count_lines(path):
    try:
        with open(path, "rb") as file:
            return file.read().count(b"\n")
    except FileNotFoundError:
        return 0


def train(command, metrics, output):
    """Runs it; -> (peak resident memory, growth of the allocated memory after step 1, and after step 3), in bytes.
    What it prints goes to the file `output`.

    Read from /proc every 20 ms: getrusage would report the largest of all children, bench_gemm too. The growth leaves
    out pages of mapped files, which come in as the data is read and can be dropped at any time.
    """
    with open(output, "w") as file:
        process = subprocess.Popen(command, stdout=file)
    peak, allocated = 0, {}  # steps done -> most that was allocated then
    while process.poll() is None:
        steps = count_lines(metrics)
        peak = max(peak, status_kib(process.pid, "VmHWM") or 0)
        now = status_kib(process.pid, "RssAnon") or 0
        allocated[steps] = max(now, allocated.get(steps, now))
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"bench: '{' '.join(command)}' ended with exit code {process.returncode}")
    # `allocated[1]` is looked at while step 2 runs, so what step 1 holds is the most seen until it was done.
    growth = [max(kib for done, kib in allocated.items() if done >= step) -
              max(kib for done, kib in allocated.items() if done < step) for step in (1, 3)]
    return peak * 1024, max(growth[0], 0) * 1024, max(growth[1], 0) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--gemm", required=True, help="the bench_gemm executable")
    parser.add_argument("--config", default="configs/bench_cpu_86m.json")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the matrix products")
    parser.add_argument("--sequences", type=int, help="of a step (default: the configuration's)")
    parser.add_argument("--profile", action="store_true", help="every operator of a step beside its bound (log.profile)")
    args = parser.parse_args()
    if args.sequences is not None and args.sequences < 1:
        parser.error(f"--sequences {args.sequences}: a step has at least one")
    if args.steps <= WARM_UP:
        parser.error(f"--steps {args.steps}: the first {WARM_UP} are not counted; give more")

    config = run_config.read(args.config)
    model, seq_len = config["model"], config["train"]["seq_len"]
    make_shard("data/bench/train.bin", model["vocab_size"])

    gemm = json.loads(subprocess.run([args.gemm], check=True, stdout=subprocess.PIPE, text=True).stdout)
    rate = gemm["gemm_f32_gflops" if args.dtype == "float32" else "gemm_bf16_gflops"]

    with tempfile.TemporaryDirectory() as directory:
        run = os.path.join(directory, "run")
        command = [args.binary, "train", args.config, "--out", run, "--set", f"train.steps={args.steps}",
                   "--set", f"train.dtype={args.dtype}"]
        if args.sequences:
            for key in ("micro_batch_size", "global_batch_size"):
                command += ["--set", f"train.{key}={args.sequences}"]
        if args.profile:
            command += ["--set", "log.profile=true"]
        output = os.path.join(directory, "output")
        peak, growth, late_growth = train(command, os.path.join(run, "metrics.jsonl"), output)
        with open(os.path.join(run, "metrics.jsonl")) as file:
            steps = [json.loads(line) for line in file]
        with open(output) as file:
            _, header, profile = file.read().partition("\nprofile of ")

    total, active = counts(model)
    head_dim = model.get("head_dim") or model["hidden_size"] // model["num_attention_heads"]
    # A token meets (seq_len + 1) / 2 keys on average: a product with the keys and one with the values, two operations
    # a multiplication, and twice as much again in the backward pass.
    attention = 6 * model["num_hidden_layers"] * model["num_attention_heads"] * head_dim * (seq_len + 1)
    flop = 6 * active + attention
    speeds = [step["tokens_per_second"] for step in steps[WARM_UP:]]
    speed = statistics.median(speeds)
    gflops = speed * flop / 1e9

    threads = os.environ.get("OMP_NUM_THREADS") or len(os.sched_getaffinity(0))
    print(f"{args.config}, {args.dtype}, {threads} threads, {args.steps} steps of "
          f"{steps[0]['tokens']} tokens, the first {WARM_UP} not counted")
    print(f"parameters           {total / 1e6:10.1f} M, {active / 1e6:.1f} M active in a token's matrix products")
    print(f"matrix products      {rate:10.1f} GFLOP/s, measured first ({args.dtype})")
    print(f"training             {speed:10.0f} tokens/s (median; {min(speeds):.0f} to {max(speeds):.0f})")
    print(f"                     {gflops:10.1f} GFLOP/s ({flop / 1e6:.1f} MFLOP a token: 6 x {active / 1e6:.1f} M, "
          f"attention {attention / 1e6:.1f} M)")
    print(f"share of the rate    {100 * gflops / rate:10.1f} %")
    print(f"peak memory          {peak / 2**20:10.0f} MiB, {peak / total:.1f} bytes a parameter")
    print(f"growth after step 1  {growth / 2**20:10.1f} MiB, of which after step 3 {late_growth / 2**20:.1f} MiB")
    if args.profile:
        print((header + profile).rstrip())


if __name__ == "__main__":
    main()
