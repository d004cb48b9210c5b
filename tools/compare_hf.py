#!/usr/bin/env python3
"""Compares switchyard with `transformers` on one model, tensor by tensor, or on many random ones.

CONFIG_OR_DIR is a directory with config.json and *.safetensors (its weights are compared), or a JSON file: a
Hugging Face config.json, or a run's configuration, of which `model` is taken (weights are then random).
Both run the same batch of random tokens in float32: logits, loss, each token's experts and their weights, and the
gradient of every parameter. Prints the largest difference of each tensor, relative to its largest value.

--random N makes N tiny models instead, over every option of all layouts (random_models.py), and prints a
line each; one that differs is written to compare_hf_SEED_NUMBER.json, with the command that repeats it.

The loss is the mean next-token cross entropy plus router_aux_loss_coef times the balance loss where the layout
has one. Of a large model, compare a smaller one with the same options: --set num_hidden_layers=2.

Exit code 0: all within the tolerances; 1: something is not; 2: the input cannot be used.
"""

import argparse
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import random_models
import run_config
from console import UserError

# Relative to a tensor's largest value: float32 sums in another order, through the forward and the backward pass.
TOLERANCE = {"logits": 1e-5, "loss": 1e-5, "cross_entropy": 1e-5, "weights": 1e-5, "grad": 1e-4}
# A gradient can be zero by construction (of a gate whose one weight is divided by itself, of queries that see a single
# key): what is left is the rounding of terms that cancel. They are about as large as the largest gradient of the same
# layer, and this is five units in the last place of that.
ROUNDING = 3e-7
TIE = 1e-5  # scores closer than this may fall either way
CLEAR_MARGIN = 1e-4  # what a random model's weights must leave between two scores


def default_binary():
    built = Path(__file__).resolve().parent.parent / "build" / "switchyard"
    return os.environ.get("SWITCHYARD_BIN", str(built))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="CONFIG_OR_DIR", type=Path, nargs="?")
    parser.add_argument("--random", type=int, metavar="N", help="compare N random models instead of one")
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[],
                        help="replace a key of a configuration (value: JSON, or else a string); not with a directory")
    parser.add_argument("--batch", type=int, default=2,
                        help="sequences (default 2; random models choose their own)")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens a sequence (default 32; as --batch)")
    parser.add_argument("--seed", type=int, default=1,
                        help="of tokens and random weights, and of random models (default 1)")
    parser.add_argument("--all", action="store_true", help="list every tensor, not the 20 that differ most")
    parser.add_argument("--switchyard", default=default_binary(), metavar="PATH",
                        help="the binary (default: $SWITCHYARD_BIN, or build/switchyard)")
    arguments = parser.parse_args()
    if (arguments.model is None) == (arguments.random is None):
        parser.error("give CONFIG_OR_DIR or --random N, and not both")
    if arguments.random is not None and (arguments.random < 1 or arguments.overrides):
        parser.error("--random N is 1 or more, and goes without --set")
    if arguments.batch < 1 or arguments.seq_len < 2:
        parser.error("--batch is at least 1 and --seq-len at least 2")
    return arguments


def read_options(path, overrides):
    """The keys of a config.json, from it or from a run's configuration."""
    try:
        options = run_config.read(path)
    except OSError as error:
        raise UserError(f"{error.filename}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{error}") from None
    if isinstance(options, dict) and isinstance(options.get("model"), dict):
        router = options.get("router") or {}
        if router:
            print(f"note: {path}: `router` is not compared; the layout's own router is", file=sys.stderr)
        options = options["model"]
    if not isinstance(options, dict) or "model_type" not in options:
        raise UserError(f"{path}: neither a config.json nor a run's configuration: it has no model_type")
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: expected KEY=VALUE")
        try:
            options[key] = json.loads(text)
        except ValueError:
            options[key] = text
    # Files of transformers 4 spell it torch_dtype; here everything is float32.
    for key in ("torch_dtype", "dtype", "quantization_config", "auto_map"):
        options.pop(key, None)
    return options


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def sort_slots(tensors):
    """The order of a token's slots has no meaning: by expert."""
    for name in [name for name in tensors if name.startswith("experts.")]:
        weights = name.replace("experts.", "weights.")
        order = tensors[name].argsort(dim=-1, stable=True)
        tensors[name] = tensors[name].gather(1, order)
        tensors[weights] = tensors[weights].gather(1, order)


