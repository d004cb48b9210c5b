#!/usr/bin/env python3
"""Checks that models move between switchyard and `transformers`, both ways.

Builds a tiny random model of each layout, saves it in float32, bfloat16 and float16, in one file and in shards, and
for each: `switchyard export` of it must open with from_pretrained without a missing, unexpected or mismatched key and
give the same logits, tensor by tensor the same bits; `switchyard dump` must give transformers' logits (in float32);
saved with fused experts it must export to the same bits. Then trains runs of each layout: their exports must give
the same tokens of a prompt and the same greedy text in `switchyard generate` on the run, on the export, and in
`transformers`. Runs with every router that transformers does not have: from_pretrained must refuse them without
trust_remote_code, and with it give the same logits, greedy text, losses of a step and state after it, save the same
tensors, and in lm_eval, where that is installed, the same loss of a text.
Exit code 0: all of it holds; 1: something does not.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import export_runs
import torch
from compare_hf import default_binary
from hf_reference import LAYOUTS, build_config, build_model, fill_random, random_tokens
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.utils import logging

COMMON = {"vocab_size": 97, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
          "intermediate_size": 48, "num_experts_per_tok": 2, "max_position_embeddings": 64}
MODELS = {
    "mixtral": COMMON | {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4},
    "mixtral, tied": COMMON | {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4,
                               "tie_word_embeddings": True},
    "qwen3_moe": COMMON | {"model_type": "qwen3_moe", "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4,
                           "moe_intermediate_size": 16, "mlp_only_layers": [0]},
    "olmoe": COMMON | {"model_type": "olmoe", "num_key_value_heads": 2, "num_experts": 4, "clip_qkv": None},
    "deepseek_v3": COMMON | {"model_type": "deepseek_v3", "num_key_value_heads": 4, "q_lora_rank": 16,
                             "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
                             "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "n_shared_experts": 1,
                             "moe_intermediate_size": 16, "first_k_dense_replace": 1},
}


def tensors_of(directory):
    return {name: t for file in sorted(directory.glob("*.safetensors")) for name, t in load_file(file).items()}


def logits_of(directory, tokens, problems):
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32,
        output_loading_info=True)
    for key, names in info.items():
        if names:
            problems.append(f"{key}: {sorted(map(str, names))[:4]}")
    with torch.no_grad():
        return model.eval()(tokens).logits


def same_bits(a, b):
    # The stored bytes, so that a NaN equals itself and 0 does not equal -0.
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8),
                                                                     b.contiguous().view(torch.uint8))


def check(binary, model, dtype, shard_size, place):
    problems = []
    source, exported = place / "source", place / "exported"
    model.to(getattr(torch, dtype)).save_pretrained(source, max_shard_size=shard_size)
    tokens = random_tokens(COMMON["vocab_size"], 2, 24, 3)
    save_file({"tokens": tokens.to(torch.int32)}, place / "tokens.safetensors")
    subprocess.run([binary, "export", source, "--out", exported, "--max-shard-size", shard_size], check=True,
                   stderr=subprocess.PIPE, text=True)
    fused = place / "fused"
    model.save_pretrained(fused, max_shard_size=shard_size, save_original_format=False)
    subprocess.run([binary, "export", fused, "--out", place / "unfused", "--max-shard-size", shard_size], check=True,
                   stderr=subprocess.PIPE, text=True)
    before, after, unfused = tensors_of(source), tensors_of(exported), tensors_of(place / "unfused")
    if not any(name.endswith(".experts.gate_up_proj") for name in tensors_of(fused)):
        problems.append("transformers writes no fused experts")
    if before.keys() != unfused.keys() or not all(same_bits(before[name], unfused[name]) for name in before):
        problems.append("fused experts become other tensors")
    if before.keys() != after.keys():
        problems.append(f"other tensors: {sorted(before.keys() ^ after.keys())[:4]}")
    problems += [f"{name} differs" for name in before.keys() & after.keys()
                 if not same_bits(before[name], after[name])][:4]
    expected = logits_of(source, tokens, [])
    if not torch.equal(expected, logits_of(exported, tokens, problems)):
        problems.append("the exported model has other logits")
    subprocess.run([binary, "dump", source, "--tokens", place / "tokens.safetensors", "--out", place / "dump.st"],
                   check=True, stderr=subprocess.PIPE, text=True)
    ours = load_file(place / "dump.st")["logits"].reshape(expected.shape)
    difference = ((ours - expected).abs().max() / expected.abs().max()).item()
    if difference > export_runs.TOLERANCE:
        problems.append(f"logits of switchyard differ by {difference:.1e} of the largest")
    return problems


def tensor_cases():
    for name, options in MODELS.items():
        for dtype in ("float32", "bfloat16", "float16"):
            for shard_size in ("5GB", "20KB"):
                def check_case(binary, place, options=options, dtype=dtype, shard_size=shard_size):
                    model = build_model(build_config(options))
                    fill_random(model, torch.Generator().manual_seed(1))
                    return check(binary, model, dtype, shard_size, place)
                yield f"{name}, {dtype}, shards of {shard_size}", check_case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switchyard", default=default_binary(), metavar="PATH")
    binary = parser.parse_args().switchyard
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    torch.set_num_threads(1)  # tiny products
    failed = False
    for title, check_case in (*tensor_cases(), *export_runs.cases({m: MODELS[m] for m in LAYOUTS})):
        with tempfile.TemporaryDirectory() as place:
            try:
                problems = check_case(binary, Path(place))
            except subprocess.CalledProcessError as error:
                problems = [str(error.stderr).strip()]
        print(f"{title}: {'; '.join(problems) or 'equal'}", flush=True)
        failed = failed or bool(problems)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
