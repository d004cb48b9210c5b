#!/usr/bin/env python3
"""Writes tests/golden/router_<case>: one step of every router, computed by router_reference.py in float64, for the C++
tests to compare with; and tests/golden/expert_overlap, how alike experts' outputs are.

One directory a case:
  case.json              the router section with every default that applies, the shape, sizes, versions, seed, how
                         close each kind of decision came to falling otherwise, how far float32 is from float64
  tensors.safetensors    F32, ids I32:
    x [T,D]  token [T] (-1: padding)  param.<name> of every row below the gate, state included
    dweight [T,K]  daddend [T,D]      gradients that come from above; dweight[t,k] belongs to the expert expert[t,k]
    epsilon [T,d] (lpr)  attention_entropy [T] (dynamic_k with that estimator)
    expert [T,K]  weight [T,K]        by decreasing weight, then by expert; free slots (-1, 0) last
    addend [T,D]  router_loss, balance_loss, z_loss [1]
    dx [T,D]  grad.<name>             gradients of sum(weight dweight) + sum(addend daddend) + the three losses
    after.<name>                      every state row after after_step

The inputs are exactly float32. A seed is taken only if no decision hangs on a near-tie and the same formulas in float32
stay within a quarter of what the C++ tests allow.
"""

import argparse
import json
import platform
import shutil
import sys
from pathlib import Path

import safetensors
import torch
from safetensors.torch import save_file

import router_reference as reference

N_SEQ, SEQ_LEN = 3, 8
PADDING = [7, 22, 23]  # the end of the first and of the last sequence
HIDDEN, EXPERTS, LATENT, VOCABULARY = 16, 8, 4, 100
SHAPE = {"hidden_size": HIDDEN, "n_experts": EXPERTS, "n_slots": 2, "n_group": 1, "topk_group": 1,
         "norm_topk_prob": True, "routed_scaling_factor": 1.0}
# The smallest distance of each kind of decision from its opposite. Float32 moves scores by some 1e-6.
MIN_DISTANCE = {"choice": 1e-3, "capacity": 1e-3, "p": 1e-3, "k": 1e-3, "threshold": 1e-3, "alignment": 1e-4, "simbal": 1e-4,
                "bin": 2e-6}
# Of a tensor's largest value: decisions, weights, losses and state; gradients.
FORWARD, GRADIENT = 1e-5, 1e-4
FLOAT32_SHARE = 0.25

LPR = {"type": "lpr", "latent_dim": LATENT}
LOUD = LPR | {"reg_coef": 0.5}  # so that a wrong regularisation shows beside the gradients from above


def case(router, **shape):
    return {"router": router, "shape": SHAPE | shape}


