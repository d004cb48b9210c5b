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

from console import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUNS = ROOT / "tools" / "published_runs.json"
BINARY = os.environ.get("SWITCHYARD_BIN", str(ROOT / "build" / "switchyard"))

# What a planner is held to. FLOPs and memory: the largest error; speed: median and largest.
BARS = {"flops": 0.02, "steady": 0.06, "speed_median": 0.15, "speed_worst": 0.40}


class CannotExpress(Exception):
    """Why a run is not in the table."""


class Failed(Exception):
    """The command itself has failed."""


# --- a run as configuration and options ---------------------------------------------------------------------------

# Runs whose models have parts that no layout of switchyard has.
OTHER_PARTS = ("hybrid", "DeltaNet")
# Device names of the runs, and what they are here. The H100 of 96 GB with HBM2e and 500 W is no product with a data
# sheet of its own: torchtitan's page gives memory and power, HBM2e has some 2.4 TB/s, and rates are taken to fall with the
# root of power (voltage and clock fall together).
DEVICES = {"H100 96 GB": "H100,memory=96",
           "H100 96 GB HBM2e 500 W": "H100,memory=96,bandwidth=2.4,watts=500,bf16=836,fp8=1673",
           "180 GB class (178.4 GiB usable)": "B200"}
RECOMPUTE = {"mla_up_proj + mlp": "up_proj,mlp", "norm, act": "norm,act", "core_attn": "core_attention", "moe_act": "act", "mla_up_proj": "up_proj"}


KNOWN_DEVICE = re.compile(r"\b(A100|H100|H800|H200|B200|B300|GB200|GB300|MI300X)\b")


def device_of(run):
    known = KNOWN_DEVICE.search(run["gpu"])
    if run["gpu"] not in DEVICES and not known:
        raise CannotExpress(f"{run['gpu']} is no device that is known here")
    return DEVICES.get(run["gpu"]) or known[1]


