#!/usr/bin/env python3
"""How large the code is for somebody who reads it: files, files an operator, files that one training step runs through.

    tools/code_size.py                       counts of the sources
    tools/code_size.py --step                and what one step runs through: builds with coverage (some minutes)
    tools/code_size.py --build-log build/.ninja_log    and the seconds that compiling took

One step: a run of three steps and one of two are counted by gcov, in a build without optimisation; a file is on the way
if one of its lines runs more often in the longer run, or if it is the header of such a file. It is to be read if at least
READ_LINES of its lines do. The model is a small Qwen3-MoE with its own router and a balance loss. The way through the layer
of experts is that of the whole step without attention, norms, embedding, classifier and reports.
"""

import argparse
import gzip
import json
import pathlib
import re
import shutil
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
READ_LINES = 12
# Not on the way of a token through the layer of experts: the rest of the model, and what reports on a step.
ELSEWHERE = re.compile(r"/(attention\w*|gqa_layer|qk_norm_rope|rmsnorm|rope|embedding|classifier|console|outputs?|"
                       r"metrics_log|json\w*|flops|spike|checkpoint\w*|balance_figures|expert_load|schedule|file|utf8)\.")
SUFFIXES = {".h", ".cpp", ".cu"}
CONFIG = {
    "model": {"model_type": "qwen3_moe", "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
              "num_key_value_heads": 2, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4,
              "num_experts_per_tok": 2, "norm_topk_prob": True, "max_position_embeddings": 64},
    "router": {"type": "softmax_topk", "balance_coef": 0.01},
    "data": {"train": [{"path": "train.bin"}]},
    "train": {"seed": 1, "seq_len": 16, "micro_batch_size": 2, "global_batch_size": 4, "lr": 0.01, "schedule": "constant"},
    "checkpoint": {"every": 1000}, "log": {"every": 1000},
}


def sources(root):
    listed = subprocess.run(["git", "ls-files", "src", "cuda"], cwd=root, check=True, capture_output=True, text=True).stdout
    return sorted(path for path in map(pathlib.PurePosixPath, listed.split()) if path.suffix in SUFFIXES and (root / path).is_file())


def operator_families(root, files):
    """The name of each family of operators -> its files: contract, checks, backends."""
    names = [path.stem for path in files if path.parent == pathlib.PurePosixPath("src/ops") and path.suffix == ".h"
             and re.search(r"\bContext& ctx\)", (root / path).read_text()) and (root / "cuda" / f"{path.stem}.cu").is_file()]
    return {name: [path for path in files if path.stem == name and path.parts[:2] in (("src", "ops"), ("src", "cpu"), ("cuda", path.name))]
            for name in names}


def public_functions(root, header, name):
    """Functions of the public part of a class, constructors and operators included, overloads counted apart."""
    text = re.sub(r"//[^\n]*", "", (root / header).read_text())
    body = re.search(rf"\bclass {name}\b[^;{{]*\{{(.*?)^ private:", text, re.S | re.M).group(1).split("public:", 1)[1]
    flat, depth = "", 0
    for letter in body:  # what stands in braces is the inside of a function or a type
        depth += letter == "{"
        if depth == 0:
            flat += letter
        if letter == "}":
            depth -= 1
            flat += ";" if depth == 0 else ""
    return sum(1 for piece in flat.split(";") if "(" in piece and not re.match(r"\s*(using|struct|enum)\b", piece))


def counted_lines(root, build, gcov):
    """(file, line) -> how often it ran, over all objects of a coverage build."""
    counts = {}
    objects = sorted(build.rglob("*.gcda"))
    with tempfile.TemporaryDirectory() as scratch:
        for start in range(0, len(objects), 40):
            subprocess.run([gcov, "--json-format", "--hash-filenames", *map(str, objects[start:start + 40])], cwd=scratch, check=True,
                           capture_output=True)
        for path in pathlib.Path(scratch).glob("*.gcov.json.gz"):
            report = json.loads(gzip.open(path).read())
            for file in report["files"]:
                name = pathlib.Path(report["current_working_directory"], file["file"])
                if name.is_relative_to(build):  # the sources are compiled as if they lay in the build directory
                    name = root / name.relative_to(build)
                if name.is_relative_to(root):
                    key = str(name.relative_to(root))
                    for line in file["lines"]:
                        counts[key, line["line_number"]] = counts.get((key, line["line_number"]), 0) + line["count"]
    return counts


