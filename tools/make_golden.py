#!/usr/bin/env python3
"""Writes tests/golden: tiny models of each layout, run through `transformers`, for the C++ tests to compare with.

One directory a case:
  config.json, model.safetensors   as save_pretrained writes them (float32, public names)
  golden.safetensors               tokens [B,S]; logits [B,S,V]; loss and cross_entropy [1]; experts.<layer> and
                                   weights.<layer> [B*S,K], slots in decreasing order of the score that chose them;
                                   grad.<name> and after5.<name> of every parameter
  golden.json                      versions, seed, options, hyperparameters

`loss` is the mean next-token cross entropy over the B*(S-1) targets, plus router_aux_loss_coef times the
balance loss where the layout has one (Mixtral, Qwen3-MoE, OLMoE), plus MTP_LOSS_COEF times mtp_loss [1], the mean over the
depths of multi-token prediction, in cases that have them. after5 is the state after 5 AdamW steps on this batch.
Where a gradient is zero by construction, so that rounding alone is left of it, it is not there, and neither is any
after5: AdamW makes a step of rounding.
The same versions on the same kind of processor write the same bytes.
"""

import argparse
import json
import math
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import safetensors
import torch
import transformers
from safetensors.torch import load_file, save_file

import hf_reference as hf

N_SEQ, SEQ_LEN = 2, 14
STEPS = 5
OPTIMIZER = {"lr": 1e-2, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.1}
CLIP_NORM = 1.0
MTP_LOSS_COEF = 0.3
# A choice that is closer than this to the next one could fall differently in another order of summation.
MIN_MARGIN = 3e-4
# Of the largest gradient of a model: what is smaller throughout a tensor is rounding.
ROUNDING = 1e-6
# What the C++ tests allow, relative to a tensor's largest value, and which share of it the last bit of the weights
# may cost.
TOLERANCE = {"loss": 1e-5, "mtp_loss": 1e-5, "logits": 1e-5, "grad": 1e-4, "after5": 1e-4}
NOISE_SHARE = 0.25

# Sizes differ wherever they can, so that a swapped pair of them does not go unnoticed.
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "num_experts_per_tok": 2,
    "bos_token_id": None, "eos_token_id": None,
}
MIXTRAL = SIZES | {
    "model_type": "mixtral", "num_key_value_heads": 2, "intermediate_size": 10, "num_local_experts": 5,
    "router_aux_loss_coef": 0.02, "rope_theta": 100.0,
}
QWEN3_MOE = SIZES | {
    "model_type": "qwen3_moe", "num_key_value_heads": 2, "head_dim": 6, "intermediate_size": 12,
    "moe_intermediate_size": 7, "num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True,
    "router_aux_loss_coef": 0.02, "rope_theta": 100.0,
}
DEEPSEEK_V3 = SIZES | {
    # rms_norm_eps is large enough for the norms that do not use it to show.
    "model_type": "deepseek_v3", "num_key_value_heads": 4, "intermediate_size": 12, "moe_intermediate_size": 6,
    "n_routed_experts": 8, "n_shared_experts": 1, "n_group": 4, "topk_group": 2, "norm_topk_prob": True,
    "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "q_lora_rank": 10, "kv_lora_rank": 9,
    "qk_nope_head_dim": 5, "qk_rope_head_dim": 4, "v_head_dim": 7, "rope_theta": 100.0, "rms_norm_eps": 1e-3,
    "num_nextn_predict_layers": 0,
}
OLMOE = SIZES | {
    "model_type": "olmoe", "num_key_value_heads": 2, "intermediate_size": 10, "num_experts": 6, "num_experts_per_tok": 3,
    "router_aux_loss_coef": 0.02, "rope_theta": 100.0,
}
# With these, the frequencies of a rotary part of 8 are scaled not at all, by parts and in full.
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024, "beta_fast": 32, "beta_slow": 1}
LONG = {"max_position_embeddings": 4096, "rope_theta": 10000.0}

SMALL = {"vocab_size": 21, "hidden_size": 12}

