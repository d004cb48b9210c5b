#!/usr/bin/env python3
"""Compares switchyard with `transformers` on one model, tensor by tensor.

CONFIG_OR_DIR is a directory with config.json and *.safetensors (its weights are compared), or a JSON file: a
Hugging Face config.json, or a run's configuration, of which `model` is taken (weights are then random).
Both run the same batch of random tokens in float32: logits, loss, each token's experts and their weights, and the
gradient of every parameter. Prints the largest difference of each tensor, relative to its largest value.

The loss is the mean next-token cross entropy plus router_aux_loss_coef times the balance loss where the family
has one. Of a large model, compare a smaller one with the same options: --set num_hidden_layers=2.

Exit code 0: all within the tolerances; 1: something is not; 2: the input cannot be used.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from console import UserError

# Relative to a tensor's largest value: float32 sums in another order, through the forward and the backward pass.
TOLERANCE = {"logits": 1e-5, "loss": 1e-5, "cross_entropy": 1e-5, "weights": 1e-5, "grad": 1e-4}
TIE = 1e-5  # scores closer than this may fall either way


def default_binary():
    built = Path(__file__).resolve().parent.parent / "build" / "switchyard"
    return os.environ.get("SWITCHYARD_BIN", str(built))


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="CONFIG_OR_DIR", type=Path)
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[],
                        help="replace a key of a configuration (value: JSON, or else a string); not with a directory")
    parser.add_argument("--batch", type=int, default=2, help="sequences (default 2)")
    parser.add_argument("--seq-len", type=int, default=32, help="tokens a sequence (default 32)")
    parser.add_argument("--seed", type=int, default=1, help="of tokens and random weights (default 1)")
    parser.add_argument("--all", action="store_true", help="list every tensor, not the 20 that differ most")
    parser.add_argument("--switchyard", default=default_binary(), metavar="PATH",
                        help="the binary (default: $SWITCHYARD_BIN, or build/switchyard)")
    arguments = parser.parse_args()
    if arguments.batch < 1 or arguments.seq_len < 2:
        parser.error("--batch is at least 1 and --seq-len at least 2")
    return arguments


def read_options(path, overrides):
    """The keys of a config.json, from it or from a run's configuration."""
    try:
        options = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if isinstance(options, dict) and isinstance(options.get("model"), dict):
        router = options.get("router") or {}
        if router:
            print(f"note: {path}: `router` is not compared; the family's own router is", file=sys.stderr)
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


def check_family(hf, options, path):
    if options["model_type"] not in hf.FAMILIES:
        raise UserError(f"{path}: model_type is {options['model_type']}; known: {', '.join(hf.FAMILIES)}")


def one_line(error):
    return " ".join(str(error).split()) or type(error).__name__


def run_switchyard(binary, directory, tokens_file, out_file):
    command = [binary, "dump", str(directory), "--tokens", str(tokens_file), "--out", str(out_file)]
    try:
        done = subprocess.run(command, check=False)
    except OSError as error:
        raise UserError(f"{binary}: {error.strerror}; build it first, or name it with --switchyard") from None
    if done.returncode != 0:
        raise UserError(f"`{' '.join(command)}` ended with exit code {done.returncode}")


def reference_tensors(hf, model, tokens):
    """What `switchyard dump` writes, from `transformers`; and each MoE layer's routing."""
    result, gradients = hf.loss_and_gradients(model, tokens)
    tensors = {"logits": result.logits, "loss": result.loss.reshape(1),
               "cross_entropy": result.cross_entropy.reshape(1)}
    for layer, routing in result.routing.items():
        tensors[f"experts.{layer}"] = routing.expert_TK
        tensors[f"weights.{layer}"] = routing.weight_TK
    tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items()}
    return tensors, result.routing


def sort_slots(tensors):
    """The order of a token's slots has no meaning: by expert."""
    for name in [name for name in tensors if name.startswith("experts.")]:
        weights = name.replace("experts.", "weights.")
        order = tensors[name].argsort(dim=-1, stable=True)
        tensors[name] = tensors[name].gather(1, order)
        tensors[weights] = tensors[weights].gather(1, order)


