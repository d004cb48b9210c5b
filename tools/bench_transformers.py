#!/usr/bin/env python3
"""Trains one of our configurations with `transformers` on the same machine, for comparison: tokens/s.

    tools/bench_transformers.py configs/bench_cpu_86m.json --experts grouped_mm                              on a CPU, float32
    tools/bench_transformers.py configs/bench_cpu_86m.json --experts grouped_mm --compile --dtype bfloat16
    tools/bench_transformers.py configs/qwen3_moe_0.6b.json --steps-json steps.json   (steps.json: bench_gpu_steps.py --json)

--experts   transformers' experts_implementation: eager is a loop over experts, grouped_mm one product for all of them. Without
            it two ways are measured: eager, and grouped_mm compiled.
--dtype     float32; bfloat16: float32 weights, products in bfloat16 (autocast); all_bfloat16: weights and AdamW's moments too, 8
            bytes a parameter where ours take 16. Default: float32 on a CPU, all_bfloat16 on a card.
Always torch's scaled_dot_product_attention, fused AdamW, no balance loss and no clipping: in their favour.
torch.compile wants a C compiler and Python's headers: where it fails, grouped_mm is measured without it, has no bar, and the remark says
what is missing. Both ways are begun at the largest micro-batch that the first had memory for; where they end with different ones, that
is said.
Exit code 3 where something is missing that it needs.
"""

import argparse
import contextlib
import gc
import json
import os
import shutil
import statistics
import sys
import sysconfig
import time

import run_config

WARM_UP = 3
BOTH = [("eager", False), ("grouped_mm", True)]  # experts, compiled
BARS = {("eager", False): 6.0, ("grouped_mm", True): 2.0}  # how many times as fast as this we must be on a card


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


def build(torch, options, experts, device, dtype):
    from transformers import AutoModelForCausalLM

    from hf_reference import build_config
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(
            build_config(options), dtype=torch.bfloat16 if dtype == "all_bfloat16" else torch.float32,
            attn_implementation="sdpa", experts_implementation=experts)
    return model.train()


