"""What a run has written: metrics.jsonl, config.json and eval.json, read as far as they are whole."""

import json
import math
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from console import UserError


# What a figure's x axis can be: the key of a line, and what is written below the axis.
AXES = {"tokens": ("tokens", "tokens trained on"), "steps": ("step", "step"), "hours": ("hours", "hours of training")}
# Keys under which a line may say how long the run has gone on, in seconds; the first that a run has counts.
CLOCKS = ("train_seconds", "wall_seconds", "elapsed_seconds", "wall_time")


@dataclass
class Layer:
    """One line's figures of one layer with a router."""
    number: int
    figures: dict   # gini, min_max, ...
    counts: array   # slots an expert, of that step


@dataclass
class Validation:
    line: dict      # of metrics.jsonl, in which it stands
    loss: float     # NaN: it was not finite
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
    axis: str = "tokens"                             # one of AXES: the x of every point below

    @property
    def label(self):
        """Layout and router, as the configuration names them."""
        model, router = (self.config.get(section, {}) for section in ("model", "router"))
        return " + ".join(part for part in (model.get("model_type"), router.get("type")) if part)

    @property
    def total_steps(self):
        return self.config.get("train", {}).get("steps")

    def at(self, line):
        """The x of a line; None where it does not say."""
        return line.get(AXES[self.axis][0])

    def series(self, key):
        """[(x, value)] of a key of each line that has it. NaN: null, which the trainer writes for what is not finite."""
        return [(self.at(line), number(line[key])) for line in self.steps if key in line and self.at(line) is not None]

    def has(self, key):
        return any(is_number(line.get(key)) for line in self.steps)

    def layer_numbers(self):
        return [layer.number for layer in self.layers[-1]] if self.layers else []

    def experts_per_token(self):
        """[(x, mean over layers of the slots that a token had)]. From a key of the line, or from the counts."""
        if self.has("experts_per_token"):
            return self.series("experts_per_token")
        points, before = [], None
        for line, layers in zip(self.steps, self.layers):
            if before is not None and line["step"] == before["step"] + 1 and layers:
                slots = sum(sum(layer.counts) for layer in layers) / len(layers)
                points.append((self.at(line), slots / (line["tokens"] - before["tokens"])))
            elif before is None and line["step"] == 1 and layers:
                slots = sum(sum(layer.counts) for layer in layers) / len(layers)
                points.append((self.at(line), slots / line["tokens"]))
            before = line
        return [point for point in points if point[0] is not None]

    def saved_share(self):
        """[(x, share of the static model's FLOPs that were saved)]"""
        if self.has("flops_per_token") and self.has("flops_per_token_static"):
            return [(self.at(line), 1 - line["flops_per_token"] / line["flops_per_token_static"])
                    for line in self.steps
                    if is_number(line.get("flops_per_token")) and is_number(line.get("flops_per_token_static"))
                    and line["flops_per_token_static"] and self.at(line) is not None]
        return self.series("flops_saved")

    def waits_by_rank(self):
        """One list a rank of [(x, share of the step that it waited for others)]; empty for a run on one rank."""
        lines = [line for line in self.steps if isinstance(line.get("wait_seconds"), list) and self.at(line) is not None
                 and is_number(line.get("tokens_per_second")) and line["tokens_per_second"] > 0 and line.get("step")]
        ranks = max((len(line["wait_seconds"]) for line in lines), default=0)
        # A step's tokens are those so far over the steps so far: every step has as many.
        return [[(self.at(line), line["wait_seconds"][rank] * line["tokens_per_second"] * line["step"] / line["tokens"])
                 for line in lines if rank < len(line["wait_seconds"]) and is_number(line["wait_seconds"][rank])]
                for rank in range(ranks)]

    def loads_by_layer(self):
        """One list a layer of [(x, rows of the busiest rank over the mean)]; empty where ranks do not share experts."""
        lines = [line for line in self.steps if isinstance(line.get("rank_load"), list) and self.at(line) is not None]
        layers = max((len(line["rank_load"]) for line in lines), default=0)
        return [[(self.at(line), line["rank_load"][layer]) for line in lines
                 if layer < len(line["rank_load"]) and is_number(line["rank_load"][layer])] for layer in range(layers)]

    def final_saved_share(self):
        """Of the evaluation, or else of the last step; None: not counted."""
        flops = (self.evaluation or {}).get("flops", {})
        if is_number(flops.get("saved")):
            return flops["saved"]
        points = self.saved_share()
        return points[-1][1] if points else None

    def load_over_time(self, index, columns):
        """(edges in x, [column][expert] load as a multiple of the mean) of the index-th layer, in at most so many
        columns; a column without a slot is None."""
        n_experts = len(self.layers[-1][index].counts)
        usable = [(self.at(line), layers[index].counts) for line, layers in zip(self.steps, self.layers)
                  if index < len(layers) and len(layers[index].counts) == n_experts > 0 and self.at(line) is not None]
        width = max(1, math.ceil(len(usable) / columns))
        edges, table = [0 if self.steps[0]["step"] == 1 or not usable else usable[0][0]], []
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
                    "tokens": last.line.get("val_tokens"), "from": f"validation at step {last.line['step']}"}
        last = self.steps[-1]
        return {"loss": None, "gini": last.get("gini"), "min_max": last.get("min_max"), "tokens": None,
                "from": "training, moving average"}


