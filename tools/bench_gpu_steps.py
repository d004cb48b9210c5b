#!/usr/bin/env python3
"""Times whole training steps on a GPU: tokens/s, and the share of the card's product rate that they use.

    tools/bench_gpu_steps.py --binary build-cuda/switchyard --kernels kernels.json     (kernels.json: bench_cuda --json)

Trains each configuration on random tokens with the largest of its micro-batches that fits into memory; what did not fit
is printed too. Utilisation is 3 x (FLOPs of the forward pass, from metrics.jsonl) x tokens/s / product rate. The runs are
ended by force after the last timed step: no checkpoint is written. Standard library alone.
"""

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import run_config
from bench_report import make_shard

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
WARM_UP = 3  # steps that are not counted
SWITCHES = ("SWITCHYARD_NO_GRAPH", "SWITCHYARD_NO_CUBLASLT", "SWITCHYARD_NO_WGMMA")  # each turns a part of the backend off


@dataclasses.dataclass
class Run:
    name: str
    config: str
    micro_batches: tuple  # tried from the first on
    bar: float | None  # utilisation that must be reached
    overrides: dict = dataclasses.field(default_factory=dict)


RUNS = (
    Run("qwen3_moe_0.6b", "configs/qwen3_moe_0.6b.json", (32, 16, 8, 4), 0.45),
    Run("32_layers", "configs/bench_gpu_32_layers.json", (4, 2, 1), 0.55),
    # The whole model wants more memory than one card has as long as a parameter costs 16 bytes: some of its layers, so
    # that there is a figure for their kind.
    Run("6_of_32_layers", "configs/bench_gpu_32_layers.json", (4, 2, 1), None, {"model.num_hidden_layers": 6}),
)
SMOKE = {"model.vocab_size": 300, "model.hidden_size": 32, "model.num_hidden_layers": 1, "model.num_attention_heads": 2,
         "model.num_key_value_heads": 1, "model.head_dim": 8, "model.moe_intermediate_size": 8, "model.num_experts": 4,
         "model.num_experts_per_tok": 2, "train.seq_len": 16}


def settings(overrides):
    return [argument for key, value in overrides.items() for argument in ("--set", f"{key}={json.dumps(value)}")]


def read_steps(path):
    """The whole lines of a metrics.jsonl that may be growing."""
    try:
        with open(path) as file:
            text = file.read()
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]


