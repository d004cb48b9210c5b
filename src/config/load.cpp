#include "config/load.h"

#include <algorithm>
#include <map>

#include "config/byte_size.h"
#include "config/fields.h"
#include "config/hugging_face.h"
#include "config/layouts.h"
#include "config/router_section.h"
#include "config/section.h"
#include "core/error.h"
#include "core/file.h"
#include "core/log.h"

namespace switchyard::config {
namespace {

// Activations of one micro-batch must be addressable: elements of its widest tensor.
constexpr double kMaxElements = 281474976710656.0;  // 2^48

// Entries of one domain share its weight; all domains have one or none has.
void settle_weights(std::vector<DataEntry>& entries, const std::string& path, const Source& source) {
  const auto weight_path = [&](std::size_t i) { return fmt::format("{}.{}.weight", path, i); };
  std::map<std::string, std::size_t> weighted;  // domain -> the first entry that gives its weight
  for (std::size_t i = 0; i < entries.size(); ++i) {
    if (!entries[i].weight) continue;
    const auto [it, first] = weighted.emplace(entries[i].domain, i);
    if (!first && *entries[it->second].weight != *entries[i].weight) {
      source.fail(
          weight_path(i),
          fmt::format("is {}, but domain {} has weight {} in {}; a domain has one weight", *entries[i].weight,
                      describe(Json(entries[i].domain)), *entries[it->second].weight, weight_path(it->second)),
          weight_path(it->second));
    }
  }
  if (weighted.empty()) return;
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const auto it = weighted.find(entries[i].domain);
    if (it == weighted.end()) {
      const auto& [domain, giver] = *weighted.begin();
      source.fail(weight_path(i),
                  fmt::format("missing for domain {}: all domains have a weight or none has, and {} has one",
                              describe(Json(entries[i].domain)), describe(Json(domain))),
                  weight_path(giver));
    }
    entries[i].weight = entries[it->second].weight;
  }
}

Data read_data(Section section, const Model& model) {
  Data data;
  FieldReader reader(section);
  describe(reader, data);
  for (const auto& [key, token] : {std::pair("eot_token", data.eot_token), {"begin_token", data.begin_token}})
    if (token && *token >= model.vocab_size)
      section.fail(key, fmt::format("is {}, not below model.vocab_size ({})", *token, model.vocab_size),
                   "model.vocab_size");
  section.finish();
  return data;
}

// Multi-token prediction has its layers and its loss, or neither.
void check_mtp(const Section& section, const Train& train, const Model& model) {
  if (train.mtp_loss_coef == 0) return;
  if (!model.layout->has_key("num_nextn_predict_layers")) {
    section.fail("mtp_loss_coef",
                 fmt::format("is {}, but model_type \"{}\" has no multi-token prediction; set it to 0",
                             train.mtp_loss_coef, model.layout->name),
                 "model.model_type");
  }
  if (model.num_nextn_predict_layers == 0) {
    section.fail("mtp_loss_coef",
                 fmt::format("is {}, but model.num_nextn_predict_layers is 0: there is no layer to train; set "
                             "it to 1 or more, or mtp_loss_coef to 0",
                             train.mtp_loss_coef),
                 "model.num_nextn_predict_layers");
  }
  if (train.seq_len <= model.num_nextn_predict_layers) {
    section.fail("seq_len",
                 fmt::format("is {}; {} depths of multi-token prediction (model.num_nextn_predict_layers) need "
                             "sequences of {} or more",
                             train.seq_len, model.num_nextn_predict_layers, model.num_nextn_predict_layers + 1),
                 "model.num_nextn_predict_layers");
  }
}

// What cuDNN's attention does nowhere; the rest depends on the device and is asked there (ops/attention.h).
void check_cudnn(const Section& section, const Train& train, const Run& run) {
  const auto refuse = [&](const std::string& problem, const std::string& other) {
    section.fail("attention", fmt::format("is \"cudnn\", {}; or set it to \"flash\"", problem), other);
  };
  if (train.dtype == ComputeType::float32)
    refuse("which needs train.dtype \"bfloat16\" or \"fp8\"", section.path_of("dtype"));
  if (run.data.document_mask)
    refuse("which does not stop at document borders; set data.document_mask to false", "data.document_mask");
  if (train.seq_len < 2) refuse("which needs a train.seq_len of 2 or more", section.path_of("seq_len"));
  const Model& model = run.model;
  const std::pair<std::int64_t, const char*> widths[] = {
      {model.head_dim, model.mla ? "model.qk_nope_head_dim + qk_rope_head_dim" : "model.head_dim"},
      {model.mla ? model.mla->v_head_dim : model.head_dim, "model.v_head_dim"}};
  for (const auto& [width, key] : widths)
    if (width % 8 != 0 || width > 256)
      refuse(fmt::format("which does heads of a multiple of 8 up to 256; {} is {}", key, width),
             model.mla ? "model.v_head_dim" : "model.head_dim");
}

}  // namespace

