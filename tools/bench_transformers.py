#!/usr/bin/env python3
"""Trains one of our configurations with `transformers` on the same card, for comparison: tokens/s of two ways.

    tools/bench_transformers.py configs/qwen3_moe_0.6b.json --steps-json steps.json   (steps.json: bench_gpu_steps.py --json)

eager     a loop over experts, as the modelling code is written
grouped   experts_implementation="grouped_mm", the model compiled by torch.compile
Both are bfloat16 throughout, weights and AdamW's moments too (8 bytes a parameter where ours take 16), with torch's scaled_dot_product_attention, fused AdamW, no balance loss and no clipping: all of it in their favour.
Exit code 3 where something is missing that it needs.
"""

import argparse
import gc
import json
import statistics
import sys
import time

WARM_UP = 3
WAYS = {"eager": ("eager", False), "grouped": ("grouped_mm", True)}
BARS = {"eager": 6.0, "grouped": 2.0}  # how many times as fast as this we must be


def missing():
    """What is not there, in words; None: all is. CPU runs need no CUDA."""
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError:
        return "PyTorch is not installed"
    try:
        import transformers  # noqa: F401
    except ModuleNotFoundError:
        return "transformers is not installed"
    return None


def build(torch, options, experts, device):
    from transformers import AutoModelForCausalLM

    from hf_reference import build_config
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(build_config(options), dtype=torch.bfloat16, attn_implementation="sdpa",
                                                 experts_implementation=experts)
    return model.train()


def time_steps(torch, model, compiled, tokens, n_steps, device):
    """-> seconds of each step after the warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=device == "cuda")
    call = torch.compile(model) if compiled else model
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    seconds = []
    for step in range(WARM_UP + n_steps):
        wait()
        start = time.perf_counter()
        loss = call(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        wait()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - start)
    if not torch.isfinite(loss).item():
        raise RuntimeError("the loss is not finite")
    return seconds


def measure(torch, way, options, args):
    experts, compiled = WAYS[way]
    result = {"way": way, "refused": []}
    micro_batch = args.micro_batch
    while micro_batch >= 1:
        model = None
        try:
            torch.manual_seed(1)
            model = build(torch, options, experts, args.device)
            tokens = torch.randint(options["vocab_size"], (micro_batch, args.seq_len), device=args.device)
            seconds = time_steps(torch, model, compiled and not args.no_compile, tokens, args.steps, args.device)
        except torch.OutOfMemoryError as error:
            result["refused"].append({"micro_batch": micro_batch, "reason": str(error).splitlines()[0]})
            micro_batch //= 2
        except Exception as error:  # whatever it objects to: said, and the other way still runs
            result["refused"].append({"micro_batch": micro_batch,
                                      "reason": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"})
            break
        else:
            result |= {"micro_batch": micro_batch,
                       "tokens_per_second": micro_batch * args.seq_len / statistics.median(seconds),
                       "steps": len(seconds)}
            break
        finally:
            del model
            torch._dynamo.reset()
            gc.collect()
            if args.device == "cuda":
                torch.cuda.empty_cache()
    return result


def our_speed(path, name):
    if not path:
        return None
    with open(path) as file:
        return next((run.get("tokens_per_second") for run in json.load(file) if run["name"] == name), None)


def show(result, ours):
    print(f"transformers, {result['way']}")
    for refused in result["refused"]:
        print(f"  micro-batch {refused['micro_batch']}: {refused['reason']}")
    if "tokens_per_second" not in result:
        print("  no figure")
        return
    print(f"  micro-batch {result['micro_batch']}: {result['tokens_per_second']:.0f} tokens/s, {result['steps']} steps")
    if ours:
        bar = BARS[result["way"]]
        result |= {"ours": ours, "times": ours / result["tokens_per_second"], "bar": bar}
        result["reached"] = result["times"] >= bar
        print(f"  switchyard is {result['times']:.2f} times as fast; {bar:.0f} times "
              f"{'reached' if result['reached'] else 'MISSED'}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="one of our configurations; its `model` is what transformers builds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another value of `model`")
    parser.add_argument("--seq-len", type=int, help="default: the configuration's")
    parser.add_argument("--micro-batch", type=int, default=32, help="halved until it fits into memory")
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--way", choices=[*WAYS, "both"], default="both")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--steps-json", help="our own figures, from bench_gpu_steps.py --json")
    parser.add_argument("--name", default="qwen3_moe_0.6b", help="which of them is the same model")
    parser.add_argument("--json", help="write the figures to a file as well")
    args = parser.parse_args()
    why = missing()
    if why is None:
        import torch
        if args.device == "cuda" and not torch.cuda.is_available():
            why = "this PyTorch finds no CUDA device"
    if why:
        print(f"no comparison with transformers: {why}")
        sys.exit(3)

    import transformers
    transformers.utils.logging.set_verbosity_error()
    with open(args.config) as file:
        config = json.load(file)
    options = config["model"]
    for change in args.set:
        key, value = change.split("=", 1)
        options[key] = json.loads(value)
    args.seq_len = args.seq_len or config["train"]["seq_len"]
    where = torch.cuda.get_device_name() if args.device == "cuda" else "this processor"
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {where}; {args.config}, "
          f"{args.seq_len} tokens a sequence, bfloat16")
    ours, results = our_speed(args.steps_json, args.name), []
    for way in WAYS if args.way == "both" else [args.way]:
        results.append(measure(torch, way, options, args))
        show(results[-1], ours)
        sys.stdout.flush()
        if args.json:
            with open(args.json, "w") as file:
                json.dump({"transformers": transformers.__version__, "torch": torch.__version__, "ways": results}, file,
                          indent=1)
    sys.exit(0 if all("tokens_per_second" in result for result in results) else 1)


if __name__ == "__main__":
    main()
