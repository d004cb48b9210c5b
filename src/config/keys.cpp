#include "config/keys.h"

#include "core/error.h"

namespace switchyard::config {
namespace {

using Key = std::string_view;

constexpr Key kTop[] = {"model", "router", "data", "train", "parallel", "checkpoint", "log", "extends"};

constexpr Key kMixtral[] = {"model_type",
                            "vocab_size",
                            "hidden_size",
                            "num_hidden_layers",
                            "num_attention_heads",
                            "num_key_value_heads",
                            "head_dim",
                            "intermediate_size",
                            "num_local_experts",
                            "num_experts_per_tok",
                            "tie_word_embeddings",
                            "rms_norm_eps",
                            "rope_theta",
                            "rope_parameters",
                            "rope_scaling",
                            "sliding_window",
                            "max_position_embeddings",
                            "initializer_range",
                            "router_aux_loss_coef",
                            "hidden_act",
                            "attention_dropout",
                            "router_jitter_noise",
                            "layer_types",
                            "mlp_layer_types",
                            "quantization_config"};

constexpr Key kQwen3Moe[] = {"model_type",
                             "vocab_size",
                             "hidden_size",
                             "num_hidden_layers",
                             "num_attention_heads",
                             "num_key_value_heads",
                             "head_dim",
                             "intermediate_size",
                             "moe_intermediate_size",
                             "num_experts",
                             "num_local_experts",
                             "num_experts_per_tok",
                             "norm_topk_prob",
                             "mlp_only_layers",
                             "decoder_sparse_step",
                             "tie_word_embeddings",
                             "rms_norm_eps",
                             "rope_theta",
                             "rope_parameters",
                             "rope_scaling",
                             "use_sliding_window",
                             "sliding_window",
                             "max_window_layers",
                             "max_position_embeddings",
                             "initializer_range",
                             "router_aux_loss_coef",
                             "hidden_act",
                             "attention_dropout",
                             "attention_bias",
                             "layer_types",
                             "mlp_layer_types",
                             "quantization_config"};

constexpr Key kDeepseekV3[] = {"model_type",
                               "vocab_size",
                               "hidden_size",
                               "num_hidden_layers",
                               "num_attention_heads",
                               "num_key_value_heads",
                               "head_dim",
                               "q_lora_rank",
                               "kv_lora_rank",
                               "qk_nope_head_dim",
                               "qk_rope_head_dim",
                               "qk_head_dim",
                               "v_head_dim",
                               "intermediate_size",
                               "moe_intermediate_size",
                               "first_k_dense_replace",
                               "moe_layer_freq",
                               "n_routed_experts",
                               "n_shared_experts",
                               "num_experts_per_tok",
                               "n_group",
                               "topk_group",
                               "topk_method",
                               "scoring_func",
                               "norm_topk_prob",
                               "routed_scaling_factor",
                               "num_nextn_predict_layers",
                               "tie_word_embeddings",
                               "rms_norm_eps",
                               "rope_theta",
                               "rope_parameters",
                               "rope_scaling",
                               "rope_interleave",
                               "max_position_embeddings",
                               "initializer_range",
                               "hidden_act",
                               "attention_dropout",
                               "attention_bias",
                               "aux_loss_alpha",
                               "seq_aux",
                               "ep_size",
                               "pretraining_tp",
                               "layer_types",
                               "mlp_layer_types",
                               "quantization_config"};

constexpr Key kRope[] = {
    "rope_type",     "type",      "rope_theta", "factor",           "original_max_position_embeddings",
    "beta_fast",     "beta_slow", "truncate",   "attention_factor", "mscale",
    "mscale_all_dim"};

constexpr Key kIgnoredModel[] = {"architectures",
                                 "transformers_version",
                                 "torch_dtype",
                                 "dtype",
                                 "use_cache",
                                 "bos_token_id",
                                 "eos_token_id",
                                 "pad_token_id",
                                 "sep_token_id",
                                 "output_router_logits",
                                 "output_attentions",
                                 "output_hidden_states",
                                 "return_dict",
                                 "_name_or_path",
                                 "name_or_path",
                                 "attn_implementation",
                                 "_attn_implementation",
                                 "_attn_implementation_autoset",
                                 "auto_map",
                                 "is_decoder",
                                 "is_encoder_decoder",
                                 "add_cross_attention",
                                 "cross_attention_hidden_size",
                                 "chunk_size_feed_forward",
                                 "id2label",
                                 "label2id",
                                 "problem_type",
                                 "tokenizer_class",
                                 "torchscript",
                                 "model_name",
                                 "base_model_tp_plan",
                                 "base_model_pp_plan",
                                 "keys_to_ignore_at_inference",
                                 "_commit_hash",
                                 "experts_implementation",
                                 "_experts_implementation",
                                 "trust_remote_code",
                                 "use_bfloat16",
                                 "tf_legacy_loss",
                                 "unsloth_version",
                                 "unsloth_fixed",
                                 "transformers.js_config",
                                 "unk_token_id",
                                 "cls_token_id",
                                 "mask_token_id",
                                 "decoder_start_token_id",
                                 "forced_bos_token_id",
                                 "forced_eos_token_id",
                                 "max_length",
                                 "min_length",
                                 "max_new_tokens",
                                 "do_sample",
                                 "early_stopping",
                                 "num_beams",
                                 "num_beam_groups",
                                 "diversity_penalty",
                                 "temperature",
                                 "top_p",
                                 "typical_p",
                                 "repetition_penalty",
                                 "length_penalty",
                                 "no_repeat_ngram_size",
                                 "encoder_no_repeat_ngram_size",
                                 "bad_words_ids",
                                 "num_return_sequences",
                                 "output_scores",
                                 "return_dict_in_generate",
                                 "remove_invalid_values",
                                 "exponential_decay_length_penalty",
                                 "suppress_tokens",
                                 "begin_suppress_tokens",
                                 "prefix",
                                 "task_specific_params",
                                 "finetuning_task"};

// Of every router; each type has its own beside them (router_schema.h).
constexpr Key kRouter[] = {"type", "balance_coef", "balance_scope", "z_loss_coef", "capacity_factor", "jitter"};
constexpr Key kData[] = {"train", "validation", "document_mask", "eot_token", "begin_token"};
constexpr Key kTrainEntry[] = {"path", "domain", "weight"};
constexpr Key kValidationEntry[] = {"path", "domain"};
constexpr Key kTrain[] = {
    "seed",  "steps",        "seq_len",   "micro_batch_size", "global_batch_size", "dtype",         "recompute",
    "lr",    "min_lr_ratio", "schedule",  "warmup_ratio",     "decay_ratio",       "weight_decay",  "beta1",
    "beta2", "eps",          "clip_norm", "eval_every",       "eval_tokens",       "mtp_loss_coef", "attention",
    "spike"};
constexpr Key kSpike[] = {"deviations", "grad_norm_factor", "window", "patience"};
constexpr Key kParallel[] = {"threads"};
constexpr Key kCheckpoint[] = {"every", "every_minutes", "keep", "keep_every", "keep_best", "max_shard_size"};
constexpr Key kLog[] = {"every", "tensorboard"};

constexpr SectionKeys kSections[] = {{"", "", kTop},
                                     {"model", "mixtral", kMixtral},
                                     {"model", "qwen3_moe", kQwen3Moe},
                                     {"model", "deepseek_v3", kDeepseekV3},
                                     {"model.rope_parameters", "", kRope},
                                     {"model.rope_scaling", "", kRope},
                                     {"router", "", kRouter},
                                     {"data", "", kData},
                                     {"data.train.N", "", kTrainEntry},
                                     {"data.validation.N", "", kValidationEntry},
                                     {"train", "", kTrain},
                                     {"train.spike", "", kSpike},
                                     {"parallel", "", kParallel},
                                     {"checkpoint", "", kCheckpoint},
                                     {"log", "", kLog}};

}  // namespace

std::span<const SectionKeys> all_sections() { return kSections; }

const SectionKeys& section_keys(std::string_view name, std::string_view family) {
  for (const SectionKeys& section : kSections) {
    if (section.name == name && section.family == family) return section;
  }
  SY_CHECK(false, "no section {} {}", name, family);
  return kSections[0];
}

std::span<const std::string_view> ignored_model_keys() { return kIgnoredModel; }

}  // namespace switchyard::config