CASES = {
    "softmax_topk": case({"type": "softmax_topk", "balance_coef": 0.02, "z_loss_coef": 0.01}),
    "softmax_topk_unnormalised": case({"type": "softmax_topk", "balance_coef": 0.0}, norm_topk_prob=False, n_slots=3),
    "softmax_topk_balance_layer": case({"type": "softmax_topk", "balance_coef": 0.3, "balance_scope": "layer"}),
    "softmax_topk_balance_sequence": case({"type": "softmax_topk", "balance_coef": 0.3, "balance_scope": "sequence"}),
    "softmax_topk_balance_global_batch": case(
        {"type": "softmax_topk", "balance_coef": 0.3, "balance_scope": "global_batch"}, n_slots=3),
    "softmax_topk_balance_model": case({"type": "softmax_topk", "balance_coef": 0.3, "balance_scope": "model"}),
    "softmax_topk_capacity": case({"type": "softmax_topk", "balance_coef": 0.02, "capacity_factor": 0.9}),
    "softmax_topk_variance": case({"type": "softmax_topk", "balance_coef": 0.02, "variance_coef": 0.7}, n_slots=3),
    "sigmoid_group_variance": case({"type": "sigmoid_group", "variance_coef": 0.7}, n_group=4, topk_group=2),
    "softmax_topk_simbal": case({"type": "softmax_topk", "simbal_coef": 0.05}),
    "softmax_topk_logit_norm": case({"type": "softmax_topk", "balance_coef": 0.02, "z_loss_coef": 0.01,
                                     "logit_norm": 1.5}, n_slots=3),
    "softmax_topk_hash": case({"type": "softmax_topk", "balance_coef": 0.02, "z_loss_coef": 0.01, "num_hash_layers": 1},
                              n_slots=3, routed_scaling_factor=2.5),
    "sigmoid_group_hash": case({"type": "sigmoid_group", "balance_coef": 0.02, "score_function": "sqrtsoftplus",
                                "num_hash_layers": 1}, norm_topk_prob=False),
    "sigmoid_group": case({"type": "sigmoid_group", "balance_coef": 0.02}, n_group=4, topk_group=2,
                          routed_scaling_factor=2.5),
    "sigmoid_group_unnormalised": case({"type": "sigmoid_group", "balance_coef": 0.02, "balance_scope": "layer",
                                        "bias_update_speed": 0.01},
                                       n_group=2, topk_group=1, n_slots=3, norm_topk_prob=False),
    "sigmoid_group_capacity": case({"type": "sigmoid_group", "balance_coef": 0.02, "capacity_factor": 1.0},
                                   n_group=4, topk_group=3, routed_scaling_factor=1.5),
    "sigmoid_group_mean_free": case({"type": "sigmoid_group", "bias_mean_free": True, "bias_update_speed": 0.01},
                                    n_group=4, topk_group=2),
    "sigmoid_group_smebu": case({"type": "sigmoid_group", "bias": "smebu", "bias_update_speed": 0.02}, n_group=4,
                                topk_group=2, routed_scaling_factor=2.5),
    "sigmoid_group_smebu_capacity": case({"type": "sigmoid_group", "bias": "smebu", "bias_kappa": 0.5,
                                          "bias_momentum": 0.9, "capacity_factor": 1.0}, n_slots=3),
    "sigmoid_group_phi": case({"type": "sigmoid_group", "bias": "phi", "phi_decay": 0.8}, n_group=2, topk_group=1),
    "sigmoid_group_simbal": case({"type": "sigmoid_group", "bias": "smebu", "simbal_coef": 0.02}, n_group=4, topk_group=2),
    "quantile": case({"type": "quantile"}),
    "quantile_simbal": case({"type": "quantile", "simbal_coef": 0.02, "capacity_factor": 1.0}),
    "quantile_sign": case({"type": "quantile", "bias": "sign", "bias_update_speed": 0.05}, n_slots=3),
    "quantile_smebu": case({"type": "quantile", "bias": "smebu", "score_function": "softmax",
                            "bias_update_speed": 0.05, "bias_momentum": 0.0}),
    "quantile_phi": case({"type": "quantile", "bias": "phi", "phi_strength": 0.5, "phi_decay": 0.5}),
    "sigmoid_group_sqrtsoftplus": case({"type": "sigmoid_group", "balance_coef": 0.02, "score_function": "sqrtsoftplus"},
                                       n_group=4, topk_group=2, routed_scaling_factor=1.5),
    "sigmoid_group_softmax": case({"type": "sigmoid_group", "balance_coef": 0.02, "score_function": "softmax",
                                   "z_loss_coef": 0.004}, n_group=2, topk_group=1),
    "quantile_sqrtsoftplus": case({"type": "quantile", "score_function": "sqrtsoftplus", "balance_coef": 0.02}, n_slots=3),
    "quantile_softmax": case({"type": "quantile", "score_function": "softmax", "bias_ema": 0.3, "balance_coef": 0.02,
                              "z_loss_coef": 0.01}, n_slots=3, routed_scaling_factor=1.5),
    "quantile_logit_norm": case({"type": "quantile", "score_function": "softmax", "logit_norm": 2.0,
                                 "balance_coef": 0.02}),
    "quantile_unnormalised": case({"type": "quantile", "bias_ema": 0.9, "balance_coef": 0.02,
                                   "capacity_factor": 1.1}, norm_topk_prob=False),
    "quantile_solves": case({"type": "quantile", "bias_ema": 0.5, "bias_solves": 2}, n_slots=3),
    "top_p": case({"type": "top_p", "max_experts": 6, "entropy_coef": 0.02, "balance_coef": 0.02}),
    "top_p_renormalised": case({"type": "top_p", "p": 0.7, "max_experts": 3, "entropy_coef": 0.02, "renormalise": True,
                                "z_loss_coef": 0.01}),
    "top_p_simbal": case({"type": "top_p", "max_experts": 6, "entropy_coef": 0.02, "simbal_coef": 0.02}),
    "top_p_one": case({"type": "top_p", "p": 1.0, "max_experts": 5, "balance_scope": "sequence"}),
    "top_p_capacity": case({"type": "top_p", "p": 0.5, "max_experts": 4, "capacity_factor": 0.5}),
    "dynamic_k_activation_norm_l2": case({"type": "dynamic_k", "max_experts": 4}),
    "dynamic_k_activation_norm_l1": case({"type": "dynamic_k", "min_experts": 2, "max_experts": 5,
                                          "estimator": "activation_norm_l1", "balance_coef": 0.02,
                                          "z_loss_coef": 0.01}),
    "dynamic_k_router_entropy": case({"type": "dynamic_k", "max_experts": 4, "estimator": "router_entropy",
                                      "statistics_decay": 0.8}),
    "dynamic_k_hidden_entropy": case({"type": "dynamic_k", "max_experts": 4, "estimator": "hidden_entropy"}),
    "dynamic_k_loss_gradient": case({"type": "dynamic_k", "max_experts": 5, "estimator": "loss_gradient",
                                     "statistics_decay": 0.8}),
    "dynamic_k_attention_entropy": case({"type": "dynamic_k", "max_experts": 4, "estimator": "attention_entropy"}),
    "dynamic_k_simbal": case({"type": "dynamic_k", "max_experts": 4, "simbal_coef": 0.02}),
    "dynamic_k_threshold": case({"type": "dynamic_k", "max_experts": 3, "estimator": "threshold", "threshold": 4.0}),
    "dynamic_k_uncalibrated": case({"type": "dynamic_k", "max_experts": 4, "capacity_factor": 0.6}),
    "expert_threshold": case({"type": "expert_threshold", "max_experts": 4}),
    "expert_threshold_simbal": case({"type": "expert_threshold", "max_experts": 4, "simbal_coef": 0.02}),
    "expert_threshold_sqrtsoftplus": case({"type": "expert_threshold", "score_function": "sqrtsoftplus",
                                           "max_experts": 3, "balance_coef": 0.02}),
    "expert_threshold_softmax": case({"type": "expert_threshold", "score_function": "softmax", "max_experts": 2,
                                      "threshold_decay": 0.5, "balance_coef": 0.02}),
    "expert_threshold_capacity": case({"type": "expert_threshold", "max_experts": 4, "capacity_factor": 0.6}),
    "kmeans": case({"type": "kmeans"}),
    "kmeans_balanced": case({"type": "kmeans", "mean_decay": 0.7, "balance_coef": 0.3, "balance_scope": "sequence"},
                            n_slots=3, routed_scaling_factor=2.5),
    "kmeans_capacity": case({"type": "kmeans", "mean_decay": 0.9, "capacity_factor": 0.9}),
    "lpr": case(LPR),
    "lpr_dot": case(LOUD | {"similarity": "dot", "z_loss_coef": 0.01, "kl_weight": 0.1}),
    "lpr_gaussian": case(LOUD | {"similarity": "gaussian", "sigma": 1.5}, n_slots=3),
    "lpr_mahalanobis": case(LOUD | {"similarity": "mahalanobis"}),
    "lpr_cross_attention": case(LOUD | {"similarity": "cross_attention"}),
    "lpr_cross_attention_two_heads": case(LOUD | {"similarity": "cross_attention", "num_heads": 2}, n_slots=3),
    "lpr_kl": case(LOUD | {"similarity": "kl"}, routed_scaling_factor=2.5),
    "lpr_js": case(LOUD | {"similarity": "js"}),
    "lpr_hellinger": case(LOUD | {"similarity": "hellinger"}),
    "lpr_wasserstein": case(LOUD | {"similarity": "wasserstein"}, n_slots=3),
    "lpr_diversity_cosine": case(LOUD | {"diversity": "cosine", "diversity_lambda": 2.0}),
    "lpr_diversity_euclidean": case(LOUD | {"diversity": "euclidean", "reg_scope": "micro_batch", "div_weight": 0.5}),
    "lpr_diversity_orthogonal": case(LOUD | {"diversity": "orthogonal", "kl_weight": 0.0, "align_weight": 0.0}),
    "lpr_kl_term": case(LOUD | {"div_weight": 0.0, "kl_weight": 1.0, "align_weight": 0.0}),
    "lpr_align_term": case(LOUD | {"div_weight": 0.0, "kl_weight": 0.0, "align_weight": 1.0}),
    "lpr_reg_micro_batch": case(LOUD | {"reg_scope": "micro_batch"}),
    "lpr_variance": case(LPR | {"balance_coef": 0.1, "variance_coef": 0.7}),
    "lpr_no_routing": case(LOUD | {"prototype_routing": False, "balance_coef": 0.1, "z_loss_coef": 0.01}),
    "lpr_no_routing_bias": case(LPR | {"prototype_routing": False, "similarity": "dot", "bias": "quantile",
                                       "bias_ema": 0.2, "bias_solves": 1}, n_slots=3),
    "lpr_no_addend": case(LOUD | {"prototype_addend": False, "balance_coef": 0.1}),
    "lpr_unit_ball": case(LOUD | {"unit_ball": True}),
    "lpr_balance": case(LPR | {"balance_coef": 0.3, "balance_scope": "sequence"}, n_slots=3),
    "lpr_key_update_ema": case(LOUD | {"key_update": "ema"}),
    "lpr_key_update_ema_wasserstein": case(LOUD | {"key_update": "ema", "similarity": "wasserstein",
                                                   "ema_decay": 0.5}),
    "lpr_bias_quantile": case(LPR | {"bias": "quantile", "bias_ema": 0.2}),
    "lpr_bias_quantile_solves": case(LPR | {"bias": "quantile", "bias_ema": 0.2, "bias_solves": 1}),
    "lpr_bias_sign": case(LPR | {"bias": "sign", "bias_update_speed": 0.05}),
    "lpr_bias_smebu": case(LPR | {"bias": "smebu", "bias_update_speed": 0.05}),
    "lpr_bias_phi": case(LPR | {"bias": "phi", "key_update": "ema", "phi_decay": 0.0}),
    "lpr_bias_quantile_capacity": case(LOUD | {"bias": "quantile", "capacity_factor": 0.9}, n_slots=3),
}