CASES = {
    "mixtral": MIXTRAL,
    "mixtral_sliding_window": MIXTRAL | {"sliding_window": 5},
    "mixtral_tied": MIXTRAL | {"tie_word_embeddings": True, "head_dim": 6, "num_experts_per_tok": 1},
    "mixtral_yarn": MIXTRAL | LONG | {"head_dim": 8, "rope_scaling": YARN | {"attention_factor": 0.8}},
    "mixtral_one_expert_a_token": MIXTRAL | SMALL | {
        "head_dim": 4, "num_experts_per_tok": 1, "router_aux_loss_coef": 0.0},
    "mixtral_every_expert": MIXTRAL | SMALL | {
        "num_hidden_layers": 1, "num_experts_per_tok": 5, "sliding_window": 2, "num_key_value_heads": 4, "head_dim": 2,
        "rope_scaling": {"rope_type": "linear", "factor": 2.5}},
    "qwen3_moe": QWEN3_MOE,
    "qwen3_moe_unnormalised": QWEN3_MOE | {"norm_topk_prob": False},
    "qwen3_moe_mlp_only_layers": QWEN3_MOE | {"num_hidden_layers": 3, "mlp_only_layers": [1]},
    "qwen3_moe_sparse_step": QWEN3_MOE | {"num_hidden_layers": 3, "decoder_sparse_step": 2},
    "qwen3_moe_tied": QWEN3_MOE | {"tie_word_embeddings": True, "head_dim": 4},
    "qwen3_moe_sliding_window": QWEN3_MOE | {"use_sliding_window": True, "sliding_window": 4},
    "qwen3_moe_attention_bias": QWEN3_MOE | {"attention_bias": True},
    "qwen3_moe_linear": QWEN3_MOE | {"rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "qwen3_moe_yarn": QWEN3_MOE | LONG | {"head_dim": 8, "rope_scaling": YARN},
    "qwen3_moe_dense": QWEN3_MOE | SMALL | {"mlp_only_layers": [0, 1], "attention_bias": True},
    "qwen3_moe_everything": QWEN3_MOE | SMALL | {
        "num_hidden_layers": 3, "mlp_only_layers": [0], "decoder_sparse_step": 1, "norm_topk_prob": False,
        "num_experts_per_tok": 1, "use_sliding_window": True, "sliding_window": 3, "attention_bias": True,
        "tie_word_embeddings": True, "num_key_value_heads": 1, "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "olmoe": OLMOE,
    "olmoe_normalised": OLMOE | {"norm_topk_prob": True, "attention_bias": True, "tie_word_embeddings": True},
    "olmoe_everything": OLMOE | SMALL | {
        "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": None, "num_experts_per_tok": 1, "attention_bias": True,
        "rope_scaling": {"rope_type": "linear", "factor": 3.0}},
    "deepseek_v3": DEEPSEEK_V3,
    "deepseek_v3_plain": DEEPSEEK_V3 | {
        "q_lora_rank": None, "first_k_dense_replace": 0, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "n_shared_experts": 2},
    "deepseek_v3_negative_bias": DEEPSEEK_V3 | {"num_experts_per_tok": 3},
    "deepseek_v3_half_rope": DEEPSEEK_V3 | {"rope_interleave": False, "norm_topk_prob": False},
    "deepseek_v3_attention_bias": DEEPSEEK_V3 | {
        "attention_bias": True, "rope_scaling": {"rope_type": "linear", "factor": 3.0}, "tie_word_embeddings": True},
    "deepseek_v3_yarn": DEEPSEEK_V3 | LONG | {
        "qk_rope_head_dim": 8, "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
    "deepseek_v3_dense": DEEPSEEK_V3 | SMALL | {"first_k_dense_replace": 2},
    "deepseek_v3_one_expert_a_token": DEEPSEEK_V3 | SMALL | {"num_experts_per_tok": 1, "rope_interleave": False},
    "deepseek_v3_no_shared_experts": DEEPSEEK_V3 | SMALL | {
        "n_shared_experts": 0, "num_experts_per_tok": 1, "norm_topk_prob": False, "topk_group": 1},
    "deepseek_v3_everything": DEEPSEEK_V3 | SMALL | LONG | {
        "num_hidden_layers": 1, "first_k_dense_replace": 0, "n_shared_experts": 2, "num_experts_per_tok": 4,
        "attention_bias": True, "tie_word_embeddings": True, "rope_interleave": False, "qk_rope_head_dim": 8,
        "rope_scaling": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0, "truncate": False}},
    "deepseek_v3_mtp": DEEPSEEK_V3 | {"num_nextn_predict_layers": 1},
    "deepseek_v3_mtp2": DEEPSEEK_V3 | {"num_nextn_predict_layers": 2, "tie_word_embeddings": True},
    "deepseek_v3_yarn_mscale": DEEPSEEK_V3 | LONG | {
        "qk_rope_head_dim": 8, "q_lora_rank": None,
        "rope_scaling": YARN | {"mscale": 0.7, "mscale_all_dim": 1.2}},
}


def lower_choice_biases(model):
    """All scores that choose become negative: a dropped group whose scores were set to 0 would win."""
    with torch.no_grad():
        for _, bias in hf.choice_biases(model):
            bias -= 2.0


def train(model, tokens):
    """5 steps; returns the passes' routing margins, the losses and the gradient norms."""
    optimizer = hf.adamw(model, **OPTIMIZER)
    margins, losses, norms = [], [], []
    for _ in range(STEPS):
        result, _ = hf.loss_and_gradients(model, tokens, MTP_LOSS_COEF)
        norms.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM, foreach=False).item())
        optimizer.step()
        losses.append(result.loss.item())
        margins += [routing.margin for routing in result.routing.values()]
    return margins, losses, norms


