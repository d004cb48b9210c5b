#!/usr/bin/env python3
"""The summary of scripts/gpu_check.sh, written after each of its stages: summary.txt, summary.json, and summary.md, whose tables
are those of docs/benchmarks/cuda.md. Standard library alone.
"""

import os

from gpu_check_jobs import read_json, write_json


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
        if run.get("heals") is not None:
            yield f"    after an error: {run['healed']}"


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


def curve_lines(curve):
    for name, why in curve["errors"].items():
        yield f"  loss, {name}: FAILED: {why}"
    if "healed" in curve:
        yield f"  loss, bfloat16 on the card: {curve['healed']}"
    for pair in curve["pairs"]:
        line = (f"  loss, {pair['a']} and {pair['b']}, {pair['steps']} steps: mean difference {100 * pair['mean']:.3f} %, largest "
                f"{100 * pair['largest']:.3f} % in step {pair['largest_step']}")
        if "reached" in pair:
            line += f"  mean {100 * pair['bar']:.1f} % {verdict(pair['reached'])}"
        yield line


def transformers_lines(comparison):
    for way in comparison["ways"]:
        name = f"  transformers {comparison['transformers']}, {way['way']:<20} "
        if "tokens_per_second" not in way:
            yield name + "no figure: " + way["refused"][-1]["reason"]
            continue
        line = f"{name}{way['tokens_per_second']:.0f} tokens/s"
        if "times" in way:
            line += f"; switchyard {way['times']:.2f} times as fast"
        if "reached" in way:
            line += f"  {way['bar']:.0f} times {verdict(way['reached'])}"
        if way.get("remark"):
            line += f"; {way['remark']}"
        yield line


DESCRIBE = {"kernels": kernel_lines, "steps": step_lines, "curve": curve_lines, "scaling": scaling_lines, "transformers": transformers_lines}


# --- Markdown -----------------------------------------------------------------------------------------------------

def table(head, rows):
    def line(cells):
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    return [line(head), "|" + "---|" * len(head), *map(line, rows), ""] if rows else []


# The rows of docs/benchmarks/cuda.md: how a kernel's name begins, its bar in words.
ROWS = ((("attention_forward",), "60 % of the product"), (("attention_backward",), "50 % of the product"),
        (("grouped_linear",), "70 % of the product"), (("rmsnorm", "layernorm_silu", "rope"), "85 % of the copy"),
        (("moe_dispatch", "moe_combine"), "85 % of the copy"), (("adamw_update",), "85 % of the copy"))


def kernels_markdown(kernels):
    cases = [case for case in kernels["cases"] if "error" not in case]
    if not kernels["measured"]:
        return [f"{len(cases)} of {len(kernels['cases'])} cases ran, at tiny sizes or on the emulator: no measurement.", ""]
    rows = []
    for names, bar in ROWS:
        barred = [case for case in cases if case["kernel"].startswith(names) and "reached" in case]
        if barred:
            shares = [100 * case["share"] for case in barred]
            rows.append((", ".join(f"`{name}`" for name in names), bar, f"{min(shares):.1f} to {max(shares):.1f} %; "
                         f"{sum(case['reached'] for case in barred)} of {len(barred)} reach it"))
    lines = [f"Product {kernels['product_flops'] * 1e-12:.0f} TFLOP/s, copy {kernels['copy_bytes_per_second'] * 1e-9:.0f} GB/s.", ""]
    lines += table(("kernels", "must reach", "reached"), rows)
    lines += table(("kernel", "shape", "ms", "TFLOP/s", "GB/s", "share", "of bound", "bar"), [
        (f"`{case['kernel']}`", case["shape"], f"{case['milliseconds']:.4f}", f"{case['tflops']:.1f}" if case["tflops"] else "",
         f"{case['gb_per_second']:.0f}", f"{100 * case['share']:.1f} %" if "share" in case else "",
         f"{100 * case['share_of_bound']:.1f} %" if "share_of_bound" in case else "",
         f"{100 * case['bar']:.0f} % {'reached' if case['reached'] else '**missed**'}" if "reached" in case else "") for case in cases])
    return lines + table(("kernel", "error", "alone"), [(f"`{case['kernel']}`", case["error"], case.get("alone", ""))
                                                        for case in kernels["cases"] if "error" in case])


def steps_markdown(steps):
    rows = []
    for run in steps:
        refused = "; ".join(f"micro-batch {one['micro_batch']}: {one['reason']}" for one in run["refused"])
        figure = f"{run['tokens_per_second']:.0f} tokens/s at micro-batch {run['micro_batch']}" if "tokens_per_second" in run else "no figure"
        share = f"{100 * run['utilisation']:.1f} %" if "utilisation" in run else ""
        rows.append((run["name"], f"`{run['config']}`", f"{100 * run['bar']:.0f} %" if run["bar"] else "no bar",
                     ", ".join(filter(None, (share + ("" if "reached" not in run else " reached" if run["reached"] else " **missed**"), figure))),
                     refused))
    return table(("model", "configuration", "must reach", "reached", "refused"), rows)


