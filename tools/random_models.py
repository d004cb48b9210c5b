"""Random configurations of the four layouts: every key of the model that switchyard computes with, in any valid
combination, tiny. What `transformers` and switchyard do not both take is left out here and said beside it."""

import random

LAYOUTS = ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe")

# Keys of docs/configuration.md that no random model has.
NEVER = {
    "quantization_config": "a run refuses it, and it says how weights are stored, not what is computed",
    "layer_types": "transformers writes it from the window, and it may say nothing else",
    "mlp_layer_types": "as layer_types, from the lists of dense layers",
}
# And those that no random model of a layout has, since transformers computes its weights without them.
NEVER_OF = {"mixtral": {"norm_topk_prob", "routed_scaling_factor"}, "qwen3_moe": {"routed_scaling_factor"},
            "olmoe": {"routed_scaling_factor"}, "deepseek_v3": set()}


def some(rng, probability):
    return rng.random() < probability


def divisors(n):
    return [i for i in range(1, n + 1) if n % i == 0]


def optional(rng, keys, probability, **values):
    """Each of the keys with this probability, with one of its values."""
    for key, possible in values.items():
        if some(rng, probability):
            keys[key] = rng.choice(possible)


def rope(rng, layout, theta_default):
    """rope_theta and its scaling, in the words of older or newer files."""
    theta = rng.choice([theta_default, 100.0, 10000.0, 5e5])
    kind = rng.choice(["default", "linear", "yarn"])
    positions = rng.choice([64, 512, 4096])
    keys = {"max_position_embeddings": positions}
    scaling = {rng.choice(["rope_type", "type"]): kind} if kind != "default" or some(rng, 0.3) else {}
    if some(rng, 0.3) and scaling:
        scaling = {"rope_type": kind, "type": kind}
    if kind != "default":
        scaling["factor"] = rng.choice([1.0, 1.5, 4.0, 40.0])
    if kind == "yarn":
        if some(rng, 0.1):
            scaling |= {"factor": None, "original_max_position_embeddings": rng.choice([16, 64])}
        optional(rng, scaling, 0.9, original_max_position_embeddings=[16, 64, 512])
        if scaling["factor"] is None and scaling["original_max_position_embeddings"] > positions:
            scaling["factor"] = 1.0
        optional(rng, scaling, 0.4, beta_fast=[16, 32.0], beta_slow=[1, 2.0], truncate=[True, False],
                 attention_factor=[0.8, 1.3])
    if kind == "yarn" or (kind == "linear" and layout == "deepseek_v3"):
        if some(rng, 0.5):
            scaling["mscale"], scaling["mscale_all_dim"] = rng.choice([(1.0, 1.0), (0.7, 1.2), (0.707, 0.707)])
    if some(rng, 0.5):
        return keys | {"rope_parameters": {"rope_theta": theta, "rope_type": kind} | scaling}
    if some(rng, 0.8) or theta != theta_default:
        keys["rope_theta"] = theta
    if scaling or some(rng, 0.3):
        keys["rope_scaling"] = scaling or None
    return keys


def of_all(rng, layout):
    keys = {
        "model_type": layout,
        "vocab_size": rng.choice([2, 3, 17, 40, 65]),
        "hidden_size": rng.choice([8, 12, 16, 20]),
        "num_hidden_layers": rng.choice([1, 2, 3]),
        "num_attention_heads": rng.choice([1, 2, 4, 8]),
        "tie_word_embeddings": some(rng, 0.3),
        "rms_norm_eps": rng.choice([1e-6, 1e-5, 1e-3]),
        # No token of the batch is one of these.
        "bos_token_id": None, "eos_token_id": None,
    }
    optional(rng, keys, 0.3, initializer_range=[0.01], hidden_act=["silu"], attention_dropout=[0.0])
    return keys | rope(rng, layout, {"mixtral": 1e6, "qwen3_moe": 1e4, "deepseek_v3": 1e4, "olmoe": 1e4}[layout])


def grouped_query_attention(rng, keys):
    heads = keys["num_attention_heads"]
    by_default = {"mixtral": 8, "qwen3_moe": 4}[keys["model_type"]]
    if heads % by_default != 0 or some(rng, 0.5):
        keys["num_key_value_heads"] = rng.choice(divisors(heads))
    even = keys["hidden_size"] % (2 * heads) == 0
    mixtral, yarn = keys["model_type"] == "mixtral", "yarn" in str(keys)
    if not even or some(rng, 0.6) or (mixtral and yarn):  # transformers' YaRN needs it in a Mixtral
        keys["head_dim"] = rng.choice([2, 4, 6, 8])
    elif mixtral and some(rng, 0.5):
        keys["head_dim"] = None  # in a Qwen3-MoE transformers cannot build it


