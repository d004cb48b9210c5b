#!/usr/bin/env python3
"""Trains the same models with switchyard and with transformers + PyTorch on the CPU, in turns, and compares them.

scripts/bench_peers.sh builds what it needs first. All begin with the same weights and read the same random tokens in the same
order; a step is cross entropy, gradient and AdamW (fused in PyTorch) over one batch, without balance loss and clipping, float32
weights and moments. Each way of PyTorch is a process that stays alive, waiting while others work; switchyard starts anew for each
round. The first steps, in which torch.compile compiles, are not counted. A round's figure is the median of its steps, the table
has the median of rounds, the lowest and the highest. Memory is the largest resident set, of PyTorch after the first steps, of
switchyard from its start.

A first loss that differs from switchyard's by more than the tolerance is flagged, has no ratio, and the exit code is 1. Exit
code 3 where PyTorch or transformers is missing.
"""

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path

import run_config
import shards
from console import UserError

ROOT = Path(__file__).resolve().parent.parent
WARM_UP = 3  # steps
SEED = 1     # of weights, tokens and their order
OURS = "switchyard"
# Of the first loss, relative: sums of float32 in another order; bfloat16 rounds operands at other places (autocast rounds the
# logits too), 2^-9 each, which mostly averages out over a batch.
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-3}
WAYS = {"eager": ("eager", False), "grouped_mm": ("grouped_mm", False),  # experts, compiled
        "eager+compile": ("eager", True), "grouped_mm+compile": ("grouped_mm", True)}
DENSE_WAYS = {"plain": ("eager", False), "compile": ("eager", True)}


@dataclass
class Model:
    config: str
    sequences: int
    what: str


MODELS = {
    "86m": Model("configs/bench_cpu_86m.json", 4, "Qwen3-MoE, 32 experts, 86M parameters"),
    "86m_16": Model("configs/bench_cpu_86m.json", 16, "the same, 16 sequences a step"),
    "qwen3_small": Model("configs/qwen3_moe_cpu_small.json", 16, "Qwen3-MoE, 16 experts, 5M parameters"),
    "deepseek_small": Model("configs/deepseek_v3_cpu_small.json", 16, "DeepSeek-V3, 16 experts and a shared one, a dense layer"),
    "gpt2_small": Model("configs/bench_cpu_gpt2_small.json", 4, "dense, GPT-2 small's shape and 124M parameters, with SwiGLU, RMS norms "
                        "and rotary positions; the same model in both"),
}


@dataclass
class Rounds:
    """What one way did."""
    way: str
    speeds: list = field(default_factory=list)  # tokens/s, one a round
    losses: list = field(default_factory=list)  # of the first steps
    peak_memory: int = 0                        # bytes
    n_parameters: int = 0
    error: str = ""

    def speed(self):
        return statistics.median(self.speeds)


class Failed(Exception):
    """Why a way has no figure."""


def is_dense(model):
    return len(model.get("mlp_only_layers") or []) == model["num_hidden_layers"]


def ways_of(model, wanted):
    """{name: (experts, compiled)}; a dense model has no experts to compute in several ways."""
    if not is_dense(model):
        return {name: WAYS[name] for name in wanted}
    compiled = {WAYS[name][1] for name in wanted}
    return {name: way for name, way in DENSE_WAYS.items() if way[1] in compiled}


def our_config(config, model, shard, dtype, steps):
    """The configuration that both train: `config` with what the comparison fixes."""
    router = config.get("router")
    fixed = {"balance_coef": 0.0, **({"bias_update_speed": 0.0} if router and router["type"] == "sigmoid_group" else {})}
    train = {"seed": SEED, "steps": steps, "seq_len": config["train"]["seq_len"], "micro_batch_size": model.sequences,
             "global_batch_size": model.sequences, "dtype": dtype, "lr": config["train"]["lr"], "schedule": "constant",
             "warmup_ratio": 0.0, "weight_decay": 0.1, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "clip_norm": 0.0, "spike": False}
    return {"model": config["model"], **({"router": {**router, **fixed}} if router else {}), "data": {"train": [str(shard)]},
            "train": train, "checkpoint": {"every_minutes": 0}}


def write_tokens(directory, vocab_size, count):
    """A shard of random tokens -> its path."""
    dtype, rng = shards.dtype_for(vocab_size), random.Random(SEED)
    writer = shards.ShardWriter(str(directory), "train", dtype, count)
    writer.write(shards.pack_tokens((rng.randrange(vocab_size) for _ in range(count)), dtype))
    writer.finish()
    shards.publish_shards(str(directory), "train", 1)
    return shards.shard_files(str(directory), "train")[0]