def load(path):
    """The runs of a file, without what is null; steady memory and overlap are read from words where they stand there."""
    try:
        runs = [{key: value for key, value in run.items() if value is not None} for run in json.loads(pathlib.Path(path).read_text())]
        for key in ("id", "source"):
            [run[key] for run in runs]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; check the path") from None
    except (ValueError, AttributeError, TypeError, KeyError) as error:
        raise UserError(f"{path}: not a list of runs in the form of tools/published_runs.json ({error})") from None
    if not runs:
        raise UserError(f"{path}: has no run")
    for run in runs:
        steady = re.search(r"steady state (\d+\.\d+)", run.get("mem_kind", ""))
        if steady:
            run.setdefault("steady_gb", float(steady[1]))
        if "overlap on" in run.get("notes", ""):
            run.setdefault("overlap", True)
    return runs


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
        if not all(re.search(key, attention) for key in (r"kv\d", r"nope\d", r"rope\d", r"\bv\d")):
            raise CannotExpress("the widths of latent attention are not published")
        widths = {key: int(re.search(key + r"(\d+)", attention)[1]) if re.search(key + r"(\d+)", attention) else None
                  for key in (r"\bq", "kv", "nope", "rope", r"\bv")}
        model |= {"model_type": "deepseek_v3", "q_lora_rank": widths[r"\bq"], "kv_lora_rank": widths["kv"],
                  "qk_nope_head_dim": widths["nope"], "qk_rope_head_dim": widths["rope"], "v_head_dim": widths[r"\bv"],
                  "intermediate_size": run["dense_ffn"], "moe_intermediate_size": run["expert_ffn"],
                  "first_k_dense_replace": run["dense_layers"], "n_routed_experts": experts,
                  "n_shared_experts": run["shared_experts"], "num_experts_per_tok": run["top_k"],
                  # As in the published config.json: of DeepSeek-V3 a token goes to 4 of 8 groups of experts.
                  "n_group": 8 if run["model"].startswith("DeepSeek-V3") else 1,
                  "topk_group": 4 if run["model"].startswith("DeepSeek-V3") else 1, "num_key_value_heads": run["heads"],
                  "num_nextn_predict_layers": run.get("mtp_layers", 0)}
        return model
    model |= {"model_type": "qwen3_moe", "num_key_value_heads": run.get("kv_heads", run["heads"]),
              "head_dim": run.get("head_dim", run["hidden"] // run["heads"])}
    # The published 0.5B and 1.5B of Qwen2.5 tie their embeddings.
    model["tie_word_embeddings"] = run["model"] in ("Qwen2.5-0.5B", "Qwen2.5-1.5B")
    if experts:
        # The layout has no shared experts: as many more that each token goes to cost as much, and weigh a little less.
        model |= {"num_experts": experts, "num_experts_per_tok": run["top_k"] + run.get("shared_experts", 0),
                  "moe_intermediate_size": run["expert_ffn"]}
        if run.get("dense_layers", 0) > 0:
            model |= {"intermediate_size": run["dense_ffn"], "mlp_only_layers": list(range(run["dense_layers"]))}
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
    device = device_of(run)
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
    # A whole number of micro-batches of every data rank.
    batch = max(1, round(run.get("global_batch_seqs", 0) / max(1, data * micro))) * max(1, data * micro)
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
    if "FP4" in text:
        raise CannotExpress("products in FP4 are not planned")
    return "fp8" if "FP8" in text else "bfloat16"


# Pieces of a stage where the source names none: the study of Llama 70B changes one key at a time, and its others have
# five; Llama 3's report has an interleaved schedule whose number of pieces is
# open (arXiv 2407.21783, section 3.3.2); four is what its neighbours in the table use.
CHUNKS = {"mb-l70-sft-h100-pp8": 5, "mb-l70-sft-h100-tp8": 5, "llama3-405b-8192-cp1": 4, "llama3-405b-16384-cp16": 4}

# Runs that are left out of the table of speeds, with the reason.
LEFT_OUT = {
    "mb-q30-h100-fp8-2602": "its source contradicts it: the point release after it reads 9,058 tokens/s for the same layout",
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
        reason = (done.stderr.strip().splitlines() or ["says nothing"])[-1]
        if done.returncode == 2:  # a run that the command refuses; anything else is a fault of the command
            raise CannotExpress(reason)
        raise Failed(f"{' '.join(command)}: ended with {done.returncode}: {reason}")
    return json.loads(done.stdout)


def plan(run, directory, calibration=None):
    """What the command says of a run."""
    options = options_of(run)
    path = pathlib.Path(directory) / f"{run['id']}.json"
    if not path.exists():
        path.write_text(json.dumps(model_of(run)))
    flags = ["--overlap"] if run.get("overlap") else []
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


# Layouts that one source compared, fastest first; those in one tuple were equal. What a planner must rank.
ORDERS = {
    "Qwen3-235B, 256 H100 (ModelZoo)": [("zoo-q235-fsdp", "zoo-q235-overlap"), ("zoo-q235-base",), ("zoo-q235-pp32",), ("zoo-q235-tp4",)],
    "Llama 3.1 70B fine-tuning, 32 H100 (Bridge)": [("mb-l70-sft-h100-pp4",), ("mb-l70-sft-h100-pp8",), ("mb-l70-sft-h100-mlp",),
                                                   ("mb-l70-sft-h100-tp8",)],
    "Moonlight recompute, 8 H100 (Bridge)": [("mb-moonlight-h100-none",), ("mb-moonlight-h100-moe_act",), ("mb-moonlight-h100-core_attn",)],
    "Qwen3-30B overlap, 16 H100 (Bridge)": [("mb-q30-h100-overlap-on",), ("mb-q30-h100-overlap-off",)],
    "Qwen3-30B, 8 to 128 B200 (NousResearch)": [("nous-q30-8",), ("nous-q30-16",), ("nous-q30-32",), ("nous-q30-64",), ("nous-q30-128",)],
    "Qwen3-30B local batch, 128 B200 (NousResearch)": [("nous-q30-128-lbs10",), ("nous-q30-128",)],
    "DeepSeek-V3, 256 B200 (Bridge)": [("mb-dsv3-b200-2604",), ("mb-dsv3-b200-2511",)],
    "Qwen3-32B, H100 96 GB (torchtitan)": [("tt-q32-fsdp8",), ("tt-q32-fsdp4tp8-32",)],
}

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


PAIR_NOISE = 0.05  # of how much faster one layout is than another in one source


def pairs(runs):
    """Indices of neighbours in an order of ORDERS, which are fitted by how far apart they are, too."""
    at = {run["id"]: i for i, run in enumerate(runs)}
    return [(at[a], at[b]) for order in ORDERS.values() for x, y in zip(order, order[1:]) for a in x for b in y if a in at and b in at]


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


def step_of_fit(names, at, errors, slopes, weights, neighbours):
    """Gauss-Newton from `at` (logarithms): of the errors' Huber sum and the distance from where constants start."""
    n = len(names)
    matrix = [[0.0] * n for _ in range(n)]
    vector = [0.0] * n
    rows = [(error, slope, weight, NOISE) for error, slope, weight in zip(errors, slopes, weights)]
    rows += [(errors[a] - errors[b], [x - y for x, y in zip(slopes[a], slopes[b])], 1.0, PAIR_NOISE) for a, b in neighbours]
    for error, slope, weight, noise in rows:
        w = weight / noise ** 2 * min(1.0, 1.5 * noise / max(abs(error), 1e-9))
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
        at = step_of_fit(names, at, [row[0] for row in values], slopes, weights, pairs(runs))
        for i, name in enumerate(names):
            if name in SHARES:
                at[i] = min(at[i], math.log(SHARES[name]))
    return as_constants(names, at)


# Constants that are shares, and the most that is plausible.
SHARES = {"product_bf16": 0.9, "product_fp8": 0.9, "attention": 0.8, "bandwidth": 0.95, "link": 0.9, "network": 0.95,
          "exchange_exposed": 1.0, "exchange_overlapped": 1.0, "tensor_exposed": 1.0, "context_exposed": 1.0, "pipeline_exposed": 1.0, "sums_exposed": 1.0}


def as_constants(names, at):
    return {name: math.exp(value) for name, value in zip(names, at)}


# --- tables -------------------------------------------------------------------------------------------------------

class Errors:
    """What the command says of each run beside what was published."""

    def __init__(self, runs, found):
        self.flops, self.steady, self.peaks, self.speeds, self.left_out, self.unplanned = [], [], [], [], [], []
        self.planned = {}
        for run in runs:
            answer = found[run["id"]]
            if isinstance(answer, str):
                self.unplanned.append((run["id"], answer))
                continue
            self.add(run, answer)
        self.add_series({run["id"]: run for run in runs}, found)

    def add(self, run, answer):
        reported = run.get("flops_per_token_reported_g")
        if reported and run["id"] not in OTHER_COUNTERS:
            self.flops.append((run["id"], reported, answer["flops_per_token"] * 1e-9))
        if "steady_gb" in run:
            self.steady.append((run["id"], run["steady_gb"], answer["stages"][-1]["steady"] * 1e-9))
        if "mem_value" in run:
            unit = 1.0737 if run["mem_unit"] == "GiB" else 1.0
            last = "last rank" in run["mem_kind"]
            peak = answer["stages"][-1]["peak"] if last else answer["memory"]["peak"]
            self.peaks.append((run["id"], run["mem_value"] * unit, peak * 1e-9))
        speed = speed_of(run, answer["flops_per_token"])
        if speed is None:
            return
        self.planned[run["id"]] = answer["step"]["tokens_per_second_per_device"]
        row = (run["id"], speed, self.planned[run["id"]])
        if run["id"] in LEFT_OUT:
            self.left_out.append(row)
        elif not run.get("order_only"):
            self.speeds.append(row)

    def add_series(self, by_id, found):
        """FSDP's 16 bytes a parameter, from how memory falls with the number of ranks: the rest is the same in all rows."""
        first, last = by_id.get("nous-q30-8"), by_id.get("nous-q30-128")
        if first is None or last is None or isinstance(found["nous-q30-8"], str):
            return
        published = (first["mem_value"] - last["mem_value"]) * 1.0737
        planned = [found[name]["memory"]["steady"] * 1e-9 for name in ("nous-q30-8", "nous-q30-128")]
        self.steady.append(("nous-q30-8 less nous-q30-128", published, planned[0] - planned[1]))

    @staticmethod
    def of(rows):
        return [abs(mine / published - 1) for _, published, mine in rows]

    def orders(self):
        """(study, whether the command has the published order) for each."""
        result = []
        for study, order in ORDERS.items():
            if not all(name in self.planned for names in order for name in names):
                continue
            worst = [min(self.planned[name] for name in names) for names in order]
            best = [max(self.planned[name] for name in names) for names in order]
            result.append((study, all(low > high for low, high in zip(worst, best[1:]))))
        return result

    def figures(self):
        speeds = self.of(self.speeds) or [math.nan]
        return {"flops": max(self.of(self.flops), default=math.nan), "steady": max(self.of(self.steady), default=math.nan),
                "speed_median": statistics.median(speeds), "speed_worst": max(speeds)}


# Reported FLOPs that count something else than the closed form.
OTHER_COUNTERS = {
    "am-oss20-h100": "counts neither sliding windows nor the head as the other tables do",
    "mb-l70-h100-2604": "2.2 % below the closed form and AutoModel's and Bridge's own count of the same model at 8B",
    "tt-ds16-h100": "torchtitan's counter is above the closed form", "tt-q32-fsdp8": "torchtitan's counter, 1.6 % above",
    "tt-q32-fsdp4tp8-32": "torchtitan's counter, 1.6 % above"}


def print_table(title, columns, rows, digits, markdown):
    print(f"\n{'## ' if markdown else ''}{title}\n")
    if markdown:
        print("| run | " + " | ".join(columns) + " |")
        print("|---|" + "---|" * len(columns))
    for name, published, mine in rows:
        cells = [f"{published:,.{digits}f}", f"{mine:,.{digits}f}", f"{100 * (mine / published - 1):+.1f} %"]
        print(f"| {name} | " + " | ".join(cells) + " |" if markdown else
              f"{name:<30}" + "".join(f"{cell:>14}" for cell in cells))


def print_all(errors, markdown):
    columns = ["published", "planned", "error"]
    print_table("GFLOP a token", columns, errors.flops, 2, markdown)
    print_table("Steady memory, GB", columns, errors.steady, 2, markdown)
    print_table("Peak memory, GB", columns, errors.peaks, 1, markdown)
    print_table("Tokens/s a device", columns, errors.speeds, 0, markdown)
    print_table("Tokens/s a device, left out", columns, errors.left_out, 0, markdown)
    print()
    for name, _, _ in errors.left_out:
        print(f"- {name}: {LEFT_OUT[name]}")
    print("\nOrder of layouts in one source:\n")
    for study, right in errors.orders():
        print(f"- {study}: {'right' if right else 'WRONG'}")
    print("\nNot planned:\n")
    for name, reason in errors.unplanned:
        print(f"- {name}: {reason}")


def verdict(errors):
    """Prints the figures beside their bars; whether all are met."""
    figures = errors.figures()
    met = True
    print()
    for name, bar in BARS.items():
        if math.isnan(figures[name]):
            print(f"{name:<14}  none of these runs has it")
            continue
        good = figures[name] <= bar
        met = met and good
        print(f"{name:<14}{100 * figures[name]:6.1f} %  (bar {100 * bar:.0f} %){'' if good else '  MISSED'}")
    everything = errors.of(errors.speeds + errors.left_out)
    if everything:
        print(f"with what is left out: median {100 * statistics.median(everything):.1f} %, worst {100 * max(everything):.1f} %")
    orders = errors.orders()
    print(f"orders right: {sum(right for _, right in orders)} of {len(orders)}")
    return met and all(right for _, right in orders)


def usable(runs, found):
    return [run for run in runs if not isinstance(found[run["id"]], str) and speed_of(run, 1e9) and run["id"] not in LEFT_OUT]


def leave_out(runs, found, directory):
    """Fits without each study in turn, and prints how far that study is off."""
    known = [run for run in usable(runs, found) if not run.get("order_only")]
    start = fit(known, directory)
    held_out = []
    for study in sorted({study_of(run)[:2] for run in known}):
        inside = [run for run in known if study_of(run)[:2] == study]
        constants = fit([run for run in known if study_of(run)[:2] != study], directory, rounds=3, start=start)
        errors = [math.expm1(row[0]) for row in log_speeds(inside, [constants], directory)]
        held_out += errors
        print(f"{study[1]:<28}{study[0][:60]:<62}" + " ".join(f"{100 * error:+.0f}" for error in errors), flush=True)
    magnitudes = [abs(error) for error in held_out]
    print(f"held out: {len(held_out)} runs, median {100 * statistics.median(magnitudes):.1f} %, worst {100 * max(magnitudes):.1f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="?", default=RUNS, help="runs in the form of tools/published_runs.json (default: those)")
    parser.add_argument("--markdown", action="store_true", help="print the tables of docs/planner.md")
    parser.add_argument("--calibration", metavar="FILE", help="constants in place of the built-in ones")
    parser.add_argument("--fit", metavar="FILE", help="fit constants to the runs, and write them there")
    parser.add_argument("--leave-out", action="store_true", help="fit without each study in turn; takes minutes")
    args = parser.parse_args()
    try:
        return check(args)
    except UserError as error:
        message, code = str(error), 2
    except Failed as error:
        message, code = str(error), 1
    print(f"check_plan.py: {message}", file=sys.stderr)
    return code


def check(args):
    if not os.access(BINARY, os.X_OK):
        raise UserError(f"{BINARY}: no such program; build it, or name it in SWITCHYARD_BIN")
    runs = load(args.runs)
    with tempfile.TemporaryDirectory() as directory:
        found = plans(runs, directory, args.calibration)
        if args.leave_out:
            leave_out(runs, found, directory)
            return 0
        if args.fit:
            pathlib.Path(args.fit).write_text(json.dumps(fit(usable(runs, found), directory), indent=1) + "\n")
            found = plans(runs, directory, args.fit)
    errors = Errors(runs, found)
    print_all(errors, args.markdown)
    if len(errors.unplanned) == len(runs):
        raise Failed("none of these runs could be planned; the reasons are above")
    return 0 if verdict(errors) else 1


if __name__ == "__main__":
    sys.exit(main())