def bias_rows(options, E, normal, uniform):
    rows = {"e_score_correction_bias": 0.1 * normal(E)}
    if options["bias"] == "smebu":
        rows["bias_momentum"] = 0.02 * normal(E)
    if options["bias"] == "phi":  # one expert had next to nothing, another nothing
        rows["expert_load"] = torch.cat([2 * uniform(E - 2), torch.tensor([1e-3, 0.0])])
    return rows


def rows_of(options, shape, normal, uniform):
    """Initial values of every row below the gate, state included."""
    kind, D, E = options["type"], shape.hidden_size, shape.n_experts
    if options["num_hash_layers"]:
        experts = torch.stack([uniform(E).argsort()[: shape.n_slots] for _ in range(VOCABULARY)])
        return {"weight": 0.4 * normal(E, D), "tid2eid": experts.flatten().float()}
    if kind == "kmeans":
        return {"means": normal(E, D)}
    if kind != "lpr":
        rows = {"weight": 0.4 * normal(E, D)}
        if kind in ("sigmoid_group", "quantile"):
            rows |= bias_rows(options, E, normal, uniform)
        if kind == "expert_threshold":
            typical = {"sigmoid": 0.6, "softmax": 0.25, "sqrtsoftplus": 1.0}[options["score_function"]]
            rows["thresholds"] = typical * (0.8 + 0.4 * uniform(E))
        if kind == "dynamic_k":
            rows["complexity_mean"], rows["complexity_var"] = torch.zeros(1), torch.zeros(1)
            if options["estimator"] == "loss_gradient":  # a third of the tokens has not been seen yet
                rows["complexity_by_token"] = 20 * (0.5 + uniform(VOCABULARY)) * (uniform(VOCABULARY) > 1 / 3)
        return rows

    d, similarity = options["latent_dim"], options["similarity"]
    keys = normal(E, d)
    rows = {
        "norm.weight": 1 + 0.1 * normal(D), "norm.bias": 0.1 * normal(D),
        "encoder.weight": 0.5 * normal(2 * d, D), "encoder.bias": 0.2 * normal(2 * d),
        "expert_keys": torch.nn.functional.normalize(keys, dim=-1) if options["unit_ball"] else keys,
    }
    if not options["prototype_routing"]:
        rows["weight"] = 0.4 * normal(E, D)
    if options["prototype_addend"]:
        rows["out_proj.weight"], rows["out_proj.bias"] = 0.3 * normal(D, d), 0.1 * normal(D)
    prefix = "similarity_func."
    if similarity == "mahalanobis":
        rows[prefix + "log_sigma"] = 0.3 * normal(d)
    elif similarity == "cross_attention":
        for name in ("q_proj", "k_proj") + (("v_proj",) if options["num_heads"] > 1 else ()):
            rows[f"{prefix}{name}.weight"], rows[f"{prefix}{name}.bias"] = 0.7 * normal(d, d), 0.2 * normal(d)
        for name in ("q_norm", "k_norm"):
            rows[f"{prefix}{name}.weight"] = 1 + 0.2 * normal(d)
    elif similarity in ("kl", "js", "hellinger", "wasserstein"):
        rows[prefix + "key_log_var"] = 0.4 * normal(E, d)
        rows[prefix + "proj.weight"], rows[prefix + "proj.bias"] = 0.7 * normal(d, d), 0.2 * normal(d)
    if options["bias"] != "none":
        rows |= bias_rows(options, E, normal, uniform)
    if options["key_update"] == "ema":
        rows["ema_sums"], rows["ema_counts"] = 2 * normal(E, d), 1 + 3 * uniform(E)
    return rows


