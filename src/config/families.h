// What the families' keys of a Hugging Face config.json mean, one file a family; hugging_face.cpp has what they
// share. A reader sets what its family's keys decide and throws InputError; hidden_size and num_hidden_layers
// of the model are set before it. A writer puts those keys so that the reader gives the same model.
#pragma once

#include "config/section.h"

namespace switchyard::config {

void read_mixtral(Section& section, Model& model);
void read_qwen3_moe(Section& section, Model& model);
void read_deepseek_v3(Section& section, Model& model);

void write_mixtral(const Model& model, Json::Object& out);
void write_qwen3_moe(const Model& model, Json::Object& out);
void write_deepseek_v3(const Model& model, Json::Object& out);

// num_attention_heads, num_key_value_heads and head_dim of grouped-query attention (Mixtral, Qwen3-MoE).
void read_grouped_query_attention(Section& section, Model& model, std::int64_t default_kv_heads);
// Throws where num_experts_per_tok is above the number of experts, which `experts_key` gave.
void check_top_k(Section& section, const Model& model, std::string_view experts_key);

// A key whose other values would change the computation in a way that is not implemented.
void require_number(Section& section, std::string_view key, double only);
void require_text(Section& section, std::string_view key, std::string_view only);

bool has_moe_layer(const Model& model);
bool has_dense_layer(const Model& model);

}  // namespace switchyard::config
