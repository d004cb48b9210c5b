#!/usr/bin/env python3
"""One way of PyTorch to train a model, for bench_peers.py, which starts it and tells it by its standard input what to do.

    peers_torch.py init RUN.json                          writes a model of random weights to the run's `weights`
    peers_torch.py train RUN.json EXPERTS COMPILE DTYPE   EXPERTS: eager or grouped_mm; COMPILE: 0 or 1

`train` takes the warm-up steps and says so; then each line of standard input is a number of steps, which it takes and times.
Each answer is a line of JSON. The step is switchyard's: cross entropy of each position's next token, the gradient, fused AdamW
that decays matrices alone; weights and moments are float32, in bfloat16 the products are torch.autocast's.
"""

import contextlib
import json
import os
import sys
import time

import torch
import transformers

import shards
from bench_transformers import missing_to_compile
from hf_reference import build_config
from sample_order import window_of


def answer(**values):
    print(json.dumps(values), flush=True)


class Batches:
    """The batches of a shard in the order in which switchyard reads them."""

    def __init__(self, run):
        self.run = run
        self.tokens = torch.tensor(shards.read_shard(run["shard"])[1])
        self.n_windows = (len(self.tokens) - 1) // run["seq_len"]

    def at(self, step):
        """Step, counted from 0 -> inputs and targets, [sequences, seq_len] both."""
        length, n = self.run["seq_len"], self.run["sequences"]
        starts = [length * window_of(n * step + i, self.n_windows, self.run["seed"]) for i in range(n)]
        windows = torch.stack([self.tokens[start:start + length + 1] for start in starts]).long()
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()


def build_optimizer(model, options):
    parameters = list(model.parameters())
    groups = [{"params": [p for p in parameters if p.dim() > 1], "weight_decay": options["weight_decay"]},
              {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=options["lr"], betas=(options["beta1"], options["beta2"]), eps=options["eps"], fused=True)


def forget_peak():
    """The peak of resident memory is what is resident, from here on."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def resident(key):
    """VmRSS: what is resident; VmHWM: the most that was. In bytes."""
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(key + ":"))


class Trainer:
    def __init__(self, run, experts, compiled, dtype):
        # eager attention would be a handicap: torch's own is what training takes.
        model = transformers.AutoModelForCausalLM.from_pretrained(
            run["weights"], attn_implementation="sdpa", experts_implementation=experts, dtype=torch.float32).train()
        self.n_parameters = sum(p.numel() for p in model.parameters())
        self.optimizer = build_optimizer(model, run["adamw"])
        self.call = torch.compile(model) if compiled else model
        self.products = torch.autocast("cpu", torch.bfloat16) if dtype == "bfloat16" else contextlib.nullcontext()
        self.batches = Batches(run)
        self.done = 0

    def step(self):
        """-> seconds, loss. Reading the batch counts, as switchyard's does."""
        start = time.perf_counter()
        inputs, targets = self.batches.at(self.done)
        with self.products:
            loss = self.call(input_ids=inputs, labels=inputs, shift_labels=targets, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.done += 1
        return time.perf_counter() - start, loss.item()

    def steps(self, count):
        seconds, losses = zip(*(self.step() for _ in range(count)))
        return {"seconds": seconds, "losses": losses}


def train(run, experts, compiled, dtype):
    trainer = Trainer(run, experts, compiled, dtype)
    warm_up = trainer.steps(run["warm_up"])
    forget_peak()
    answer(**warm_up, n_parameters=trainer.n_parameters)
    for line in sys.stdin:
        answer(**trainer.steps(int(line)), peak_memory=resident("VmHWM"))


def write_weights(run):
    without_model = resident("VmRSS")
    torch.manual_seed(run["seed"])
    model = transformers.AutoModelForCausalLM.from_config(build_config(run["model"]), dtype=torch.float32)
    model.save_pretrained(run["weights"])
    answer(torch=torch.__version__, transformers=transformers.__version__, memory_without_model=without_model)


def main():
    command, path, *way = sys.argv[1:]
    with open(path) as file:
        run = json.load(file)
    torch.set_num_threads(run["threads"])
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        if command == "init":
            write_weights(run)
        else:
            experts, compiled, dtype = way
            train(run, experts, compiled == "1", dtype)
    except Exception as error:  # whatever it objects to: said in the table, and the other ways still run
        lacking = missing_to_compile() if way and way[1] == "1" else ""
        first = (str(error).strip().splitlines() or [""])[0]
        answer(error=f"{type(error).__name__}: {first[:200]}{f' ({lacking} missing)' if lacking else ''}")
        sys.stdout.flush()
        os._exit(1)  # torch's own threads may not end


if __name__ == "__main__":
    main()