def inputs_of(name, options, shape, seed):
    """All that a case is given, in float32."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*size):
        return torch.randn(size, generator=generator)

    def uniform(*size):
        return torch.rand(size, generator=generator)

    n_tokens = N_SEQ * SEQ_LEN
    slots = options.get("max_experts") or shape.n_slots
    token = torch.randint(0, VOCABULARY, (n_tokens,), generator=generator, dtype=torch.int32)
    token[PADDING] = -1
    inputs = {"x": normal(n_tokens, shape.hidden_size), "token": token}
    rows = rows_of(options, shape, normal, uniform)
    if options["type"] == "lpr":
        inputs["epsilon"] = normal(n_tokens, options["latent_dim"])
        inputs["daddend"] = normal(n_tokens, shape.hidden_size)
    if options.get("estimator") == "attention_entropy":
        inputs["attention_entropy"] = uniform(n_tokens)
    if "complexity_var" in rows and not name.endswith("uncalibrated") and options["estimator"] != "threshold":
        calibrate(options, shape, rows, inputs)
    inputs["dweight"] = normal(n_tokens, slots)
    return inputs | {f"param.{row}": value for row, value in rows.items()}


def calibrate(options, shape, rows, inputs):
    """Running statistics near those of this batch, as after many steps."""
    router = reference.make_router(options, shape, rows)
    router.forward(inputs["x"], inputs["token"], SEQ_LEN, **given_of(options, inputs))
    rows["complexity_mean"] = (0.95 * router.last_raw_T.mean()).reshape(1)
    rows["complexity_var"] = (1.3 * router.last_raw_T.var(correction=0)).reshape(1)


def given_of(options, inputs):
    names = {"epsilon": "epsilon_Td", "attention_entropy": "attention_entropy_T"}
    if options.get("estimator") == "loss_gradient" or options["num_hash_layers"]:
        names["token"] = "id_T"
    return {argument: inputs[name] for name, argument in names.items() if name in inputs}


def compute(options, shape, inputs, dtype):
    """All that a case must give, and the router, which knows how close its decisions were."""
    inputs = {name: value if value.dtype == torch.int32 else value.to(dtype) for name, value in inputs.items()}
    rows = {name.removeprefix("param."): value for name, value in inputs.items() if name.startswith("param.")}
    router = reference.make_router(options, shape, rows)
    x_TD = inputs["x"].requires_grad_()
    for row in router.trained().values():
        row.requires_grad_()
    result = router.forward(x_TD, inputs["token"], SEQ_LEN, **given_of(options, inputs))

    total = (result.weight_TK * inputs["dweight"]).sum()
    total = total + result.router_loss + result.balance_loss + result.z_loss
    if result.addend_TD is not None:
        total = total + (result.addend_TD * inputs["daddend"]).sum()
    total.backward()

    outputs = {"expert": result.expert_TK.to(torch.int32), "weight": result.weight_TK.detach()}
    if result.addend_TD is not None:
        outputs["addend"] = result.addend_TD.detach()
    for name in ("router_loss", "balance_loss", "z_loss"):
        outputs[name] = getattr(result, name).detach().reshape(1)
    outputs["dx"] = x_TD.grad
    router.dx_TD = x_TD.grad[inputs["token"] >= 0]
    for name, row in router.trained().items():
        outputs[f"grad.{name}"] = torch.zeros_like(row) if row.grad is None else row.grad
    with torch.no_grad():
        after = router.after_step(result.count_E)
    if after.keys() != set(router.state_names):
        sys.exit(f"make_router_golden.py: {options['type']}: state rows {sorted(after)}, named {router.state_names}")
    outputs |= {f"after.{name}": value for name, value in after.items()}
    return outputs, router, result


def share_of_tolerance(exact, other):
    """The largest difference, as a share of what is allowed; inf where a decision differs."""
    worst = 0.0
    for name, value in exact.items():
        if value.dtype == torch.int32:
            if not torch.equal(value, other[name]):
                return float("inf")
            continue
        allowed = GRADIENT if name == "dx" or name.startswith("grad.") else FORWARD
        largest = value.abs().max().item()
        if largest == 0:
            continue
        worst = max(worst, (value - other[name].double()).abs().max().item() / (allowed * largest))
    return worst


def worth_having(name, options, result):
    """A case shows what it is named for."""
    kept = int(result.count_E.sum())
    if options["capacity_factor"] is not None and kept == result.n_chosen:
        return False
    per_token = (result.expert_TK >= 0).sum(-1)[result.expert_TK[:, 0] >= 0]
    if options["type"] in ("top_p", "dynamic_k") and name not in ("dynamic_k_uncalibrated", "top_p_one"):
        return len(per_token.unique()) > 1
    if options["type"] == "expert_threshold":  # a token without an expert, and one that the limit cuts short
        free = int((result.expert_TK[:, 0] < 0).sum()) > len(PADDING)
        return free and int(per_token.max()) == options["max_experts"]
    return True


def applies(key, options):
    """Some keys belong to one choice of another; elsewhere a run's configuration refuses them."""
    owner = {"sigma": ("similarity", "gaussian"), "num_heads": ("similarity", "cross_attention"),
             "threshold": ("estimator", "threshold")}.get(key)
    if owner is not None:
        return options[owner[0]] == owner[1]
    rules = {"bias_update_speed": ("sign", "smebu"), "bias_mean_free": ("sign",), "bias_kappa": ("smebu",),
             "bias_momentum": ("smebu",), "phi_strength": ("phi",), "phi_decay": ("phi",),
             "bias_ema": ("quantile",)}.get(key)
    return rules is None or options["bias"] in rules