@dataclasses.dataclass
class Row:
    """One tensor: its largest difference and value, and the difference that is allowed."""
    name: str
    difference: float
    largest: float
    allowed: float

    @property
    def share(self):
        """Of what is allowed; NaN counts as beyond."""
        if self.difference == 0:
            return 0.0
        return self.difference / self.allowed if self.allowed > 0 and self.difference >= 0 else float("inf")

    @property
    def within(self):
        return self.share <= 1


def layer_of(name):
    found = re.match(r"grad\.(model\.layers\.\d+)\.", name)
    return found[1] if found else ""


def judge(differences):
    """Rows of {name: (largest difference, largest value)}, the farthest from what is allowed first."""
    of_layer = {}
    for name, (_, largest) in differences.items():
        if name.startswith("grad."):
            for layer in {layer_of(name), ""}:
                of_layer[layer] = max(of_layer.get(layer, 0.0), largest)
    rows = []
    for name, (difference, largest) in differences.items():
        allowed = TOLERANCE[name.split(".")[0]] * largest
        if name.startswith("grad."):
            allowed = max(allowed, ROUNDING * of_layer[layer_of(name)])
        rows.append(Row(name, difference, largest, allowed))
    return sorted(rows, key=lambda row: (row.share, row.name), reverse=True)


@dataclasses.dataclass
class Comparison:
    problems: list  # what no table row says
    rows: list
    chosen: int     # layers whose experts were compared
    margin: float   # of the closest choice

    @property
    def fine(self):
        return not self.problems and all(row.within for row in self.rows)


def compare(ours, theirs, routing):
    problems, differences = [], {}
    for title, names in (("transformers alone has", theirs.keys() - ours.keys()),
                         ("switchyard alone has", ours.keys() - theirs.keys())):
        problems += [f"{title} {name}" for name in sorted(names)]
    for name in sorted(ours.keys() & theirs.keys()):
        a, b = ours[name], theirs[name]
        if a.shape != b.shape:
            problems.append(f"{name}: shape {list(a.shape)} in switchyard, {list(b.shape)} in transformers")
        elif name.startswith("experts."):
            moved = int((a != b).any(dim=-1).sum())
            margin = routing[int(name.split(".")[1])].margin
            if moved:
                problems.append(f"{name}: {moved} of {len(a)} tokens go elsewhere; the closest choice had a margin of "
                                f"{margin:.1e}" + (": a tie, try another --seed" if margin < TIE else ""))
        else:
            differences[name] = ((a.double() - b.double()).abs().max().item(), b.double().abs().max().item())
    chosen = sum(name.startswith("experts.") for name in theirs)
    return Comparison(problems, judge(differences), chosen, smallest_margin(routing))


def smallest_margin(routing):
    return min((entry.margin for entry in routing.values()), default=float("inf"))


def print_table(comparison, show_all):
    for problem in comparison.problems:
        print(f"  {problem}")
    rows = comparison.rows
    shown = rows if show_all else [row for i, row in enumerate(rows) if i < 20 or not row.within]
    print(f"{'difference':>11}  {'largest':>9}  {'allowed':>9}  {'share':>7}  tensor")
    for row in shown:
        print(f"{row.difference:11.2e}  {row.largest:9.2e}  {row.allowed:9.2e}  {row.share:7.1%}  {row.name}"
              f"{'' if row.within else '   <-- beyond'}")
    if len(shown) < len(rows):
        print(f"… and {len(rows) - len(shown)} more, closer than these (--all lists them)")
    if comparison.chosen:
        print(f"experts of {comparison.chosen} layers compared; the closest choice has a margin of "
              f"{comparison.margin:.1e}")
    print(f"{len(rows) + comparison.chosen} tensors: {'all within the tolerances' if comparison.fine else 'NOT EQUAL'}")