// In floating point: the products may be larger than any integer type.
std::string too_many_tokens(const Model& model, const Router& router, const Train& train) {
  const auto tokens = static_cast<double>(train.micro_batch_size) * static_cast<double>(train.seq_len);
  const auto top_k = static_cast<double>(std::max<std::int64_t>(1, slots_per_token(router, model)));
  if (tokens * top_k > static_cast<double>(kMaxSize))
    return fmt::format(
        "{} sequences of {} tokens, each on {:.0f} experts, are {:.2g} slots; at most {} can be "
        "numbered. Use more micro-batches",
        train.micro_batch_size, train.seq_len, top_k, tokens * top_k, kMaxSize);
  const auto heads = static_cast<double>(model.num_attention_heads);
  const Mla mla = model.mla.value_or(Mla{});
  const double widest = std::max(
      {static_cast<double>(model.hidden_size), static_cast<double>(model.intermediate_size),
       heads * static_cast<double>(model.head_dim), static_cast<double>(mla.q_lora_rank),
       static_cast<double>(mla.kv_lora_rank + mla.qk_rope_head_dim),
       heads * static_cast<double>(mla.qk_nope_head_dim + mla.v_head_dim),
       static_cast<double>(model.n_shared_experts * model.moe_intermediate_size),
       static_cast<double>(model.num_experts), top_k * static_cast<double>(model.moe_intermediate_size)});
  if (tokens * widest <= kMaxElements) return "";
  return fmt::format(
      "{} sequences of {} tokens make a tensor of {:.2g} elements; at most {:.2g} can be "
      "addressed. Use more micro-batches",
      train.micro_batch_size, train.seq_len, tokens * widest, kMaxElements);
}