def make_case(name, described, out):
    options = reference.with_defaults(described["router"])
    if "max_experts" in options and options["max_experts"] is None:
        options["max_experts"] = described["shape"]["n_slots"]
    shape = reference.Shape(**described["shape"])
    for seed in range(1, 3000):
        inputs = inputs_of(name, options, shape, seed)
        outputs, router, result = compute(options, shape, inputs, torch.float64)
        close = router.closeness.smallest
        if any(distance < MIN_DISTANCE[kind] for kind, distance in close.items()):
            continue
        if not worth_having(name, options, result):
            continue
        float32, _, _ = compute(options, shape, inputs, torch.float32)
        share = share_of_tolerance(outputs, float32)
        if share <= FLOAT32_SHARE:
            break
    else:
        sys.exit(f"make_router_golden.py: {name}: no seed below 3000 gives numbers that rounding leaves in place")

    directory = out / f"router_{name}"
    if directory.exists():
        shutil.rmtree(directory)
    directory.mkdir(parents=True)
    tensors = inputs | outputs
    tensors = {key: value if value.dtype == torch.int32 else value.float() for key, value in tensors.items()}
    save_file({key: value.detach().contiguous() for key, value in tensors.items()},
              directory / "tensors.safetensors")
    record = {
        "router": {key: value for key, value in options.items() if applies(key, options)},
        "shape": described["shape"],
        "n_seq": N_SEQ, "seq_len": SEQ_LEN, "training": True,
        "versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                     "safetensors": safetensors.__version__},
        "seed": seed,
        "smallest_distances": {kind: float(f"{distance:.3g}") for kind, distance in sorted(close.items())},
        "float32_share_of_tolerance": round(share, 4),
    }
    (directory / "case.json").write_text(json.dumps(record, indent=2) + "\n")
    size = sum(file.stat().st_size for file in directory.iterdir())
    print(f"{name}: seed {seed}, float32 at {share:.3f} of the tolerance, {size / 1024:.0f} KiB, closest "
          + ", ".join(f"{kind} {distance:.1e}" for kind, distance in sorted(close.items())))


