"""What a run has written: metrics.jsonl, config.json and eval.json, read as far as they are whole."""

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from console import UserError


@dataclass
class Layer:
    """One line's figures of one layer with a router."""
    number: int
    figures: dict   # gini, min_max, ...
    counts: array   # slots an expert, of that step


@dataclass
class Validation:
    step: int
    tokens: int     # trained on so far
    loss: float
    balance: dict   # mean over layers
    loss_by_domain: dict
    layers: list    # dicts: layer, figures, specialisation, counts_by_domain {domain: [E]}


@dataclass
class Run:
    name: str
    path: Path
    steps: list = field(default_factory=list)        # one dict a line, without its layers
    layers: list = field(default_factory=list)       # of each line, a list of Layer
    validations: list = field(default_factory=list)
    config: dict = field(default_factory=dict)
    evaluation: dict = None                          # `switchyard eval --json eval.json`
    notes: list = field(default_factory=list)        # what was skipped, one sentence each

    @property
    def label(self):
        """Layout and router, as the configuration names them."""
        model, router = (self.config.get(section, {}) for section in ("model", "router"))
        return " + ".join(part for part in (model.get("model_type"), router.get("type")) if part)

    @property
    def total_steps(self):
        return self.config.get("train", {}).get("steps")

    def series(self, key):
        """[(tokens, value)] of a key of each line; lines without it, or with null, are left out."""
        return [(line["tokens"], line[key]) for line in self.steps if is_number(line.get(key))]

    def has(self, key):
        return any(is_number(line.get(key)) for line in self.steps)

    def layer_numbers(self):
        return [layer.number for layer in self.layers[-1]] if self.layers else []

    def experts_per_token(self):
        """[(tokens, mean over layers of the slots that a token had)]. From a key of the line, or from the counts."""
        if self.has("experts_per_token"):
            return self.series("experts_per_token")
        points, before = [], None
        for line, layers in zip(self.steps, self.layers):
            if before is not None and line["step"] == before["step"] + 1 and layers:
                slots = sum(sum(layer.counts) for layer in layers) / len(layers)
                points.append((line["tokens"], slots / (line["tokens"] - before["tokens"])))
            elif before is None and line["step"] == 1 and layers:
                slots = sum(sum(layer.counts) for layer in layers) / len(layers)
                points.append((line["tokens"], slots / line["tokens"]))
            before = line
        return points

    def saved_share(self):
        """[(tokens, share of the static model's FLOPs that were saved)]"""
        if self.has("flops_per_token") and self.has("flops_per_token_static"):
            return [(line["tokens"], 1 - line["flops_per_token"] / line["flops_per_token_static"])
                    for line in self.steps
                    if is_number(line.get("flops_per_token")) and line.get("flops_per_token_static")]
        return self.series("flops_saved")

    def final_saved_share(self):
        """Of the evaluation, or else of the last step; None: not counted."""
        flops = (self.evaluation or {}).get("flops", {})
        if is_number(flops.get("saved")):
            return flops["saved"]
        points = self.saved_share()
        return points[-1][1] if points else None

    def load_over_time(self, index, columns):
        """(edges in tokens, [column][expert] load as a multiple of the mean) of the index-th layer, in at most so many
        columns; a column without a slot is None."""
        n_experts = len(self.layers[-1][index].counts)
        usable = [(line["tokens"], layers[index].counts) for line, layers in zip(self.steps, self.layers)
                  if index < len(layers) and len(layers[index].counts) == n_experts > 0]
        width = max(1, math.ceil(len(usable) / columns))
        edges, table = [0], []
        for begin in range(0, len(usable), width):
            part = usable[begin:begin + width]
            load = [sum(counts) for counts in zip(*(counts for _, counts in part))]
            mean = sum(load) / len(load)
            table.append([value / mean for value in load] if mean > 0 else None)
            edges.append(part[-1][0])
        return edges, table

    def final(self):
        """What the table shows: loss, gini, min_max, tokens judged on, and where they come from."""
        if self.evaluation:
            balance = self.evaluation.get("balance", {})
            return {"loss": self.evaluation.get("loss"), "gini": balance.get("gini"),
                    "min_max": balance.get("min_max"), "tokens": self.evaluation.get("tokens"), "from": "eval.json"}
        if self.validations:
            last = self.validations[-1]
            return {"loss": last.loss, "gini": last.balance.get("gini"), "min_max": last.balance.get("min_max"),
                    "tokens": self.steps[-1].get("val_tokens"), "from": f"validation at step {last.step}"}
        last = self.steps[-1]
        return {"loss": None, "gini": last.get("gini"), "min_max": last.get("min_max"), "tokens": None,
                "from": "training, moving average"}


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def specialisation_bits(count_of_domain):
    """Mutual information of expert and domain in bits, from [domain][expert] counts."""
    total = sum(map(sum, count_of_domain))
    if total <= 0:
        return 0.0
    expert_sum = [sum(column) for column in zip(*count_of_domain)]
    bits = 0.0
    for row in count_of_domain:
        domain_sum = sum(row)
        for joint, expert in zip(row, expert_sum):
            if joint > 0:
                bits += joint / total * math.log2(joint * total / (expert * domain_sum))
    return bits