namespace {

void check_train(const Section& section, const Train& train, const Run& run) {
  const bool is_auto = train.micro_batch_size == Train::kAutoMicroBatch;
  if (is_auto && train.global_batch_size == Train::kAutoMicroBatch) {
    section.fail("global_batch_size",
                 "missing, and it has no default where train.micro_batch_size is \"auto\"; add it",
                 section.path_of("micro_batch_size"));
  }
  if (!is_auto && train.global_batch_size % train.micro_batch_size != 0) {
    section.fail("global_batch_size",
                 fmt::format("is {}, not a multiple of train.micro_batch_size ({})", train.global_batch_size,
                             train.micro_batch_size),
                 section.path_of("micro_batch_size"));
  }
  const Model& model = run.model;
  if (train.seq_len > model.max_position_embeddings) {
    section.fail("seq_len",
                 fmt::format("is {}, more than model.max_position_embeddings ({})", train.seq_len,
                             model.max_position_embeddings),
                 "model.max_position_embeddings");
  }
  if (train.schedule == Schedule::wsd && train.warmup_ratio + train.decay_ratio > 1) {
    section.fail("decay_ratio",
                 fmt::format("is {}, and train.warmup_ratio is {}: together more than the whole run (1)",
                             train.decay_ratio, train.warmup_ratio),
                 section.path_of("warmup_ratio"));
  }
  if (train.eval_every > 0 && run.data.validation.empty() && run.eval.tasks.empty()) {
    section.fail(
        "eval_every",
        fmt::format("is {}, but data.validation is empty, and there are no eval.tasks; add data, or set it "
                    "to 0",
                    train.eval_every),
        "data.validation");
  }
  if (train.eval_mix == EvalMix::training && train.eval_tokens == 0)
    section.fail(
        "eval_mix",
        "is \"training\", which divides train.eval_tokens among the domains, and that is 0 (all tokens); "
        "say how many, or set it to \"equal\"",
        section.path_of("eval_tokens"));

  check_mtp(section, train, model);
  if (train.attention == AttentionBackend::cudnn) check_cudnn(section, train, run);

  if (const std::string problem = is_auto ? "" : too_many_tokens(model, run.router, train); !problem.empty())
    section.fail("micro_batch_size", problem, section.path_of("seq_len"));
  const double all_tokens = static_cast<double>(train.steps) * static_cast<double>(train.global_batch_size) *
                            static_cast<double>(train.seq_len);
  if (all_tokens > 4611686018427387904.0) {  // 2^62: tokens are counted in int64
    section.fail("steps",
                 fmt::format("is {}, which makes {:.2g} tokens in the run; at most 4.6e+18 can be counted",
                             train.steps, all_tokens));
  }
}

Train read_train(Section section, const Run& run) {
  Train train;
  FieldReader reader(section);
  describe(reader, train);
  section.finish();
  // An override that takes the validation away leaves nothing to do every so many steps of the file.
  if (train.eval_every > 0 && run.data.validation.empty() && section.source().overridden("data.validation") &&
      !section.source().overridden("train.eval_every")) {
    log_info(fmt::format("data.validation is empty: train.eval_every is 0 in place of {}", train.eval_every));
    train.eval_every = 0;
  }
  check_train(section, train, run);
  return train;
}

// A config.json that states its router may be pasted into `model` whole: the router then is the run's.
void place_router(Json::Object& root, const Source& source) {
  Json* const model = find_member(root, "model");
  if (model == nullptr || !has_own_router(*model)) return;
  std::optional<Json> stated = take_router(*model);
  const bool given = find_member(root, "router") != nullptr;
  if (stated && given) source.fail("model.router", "the run has a router of its own; remove one", "router");
  if (!stated && !given)
    source.fail("router", "missing, and model.model_type says that it is not the layout's own; add it",
                "model.model_type");
  if (stated) root.push_back({"router", std::move(*stated)});
}

// Writes each key with its value.
class FieldWriter {
 public:
  template <class... Options>
  static Json write(auto value, Options... options) {  // a copy: describe() may also change it
    FieldWriter writer;
    describe(writer, value, options...);
    return Json(std::move(writer.members_));
  }

  void seed(const Field& f, std::uint64_t value) { put(f, value); }
  void required_integer(const Field& f, std::int64_t value, std::int64_t) { put(f, value); }
  void integer(const Field& f, std::int64_t value, std::int64_t, std::int64_t = 0) { put(f, value); }
  void nullable_integer(const Field& f, const std::optional<std::int64_t>& value, std::int64_t) {
    put(f, value ? Json(*value) : Json());
  }
  void number(const Field& f, double value, const Interval&) { put(f, value); }
  void optional_number(const Field& f, const std::optional<double>& value, const Interval&) {
    if (value) put(f, *value);
  }
  void boolean(const Field& f, bool value) { put(f, value); }
  void required_text(const Field& f, const std::string& value) { put(f, value); }
  void text(const Field& f, const std::string& value) { put(f, value); }
  template <class Enum, class... Rest>
  void choice(const Field& f, Enum value, Rest&&...) {
    put(f, name_of(value));
  }
  void texts(const Field& f, const std::vector<std::string>& value) { put(f, Json::list(value)); }
  void bytes(const Field& f, std::int64_t value) { put(f, value); }
  void micro_batch(const Field& f, std::int64_t value) {
    put(f, value == Train::kAutoMicroBatch ? Json("auto") : Json(value));
  }
  void room(const Field& f, double value) {
    put(f, value == Parallel::kAutoRoom    ? Json("auto")
           : value == Parallel::kWorstRoom ? Json("worst")
                                           : Json(value));
  }
  void spike(const Field& f, const Spike& value) { put(f, write(value)); }
  void entries(const Field& f, const std::vector<DataEntry>& value, bool weighted) {
    Json::Array list;
    for (const DataEntry& entry : value) list.push_back(write(entry, weighted));
    put(f, Json(std::move(list)));
  }

