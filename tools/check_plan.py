#!/usr/bin/env python3
"""Holds `switchyard plan` to published training runs: FLOPs a token, steady memory, tokens/s, order of layouts.

Each run becomes a small config.json and options of the command, written to a temporary directory, so that every number
of the table is the command's own. `--fit` looks for constants (src/plan/calibration.h) that fit the runs, and
`--leave-out` fits without each study in turn and says how far that study is then off.

    tools/check_plan.py                       the table, with median and worst errors; exit code 1 where a bar is missed
    tools/check_plan.py --markdown            the same as the tables of docs/planner.md
    tools/check_plan.py other_runs.json       of other runs, in the same form
"""

import argparse
import concurrent.futures
import json
import math
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / "tools" / "published_runs.json"
BINARY = os.environ.get("SWITCHYARD_BIN", str(ROOT / "build" / "switchyard"))

# What a planner is held to. FLOPs and memory: the largest error; speed: median and largest.
BARS = {"flops": 0.02, "steady": 0.06, "speed_median": 0.15, "speed_worst": 0.40}


class CannotExpress(Exception):
    """Why a run is not in the table."""


# --- a run as configuration and options ---------------------------------------------------------------------------

# Runs whose models have parts that no layout of switchyard has.
OTHER_PARTS = ("hybrid", "DeltaNet")
# Device names of the runs, and what they are here. The H100 of 96 GB with HBM2e and 500 W is no product with a data
# sheet of its own: torchtitan's page gives memory and power, HBM2e has some 2.4 TB/s, and rates are taken to fall with the
# root of power (voltage and clock fall together).
DEVICES = {"H100": "H100", "H100 80 GB": "H100", "H800": "H800", "B200": "B200", "GB200": "GB200", "GB300": "GB300", "A100": "A100",
           "H200": "H200", "MI300X": "MI300X",
           "H100 96 GB": "H100,memory=96",
           "H100 96 GB HBM2e 500 W": "H100,memory=96,bandwidth=2.4,watts=500,bf16=836,fp8=1673",
           "180 GB class (178.4 GiB usable)": "B200,memory=191.6"}
RECOMPUTE = {"mla_up_proj + mlp": "up_proj,mlp", "norm, act": "norm,act", "core_attn": "core_attention", "moe_act": "act"}


def mean_window(full, window, length):
    """The one window of all layers in which a token sees as many keys as where every other layer has `window`."""
    keys = (length / 2 + window - window * window / (2 * length)) / 2
    return round(length - math.sqrt(length * length - 2 * length * keys)) if full else window


def model_of(run):
    """The model as a config.json, in the layout of switchyard that has its parts."""
    if any(part in run.get("attention", "") for part in OTHER_PARTS):
        raise CannotExpress("hybrid of attention and state spaces: no layout has it")
    if "layers" not in run or "hidden" not in run:
        raise CannotExpress("the model's shape is not published")
    if "heads" not in run or "vocab" not in run:
        raise CannotExpress("heads or vocabulary are not published")
    attention = run.get("attention", "")
    experts = run.get("experts", 0)
    model = {"vocab_size": run["vocab"], "hidden_size": run["hidden"], "num_hidden_layers": run["layers"],
             "num_attention_heads": run["heads"], "max_position_embeddings": 1 << 20}
    if attention.startswith("MLA"):
        widths = {key: int(re.search(key + r"(\d+)", attention)[1]) if re.search(key + r"(\d+)", attention) else None
                  for key in (r"\bq", "kv", "nope", "rope", r"\bv")}
        model |= {"model_type": "deepseek_v3", "q_lora_rank": widths[r"\bq"], "kv_lora_rank": widths["kv"],
                  "qk_nope_head_dim": widths["nope"], "qk_rope_head_dim": widths["rope"], "v_head_dim": widths[r"\bv"],
                  "intermediate_size": run["dense_ffn"], "moe_intermediate_size": run["expert_ffn"],
                  "first_k_dense_replace": run["dense_layers"], "n_routed_experts": experts,
                  "n_shared_experts": run["shared_experts"], "num_experts_per_tok": run["top_k"], "n_group": 1,
                  "topk_group": 1, "num_key_value_heads": run["heads"],
                  "num_nextn_predict_layers": run.get("mtp_layers", 0)}
        return model
    model |= {"model_type": "qwen3_moe", "num_key_value_heads": run["kv_heads"], "head_dim": run["head_dim"]}
    # The published 0.5B and 1.5B of Qwen2.5 tie their embeddings.
    model["tie_word_embeddings"] = run["model"] in ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
    if experts:
        model |= {"num_experts": experts, "num_experts_per_tok": run["top_k"], "moe_intermediate_size": run["expert_ffn"]}
    else:
        width = run["dense_ffn"]
        if "GELU" in run["model"] or "squared ReLU" in run["model"]:
            width = round(width * 2 / 3)  # two matrices, not three: the same number of values
        model |= {"intermediate_size": width, "mlp_only_layers": list(range(run["layers"]))}
    if "alternating SWA" in attention:
        model |= {"use_sliding_window": True, "max_window_layers": 0,
                  "sliding_window": mean_window(True, 128, run["seq_len"])}
    return model