def step_files(root, files, build, gcov):
    """File -> number of its lines that one more step runs."""
    subprocess.run(["cmake", "-S", str(root), "-B", str(build), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=None", "-DSWITCHYARD_TESTS=OFF",
                    "-DCMAKE_CXX_FLAGS=-O0 --coverage -fprofile-abs-path -fprofile-update=atomic -Wno-error", "--log-level=WARNING"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", str(build), "--target", "switchyard", "--parallel", "2"], check=True, stdout=sys.stderr)
    runs = []
    for steps in (2, 3):
        for path in build.rglob("*.gcda"):
            path.unlink()
        with tempfile.TemporaryDirectory() as directory:
            tokens = [i * 7 % 256 for i in range(1000)]
            header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
            pathlib.Path(directory, "train.bin").write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
            config = json.loads(json.dumps(CONFIG))
            config["train"]["steps"] = steps
            pathlib.Path(directory, "config.json").write_text(json.dumps(config))
            subprocess.run([build / "switchyard", "train", "config.json", "--out", "run"], cwd=directory, check=True,
                           capture_output=True)
        runs.append(counted_lines(root, build, gcov))
    lines = {}
    for (name, line), count in runs[1].items():
        if count > runs[0].get((name, line), 0):
            lines[name] = lines.get(name, 0) + 1
    known = {str(path) for path in files}
    way = {name: count for name, count in lines.items() if name in known}
    for name in list(way):
        way.setdefault(str(pathlib.PurePosixPath(name).with_suffix(".h")), 0)
    return {name: count for name, count in way.items() if name in known}


def compile_seconds(log):
    """Of the newest entry of each object in a .ninja_log."""
    seconds = {}
    for line in log.read_text().splitlines()[1:]:
        start, end, _, output, _ = line.split("\t")
        if output.endswith(".o"):
            seconds[output] = (int(end) - int(start)) / 1000
    return sum(seconds.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=pathlib.Path, default=ROOT, help="the checkout to count; default: this one")
    parser.add_argument("--step", action="store_true", help="count the files of one training step")
    parser.add_argument("--coverage-build", type=pathlib.Path, help="where --step builds; default: ROOT/build-coverage")
    parser.add_argument("--gcov", default="gcov")
    parser.add_argument("--build-log", type=pathlib.Path, help="a build's .ninja_log")
    parser.add_argument("--list", action="store_true", help="with --step: name the files")
    options = parser.parse_args()
    root = options.root.resolve()

    files = sources(root)
    text = {path: (root / path).read_text() for path in files}
    rows = [("files of src and cuda", len(files)), ("lines", sum(content.count("\n") for content in text.values()))]
    families = operator_families(root, files)
    per_family = sorted(len(paths) for paths in families.values())
    rows += [("families of operators with a device version", len(families)),
             ("files an operator: mean, most", f"{sum(per_family) / len(per_family):.1f}, {per_family[-1]}")]
    rows.append(("public functions of Transformer", public_functions(root, "src/model/transformer.h", "Transformer")))
    rows.append(("translation units that include nlohmann", sum(1 for path, content in text.items() if path.suffix == ".cpp"
                                                                and re.search(r"#include <nlohmann/", content))))
    if options.step:
        if not shutil.which(options.gcov):
            sys.exit("error: --step needs gcov, which comes with g++")
        way = step_files(root, files, (options.coverage_build or root / "build-coverage").resolve(), options.gcov)
        rows += [("files that one step of a mixture runs through", len(way)),
                 (f"of these with {READ_LINES} lines or more", sum(1 for count in way.values() if count >= READ_LINES))]
        way = {name: count for name, count in way.items() if not ELSEWHERE.search(name)}
        rows += [("files from the data through the layer of experts to the update", len(way)),
                 (f"of these with {READ_LINES} lines or more", sum(1 for count in way.values() if count >= READ_LINES))]
        if options.list:
            for name, count in sorted(way.items()):
                print(f"{count:5} {name}")
    if options.build_log:
        rows.append(("seconds of compiling", round(compile_seconds(options.build_log))))
    for name, value in rows:
        print(f"{name:55} {value}")


if __name__ == "__main__":
    main()