 private:
  void put(const Field& f, Json value) { members_.push_back({std::string(f.key), std::move(value)}); }
  Json::Object members_;
};

// The router.type that overrides name; none where they name none.
std::optional<std::string> overridden_type(const std::vector<std::string>& overrides) {
  constexpr std::string_view kBefore = "router.type=";
  std::optional<std::string> type;
  for (const std::string& text : overrides) {
    if (!text.starts_with(kBefore)) continue;
    type = text.substr(kBefore.size());
    if (type->size() > 1 && type->front() == '"' && type->back() == '"')
      type = type->substr(1, type->size() - 2);
  }
  return type;
}

// Whether the overrides put another type of router in the place of this one, whose options are then none of
// its.
bool is_replaced(const Json& router, const std::vector<std::string>& overrides) {
  const std::optional<std::string> given = overridden_type(overrides);
  return given && router["type"] != Json(*given);
}

}  // namespace

std::string to_resolved_json(const Run& run) {
  return to_text(Json(Json::Object{{"model", write_model(run.model)},
                                   {"router", write_router(run.router)},
                                   {"data", FieldWriter::write(run.data)},
                                   {"train", FieldWriter::write(run.train)},
                                   {"parallel", FieldWriter::write(run.parallel)},
                                   {"checkpoint", FieldWriter::write(run.checkpoint)},
                                   {"eval", FieldWriter::write(run.eval)},
                                   {"log", FieldWriter::write(run.log)}}));
}

void FieldReader::entries(const Field& f, std::vector<DataEntry>& value, bool weighted) {
  const Json* json = section_.find(f.key);
  const auto* list = json == nullptr ? nullptr : json->get<Json::Array>();
  if (json != nullptr && list == nullptr)
    section_.fail(f.key, fmt::format("is {}, expected an array of paths or of {{\"path\", \"domain\"{}}}",
                                     describe(*json), weighted ? ", \"weight\"" : ""));
  if (weighted && (list == nullptr || list->empty()))
    section_.fail(f.key, list != nullptr ? "is an empty array; name at least one file or glob"
                                         : "missing, and it has no default; add it");
  if (list == nullptr) return;
  const std::string path = section_.path_of(f.key);
  const SectionKeys& keys = section_keys(path + ".N");
  for (std::size_t i = 0; i < list->size(); ++i) {
    // A string is short for an object with a path alone.
    Json element = (*list)[i];
    if (element.is_string()) element = Json(Json::Object{{"path", element}});
    if (!element.is_object()) {
      section_.fail(fmt::format("{}.{}", f.key, i),
                    fmt::format("is {}, expected a path or an object", describe(element)));
    }
    Section section(&element, fmt::format("{}.{}", path, i), section_.source(), keys);
    FieldReader reader(section);
    describe(reader, value.emplace_back(), weighted);
    section.finish();
  }
  if (weighted) settle_weights(value, path, section_.source());
}

// An object, or false: every look at it off.
void FieldReader::spike(const Field& f, Spike& value) {
  const Json* json = section_.find(f.key);
  const auto* on = json == nullptr ? nullptr : json->get<bool>();
  if (on != nullptr) {
    if (!*on) value.deviations = value.grad_norm_factor = 0;
    return;
  }
  if (json != nullptr && !json->is_object())
    section_.fail(f.key,
                  fmt::format("is {}, expected an object, or false to leave no step out", describe(*json)));
  const std::string path = section_.path_of(f.key);
  Section section(json, path, section_.source(), section_keys(path));
  FieldReader reader(section);
  describe(reader, value);
  if (value.grad_norm_factor > 0 && value.grad_norm_factor <= 1)
    section.fail("grad_norm_factor",
                 fmt::format("is {}, expected above 1, or 0 to look at no norm", value.grad_norm_factor));
  section.finish();
}