FSDP = ("fsdp", "torch")


def scheme_of(run):
    text = run.get("data_parallel_scheme", "")
    if run["gpus"] == 1:
        return "switchyard"  # a trainer in C++ on one device: no host in Python, fused kernels
    if "ZeRO-2" in text:
        return "megatron"  # weights stay gathered over a step, as there
    if "torchtitan" in run["source"] or "pith-train" in run["source"]:
        return "torch"
    if "FSDP" in text:
        return "fsdp"
    return "megatron"


def routing_of(run):
    """NVIDIA's tables of performance are of forced balance wherever they say anything; others are of real routing."""
    text = run.get("routing", "")
    if "forced" in text or ("NVIDIA-NeMo" in run["source"] and not text):
        return "balanced"
    return "real"


def options_of(run):
    """Options of the command for a run, or why they cannot be known."""
    device = DEVICES.get(run["gpu"])
    if device is None:
        raise CannotExpress(f"{run['gpu']} is no device that is known here")
    if "seq_len" not in run or "gpus" not in run:
        raise CannotExpress("sequence length or batch are not published")
    scheme = scheme_of(run)
    single = run["gpus"] == 1
    if "tp" not in run and "ep" not in run and "pp" not in run and not single and scheme not in FSDP:
        raise CannotExpress("the layout is not published")
    micro = run.get("micro_batch")
    tensor, pipeline, context = run.get("tp", 1), run.get("pp", 1), run.get("cp", 1)
    data = run["gpus"] // (tensor * pipeline * context)
    if micro is None:
        if scheme in FSDP and pipeline == 1:
            raise CannotExpress("the micro-batch is not published")
        micro = 1 if not single else 4  # of pipelines: the usual one; on one device any that fills it
    batch = run.get("global_batch_seqs", data * micro)
    options = {"--device": device, "--ranks": run["gpus"], "--seq-len": run["seq_len"], "--micro-batch": micro,
               "--global-batch": batch, "--scheme": scheme, "--tensor": tensor, "--pipeline": pipeline,
               "--chunks": run.get("vpp", CHUNKS.get(run["id"], 1)), "--context": context, "--expert": run.get("ep", 1),
               "--expert-tensor": run.get("etp", 1), "--precision": precision_of(run),
               "--routing": routing_of(run)}
    if "recompute" in run:
        options["--recompute"] = RECOMPUTE.get(run["recompute"], run["recompute"])
    elif "BF16 states" in run.get("optimizer", ""):
        options["--recompute"] = "none"  # a third of the state: what a plan with float32 states cannot hold may fit
    elif scheme == "torch":
        options["--recompute"] = "selective"  # torchtitan's default
    return options


def precision_of(run):
    text = run.get("precision", "BF16")
    return "fp8" if "FP8" in text else "bfloat16"


# Pieces of a stage where the source names none: the study of Llama 70B changes one key at a time, and its others have
# five; Llama 3's report has an interleaved schedule whose number of pieces is
# open (arXiv 2407.21783, section 3.3.2); four is what its neighbours in the table use.
CHUNKS = {"mb-l70-sft-h100-pp8": 5, "mb-l70-sft-h100-tp8": 5, "llama3-405b-8192-cp1": 4, "llama3-405b-16384-cp16": 4}