def attempt(binary, device, config, overrides, micro_batch, n_steps, limit, ranks=1, micro_batches=1, variables=None):
    """-> (the timed steps' metrics, None) or (None, why there are none). micro_batches: of a step, on all ranks together."""
    with tempfile.TemporaryDirectory() as directory:
        out, messages = os.path.join(directory, "run"), os.path.join(directory, "messages")
        command = [binary, "train", os.path.join(ROOT, config), "--device", device, "--out", out, *settings({
            **overrides, "train.micro_batch_size": micro_batch, "train.global_batch_size": micro_batch * micro_batches,
            "train.steps": 1_000_000}), *(("--nproc", str(ranks)) if ranks > 1 else ())]
        with open(messages, "w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                       env={**os.environ, **(variables or {})})
        end, steps = time.monotonic() + limit, []
        while process.poll() is None and len(steps) < WARM_UP + n_steps and time.monotonic() < end:
            time.sleep(0.1)
            steps = read_steps(os.path.join(out, "metrics.jsonl"))
        code = process.poll()
        process.kill()
        process.wait()
        if len(steps) >= WARM_UP + n_steps:
            return steps[WARM_UP:WARM_UP + n_steps], None
        if code is None:
            return None, f"{len(steps)} steps in {limit} s, {WARM_UP + n_steps} are wanted"
        with open(messages) as file:
            lines = [line.strip() for line in file if line.strip()]
        errors = [line for line in lines if "error" in line] or lines
        return None, errors[-1] if errors else f"exit code {code} and no message"


def measure(run, args, directory):
    overrides = {**run.overrides, **(SMOKE if args.smoke else {})}
    config = run_config.read(os.path.join(ROOT, run.config))
    shard = os.path.join(directory, "train.bin")
    make_shard(shard, config["model"]["vocab_size"] if not args.smoke else SMOKE["model.vocab_size"])
    overrides |= {"data.train": [shard], "data.validation": [], "train.eval_every": 0}
    result = {"name": run.name, "config": run.config, "overrides": run.overrides, "bar": run.bar, "refused": []}
    for micro_batch in (2,) if args.smoke else run.micro_batches:
        steps, why = attempt(args.binary, args.device, run.config, overrides, micro_batch, 1 if args.smoke else args.steps,
                             args.limit)
        if steps is None:
            result["refused"].append({"micro_batch": micro_batch, "reason": why})
            if "memory" in why:
                continue
            result["heals"] = [switch for switch in SWITCHES if attempt(
                args.binary, args.device, run.config, overrides, micro_batch, 1, min(args.limit, 60), variables={switch: "1"})[0] is not None]
            result["healed"] = healed(result["heals"])
            break
        speeds = [step["tokens_per_second"] for step in steps]
        result |= {"micro_batch": micro_batch, "tokens_per_second": statistics.median(speeds),
                   "slowest": min(speeds), "fastest": max(speeds), "steps": len(steps),
                   "flops_per_token": steps[-1]["flops_per_token"], "loss": steps[-1]["loss"]}
        break
    return result


def judge(result, args):
    if args.peak and "tokens_per_second" in result:
        result["utilisation"] = 3 * result["flops_per_token"] * result["tokens_per_second"] / args.peak
        if result["bar"] and not args.smoke:
            result["reached"] = result["utilisation"] >= result["bar"]


def known_before(args):
    """{name: result} of those that an earlier call has measured, or found to be too large."""
    if not args.keep or not os.path.exists(args.json):
        return {}
    with open(args.json) as file:
        return {result["name"]: result for result in json.load(file)}


def healed(heals):
    return (f"healed by {' or '.join(f'{switch}=1' for switch in heals)}" if heals else f"none of {', '.join(SWITCHES)} heals it")


def show(result):
    print(f"{result['name']}  ({result['config']})")
    for refused in result["refused"]:
        print(f"  micro-batch {refused['micro_batch']}: {refused['reason']}")
    if "healed" in result:
        print(f"  {result['healed']}")
    if "tokens_per_second" not in result:
        print("  no figure")
        return
    print(f"  micro-batch {result['micro_batch']}: {result['tokens_per_second']:.0f} tokens/s "
          f"({result['slowest']:.0f} to {result['fastest']:.0f}, {result['steps']} steps), "
          f"{result['flops_per_token'] / 1e6:.1f} MFLOP a token forward, loss {result['loss']:.3f}")
    if "utilisation" in result:
        bar = ""
        if "reached" in result:
            bar = f"; {100 * result['bar']:.0f} % {'reached' if result['reached'] else 'MISSED'}"
        print(f"  utilisation {100 * result['utilisation']:.1f} % of the product rate{bar}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--kernels", help="JSON of bench_cuda: the product rate is taken from there")
    parser.add_argument("--only", help="one of: " + ", ".join(run.name for run in RUNS))
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--limit", type=int, default=150, help="seconds that one attempt may take")
    parser.add_argument("--json", help="write the figures to a file as well")
    parser.add_argument("--keep", action="store_true", help="with --json: what is in that file is not measured again")
    parser.add_argument("--smoke", action="store_true", help="tiny models: to see that it runs; no measurement")
    args = parser.parse_args()
    if args.keep and not args.json:
        parser.error("--keep needs --json")
    args.peak = None
    if args.kernels:
        with open(args.kernels) as file:
            kernels = json.load(file)
        if kernels["measured"] or args.smoke:
            args.peak = kernels.get("product_flops")
    if args.peak is None:
        print("no measured product rate (--kernels): tokens/s alone")
    runs = [run for run in RUNS if args.only in (None, run.name)]
    if not runs:
        parser.error(f"--only {args.only}: there are {', '.join(run.name for run in RUNS)}")
    results, known = [], known_before(args)
    with tempfile.TemporaryDirectory() as directory:
        for run in runs:
            results.append(known.get(run.name) or measure(run, args, directory))
            judge(results[-1], args)
            show(results[-1])
            sys.stdout.flush()
            if args.json:
                later = [known[other.name] for other in runs if other.name in known and
                         other.name not in {result["name"] for result in results}]
                with open(args.json + ".partial", "w") as file:
                    json.dump(results + later, file, indent=1)
                os.replace(args.json + ".partial", args.json)
    reached = [result["reached"] for result in results if "reached" in result]
    figures = sum("tokens_per_second" in result for result in results)
    print("SMOKE: tiny models, no measurement" if args.smoke else
          f"{figures} of {len(results)} have a figure; {sum(reached)} of {len(reached)} bars reached")
    # Too little memory is a result; anything else that left no figure is a failure.
    failed = any("tokens_per_second" not in result and "memory" not in result["refused"][-1]["reason"]
                 for result in results)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