class Torch:
    """A process of peers_torch.py."""

    def __init__(self, args, run_file, log, *arguments):
        self.limit, self.log = args.limit, log
        command = [args.python, "-B", str(ROOT / "tools/peers_torch.py"), arguments[0], str(run_file), *arguments[1:]]
        with open(log, "w") as errors:
            # A session of its own: torch.compile starts processes that have to end with it.
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
                                            env=environment(args.threads), start_new_session=True)

    def answer(self):
        """Raises Failed."""
        timer = threading.Timer(self.limit, self.end)
        timer.start()
        line = self.process.stdout.readline()
        in_time = timer.is_alive()
        timer.cancel()
        if not line:
            last = Path(self.log).read_text().strip().splitlines()[-1:]
            raise Failed(f"no answer within {self.limit} s" if not in_time else
                         f"ended with exit code {self.process.wait()}{': ' if last else ''}{''.join(last)[:200]}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def ask(self, line):
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # `answer` says how it ended
        return self.answer()

    def end(self):
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()


def environment(threads):
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def train_ours(args, config_file, weights, directory):
    """One run of switchyard -> (tokens/s of each counted step, losses of all, peak memory). Raises Failed."""
    out, log = directory / "run", directory / "switchyard.log"
    shutil.rmtree(out, ignore_errors=True)
    command = [args.binary, "train", str(config_file), "--init-from", str(weights), "--out", str(out)]
    with open(log, "w") as errors:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=environment(args.threads))
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        last = log.read_text().strip().splitlines()[-1:]
        raise Failed(f"'{' '.join(command)}' ended with exit code {process.returncode}: {''.join(last)}")
    with open(out / "metrics.jsonl") as file:
        steps = [json.loads(line) for line in file]
    shutil.rmtree(out)
    return [step["tokens_per_second"] for step in steps[WARM_UP:]], [step["loss"] for step in steps], usage.ru_maxrss * 1024


def add_ours(args, rounds, config_file, weights, directory):
    speeds, losses, peak = train_ours(args, config_file, weights, directory)
    rounds.speeds.append(statistics.median(speeds))
    rounds.losses = rounds.losses or losses
    rounds.peak_memory = max(rounds.peak_memory, peak)


def add_theirs(rounds, process, n_steps, tokens_a_step):
    done = process.ask(str(n_steps))
    rounds.speeds.append(tokens_a_step / statistics.median(done["seconds"]))
    if len(rounds.losses) == WARM_UP:
        rounds.losses += done["losses"]
    rounds.peak_memory = max(rounds.peak_memory, done["peak_memory"])


def turns(names, number):
    """The order of a round: each begins with another way, so that none is always behind the same one."""
    first = number % len(names)
    return names[first:] + names[:first]


def compare(args, config, model, dtype, weights, shard, run, directory):
    """{way: Rounds} of one model and dtype."""
    config_file, run_file = directory / "config.json", directory / "run.json"
    settings = our_config(config, model, shard, dtype, WARM_UP + args.steps)
    config_file.write_text(json.dumps(settings))
    run_file.write_text(json.dumps({**run, "shard": shard, "adamw": {key: settings["train"][key] for key in (
        "lr", "beta1", "beta2", "eps", "weight_decay")}}))
    ways = ways_of(config["model"], args.ways)
    results, processes = {name: Rounds(name) for name in (OURS, *ways)}, {}
    tokens_a_step = run["sequences"] * run["seq_len"]
    try:
        for name, (experts, compiled) in ways.items():
            say(f"{name}: {WARM_UP} steps that are not counted")
            processes[name] = Torch(args, run_file, directory / "torch.log", "train", experts, str(int(compiled)), dtype)
            try:
                ready = processes[name].answer()
                results[name].losses, results[name].n_parameters = ready["losses"], ready["n_parameters"]
            except Failed as failed:
                fail(results[name], processes, failed)
        for number in range(args.rounds):
            for name in turns([name for name in results if not results[name].error], number):
                try:
                    if name == OURS:
                        add_ours(args, results[name], config_file, weights, directory)
                    else:
                        add_theirs(results[name], processes[name], args.steps, tokens_a_step)
                    say(f"round {number + 1}, {name}: {results[name].speeds[-1]:.0f} tokens/s")
                except Failed as failed:
                    fail(results[name], processes, failed)
    finally:
        for process in processes.values():
            process.end()
    return results