def curve_markdown(curve):
    lines = [] if curve["measured"] else ["A few steps of a tiny model: no measurement.", ""]
    lines += table(("losses", "steps", "mean difference", "largest", "must be"), [
        (f"{pair['a']} and {pair['b']}", pair["steps"], f"{100 * pair['mean']:.3f} %", f"{100 * pair['largest']:.3f} % in step {pair['largest_step']}",
         f"mean below {100 * pair['bar']:.1f} %: {'reached' if pair['reached'] else '**missed**'}" if "reached" in pair else "no bar")
        for pair in curve["pairs"]])
    names = list(curve["losses"])
    if not names:
        return lines
    steps = range(len(next(iter(curve["losses"].values()))))
    shown = [step for step in steps if step % 20 == 19 or step in (0, len(steps) - 1)]
    return lines + table(("step", *names), [(step + 1, *(f"{curve['losses'][name][step]:.4f}" for name in names)) for step in shown])


def scaling_markdown(scaling):
    lines = [] if scaling["measured"] else ["Tiny models or the emulator: no measurement.", ""]
    lines += table(("ranks", "exchange", "GB/s received a rank", "of NCCL's all-gather"), [
        (exchange["ranks"], row["what"], f"{row['bytes_per_second'] * 1e-9:.1f}", f"{row['share']:.2f}")
        for exchange in scaling["exchanges"] for row in exchange["rows"]])
    return lines + table(("ranks", "expert", "tokens/s", "weak", "strong", "waits", "exchanges", "bar"), [
        (case["ranks"], case["expert"], case["error"], "", "", "", "", "") if "error" in case else
        (case["ranks"], case["expert"], f"{case['tokens_per_second']:.0f}", f"{case['weak']:.2f}",
         "" if case["strong"] is None else f"{case['strong']:.2f}", f"{100 * case['waits']:.0f} %", f"{100 * case['exchanges']:.0f} %",
         ("reached" if case["reached"] else "**missed**") if "reached" in case else "") for case in scaling["cases"]])


def transformers_markdown(comparison):
    return [f"transformers {comparison['transformers']}, PyTorch {comparison['torch']}.", ""] + table(
        ("way", "tokens/s", "micro-batch", "switchyard must be", "is", "remark"), [
            (way["way"], f"{way['tokens_per_second']:.0f}" if "tokens_per_second" in way else "no figure", way.get("micro_batch", ""),
             f"{way['bar']:.0f} times as fast" if "bar" in way else "no bar",
             f"{way['times']:.2f} times" + ("" if "reached" not in way else ", reached" if way["reached"] else ", **missed**") if "times" in way else "",
             "; ".join([*([way["remark"]] if way.get("remark") else []), *(one["reason"] for one in way["refused"])]))
            for way in comparison["ways"]])


MARKDOWN = {"kernels": ("Kernels", kernels_markdown), "steps": ("Whole training steps", steps_markdown),
            "scaling": ("Several cards", scaling_markdown), "curve": ("The loss curve in bfloat16", curve_markdown),
            "transformers": ("transformers", transformers_markdown)}


def markdown(stages, state, figures):
    card, driver = state.get("card", "a card that is not known"), state.get("driver", "unknown")
    toolkit = (figures.get("kernels") or {}).get("toolkit", "unknown")
    dates = sorted({stage["date"] for stage in stages})
    lines = [f"{card}, driver {driver}, CUDA {toolkit}, {' to '.join(dict.fromkeys((dates[0], dates[-1]))) if dates else ''}, commit "
             f"{state.get('commit', 'unknown')}, `{state.get('command', '')}`.", ""]
    if state.get("smoke"):
        lines += ["**Tiny sizes: nothing here is a measurement.**", ""]
    lines += table(("stage", "result", "s", "remark"), [(s["stage"], s["result"], s["seconds"], s["remark"]) for s in stages])
    for name, (title, write_section) in MARKDOWN.items():
        if figures.get(name) is not None:
            lines += [f"## {title}", "", *write_section(figures[name])]
    found = [(stage["stage"], line) for stage in stages for line in stage["findings"]]
    if found:
        lines += ["## What failed", "", *(f"- {name}: {line.strip()}" for name, line in found), ""]
    return "\n".join(lines)


def write(out, stages, state):
    """-> the text of summary.txt. `stages`: of gpu_check.py's state, in their order."""
    lines = [f"{'stage':<13} {'result':<11} {'s':>5}  remark"]
    lines += [f"{s['stage']:<13} {s['result']:<11} {s['seconds']:>5}  {s['remark']}" for s in stages]
    for stage in stages:
        lines += [f"  {stage['stage']}: {line}" for line in stage["findings"]]
    summary, figures = {"stages": stages}, {}
    ran = {stage["stage"] for stage in stages}
    for name, describe in DESCRIBE.items():
        content = read_json(os.path.join(out, f"{name}.json")) if name in ran else None
        if content is None:
            continue
        figures[name] = summary[name] = content
        try:
            lines += ["", *describe(content)]
        except (KeyError, IndexError, TypeError) as error:  # of a stage that was cut off or a program of another version
            lines += [f"  {name}.json: {type(error).__name__}: {error}"]
    text = "\n".join(lines) + "\n"
    write_text(os.path.join(out, "summary.txt"), text)
    write_json(os.path.join(out, "summary.json"), summary)
    try:
        write_text(os.path.join(out, "summary.md"), markdown(stages, state, figures))
    except (KeyError, IndexError, TypeError) as error:
        write_text(os.path.join(out, "summary.md"), f"{type(error).__name__}: {error}\n\n```\n{text}```\n")
    return text


def write_text(path, text):
    with open(f"{path}.partial", "w") as file:
        file.write(text)
    os.replace(f"{path}.partial", path)