// A number, or one of two words.
void FieldReader::room(const Field& f, double& value) {
  const Json* json = section_.find(f.key);
  if (json == nullptr || !json->is_string()) {
    if (json == nullptr) return;
    value = section_.number(f.key, {0, 1e6}, 1);
    if (value < 1)
      section_.fail(f.key, fmt::format("{} is less than an even load, 1; raise it or set \"auto\"", value));
    return;
  }
  const std::string word = section_.text(f.key);
  if (word != "auto" && word != "worst")
    section_.fail(f.key, fmt::format("is {}, expected a number, \"auto\" or \"worst\"", to_line(*json)));
  value = word == "auto" ? Parallel::kAutoRoom : Parallel::kWorstRoom;
}

// A number, or "auto".
void FieldReader::micro_batch(const Field& f, std::int64_t& value) {
  const Json* json = section_.find(f.key);
  if (json == nullptr || !json->is_string()) {
    value = section_.integer(f.key, 1, kMaxSize);
    return;
  }
  if (section_.text(f.key) != "auto")
    section_.fail(f.key, fmt::format("is {}, expected a whole number or \"auto\"", to_line(*json)));
  value = Train::kAutoMicroBatch;
}

void FieldReader::texts(const Field& f, std::vector<std::string>& value) {
  const Json* json = section_.find(f.key);
  if (json == nullptr) return;
  if (!json->is_array())
    section_.fail(f.key, fmt::format("is {}, expected an array of paths", describe(*json)));
  for (std::size_t i = 0; i < json->size(); ++i) {
    const Json& element = (*json)[i];
    if (!element.is_string() || element.text().empty())
      section_.fail(fmt::format("{}.{}", f.key, i), fmt::format("is {}, expected a path", describe(element)));
    value.push_back(element.text());
  }
}

// Bytes as a number, or as a text with a unit.
void FieldReader::bytes(const Field& f, std::int64_t& value) {
  const Json* json = section_.find(f.key);
  if (json == nullptr || !json->is_string()) {
    value = section_.integer(f.key, 1, std::int64_t{1} << 62, value);
    return;
  }
  const std::optional<std::int64_t> bytes = parse_byte_size(section_.text(f.key));
  if (!bytes)
    section_.fail(f.key, fmt::format("is {}, expected bytes: a number, or a text such as \"5GB\" or \"512MiB\"",
                                     describe(*json)));
  value = *bytes;
}