class Laboratory:
    """Runs models in both programs. Needs torch and transformers, which the rest of this file does not."""

    def __init__(self, binary, temporary):
        try:
            import torch
            import transformers
            from safetensors.torch import load_file, save_file

            import hf_reference
        except ModuleNotFoundError as error:
            raise UserError(f"the Python module '{error.name}' is not installed; run: "
                            "pip install -r tools/requirements-hf.txt") from None
        transformers.utils.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self.torch, self.hf, self.transformers = torch, hf_reference, transformers
        self.load_file, self.save_file = load_file, save_file
        self.binary, self.temporary = binary, Path(temporary)

    def check_family(self, options, path):
        if str(options["model_type"]).startswith("switchyard_"):
            raise UserError(f"{path}: its router is not its layout's own: transformers does not compute it, and there is "
                            "nothing to compare with")
        if options["model_type"] not in self.hf.LAYOUTS:
            raise UserError(f"{path}: model_type is {options['model_type']}; known: {', '.join(self.hf.LAYOUTS)}")

    def open_directory(self, directory):
        self.check_family(read_options(directory / "config.json", []), directory)
        try:
            return self.hf.load_model(directory)
        except Exception as error:  # whatever it objects to, the line below says it
            raise UserError(f"{directory}: transformers cannot open it: {one_line(error)}") from None

    def make_model(self, options, seed, path):
        self.check_family(options, path)
        try:
            model = self.hf.build_model(self.hf.build_config(options))
        except Exception as error:
            raise UserError(f"{path}: transformers cannot build it: {one_line(error)}") from None
        self.hf.fill_random(model, self.torch.Generator().manual_seed(seed))
        return model

    def save(self, model):
        directory = self.temporary / "model"
        shutil.rmtree(directory, ignore_errors=True)
        model.save_pretrained(directory)
        return directory

    def reference(self, model, tokens, path):
        """What `switchyard dump` writes, from `transformers`; and each MoE layer's routing."""
        try:
            result, gradients = self.hf.loss_and_gradients(model, tokens)
        except Exception as error:
            raise UserError(f"{path}: transformers cannot run it: {one_line(error)}") from None
        tensors = {"logits": result.logits, "loss": result.loss.reshape(1),
                   "cross_entropy": result.cross_entropy.reshape(1)}
        for layer, routing in result.routing.items():
            tensors[f"experts.{layer}"] = routing.expert_TK
            tensors[f"weights.{layer}"] = routing.weight_TK
        # Shared experts of width 0 are no tensors to switchyard.
        tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items() if gradient.numel() > 0}
        sort_slots(tensors)
        return tensors, result.routing

    def without_its_run(self, directory):
        """A checkpoint's model alone: `dump` gives a run's own coefficients to its losses, transformers does not."""
        if not (directory / "run.json").exists():
            return directory
        model = self.temporary / "model"
        model.mkdir(exist_ok=True)
        for path in (directory / "config.json", *directory.glob("model*.safetensors*")):
            (model / path.name).symlink_to(path.resolve())
        return model

    def dump(self, directory, tokens):
        tokens_file, out_file = self.temporary / "tokens.safetensors", self.temporary / "dump.safetensors"
        self.save_file({"tokens": tokens.to(self.torch.int32)}, tokens_file)
        command = [self.binary, "dump", str(directory), "--tokens", str(tokens_file), "--out", str(out_file)]
        try:
            done = subprocess.run(command, check=False, stderr=subprocess.PIPE, text=True)
        except OSError as error:
            raise UserError(f"{self.binary}: {error.strerror}; build it first, or name it with --switchyard") from None
        if done.returncode != 0:
            raise UserError(f"`{' '.join(command)}` ended with exit code {done.returncode}: {done.stderr.strip()}")
        # Copies: they would lie in the file, which the next dump writes again.
        tensors = {name: tensor.clone() for name, tensor in self.load_file(out_file).items()}
        sort_slots(tensors)
        return tensors

    def tokens_for(self, model, batch, seq_len, seed):
        return self.hf.random_tokens(model.config.vocab_size, batch, seq_len, seed)