# Runs that are left out of the table of speeds, with the reason.
LEFT_OUT = {
    "mb-q30-h100-fp8-2602": "its source contradicts it: the point release after it reads 9,058 tokens/s for the same layout",
    "mb-dsv3-b200-2511": "the first release with rows for B200; five months later the same source has 1.56 times the speed on as "
                         "many GPUs",
    "tt-q32-fsdp4tp8-32": "its source contradicts it: half the FLOP/s of the same pull request without tensor ranks, and of "
                          "torchtitan's own Llama 70B with as many",
}


def speed_of(run, flops_per_token):
    """Published tokens/s a device; from TFLOP/s where that alone is published."""
    if "tokens_per_s_per_gpu" in run:
        return run["tokens_per_s_per_gpu"]
    if "tflops_per_gpu" in run:
        return run["tflops_per_gpu"] * 1e12 / flops_per_token
    return None


def ask(path, options, flags=(), calibration=None):
    """The command's answer as JSON."""
    command = [BINARY, "plan", str(path), "--json", *flags]
    for name, value in options.items():
        command += [name, str(value)]
    if calibration:
        command += ["--calibration", str(calibration)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise CannotExpress(done.stderr.strip().splitlines()[-1])
    return json.loads(done.stdout)


def plan(run, directory, calibration=None):
    """What the command says of a run."""
    options = options_of(run)
    path = pathlib.Path(directory) / f"{run['id']}.json"
    if not path.exists():
        path.write_text(json.dumps(model_of(run)))
    flags = ["--overlap"] if "overlap on" in run.get("notes", "") else []
    answer = ask(path, options, flags, calibration)
    if "--recompute" in options:
        return answer
    # What is not published was done if it had to be: a published run has fitted. The least that fits.
    for recompute in ("norm,act", "full"):
        if answer["fits"]:
            break
        answer = ask(path, options | {"--recompute": recompute}, flags, calibration)
    return answer


def plans(runs, directory, calibration=None):
    """Run -> what the command says, or why it says nothing."""
    def one(run):
        try:
            return plan(run, directory, calibration)
        except CannotExpress as error:
            return str(error)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip((run["id"] for run in runs), pool.map(one, runs)))


# --- fitting constants --------------------------------------------------------------------------------------------

# What is fitted, where it starts, and how far it may plausibly be from there (a standard deviation of its logarithm): the
# starts are what benchmarks of single parts reach, so that a constant of which the runs say little stays there.
FITTED = {"product_bf16": (0.72, 0.15), "product_fp8": (0.6, 0.2), "attention": (0.5, 0.3), "bandwidth": (0.7, 0.2),
          "link": (0.7, 0.2), "network": (0.8, 0.2), "exchange_exposed": (0.6, 0.4), "exchange_overlapped": (0.4, 0.4),
          "tensor_exposed": (0.7, 0.4), "context_exposed": (0.4, 0.4), "pipeline_exposed": (0.5, 0.5), "sums_exposed": (0.2, 0.4), "layer_fixed": (5e-4, 0.7), "step_fixed": (0.1, 0.7), "imbalance": (1.2, 0.15), "elementwise": (1.0, 0.3),
          "elementwise_torch": (1.5, 0.3), "half_rows": (256, 0.7), "half_width": (100, 0.7), "fp8_casts": (2.0, 0.7)}
NOISE = 0.15  # of the logarithm of a published speed: the references' own spread


def study_of(run):
    """Runs that say almost the same together: one model on one device in one source."""
    return (run["source"].split(" (")[0].split(" skills")[0], run["model"], run["gpu"])


def log_speeds(runs, sets, directory):
    """Run -> logarithm of planned over published speed, for each set of constants."""
    path = pathlib.Path(directory) / "sets.json"
    path.write_text(json.dumps([sets[0], *sets]))
    found = plans(runs, directory, path)
    return [[math.log(speed / speed_of(run, found[run["id"]]["flops_per_token"])) for speed in found[run["id"]]["speeds"][1:]]
            for run in runs]


