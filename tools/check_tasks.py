#!/usr/bin/env python3
"""Checks that `switchyard eval --task` gives what lm_eval gives, on the same files and the same model.

Each file of tests/tasks is asked twice: by the program, and by lm_eval (offline) with its own definition of the task that
the file's schema is of, which reads the file in place of the public one. Compared are the prompts, character by character,
the log-probability of each choice, the texts that are generated, and acc, acc_norm, acc_bytes and both kinds of exact match
with their standard errors. The model is trained here on the questions with their answers, for a few hundred steps, so that
it is right now and then; MODEL, a directory that both can read, takes its place.
Needs torch, transformers, tokenizers and lm_eval. Exit code 0: all of it is the same; 1: something is not.
"""

import argparse
import array
import hashlib
import json
import os
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ.update({"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"})

import export_runs  # noqa: E402
import lm_eval  # noqa: E402
import yaml  # noqa: E402
from compare_hf import default_binary  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402
from lm_eval.tasks import TaskManager  # noqa: E402

FILES = Path(__file__).resolve().parent.parent / "tests" / "tasks"
THEIRS = Path(lm_eval.__file__).parent / "tasks"
# The sum of some dozen log-probabilities in float32, each rounded at another place in the two programs.
TOLERANCE = 5e-4
NEW_TOKENS = 64
MODEL = {"model_type": "qwen3_moe", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
         "num_key_value_heads": 2, "head_dim": 16, "intermediate_size": 128, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 64, "max_position_embeddings": 2048, "vocab_size": 512}
CHOICE_METRICS = [{"metric": name, "aggregation": "mean", "higher_is_better": True}
                  for name in ("acc", "acc_norm", "acc_bytes")]
OURS_IN_THEIRS = {"strict_match": "exact_match,strict-match", "flexible_extract": "exact_match,flexible-extract"}
# Of each file: lm_eval's definition, and options of eval that say what the file does not.
CASES = {
    "hellaswag": ("hellaswag/hellaswag.yaml", {}),
    "arc": ("arc/arc_easy.yaml", {}),
    "piqa": ("piqa/piqa.yaml", {}),
    "mmlu": ("mmlu/default/_default_template_yaml",
             {"description": "The following are multiple choice questions (with answers) about earth science.\n\n"}),
    "bbh": ("leaderboard/bbh_mc/date_understanding.yaml", {"description": "Infer the date from context."}),
    "choices": (None, {"output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "choices",
                       "doc_to_target": "answer"}),
    "gsm8k": ("gsm8k/gsm8k.yaml", {}),
}


def train_model(binary, place, make):
    """A run on the files' questions with their answers, exported."""
    tokenizer, encode, begin, end = make()
    documents = []
    for name in CASES:
        for line in (FILES / f"{name}.jsonl").read_text().splitlines():
            question = json.loads(line)
            if name == "gsm8k":
                texts = [f"Question: {question['question']}\nAnswer: {question['answer']}\n\n"]
            elif name == "hellaswag":
                texts = [f"{question['activity_label']}: {question['ctx_a']} {question['endings'][int(question['label'])]}"]
            else:
                texts = [" ".join(map(str, question.values()))]
            documents += [[begin, *encode(text), *([end] if begin != end else [])] for text in texts]
    tokens = [token for _ in range(20) for document in documents for token in document]
    data = place / "data"
    data.mkdir()
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    (data / "train_000000.bin").write_bytes(header + array.array("H", tokens).tobytes())
    content = b"bytes" if tokenizer is None else tokenizer.to_str().encode()
    if tokenizer is not None:
        (data / "tokenizer.json").write_bytes(content)
    (data / "meta.json").write_text(json.dumps({
        "tokenizer": "bytes" if tokenizer is None else "made here", "eot_token": end, "begin_token": begin,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(), "vocab_size": max(tokens) + 1}))
    (place / "run.json").write_text(json.dumps({
        "model": MODEL, "data": {"train": [str(data / "train*.bin")]},
        "train": {"steps": 250, "seq_len": 128, "micro_batch_size": 8, "lr": 0.01}}))
    export_runs.switchyard(binary, "train", place / "run.json", "--out", place / "run")
    export_runs.switchyard(binary, "export", place / "run", "--out", place / "exported")
    return place / "exported"