# What the outputs of a token's experts have in common: three slots, free ones, one output in a token, none, an output
# that is 0, two that are equal, two that are opposite, a token that all else is a copy of.
OVERLAP = "expert_overlap"


def make_overlap(out):
    generator = torch.Generator().manual_seed(1)
    slot_TK = torch.tensor([[0, 1, 2], [3, -1, 4], [-1, 5, -1], [-1, -1, -1], [6, 7, 8], [9, 10, 11], [13, 12, -1]])
    row_RD = torch.randn(14, 6, generator=generator)
    row_RD[7] = 0
    row_RD[10], row_RD[13] = row_RD[9], -2 * row_RD[12]
    exact_RD = row_RD.double().requires_grad_()
    total = sum(reference.overlap(exact_RD[slots[slots >= 0]]) for slots in slot_TK)
    total.backward()
    directory = out / OVERLAP
    directory.mkdir(parents=True, exist_ok=True)
    save_file({"row": row_RD, "slot_row": slot_TK.to(torch.int32), "sum": total.detach().float().reshape(1),
               "drow": exact_RD.grad.float()}, directory / "tensors.safetensors")
    record = {"versions": {"python": platform.python_version(), "torch": torch.__version__.split("+")[0],
                           "safetensors": safetensors.__version__}}
    (directory / "case.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"{OVERLAP}: {len(row_RD)} outputs of {len(slot_TK)} tokens, sum {total.item():.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "tests" / "golden")
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of: {', '.join([*CASES, OVERLAP])} (default: all)")
    arguments = parser.parse_args()
    known = [*CASES, OVERLAP]
    unknown = [name for name in arguments.cases if name not in known]
    if unknown:
        parser.error(f"no such case: {', '.join(unknown)}; known: {', '.join(known)}")
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    for name in arguments.cases or known:
        if name == OVERLAP:
            make_overlap(arguments.out)
        else:
            make_case(name, CASES[name], arguments.out)


if __name__ == "__main__":
    main()
