#!/usr/bin/env python3
"""Compares the losses of training on a card in bfloat16 with those on the CPU, step by step.

    tools/check_gpu_curve.py --binary build-cuda/switchyard --json curve.json

Makes the text of scripts/quickstart.sh and trains configs/quickstart.json on it for 200 steps: on the CPU in float32 and in
bfloat16, on the card in both. Two runs that differ by rounding alone drift apart, the faster the higher the rate: with the
configuration's 0.002 the CPU's own two differ by 0.65 % in the mean, with 0.0005 by 0.14 %, and by 0.76 % in a single step. So
the bar is on the mean, at the lower rate; the pair of bfloat16 on both tells rounding from error. Exit code 1 where the mean
difference of bfloat16 on the card and float32 on the CPU is above the bar. Standard library alone.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

from bench_gpu_steps import ROOT, SMOKE, SWITCHES, healed, read_steps, settings

LR = 0.0005
BAR = 0.005  # of the loss, mean of all steps
DOMAINS = ("finance", "legal", "code", "general")
RUNS = {"float32 on the CPU": ("cpu", "float32"), "bfloat16 on the card": ("cuda", "bfloat16"),
        "bfloat16 on the CPU": ("cpu", "bfloat16"), "float32 on the card": ("cuda", "float32")}
REFERENCE, JUDGED = "float32 on the CPU", "bfloat16 on the card"
PAIRS = ((REFERENCE, JUDGED), ("bfloat16 on the CPU", JUDGED), (REFERENCE, "bfloat16 on the CPU"), (REFERENCE, "float32 on the card"))


def make_data(directory, mbytes):
    """-> patterns of shards"""
    raw = os.path.join(directory, "raw")
    tool = [sys.executable, "-B"]
    subprocess.run([*tool, os.path.join(ROOT, "tools", "make_sample_corpus.py"), "--out", raw, "--mbytes", str(mbytes)], check=True,
                   stdout=subprocess.DEVNULL)
    for domain in DOMAINS:
        subprocess.run([*tool, os.path.join(ROOT, "tools", "prepare_data.py"), "--input", os.path.join(raw, f"{domain}-train.json.gz"),
                        "--tokenizer", "bytes", "--out", os.path.join(directory, domain), "--split-name", "train"], check=True,
                       stdout=subprocess.DEVNULL)
    return [{"path": os.path.join(directory, domain, "train*.bin"), "domain": domain} for domain in DOMAINS]


def train(args, directory, name, data, limit, variables=None):
    """-> (losses, None) or (None, why there are none)"""
    device, dtype = RUNS[name]
    out = os.path.join(directory, "_".join([device, dtype, *(variables or {})]))
    overrides = {"data.train": data, "data.validation": [], "train.steps": args.steps, "train.dtype": dtype, "train.lr": LR,
                 "train.eval_every": 0, "checkpoint.every": 0}
    if args.smoke:
        overrides |= {**{key: value for key, value in SMOKE.items() if key != "model.vocab_size"}, "train.micro_batch_size": 2,
                      "train.global_batch_size": 2}
    try:
        done = subprocess.run([args.binary, "train", os.path.join(ROOT, "configs", "quickstart.json"), "--device", device, "--out", out,
                               *settings(overrides)], stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
                              timeout=limit, env={**os.environ, **(variables or {})}, check=False)
    except subprocess.TimeoutExpired:
        return None, f"not at its end after {limit:.0f} s"
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        return None, next((line for line in lines if "error" in line), lines[-1] if lines else f"exit code {done.returncode}")
    losses = [step["loss"] for step in read_steps(os.path.join(out, "metrics.jsonl"))]
    return (losses, None) if len(losses) == args.steps else (None, f"metrics.jsonl has {len(losses)} steps of {args.steps}")


def compare(losses, a, b):
    differences = [abs(x - y) / abs(x) for x, y in zip(losses[a], losses[b])]
    largest = max(range(len(differences)), key=differences.__getitem__)
    return {"a": a, "b": b, "steps": len(differences), "mean": sum(differences) / len(differences), "largest": differences[largest],
            "largest_step": largest + 1}


def show(losses):
    print(f"{'step':>5}" + "".join(f"{name:>22}" for name in losses) + f"{'difference':>12}")
    for step, values in enumerate(zip(*losses.values())):
        far = f"{100 * abs(losses[JUDGED][step] / losses[REFERENCE][step] - 1):>10.3f} %" if JUDGED in losses else ""
        print(f"{step + 1:>5}" + "".join(f"{value:>22.5f}" for value in values) + far)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--steps", type=int, help="default: 200")
    parser.add_argument("--limit", type=int, default=100, help="seconds that one run may take")
    parser.add_argument("--json", help="write the losses of each step and the differences to a file as well")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, 3 steps: to see that it runs; no measurement")
    args = parser.parse_args()
    args.steps = args.steps or (3 if args.smoke else 200)
    losses, errors, seconds = {}, {}, {}
    result = {"measured": not args.smoke, "losses": losses, "errors": errors, "pairs": []}

    def write():
        if args.json:
            with open(args.json + ".partial", "w") as file:
                json.dump(result, file, indent=1)
            os.replace(args.json + ".partial", args.json)

    with tempfile.TemporaryDirectory() as directory:
        data = make_data(directory, 0.05 if args.smoke else 2)
        for name in RUNS:
            begun = time.monotonic()
            values, why = train(args, directory, name, data, args.limit)
            seconds[name] = time.monotonic() - begun
            print(f"{name}: {why or f'{len(values)} steps'}, {seconds[name]:.1f} s", flush=True)
            if values is None:
                errors[name] = why
            else:
                losses[name] = values
            result["pairs"] = [compare(losses, a, b) for a, b in PAIRS if a in losses and b in losses]
            for pair in result["pairs"]:
                if (pair["a"], pair["b"]) == (REFERENCE, JUDGED):
                    pair |= {"bar": BAR, "reached": pair["mean"] <= BAR}
            write()
        bad = JUDGED in errors or any(not pair.get("reached", True) for pair in result["pairs"])
        if bad and REFERENCE in losses:
            result["heals"] = []
            for switch in SWITCHES:
                # Where it hangs, not as long again.
                values, _ = train(args, directory, JUDGED, data, min(args.limit, max(15, 2 * seconds[REFERENCE])), {switch: "1"})
                if values is not None and compare({**losses, JUDGED: values}, REFERENCE, JUDGED)["mean"] <= BAR:
                    result["heals"].append(switch)
            result["healed"] = healed(result["heals"])
            write()
    if REFERENCE in losses:
        show(losses)
    for pair in result["pairs"]:
        print(f"{pair['a']}, {pair['b']}: mean difference {100 * pair['mean']:.3f} %, largest {100 * pair['largest']:.3f} % in step "
              f"{pair['largest_step']}")
    if errors:
        print("; ".join(f"{name}: {why}" for name, why in errors.items()) + (f"; {result['healed']}" if "healed" in result else ""))
        sys.exit(1)
    judged = result["pairs"][0]
    print(f"bfloat16 on the card: mean difference {100 * judged['mean']:.3f} % of float32 on the CPU in {judged['steps']} steps, "
          f"largest {100 * judged['largest']:.3f} %; {100 * BAR:.1f} % {'reached' if judged['reached'] else 'MISSED'}"
          + (f"; {result['healed']}" if "healed" in result else "") + ("; SMOKE: no measurement" if args.smoke else ""))
    sys.exit(0 if judged["reached"] else 1)


if __name__ == "__main__":
    main()