def time_steps(torch, model, compiled, tokens, n_steps, device, dtype):
    """-> seconds of each step after the warm-up."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1, fused=True)
    products = torch.autocast(device, torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
    call = torch.compile(model) if compiled else model
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    seconds = []
    for step in range(WARM_UP + n_steps):
        wait()
        start = time.perf_counter()
        with products:
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


def name_of(way):
    return f"{way[0]}{', compiled' if way[1] else ''}"


def missing_to_compile():
    """What torch.compile would not find, in words; empty: nothing is known to be missing."""
    header = os.path.join(sysconfig.get_path("include"), "Python.h")
    compilers = [os.environ.get("CC"), "cc", "gcc", "clang"]
    lacking = [*([] if any(name and shutil.which(name.split()[0]) for name in compilers) else ["a C compiler"]),
               *([] if os.path.exists(header) else ["Python.h"])]
    return " and ".join(lacking)


def measure(torch, way, options, args, micro_batch):
    experts, compiled = way
    result = {"way": name_of(way), "experts": experts, "compiled": compiled, "dtype": args.dtype, "refused": []}
    while micro_batch >= 1:
        model = None
        try:
            torch.manual_seed(1)
            model = build(torch, options, experts, args.device, args.dtype)
            tokens = torch.randint(options["vocab_size"], (micro_batch, args.seq_len), device=args.device)
            seconds = time_steps(torch, model, compiled, tokens, args.steps, args.device, args.dtype)
        except torch.OutOfMemoryError as error:
            result["refused"].append({"micro_batch": micro_batch, "reason": str(error).splitlines()[0]})
            micro_batch //= 2
        except Exception as error:  # whatever it objects to: said, and the other way still runs
            if compiled:
                lacking, why = missing_to_compile(), f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
                compiled, result["compiled"] = False, False
                result["remark"] = f"without torch.compile, which failed{f' ({lacking} missing)' if lacking else ''}: {why[:200]}"
                continue
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


def known_before(args):
    """{way: result} of those that an earlier call has measured."""
    if not args.keep or not os.path.exists(args.json):
        return {}
    with open(args.json) as file:
        return {result["way"]: result for result in json.load(file)["ways"] if "tokens_per_second" in result}


def show(result, way, ours):
    print(f"transformers, experts {name_of(way)}")
    for refused in result["refused"]:
        print(f"  micro-batch {refused['micro_batch']}: {refused['reason']}")
    if "remark" in result:
        print(f"  {result['remark']}")
    if "tokens_per_second" not in result:
        print("  no figure")
        return
    print(f"  micro-batch {result['micro_batch']}: {result['tokens_per_second']:.0f} tokens/s, {result['steps']} steps")
    if ours:
        result |= {"ours": ours, "times": ours / result["tokens_per_second"]}
        print(f"  switchyard is {result['times']:.2f} times as fast", end="")
        if way in BARS and result["compiled"] == way[1]:
            result |= {"bar": BARS[way], "reached": result["times"] >= BARS[way]}
            print(f"; {BARS[way]:.0f} times {'reached' if result['reached'] else 'MISSED'}", end="")
        print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", help="one of our configurations; its `model` is what transformers builds")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="another value of `model`")
    parser.add_argument("--seq-len", type=int, help="default: the configuration's")
    parser.add_argument("--micro-batch", type=int, help="default: the configuration's; halved until it fits into memory")
    parser.add_argument("--steps", type=int, default=10, help=f"timed steps, after {WARM_UP} that are not")
    parser.add_argument("--experts", choices=("eager", "batched_mm", "grouped_mm"), help="see above; default: two ways")
    parser.add_argument("--compile", action="store_true", help="with --experts: torch.compile")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "all_bfloat16"), help="see above")
    parser.add_argument("--device", choices=("cuda", "cpu"), help="default: a card where PyTorch finds one")
    parser.add_argument("--steps-json", help="our own figures, from bench_gpu_steps.py --json")
    parser.add_argument("--name", default="qwen3_moe_0.6b", help="which of them is the same model")
    parser.add_argument("--json", help="write the figures to a file as well")
    parser.add_argument("--keep", action="store_true", help="with --json: ways with a figure in that file are not measured again")
    args = parser.parse_args()
    if args.keep and not args.json:
        parser.error("--keep needs --json")
    if args.compile and not args.experts:
        parser.error("--compile needs --experts")
    why = missing()
    if why is None:
        import torch
        args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        args.dtype = args.dtype or ("all_bfloat16" if args.device == "cuda" else "float32")
        if args.device == "cuda" and not torch.cuda.is_available():
            why = "this PyTorch finds no CUDA device"
    if why:
        print(f"no comparison with transformers: {why}")
        sys.exit(3)

    import transformers
    transformers.utils.logging.set_verbosity_error()
    config = run_config.read(args.config)
    options = config["model"]
    for change in args.set:
        key, value = change.split("=", 1)
        options[key] = json.loads(value)
    args.seq_len = args.seq_len or config["train"]["seq_len"]
    args.micro_batch = args.micro_batch or config["train"]["micro_batch_size"]
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{torch.get_num_threads()} threads of this processor"
    print(f"transformers {transformers.__version__}, PyTorch {torch.__version__}, {where}; {args.config}, "
          f"{args.seq_len} tokens a sequence, {args.dtype}")
    ours, results, known = our_speed(args.steps_json, args.name), [], known_before(args)
    micro_batch = args.micro_batch
    for way in [(args.experts, args.compile)] if args.experts else BOTH:
        result = known.get(name_of(way)) or measure(torch, way, options, args, micro_batch)
        results.append(result)
        micro_batch = result.get("micro_batch", micro_batch)
        others = {other["micro_batch"] for other in results if "micro_batch" in other}
        if len(others) > 1:
            said = f"micro-batch {result['micro_batch']}, the other way's is {results[0]['micro_batch']}"
            result["remark"] = "; ".join(dict.fromkeys([*filter(None, [result.get("remark")]), said]))
        show(result, way, ours)
        sys.stdout.flush()
        if args.json:
            with open(args.json + ".partial", "w") as file:
                json.dump({"transformers": transformers.__version__, "torch": torch.__version__, "ways": results}, file, indent=1)
            os.replace(args.json + ".partial", args.json)
    print(f"{sum('tokens_per_second' in result for result in results)} of {len(results)} ways have a figure; "
          f"{sum(result.get('reached', False) for result in results)} of {sum('reached' in result for result in results)} bars reached")
    sys.exit(0 if all("tokens_per_second" in result for result in results) else 1)


if __name__ == "__main__":
    main()