def ours(binary, model, path, options, place):
    """-> (the figures, the samples)."""
    samples = place / "samples.jsonl"
    samples.unlink(missing_ok=True)
    command = [str(word) for word in (binary, "eval", model, "--task", path, *options, "--json", "-", "--samples", samples)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    (figures,) = json.loads(done.stdout)["tasks"]
    return figures, [json.loads(line) for line in samples.read_text().splitlines()]


def theirs(model, name, path, shots, shots_path, place):
    """-> (lm_eval's figures, its samples by the kind of filter)."""
    definition, more = CASES[name]
    task = {"task": f"check_{name}", **({"include": str(THEIRS / definition)} if definition else {}), **more,
            "tag": None, "dataset_path": "json", "dataset_name": None,
            "dataset_kwargs": {"data_files": {"test": str(path), **({"shots": str(shots_path)} if shots_path else {})}},
            "training_split": None, "validation_split": None, "test_split": "test",
            "fewshot_split": "shots" if shots_path else "test", "fewshot_config": {"sampler": "first_n"},
            "num_fewshot": shots}
    if name == "gsm8k":
        task["generation_kwargs"] = {"until": ["Question:", "</s>", "<|im_end|>"], "do_sample": False, "temperature": 0.0,
                                     "max_gen_toks": NEW_TOKENS}
    else:
        task["metric_list"] = CHOICE_METRICS
    folder = place / "definitions"
    folder.mkdir(exist_ok=True)
    (folder / "check.yaml").write_text(yaml.safe_dump(task))
    result = lm_eval.simple_evaluate(model=model, tasks=[task["task"]], num_fewshot=shots, bootstrap_iters=2,
                                     task_manager=TaskManager(include_path=str(folder), include_defaults=False))
    samples = {}
    for sample in result["samples"][task["task"]]:
        samples.setdefault(sample["filter"], []).append(sample)
    return result["results"][task["task"]], {k: sorted(v, key=lambda s: s["doc_id"]) for k, v in samples.items()}


def compare(name, mine, other, problems):
    """-> the largest difference of a log-probability."""
    (figures, samples), (their_figures, by_filter) = mine, other
    their_samples = next(iter(by_filter.values()))
    largest = 0.0
    if len(samples) != len(their_samples):
        problems.append(f"{len(samples)} questions, lm_eval has {len(their_samples)}")
    for sample, their in zip(samples, their_samples):
        prompts = {arguments[0] for arguments in their["arguments"]}
        if prompts != {sample["prompt"]}:
            problems.append(f"line {sample['line']}: the prompt is {sample['prompt']!r}, lm_eval's {prompts}")
        if "choices" not in sample:
            text = their["resps"][0][0]
            # Of a tokenizer that begins a text with a space, lm_eval's has lost the one that goes on from the prompt.
            if sample["text"] not in (text, " " + text):
                problems.append(f"line {sample['line']}: the text is {sample['text']!r}, lm_eval's {text!r}")
            continue
        continuations = [arguments[1] for arguments in their["arguments"]]
        if continuations != [f" {choice}" for choice in sample["choices"]]:
            problems.append(f"line {sample['line']}: the choices are {sample['choices']}, lm_eval's {continuations}")
            continue
        for found, (expected, _) in zip(sample["log_probabilities"], (answer[0] for answer in their["resps"])):
            largest = max(largest, abs(found - expected))
    if largest > TOLERANCE:
        problems.append(f"a log-probability differs by {largest:.1e}")
    names = OURS_IN_THEIRS if name == "gsm8k" else {m["metric"]: f"{m['metric']},none" for m in CHOICE_METRICS}
    for metric, theirs_name in names.items():
        kind, _, filtered = theirs_name.partition(",")
        for ours_key, their_key in ((metric, theirs_name), (f"{metric}_stderr", f"{kind}_stderr,{filtered}")):
            # Shares of the same counts, and square roots of them, in double.
            if abs(figures[ours_key] - their_figures[their_key]) > 1e-12:
                problems.append(f"{ours_key} is {figures[ours_key]}, lm_eval's {their_figures[their_key]}")
    return largest


def cases(name):
    """(title, shots, file of shots)"""
    yield "0 shots", 0, None
    yield "2 shots of its own", 2, None
    if name == "mmlu":
        yield "5 shots of mmlu_dev", 5, FILES / "mmlu_dev.jsonl"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", metavar="MODEL", nargs="?", help="an export or a Hugging Face directory")
    parser.add_argument("--switchyard", default=default_binary(), metavar="PATH")
    parser.add_argument("--tasks", default=",".join(CASES), metavar="NAMES", help=f"default: {','.join(CASES)}")
    args = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ["HF_DATASETS_CACHE"] = str(place / "cache")
        made = {"MODEL": args.model} if args.model else {}
        if not made:
            for number, (kind, make) in enumerate(export_runs.TOKENIZERS.items()):
                (place / str(number)).mkdir()
                made[kind] = train_model(args.switchyard, place / str(number), make)
        for kind, directory in made.items():
            model = HFLM(pretrained=str(directory), dtype="float32", device="cpu", batch_size=4)
            for name in args.tasks.split(","):
                path = FILES / f"{name}.jsonl"
                for title, shots, shots_path in cases(name):
                    options = ["--shots", shots, *(("--shots-file", shots_path) if shots_path else ()),
                               "--max-new-tokens", NEW_TOKENS]
                    if "description" in CASES[name][1] and name != "mmlu":  # MMLU's is by the subject of its lines
                        options += ["--description", CASES[name][1]["description"]]
                    problems = []
                    mine = ours(args.switchyard, directory, path, options, place)
                    largest = compare(name, mine, theirs(model, name, path, shots, shots_path, place), problems)
                    values = ", ".join(f"{key} {value:.4f} +- {mine[0][key + '_stderr']:.4f}"
                                       for key, value in mine[0].items() if f"{key}_stderr" in mine[0])
                    print(f"{kind}, {name}, {title}: {'; '.join(problems) or 'the same'}: {values}"
                          f"{f', log-probabilities within {largest:.1e}' if name != 'gsm8k' else ''}", flush=True)
                    failed |= bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