def compute(model, tokens):
    """All that golden.safetensors holds, and what golden.json says of it. Changes the model's weights."""
    result, gradients = hf.loss_and_gradients(model, tokens, MTP_LOSS_COEF)
    tensors = {
        "tokens": tokens.to(torch.int32), "logits": result.logits,
        "loss": result.loss.reshape(1), "cross_entropy": result.cross_entropy.reshape(1),
    }
    if result.mtp_loss is not None:
        tensors["mtp_loss"] = result.mtp_loss.reshape(1)
    for layer, routing in result.routing.items():
        tensors[f"experts.{layer}"] = routing.expert_TK
        tensors[f"weights.{layer}"] = routing.weight_TK
    # Shared experts of width 0 have empty ones.
    gradients = {name: gradient for name, gradient in gradients.items() if gradient.numel() > 0}
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    vanishing = {name for name, gradient in gradients.items() if 0 < gradient.abs().max().item() <= ROUNDING * largest}
    tensors |= {f"grad.{name}": gradient for name, gradient in gradients.items() if name not in vanishing}
    margins, losses, norms = [routing.margin for routing in result.routing.values()], [result.loss.item()], []
    if not vanishing:
        margins, losses, norms = train(model, tokens)
        tensors |= {f"after5.{name}": weight for name, weight in hf.parameters_of(model).items() if name in gradients}
    # Without a choice there is no margin; JSON has no infinity.
    margin = min(margins, default=math.inf)
    return tensors, {"smallest_routing_margin": margin if math.isfinite(margin) else None, "losses": losses,
                     "gradient_norms": norms}


def relative_difference(a, b):
    largest = max(b.abs().max().item(), 1e-30)
    return (a - b).abs().max().item() / largest


def noise(model_of, tokens, exact, seed):
    """By how much the results move, as a share of the tolerance, when each weight moves in its last bit."""
    model = model_of()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.parameters():
            tensor.mul_(1 + 2.0**-24 * torch.randn(tensor.shape, generator=generator))
    moved, _ = compute(model, tokens)
    worst = 0.0
    for name, tensor in exact.items():
        kind = name.split(".")[0]
        if kind == "experts" and not torch.equal(tensor, moved[name]):
            return math.inf
        if kind in TOLERANCE:
            worst = max(worst, relative_difference(moved[name], tensor) / TOLERANCE[kind])
    return worst


def make_case(name, options, out):
    """Tries seeds until the numbers are ones that another order of summation reproduces."""
    for seed in range(1, 1000):
        config = hf.build_config(options)

        def model_of(config=config, seed=seed):
            model = hf.build_model(config)
            if getattr(config, "num_nextn_predict_layers", 0) > 0:
                hf.add_mtp_layers(model)
            hf.fill_random(model, torch.Generator().manual_seed(seed))
            if name.endswith("negative_bias"):
                lower_choice_biases(model)
            return model

        model = model_of()
        tokens = hf.random_tokens(config.vocab_size, N_SEQ, SEQ_LEN, seed + 1000)
        weights = hf.parameters_of(model) | hf.public_tensors(config.model_type, hf.choice_biases(model))
        tensors, figures = compute(model, tokens)
        if (figures["smallest_routing_margin"] or math.inf) < MIN_MARGIN:
            continue
        figures["noise_share_of_tolerance"] = max(noise(model_of, tokens, tensors, seed + i) for i in range(3))
        if figures["noise_share_of_tolerance"] > NOISE_SHARE:
            continue
        break
    else:
        sys.exit(f"make_golden.py: {name}: no seed below 1000 gives numbers that rounding leaves in place")

    directory = out / name
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as saved:
        model_of().save_pretrained(saved)
        stored = load_file(f"{saved}/model.safetensors")
        if stored.keys() != weights.keys() or any(not torch.equal(stored[k], weights[k]) for k in stored):
            sys.exit(f"make_golden.py: {name}: save_pretrained's tensors are not the model's under their public names")
        with torch.no_grad():
            if not torch.equal(hf.run(hf.load_model(saved), tokens).logits, tensors["logits"]):
                sys.exit(f"make_golden.py: {name}: the saved model gives other logits")
        for file in ("config.json", "model.safetensors"):
            shutil.copyfile(f"{saved}/{file}", directory / file)
    save_file(tensors, directory / "golden.safetensors")
    if "mtp_loss" in tensors:
        figures["mtp_loss_coef"] = MTP_LOSS_COEF
    record = {
        "case": name,
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                     "transformers": transformers.__version__, "safetensors": safetensors.__version__},
        "seed": seed,
        "options": options,
        "optimizer": OPTIMIZER | {"steps": len(figures["gradient_norms"]), "clip_norm": CLIP_NORM},
    } | figures
    (directory / "golden.json").write_text(json.dumps(record, indent=2) + "\n")
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(f"{name}: seed {seed}, loss {figures['losses'][0]:.4f} -> {figures['losses'][-1]:.4f}, "
          f"routing margin {figures['smallest_routing_margin']}, "
          f"noise {figures['noise_share_of_tolerance']:.2f} of the tolerance, {size / 1024:.0f} KiB")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join(CASES)} (default: all)")
    arguments = parser.parse_args()
    unknown = [case for case in arguments.cases if case not in CASES]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; known: {', '.join(CASES)}")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in arguments.cases or CASES:
        make_case(name, CASES[name], arguments.out)


if __name__ == "__main__":
    main()