def solve(matrix, vector):
    """x of matrix x = vector, by elimination."""
    n = len(vector)
    rows = [list(row) + [value] for row, value in zip(matrix, vector)]
    for i in range(n):
        pivot = max(range(i, n), key=lambda r: abs(rows[r][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for r in range(n):
            if r != i:
                factor = rows[r][i] / rows[i][i]
                rows[r] = [a - factor * b for a, b in zip(rows[r], rows[i])]
    return [rows[i][n] / rows[i][i] for i in range(n)]


def step_of_fit(names, at, errors, slopes, weights):
    """Gauss-Newton from `at` (logarithms): of the errors' Huber sum and the distance from where constants start."""
    n = len(names)
    matrix = [[0.0] * n for _ in range(n)]
    vector = [0.0] * n
    for error, slope, weight in zip(errors, slopes, weights):
        w = weight / NOISE ** 2 * min(1.0, 1.5 * NOISE / max(abs(error), 1e-9))
        for i in range(n):
            vector[i] -= w * slope[i] * error
            for j in range(n):
                matrix[i][j] += w * slope[i] * slope[j]
    for i, name in enumerate(names):
        start, spread = FITTED[name]
        matrix[i][i] += 1 / spread ** 2
        vector[i] -= (at[i] - math.log(start)) / spread ** 2
    return [a + max(-0.3, min(0.3, d)) for a, d in zip(at, solve(matrix, vector))]


def fit(runs, directory, rounds=8, start=None):
    names = list(FITTED)
    at = [math.log((start or {}).get(name, FITTED[name][0])) for name in names]
    studies = [study_of(run) for run in runs]
    weights = [1 / math.sqrt(studies.count(study)) for study in studies]
    for _ in range(rounds):
        sets = [at] + [[a + (0.02 if i == j else 0) for j, a in enumerate(at)] for i in range(len(names))]
        # Shares of a peak or of a time are at most 1.
        values = log_speeds(runs, [as_constants(names, each) for each in sets], directory)
        slopes = [[(row[i + 1] - row[0]) / 0.02 for i in range(len(names))] for row in values]
        at = step_of_fit(names, at, [row[0] for row in values], slopes, weights)
        for i, name in enumerate(names):
            if name in SHARES:
                at[i] = min(at[i], math.log(SHARES[name]))
    return as_constants(names, at)


# Constants that are shares, and the most that is plausible.
SHARES = {"product_bf16": 0.9, "product_fp8": 0.9, "attention": 0.8, "bandwidth": 0.95, "link": 0.9, "network": 0.95,
          "exchange_exposed": 1.0, "exchange_overlapped": 1.0, "tensor_exposed": 1.0, "context_exposed": 1.0, "pipeline_exposed": 1.0, "sums_exposed": 1.0}


def as_constants(names, at):
    return {name: math.exp(value) for name, value in zip(names, at)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", default=RUNS)
    parser.add_argument("--calibration")
    parser.add_argument("--fit")
    args = parser.parse_args()
    runs = json.loads(pathlib.Path(args.runs).read_text())
    with tempfile.TemporaryDirectory() as directory:
        found = plans(runs, directory, args.calibration)
        if args.fit:
            known = [r for r in runs if not r.get("order_only") and not isinstance(found[r["id"]], str) and speed_of(r, 1e9) and r["id"] not in LEFT_OUT]
            constants = fit(known, directory)
            pathlib.Path(args.fit).write_text(json.dumps(constants, indent=1))
            print(constants)
            found = plans(runs, directory, args.fit)
    errs = []
    for run in runs:
        p = found[run["id"]]
        if isinstance(p, str):
            print(f"{run['id']:<28} -- {p}")
            continue
        speed = speed_of(run, p["flops_per_token"])
        parts = p["step"]["parts"]; tot = p["step"]["seconds"]
        mine = p["step"]["tokens_per_second_per_device"]
        if speed and run["id"] not in LEFT_OUT and not run.get("order_only"): errs.append((abs(mine/speed-1), run["id"]))
        print(f"{run['id']:<28} F {p['flops_per_token']*1e-9:7.2f} {run.get('flops_per_token_reported_g')} pub {speed or 0:8.0f} plan {mine:8.0f} "
              f"{(mine/speed-1)*100 if speed else 0:+6.1f}% mem {p['memory']['peak']/1e9:6.1f} st {p['stages'][-1]['steady']/1e9:5.2f} pub {run.get('mem_value')} {run.get('mem_unit')} {p['layout']['recompute']} | "
              + " ".join(f"{k[:8]}:{v/tot*100:.0f}" for k, v in parts.items() if v/tot > .02))
    print(len(errs), statistics.median(e for e, _ in errs), sorted(errs)[-8:])


if __name__ == "__main__":
    main()