def is_number(value):
    """Finite, and small enough to be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= 1e300


def number(value):
    return value if is_number(value) else math.nan


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


def settings(value, prefix=""):
    """{"section.key": JSON} of a configuration, lists by their places."""
    if isinstance(value, (dict, list)) and value:
        members = value.items() if isinstance(value, dict) else enumerate(value)
        return {name: text for key, member in members
                for name, text in settings(member, f"{prefix}.{key}" if prefix else str(key)).items()}
    return {prefix: json.dumps(value)}


def config_differences(runs):
    """(header, rows): the keys in which the runs' configurations differ, and their values."""
    known = [settings(run.config) if run.config else {} for run in runs]
    keys = dict.fromkeys(key for one in known for key in one)
    rows = [[key, *(one.get(key, "–") for one in known)] for key in keys if len({one.get(key) for one in known if one}) > 1]
    return ["key", *(run.name for run in runs)], rows


def _parse(text):
    """A line's object, or None where it is not one of a run."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(line, dict) and isinstance(line.get("step"), int) and isinstance(line.get("tokens"), int)
    return line if whole else None


def _add(run, line):
    layers = [Layer(entry["layer"], {k: v for k, v in entry.items() if k not in ("layer", "counts")},
                    array("q", entry.get("counts", ())))
              for entry in line.pop("layers", None) or () if isinstance(entry, dict) and isinstance(entry.get("layer"), int)]
    if run.steps and line["step"] <= run.steps[-1]["step"]:  # a run that went on from an earlier step
        keep = sum(old["step"] < line["step"] for old in run.steps)
        run.notes.append(f"step {line['step']} follows step {run.steps[-1]['step']}: the later line counts")
        del run.steps[keep:], run.layers[keep:]
        run.validations = [old for old in run.validations if old.line["step"] < line["step"]]
    if "val_loss" in line:
        run.validations.append(Validation(line, number(line["val_loss"]), line.pop("val_balance", {}),
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
    except (OSError, ValueError, RecursionError):
        run.notes.append(f"{path.name} is not whole and is skipped")
    return None


def _add_hours(run):
    """line["hours"] of each line that has one of CLOCKS. A clock that a resumed run set back goes on from where it was; one
    that counts from 1970 begins with the first line."""
    clock = next((key for key in CLOCKS if run.has(key)), None)
    hours, before = 0.0, None
    for line in run.steps:
        now = line.get(clock)
        if not is_number(now):
            continue
        if before is None:
            hours = 0.0 if now > 1e9 else now / 3600
        else:
            hours += (now - before if now >= before else now) / 3600
        line["hours"], before = hours, now


def load_run(path, name=None):
    """A run directory, or a metrics.jsonl. Throws UserError where there is not one whole line."""
    path = Path(path)
    metrics = path / "metrics.jsonl" if path.is_dir() else path
    directory = metrics.parent
    run = Run(name or directory.resolve().name, directory)
    read_metrics(run, metrics)
    _add_hours(run)
    run.config = _read_json(run, directory / "config.json") or {}
    run.evaluation = _read_json(run, directory / "eval.json")
    if run.evaluation and not is_number(run.evaluation.get("loss")):
        run.notes.append("eval.json has no loss (is it of a task?); it is not used")
        run.evaluation = None
    judged = (run.evaluation or {}).get("step")
    if is_number(judged) and judged < run.steps[-1]["step"]:
        run.notes.append(f"eval.json judges step {judged}, and the run has gone on since; it is not used")
        run.evaluation = None
    if run.total_steps and run.steps[-1]["step"] < run.total_steps:
        run.notes.append(f"the run is at step {run.steps[-1]['step']} of {run.total_steps}")
    return run


def load_runs(paths, axis="tokens", left_out=None):
    """Several, with names that tell them apart. Throws UserError where a run has nothing yet or nothing for the axis; with a
    list `left_out`, adds the reason to it instead."""
    runs = []
    for path in paths:
        try:
            run = load_run(path)
            run.axis = axis
            if all(run.at(line) is None for line in run.steps):
                raise UserError(f"{run.path}: its metrics.jsonl says nothing of time ({', '.join(CLOCKS)}), so there is no "
                                f"axis of {axis}; take tokens or steps")
            runs.append(run)
        except UserError as error:
            if left_out is None:
                raise
            left_out.append(str(error))
    names = [run.name for run in runs]
    for run in runs:
        if names.count(run.name) > 1:
            run.name = str(run.path)
    return runs