def compare(ours, theirs, routing, show_all):
    """Prints the table; returns whether everything is within its tolerance."""
    fine = True
    for title, names in (("transformers alone has", theirs.keys() - ours.keys()),
                         ("switchyard alone has", ours.keys() - theirs.keys())):
        for name in sorted(names):
            print(f"  {title} {name}")
            fine = False
    rows = []
    for name in sorted(ours.keys() & theirs.keys()):
        a, b, kind = ours[name], theirs[name], name.split(".")[0]
        if a.shape != b.shape:
            print(f"  {name}: shape {list(a.shape)} in switchyard, {list(b.shape)} in transformers")
            fine = False
        elif kind == "experts":
            moved = int((a != b).any(dim=-1).sum())
            margin = routing[int(name.split(".")[1])].margin
            if moved:
                fine = False
                print(f"  {name}: {moved} of {len(a)} tokens go elsewhere; the closest choice had a margin of "
                      f"{margin:.1e}" + (": a tie, try another --seed" if margin < TIE else ""))
        else:
            difference = (a.double() - b.double()).abs().max().item()
            largest = b.double().abs().max().item()
            relative = difference / largest if largest > 0 else (0.0 if difference == 0 else float("inf"))
            within = relative <= TOLERANCE[kind]
            fine = fine and within
            rows.append((relative / TOLERANCE[kind], relative, difference, largest, within, name))
    rows.sort(reverse=True)
    shown = rows if show_all else [row for i, row in enumerate(rows) if i < 20 or not row[4]]
    print(f"{'difference':>11}  {'largest':>9}  {'relative':>9}  {'allowed':>8}  tensor")
    for _, relative, difference, largest, within, name in shown:
        allowed = TOLERANCE[name.split(".")[0]]
        print(f"{difference:11.2e}  {largest:9.2e}  {relative:9.1e}  {allowed:8.0e}  {name}"
              f"{'' if within else '   <-- beyond'}")
    if len(shown) < len(rows):
        print(f"… and {len(rows) - len(shown)} more, closer than these (--all lists them)")
    chosen = sum(name.startswith("experts.") for name in theirs)
    if chosen:
        print(f"experts of {chosen} layers compared; the closest choice has a margin of "
              f"{min(entry.margin for entry in routing.values()):.1e}")
    print(f"{len(rows) + chosen} tensors: {'all within the tolerances' if fine else 'NOT EQUAL'}")
    return fine


def main():
    arguments = parse_arguments()
    try:
        import torch
        import transformers
        from safetensors.torch import load_file, save_file

        import hf_reference as hf
    except ModuleNotFoundError as error:
        raise UserError(f"the Python module '{error.name}' is not installed; run: "
                        "pip install -r tools/requirements-hf.txt") from None
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    with tempfile.TemporaryDirectory() as temporary:
        if arguments.model.is_dir():
            if arguments.overrides:
                raise UserError("--set changes a configuration; a directory's weights fit only its own config.json")
            directory = arguments.model
            options = read_options(directory / "config.json", [])
            check_family(hf, options, directory)
            try:
                model = hf.load_model(directory)
            except Exception as error:  # whatever it objects to, the line below says it
                raise UserError(f"{directory}: transformers cannot open it: {one_line(error)}") from None
        else:
            options = read_options(arguments.model, arguments.overrides)
            check_family(hf, options, arguments.model)
            try:
                model = hf.build_model(hf.build_config(options))
            except Exception as error:
                raise UserError(f"{arguments.model}: transformers cannot build it: {one_line(error)}") from None
            hf.fill_random(model, torch.Generator().manual_seed(arguments.seed))
            directory = Path(temporary) / "model"
            model.save_pretrained(directory)
        config = model.config
        tokens = hf.random_tokens(config.vocab_size, arguments.batch, arguments.seq_len, arguments.seed)
        tokens_file, out_file = Path(temporary) / "tokens.safetensors", Path(temporary) / "dump.safetensors"
        save_file({"tokens": tokens.to(torch.int32)}, tokens_file)
        run_switchyard(arguments.switchyard, directory, tokens_file, out_file)
        ours = load_file(out_file)
        theirs, routing = reference_tensors(hf, model, tokens)
    sort_slots(ours)
    sort_slots(theirs)
    print(f"{config.model_type}, {sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, "
          f"{arguments.batch} x {arguments.seq_len} tokens, transformers {transformers.__version__}")
    return 0 if compare(ours, theirs, routing, arguments.all) else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except UserError as error:
        print(f"compare_hf.py: {error}", file=sys.stderr)
        sys.exit(2)