def _parse(text):
    """A line's object, or None where it is not one of a run."""
    try:
        line = json.loads(text)
    except ValueError:
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("tokens"), int)
    return line if whole else None


def _add(run, line):
    layers = [Layer(entry["layer"], {k: v for k, v in entry.items() if k not in ("layer", "counts")},
                    array("q", entry.get("counts", ())))
              for entry in line.pop("layers", ()) if isinstance(entry, dict) and isinstance(entry.get("layer"), int)]
    if run.steps and line["step"] <= run.steps[-1]["step"]:  # a run that went on from an earlier step
        keep = sum(old["step"] < line["step"] for old in run.steps)
        run.notes.append(f"step {line['step']} follows step {run.steps[-1]['step']}: the later line counts")
        del run.steps[keep:], run.layers[keep:]
        run.validations = [old for old in run.validations if old.step < line["step"]]
    if is_number(line.get("val_loss")):
        run.validations.append(Validation(
            line["step"], line["tokens"], line["val_loss"], line.pop("val_balance", {}),
            line.pop("val_loss_by_domain", {}), line.pop("val_layers", [])))
    run.steps.append(line)
    run.layers.append(layers)


def read_metrics(run, path):
    """Every whole line; what is not whole is skipped and noted."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a run directory, which has a metrics.jsonl") from None
    ended = raw.endswith(b"\n")
    lines = raw.split(b"\n")
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        line = _parse(text)
        if line is not None:
            _add(run, line)
        elif number == len(lines) and not ended:
            run.notes.append(f"line {number} was cut short and is skipped")
        else:
            run.notes.append(f"line {number} is not a step's JSON object and is skipped")
    if not run.steps:
        raise UserError(f"{path}: no whole line; has the run begun?")


def _read_json(run, path):
    try:
        value = json.loads(path.read_text())
        if isinstance(value, dict):
            return value
        run.notes.append(f"{path.name} is not a JSON object and is skipped")
    except FileNotFoundError:
        pass
    except (OSError, ValueError):
        run.notes.append(f"{path.name} is not whole and is skipped")
    return None


def load_run(path, name=None):
    """A run directory, or a metrics.jsonl. Throws UserError where there is not one whole line."""
    path = Path(path)
    metrics = path / "metrics.jsonl" if path.is_dir() else path
    directory = metrics.parent
    run = Run(name or directory.resolve().name, directory)
    read_metrics(run, metrics)
    run.config = _read_json(run, directory / "config.json") or {}
    run.evaluation = _read_json(run, directory / "eval.json")
    if run.total_steps and run.steps[-1]["step"] < run.total_steps:
        run.notes.append(f"the run is at step {run.steps[-1]['step']} of {run.total_steps}")
    return run


def load_runs(paths):
    """Several, with names that tell them apart."""
    runs = [load_run(path) for path in paths]
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)
    return runs