def compare_one(laboratory, arguments):
    if arguments.model.is_dir():
        if arguments.overrides:
            raise UserError("--set changes a configuration; a directory's weights fit only its own config.json")
        directory = laboratory.without_its_run(arguments.model)
        model = laboratory.open_directory(directory)
    else:
        options = read_options(arguments.model, arguments.overrides)
        model = laboratory.make_model(options, arguments.seed, arguments.model)
        directory = laboratory.save(model)
    tokens = laboratory.tokens_for(model, arguments.batch, arguments.seq_len, arguments.seed)
    ours = laboratory.dump(directory, tokens)
    theirs, routing = laboratory.reference(model, tokens, arguments.model)
    print(f"{model.config.model_type}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, "
          f"{arguments.batch} x {arguments.seq_len} tokens, transformers {laboratory.transformers.__version__}")
    comparison = compare(ours, theirs, routing)
    print_table(comparison, arguments.all)
    return comparison.fine


def compare_random_model(laboratory, options, batch, seq_len):
    """The comparison, and the seed of its weights. config.json is read as it was made, and as transformers writes it
    back."""
    for seed in range(1, 100):  # until no choice is so close that rounding may turn it
        model = laboratory.make_model(options, seed, "config.json")
        tokens = laboratory.tokens_for(model, batch, seq_len, seed)
        theirs, routing = laboratory.reference(model, tokens, "config.json")
        if smallest_margin(routing) >= CLEAR_MARGIN:
            break
    directory = laboratory.save(model)
    ours = laboratory.dump(directory, tokens)
    comparison = compare(ours, theirs, routing)
    (directory / "config.json").write_text(json.dumps(options))
    again = laboratory.dump(directory, tokens)
    if ours.keys() != again.keys() or any(not laboratory.torch.equal(ours[key], again[key]) for key in ours):
        comparison.problems.append("config.json as it was made and as transformers writes it give different tensors")
    return comparison, seed


def short_description(options):
    experts = next((options[key] for key in ("num_local_experts", "num_experts", "n_routed_experts") if key in options))
    return (f"{options['model_type']:11}  {options['num_hidden_layers']} layers, {options['num_experts_per_tok']} of "
            f"{experts} experts")


def compare_random(laboratory, arguments):
    different = 0
    worst = 0.0
    for number in range(arguments.random):
        options = random_models.random_model(arguments.seed, number)
        batch, seq_len = random_models.random_batch(arguments.seed, number)
        try:
            comparison, seed = compare_random_model(laboratory, options, batch, seq_len)
        except UserError as error:  # one of the two does not take it
            comparison, seed = Comparison([str(error)], [], 0, 0.0), 1
        closest = comparison.rows[0] if comparison.rows else Row("nothing", 0.0, 0.0, 0.0)
        worst = max(worst, closest.share)
        print(f"{number:5}  {short_description(options)}  {len(comparison.rows) + comparison.chosen:3} tensors  "
              f"{closest.share:6.1%} of what is allowed: {closest.name}{'' if comparison.fine else '   <-- NOT EQUAL'}")
        if comparison.fine:
            continue
        different += 1
        kept = Path(f"compare_hf_{arguments.seed}_{number}.json")
        kept.write_text(json.dumps(options, indent=2) + "\n")
        for problem in comparison.problems:
            print(f"       {problem}")
        for row in comparison.rows:
            if not row.within:
                print(f"       {row.name}: differs by {row.difference:.2e}, {row.allowed:.2e} are allowed")
        print(f"       repeat it: {sys.argv[0]} {kept} --batch {batch} --seq-len {seq_len} --seed {seed}")
    result = f"{different} NOT EQUAL" if different else f"all equal, the farthest at {worst:.1%} of what is allowed"
    print(f"{arguments.random} random models of seed {arguments.seed}: {result}")
    return different == 0


def main():
    arguments = parse_arguments()
    with tempfile.TemporaryDirectory() as temporary:
        laboratory = Laboratory(arguments.switchyard, temporary)
        equal = compare_random(laboratory, arguments) if arguments.random else compare_one(laboratory, arguments)
    return 0 if equal else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"compare_hf.py: {error}", file=sys.stderr)
        sys.exit(2)