def fail(rounds, processes, failed):
    rounds.error, rounds.speeds = str(failed), []
    if rounds.way in processes:
        processes.pop(rounds.way).end()
    say(f"{rounds.way}: {failed}")


def difference(ours, theirs):
    """Of the first losses, relative; None where one of them has none."""
    if not ours.losses or not theirs.losses:
        return None
    return abs(theirs.losses[0] - ours.losses[0]) / abs(ours.losses[0])


def differs(ours, theirs, dtype):
    """The two do not train the same model: there is nothing to compare. A loss that is not a number differs."""
    found = difference(ours, theirs)
    return found is not None and not found <= TOLERANCE[dtype]


def ratio(ours, theirs):
    """How many times as fast as theirs ours is -> (of the medians, lowest and highest of a round)."""
    each = [a / b for a, b in zip(ours.speeds, theirs.speeds)]
    return ours.speed() / theirs.speed(), min(each), max(each)


def best_of(results, dtype):
    """PyTorch's fastest way that trains the same model; None: there is none."""
    ours = results[OURS]
    others = [rounds for name, rounds in results.items() if name != OURS and rounds.speeds and not differs(ours, rounds, dtype)]
    return max(others, key=Rounds.speed, default=None)


def row(name, dtype, results, rounds):
    ours = results[OURS]
    if not rounds.speeds:
        return f"| {name} | {dtype} | {rounds.way} | no figure: {rounds.error.replace('|', '/')} | | | | |"
    first, times = f"{rounds.losses[0]:.6f}", ""
    if rounds is not ours and ours.speeds:
        if differs(ours, rounds, dtype):
            first += f" DIFFERS by {difference(ours, rounds):.1e}"
        else:
            times = f"{ratio(ours, rounds)[0]:.2f}"
            times = f"**{times}**" if rounds is best_of(results, dtype) else times
    return (f"| {name} | {dtype} | {rounds.way} | {rounds.speed():.0f} | {min(rounds.speeds):.0f} to {max(rounds.speeds):.0f} "
            f"| {rounds.peak_memory / 2**20:.0f} | {first} | {times} |")


HEADER = ("| model | dtype | way | tokens/s | rounds | MiB | first loss | switchyard is times as fast |\n"
          "|---|---|---|---|---|---|---|---|")


def summary(name, dtype, results):
    """One line: the ratio to PyTorch's best way."""
    best, ours = best_of(results, dtype), results[OURS]
    if best is None or not ours.speeds:
        return f"{name}, {dtype}: nothing to compare"
    times, low, high = ratio(ours, best)
    return (f"{name}, {dtype}: switchyard is {times:.2f} times as fast ({low:.2f} to {high:.2f}) as PyTorch's best way ({best.way}), "
            f"in {ours.peak_memory / best.peak_memory:.2f} of its memory")


def processor():
    try:
        with open("/proc/cpuinfo") as file:
            return next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), "unknown processor")
    except OSError:
        return "unknown processor"


def page(about, compared):
    """The text of all: compared is a list of (model name, dtype, {way: Rounds})."""
    lines = [f"{about['processor']}, {about['threads']} threads; PyTorch {about['torch']}, transformers {about['transformers']}; "
             f"medians of {about['rounds']} rounds of {about['steps']} steps after {WARM_UP}; load {about['load']:.1f} at the start."]
    lines += [f"First losses may differ by {TOLERANCE['float32']:.0e} of their size in float32, by {TOLERANCE['bfloat16']:.0e} in bfloat16. "
              f"Of the memory of PyTorch's processes {about['memory_without_model'] / 2**20:.0f} MiB are there before a model is.", "", HEADER]
    lines += [row(name, dtype, results, rounds) for name, dtype, results in compared for rounds in results.values()]
    lines += ["", *(f"- `{name}`: {MODELS[name].what}; {about['shapes'][name]}" for name in dict.fromkeys(c[0] for c in compared)),
              "", *(summary(*one) for one in compared)]
    return "\n".join(lines) + "\n"


def figures(about, compared):
    return {**about, "tolerance": TOLERANCE, "compared": [
        {"model": name, "dtype": dtype, "best": best.way if (best := best_of(results, dtype)) else None,
         "ways": [{**vars(rounds), "differs": differs(results[OURS], rounds, dtype)} for rounds in results.values()]}
        for name, dtype, results in compared]}