Run parse_run(const std::string& text, const std::string& origin, const std::vector<std::string>& overrides,
              std::span<const RouterSchema> routers, const std::optional<std::string>& default_model,
              const VocabSizeOf& vocab_size_of, const std::optional<Router>& default_router) {
  Source source(origin);
  Json root = read_configuration(text, source);
  auto* const members = &root.object();
  if (default_model && find_member(*members, "model") == nullptr) {
    // With the model comes its router, unless the run or an override names another one.
    Json model_of_weights = parse_json(*default_model, origin);
    std::optional<Json> router_of_weights = take_router(model_of_weights);
    if (default_router) router_of_weights = write_router(*default_router);
    members->push_back({"model", std::move(model_of_weights)});
    if (router_of_weights && find_member(*members, "router") == nullptr)
      members->push_back({"router", is_replaced(*router_of_weights, overrides)
                                        ? Json(Json::Object{})
                                        : std::move(*router_of_weights)});
  }
  place_router(*members, source);
  for (const std::string& text_of_override : overrides) apply_override(root, text_of_override, source);

  Section top(&root, "", source, section_keys(""));
  const auto open = [&](const char* key) { return Section(top.find(key), key, source, section_keys(key)); };
  Run run;
  auto* const model_members =
      find_member(*members, "model") != nullptr ? find_member(*members, "model")->get<Json::Object>() : nullptr;
  if (vocab_size_of && model_members != nullptr && find_member(*model_members, "vocab_size") == nullptr) {
    Section data = open("data");
    std::vector<DataEntry> train;
    FieldReader(data).entries({"train", ""}, train, true);
    const std::optional<std::int64_t> found = vocab_size_of(train);
    if (!found)
      source.fail("model.vocab_size",
                  "missing, and no meta.json beside the shards of data.train states one; add it, or make the "
                  "shards with tools/prepare_data.py");
    model_members->push_back({"vocab_size", *found});
  }
  const ModelSection model = read_model(top.find("model"), "model", source);
  run.model = model.model;
  source.set_layout(run.model.layout->name);
  if (!default_model) report_without_effect(model, origin);  // else whoever read the file has said it
  run.router = read_router(top.find("router"), source, run.model, model.router_aux_loss_coef, routers);
  if (model.router_aux_loss_coef && run.router.type != run.model.layout->router)
    log_info(fmt::format(
        "{}: model.router_aux_loss_coef {} is of {}, the router of {}; router.balance_coef of {} is {}", origin,
        *model.router_aux_loss_coef, run.model.layout->router, run.model.layout->name, run.router.type,
        run.router.balance_coef));
  const RouterSchema& schema = schema_of(run.router.type, routers);
  if (run.model.norm_topk_prob != run.model.layout->norm_topk_prob && run.router.num_hash_layers == 0 &&
      !schema.weights_sum_to.empty() && run.model.norm_topk_prob != (schema.weights_sum_to == "1"))
    log_info(
        fmt::format("{}: model.norm_topk_prob {} has no effect: weights of router.type \"{}\" sum to {}, "
                    "times model.routed_scaling_factor",
                    origin, run.model.norm_topk_prob, schema.type, schema.weights_sum_to));
  run.data = read_data(open("data"), run.model);
  const auto read = [&](const char* key, auto& value) {
    Section section = open(key);
    FieldReader reader(section);
    describe(reader, value);
    section.finish();
  };
  read("eval", run.eval);
  run.train = read_train(open("train"), run);
  // A layer that is not trained is not made, and what is written must not promise it.
  if (run.train.mtp_loss_coef == 0) run.model.num_nextn_predict_layers = 0;
  read("parallel", run.parallel);
  read("checkpoint", run.checkpoint);
  read("log", run.log);
  top.find("extends");  // read_configuration has followed it
  top.finish();
  run.resolved_json = to_resolved_json(run);
  return run;
}

Run load_run(const std::string& path, const std::vector<std::string>& overrides,
             std::span<const RouterSchema> routers, const std::optional<std::string>& default_model,
             const VocabSizeOf& vocab_size_of, const std::optional<Router>& default_router) {
  return parse_run(read_text_file(path), path, overrides, routers, default_model, vocab_size_of,
                   default_router);
}

RoutedModel override_routing(const RoutedModel& routed, const std::string& origin,
                             const std::vector<std::string>& overrides, std::span<const RouterSchema> routers) {
  Json root(Json::Object{{"model", write_model(routed.model)}});
  if (Json router = write_router(routed.router); !is_replaced(router, overrides))
    root["router"] = std::move(router);
  Source source(origin);
  for (const std::string& text : overrides) {
    const std::string path = text.substr(0, text.find('='));
    if (!path.starts_with("router.") && path != "model.num_experts_per_tok")
      throw_input(
          "--set {}: of a model that is there only router.KEY and model.num_experts_per_tok can be set; "
          "remove it",
          printable(text));
    apply_override(root, text, source);
  }
  RoutedModel out;
  out.model = read_model(&root["model"], "model", source).model;
  source.set_layout(out.model.layout->name);
  out.router = read_router(root.find("router"), source, out.model, std::nullopt, routers);
  return out;
}

bool looks_like_run(const std::string& text, const std::string& origin) {
  try {
    Source source(origin);
    return read_configuration(text, source).contains("model");
  } catch (const InputError&) {
    return false;
  }
}

}  // namespace switchyard::config