AUX_LOSS = [0.0, 0.02, 0.5]
WINDOWS = [1, 2, 5, 30, 100]  # 0 hides every key in transformers, and none here


def mixtral(rng):
    keys = of_all(rng, "mixtral")
    grouped_query_attention(rng, keys)
    experts = rng.choice([1, 2, 5, 8])
    keys |= {"intermediate_size": rng.choice([6, 10]), "num_local_experts": experts,
             "num_experts_per_tok": rng.randint(1, experts)}
    optional(rng, keys, 0.5, router_aux_loss_coef=AUX_LOSS, sliding_window=[None] + WINDOWS, router_jitter_noise=[0.0])
    return keys


def qwen3_moe(rng):
    keys = of_all(rng, "qwen3_moe")
    grouped_query_attention(rng, keys)
    layers, experts = keys["num_hidden_layers"], rng.choice([1, 2, 6, 8])
    keys |= {"intermediate_size": rng.choice([8, 12]), "moe_intermediate_size": rng.choice([4, 7]),
             rng.choice(["num_experts", "num_local_experts"]): experts,
             "num_experts_per_tok": rng.randint(1, experts)}
    optional(rng, keys, 0.5, router_aux_loss_coef=AUX_LOSS, norm_topk_prob=[True, False], attention_bias=[True, False],
             decoder_sparse_step=[1, 2, 3], mlp_only_layers=[sorted(rng.sample(range(layers), rng.randint(0, layers)))])
    if some(rng, 0.5):
        keys |= {"use_sliding_window": some(rng, 0.7), "sliding_window": rng.choice([None] + WINDOWS),
                 "max_window_layers": rng.choice([0, None])}
    return keys


def olmoe(rng):
    keys = of_all(rng, "olmoe")
    heads = keys["num_attention_heads"]
    while keys["hidden_size"] % (2 * heads) != 0:  # the width of a head is their ratio, and even
        heads //= 2
    keys["num_attention_heads"] = heads
    if some(rng, 0.5):
        keys["num_key_value_heads"] = rng.choice(divisors(heads) + [None])
    if some(rng, 0.3):
        keys["head_dim"] = keys["hidden_size"] // heads
    experts = rng.choice([1, 2, 5, 8])
    keys |= {"intermediate_size": rng.choice([6, 10]), "num_experts": experts,
             "num_experts_per_tok": rng.randint(1, experts)}
    optional(rng, keys, 0.5, router_aux_loss_coef=AUX_LOSS, norm_topk_prob=[True, False], attention_bias=[True, False],
             clip_qkv=[None])
    return keys


def deepseek_v3(rng):
    keys = of_all(rng, "deepseek_v3")
    groups = rng.choice([1, 1, 2, 4])
    size = rng.choice([2, 3])  # transformers takes the two best of a group
    kept = rng.randint(1, groups)
    rotated = rng.choice([2, 4, 8])
    keys |= {
        "q_lora_rank": rng.choice([None, 6, 10]), "kv_lora_rank": rng.choice([6, 9]),
        "qk_nope_head_dim": rng.choice([3, 5, 8]), "qk_rope_head_dim": rotated, "v_head_dim": rng.choice([4, 7]),
        "intermediate_size": rng.choice([8, 12]), "moe_intermediate_size": rng.choice([4, 6]),
        "first_k_dense_replace": rng.randint(0, keys["num_hidden_layers"] + 1),
        "n_routed_experts": groups * size, "n_shared_experts": rng.choice([0, 1, 2]),
        "num_experts_per_tok": rng.randint(1, kept * size), "n_group": groups, "topk_group": kept,
    }
    optional(rng, keys, 0.5, norm_topk_prob=[True, False], routed_scaling_factor=[1.0, 0.5],
             rope_interleave=[True, False], attention_bias=[True, False], num_key_value_heads=[keys["num_attention_heads"]], head_dim=[rotated],
             qk_head_dim=[keys["qk_nope_head_dim"] + rotated], num_nextn_predict_layers=[0, 1])
    # What transformers does not read has the one value that it computes with, or none of effect.
    optional(rng, keys, 0.5, moe_layer_freq=[1], scoring_func=["sigmoid"], topk_method=["noaux_tc"],
             aux_loss_alpha=[0.001], seq_aux=[True, False], ep_size=[1], pretraining_tp=[1])
    return keys


def random_model(seed, number):
    """The keys of a config.json. The same for the same two integers, on any machine."""
    rng = random.Random(f"{seed} {number}")
    return {"mixtral": mixtral, "qwen3_moe": qwen3_moe, "deepseek_v3": deepseek_v3, "olmoe": olmoe}[LAYOUTS[number % len(LAYOUTS)]](rng)


def random_batch(seed, number):
    """Sequences and their length."""
    rng = random.Random(f"{seed} {number} batch")
    return rng.choice([1, 2, 3]), rng.choice([2, 7, 16, 33])