def write_out(paths, about, compared):
    for path in paths:
        text = json.dumps(figures(about, compared), indent=1) + "\n" if path.endswith(".json") else page(about, compared)
        Path(path + ".partial").write_text(text)
        os.replace(path + ".partial", path)


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def listed(known):
    def parse(text):
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"'{unknown[0]}' is none of {', '.join(known)}")
        return list(dict.fromkeys(names))
    return parse


def out_file(path):
    if not path.endswith((".md", ".json")):
        raise argparse.ArgumentTypeError(f"'{path}' ends neither in .md nor in .json")
    return path


def count(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: at least 1 is wanted")
    return number


def parse(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, epilog="models:\n" + "\n".join(
        f"  {name:15} {model.config}, {model.sequences} sequences a step: {model.what}" for name, model in MODELS.items()))
    parser.add_argument("--binary", required=True, help="the switchyard executable")
    parser.add_argument("--python", default="python3", help="an interpreter that has torch and transformers")
    parser.add_argument("--install", metavar="FOLDER", help="make a virtual environment there first, where none is, and use it")
    parser.add_argument("--models", type=listed(MODELS), default=list(MODELS), metavar="LIST", help="of those below, with commas; all")
    parser.add_argument("--dtypes", type=listed(TOLERANCE), default=list(TOLERANCE), metavar="LIST", help="float32,bfloat16")
    parser.add_argument("--ways", type=listed(WAYS), default=list(WAYS), metavar="LIST", help=f"of PyTorch: {','.join(WAYS)}")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--steps", type=count, default=5, help="of each way in a round; default: 5")
    parser.add_argument("--threads", type=count, default=len(os.sched_getaffinity(0)), help="of both; default: all cores")
    parser.add_argument("--limit", type=count, default=900, metavar="SECONDS", help="for one answer of PyTorch, compiling too; 900")
    parser.add_argument("--out", type=out_file, action="append", default=[], metavar="FILE", help=".md or .json; may be given twice")
    return parser.parse_args(arguments)


def install(folder):
    """-> its interpreter."""
    python = Path(folder).resolve() / "bin/python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    subprocess.run([str(python), "-m", "pip", "install", "-q", "-r", str(ROOT / "tools/requirements-hf.txt")], check=True)
    return str(python)


def require_modules(python):
    """Ends the program with 3 where the interpreter lacks one."""
    if shutil.which(python) is None:
        raise UserError(f"no interpreter '{python}'; give one with --python, or --install FOLDER")
    lacking = subprocess.run([python, "-c", "import importlib.util as u\nprint(*(m for m in ('torch', 'transformers', 'safetensors') "
                                            "if u.find_spec(m) is None))"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()
    if lacking:
        print(f"no comparison: '{python}' has no {', '.join(lacking)}; --install FOLDER makes an interpreter that has")
        sys.exit(3)


def main():
    args = parse()
    if args.install:
        args.python = install(args.install)
    require_modules(args.python)
    about = {"processor": processor(), "threads": args.threads, "rounds": args.rounds, "steps": args.steps, "load": os.getloadavg()[0],
             "shapes": {}}
    compared = []
    for name in args.models:
        model, config = MODELS[name], run_config.read(ROOT / MODELS[name].config)
        seq_len, vocab_size = config["train"]["seq_len"], config["model"]["vocab_size"]
        with tempfile.TemporaryDirectory(prefix="bench_peers_") as directory:
            directory = Path(directory)
            weights = directory / "weights"
            n_tokens = model.sequences * seq_len * (WARM_UP + args.rounds * args.steps) + 1
            shard = write_tokens(directory, vocab_size, n_tokens)
            run = {"model": config["model"], "weights": str(weights), "seed": SEED, "sequences": model.sequences, "seq_len": seq_len,
                   "warm_up": WARM_UP, "threads": args.threads}
            (directory / "init.json").write_text(json.dumps(run))
            maker = Torch(args, directory / "init.json", directory / "torch.log", "init")
            try:
                about |= maker.answer()
            except Failed as failed:
                raise UserError(f"{name}: transformers makes no weights: {failed}") from None
            finally:
                maker.end()
            about["shapes"][name] = f"{model.sequences} sequences of {seq_len} tokens a step"
            for dtype in args.dtypes:
                say(f"{name}, {dtype}")
                compared.append((name, dtype, compare(args, config, model, dtype, weights, shard, run, directory)))
                write_out(args.out, about, compared)
    print(page(about, compared), end="")
    whole = all(rounds.speeds and not differs(results[OURS], rounds, dtype)
                for _, dtype, results in compared for rounds in results.values())
    sys.exit(0 if whole else 1)


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"bench_peers: {error}", file=sys.stderr)
        sys.exit(2)
