#!/usr/bin/env python3
"""The summary of scripts/gpu_check.sh: its stages, and every figure that has a bar. Called by it, at its end.

    tools/gpu_check_summary.py STAGES OUT     STAGES: lines of stage, result, seconds, remark, between tabs
"""

import json
import os
import sys


def read_json(directory, name):
    try:
        with open(os.path.join(directory, name)) as file:
            return json.load(file)
    except (FileNotFoundError, ValueError):  # the stage did not run, or was cut off while it wrote
        return None


def verdict(reached):
    return "reached" if reached else "MISSED"


def kernel_lines(kernels):
    if not kernels["measured"]:
        yield "kernels: tiny sizes or the emulator, no measurement"
        return
    yield (f"{kernels['device']}, driver {kernels['driver']}: product {kernels['product_flops'] * 1e-12:.0f} TFLOP/s, "
           f"copy {kernels['copy_bytes_per_second'] * 1e-9:.0f} GB/s")
    for case in kernels["cases"]:
        if "error" in case:
            yield f"  {case['kernel']}: FAILED: {case['error']}"
        elif "reached" in case:
            yield (f"  {case['kernel']:<40} {case['shape']:<52} {100 * case['share']:6.1f} %  "
                   f"{100 * case['bar']:.0f} % {verdict(case['reached'])}")


def step_lines(steps):
    for run in steps:
        name = f"  training {run['name']:<31} "
        if "tokens_per_second" not in run:
            yield name + "no figure: " + (run["refused"][-1]["reason"] if run["refused"] else "unknown")
            continue
        line = f"{name}{run['tokens_per_second']:.0f} tokens/s at micro-batch {run['micro_batch']}"
        if "utilisation" in run:
            line += f", utilisation {100 * run['utilisation']:.1f} %"
        if "reached" in run:
            line += f"  {100 * run['bar']:.0f} % {verdict(run['reached'])}"
        yield line


def scaling_lines(scaling):
    if not scaling["measured"]:
        yield "several ranks: tiny models or the emulator, no measurement"
        return
    for exchange in scaling["exchanges"]:
        for row in exchange["rows"]:
            yield (f"  {exchange['ranks']} ranks, {row['what']:<32} {row['bytes_per_second'] * 1e-9:8.1f} GB/s received a rank, "
                   f"{row['share']:.2f} of NCCL's all-gather")
    for case in scaling["cases"]:
        line = f"  {case['ranks']} ranks, expert {case['expert']:<23} "
        if "error" in case:
            yield line + "FAILED: " + case["error"]
            continue
        strong = "without a figure" if case["strong"] is None else f"{case['strong']:.2f}"
        line += (f"{case['tokens_per_second']:.0f} tokens/s, weak {case['weak']:.2f}, strong {strong}, "
                 f"waits {100 * case['waits']:.0f} %, in exchanges {100 * case['in_exchanges']:.0f} %, "
                 f"moving bytes {100 * case['exchanges']:.0f} %")
        if "reached" in case:
            line += (f"  weak {case['bars']['weak']:.2f}, waits below {100 * case['bars']['waits']:.0f} % "
                     f"{verdict(case['reached'])}")
        yield line


def transformers_lines(comparison):
    for way in comparison["ways"]:
        name = f"  transformers {comparison['transformers']}, {way['way']:<20} "
        if "tokens_per_second" not in way:
            yield name + "no figure: " + way["refused"][-1]["reason"]
            continue
        line = f"{name}{way['tokens_per_second']:.0f} tokens/s"
        if "times" in way:
            line += f"; switchyard {way['times']:.2f} times as fast  {way['bar']:.0f} times {verdict(way['reached'])}"
        yield line


def main():
    stages_path, out = sys.argv[1:]
    with open(stages_path) as file:
        stages = [dict(zip(("stage", "result", "seconds", "remark"), line.rstrip("\n").split("\t", 3))) for line in file]
    lines = [f"{'stage':<13} {'result':<11} {'s':>5}  remark"]
    lines += [f"{s['stage']:<13} {s['result']:<11} {s['seconds']:>5}  {s['remark']}" for s in stages]
    summary = {"stages": stages}
    ran = {stage["stage"] for stage in stages}  # files of an earlier call are not this one's results
    for name, describe in (("kernels", kernel_lines), ("steps", step_lines), ("scaling", scaling_lines),
                           ("transformers", transformers_lines)):
        content = read_json(out, f"{name}.json") if name in ran else None
        if content is not None:
            summary[name] = content
            lines += ["", *describe(content)]
    text = "\n".join(lines) + "\n"
    with open(os.path.join(out, "summary.txt"), "w") as file:
        file.write(text)
    with open(os.path.join(out, "summary.json"), "w") as file:
        json.dump(summary, file, indent=1)
    print(text, end="")


if __name__ == "__main__":
    main()
