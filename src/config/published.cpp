#include "config/published.h"

#include <algorithm>
#include <optional>
#include <set>
#include <vector>

#include "config/layouts.h"
#include "config/spelling.h"

namespace switchyard::config {
namespace {

using Words = std::vector<std::string_view>;

bool contains(const Words& words, std::string_view word) {
  return std::find(words.begin(), words.end(), word) != words.end();
}

std::optional<double> number_of(const Json& value) {
  if (const auto* real = value.get<double>()) return *real;
  if (const auto* integer = value.get<std::int64_t>()) return static_cast<double>(*integer);
  return std::nullopt;
}

bool is_bool(const Json& value, bool expected) {
  const auto* found = value.get<bool>();
  return found != nullptr && *found == expected;
}

Words words_of(std::string_view key) {
  Words words;
  while (true) {
    const std::size_t end = key.find_first_of("_-.");
    words.push_back(key.substr(0, end));
    if (end == std::string_view::npos) return words;
    key.remove_prefix(end + 1);
  }
}

// The key without the words that only say that it is a switch: use_qk_norm, qk_norm_enabled -> qknorm.
std::string subject_of(std::string_view key) {
  static const Words kSwitch = {"use",   "uses", "using", "enable", "enabled", "is",   "has",    "with",
                                "apply", "do",   "layer", "layers", "list",    "enum", "indices"};
  std::string subject;
  for (const std::string_view word : words_of(key))
    if (!contains(kSwitch, word)) subject += letters_of(word);
  return subject;
}

// Subjects that every model of the layout has, as subject_of() gives them.
bool always_has(const Layout& layout, const std::string& subject) {
  static const std::set<std::string_view> kAll = {"attention",
                                                  "rope",
                                                  "rotary",
                                                  "rotaryemb",
                                                  "rotaryembedding",
                                                  "rotaryembeddings",
                                                  "ropeemb",
                                                  "rmsnorm",
                                                  "prenorm",
                                                  "prenormbefore",
                                                  "norm",
                                                  "layernormbefore",
                                                  "normbefore",
                                                  "causal",
                                                  "causalmask",
                                                  "causalattention",
                                                  "glu",
                                                  "swiglu",
                                                  "gated",
                                                  "gatedact",
                                                  "gatedmlp",
                                                  "gatedffn",
                                                  "gatedlinearunit",
                                                  "scaleattn",
                                                  "scaleattention",
                                                  "scaleattnweights",
                                                  "moe",
                                                  "sparsemoe",
                                                  "mixtureofexperts",
                                                  "router",
                                                  "residual",
                                                  "finalnorm",
                                                  "mlp",
                                                  "ffn"};
  return kAll.contains(subject) ||
         std::find(layout.always_has.begin(), layout.always_has.end(), subject) != layout.always_has.end();
}

// Keys whose value is a name or a number, with what is true of the layout; none: not such a key.
struct Fact {
  Words names = {};
  std::optional<double> number = std::nullopt;
  bool or_zero = false;
};

std::optional<Fact> fact_of(const Layout& layout, const std::string& letters) {
  static const Words kActivation = {
      "act",         "actfn",         "activation",   "activationfunction", "activationfn", "hiddenactivation",
      "hiddenactfn", "mlpactivation", "mlphiddenact", "expertactivation"};
  static const Words kScore = {"scoringfunc",
                               "scorefunc",
                               "scorefunction",
                               "moescoringfunc",
                               "routerscoringfunc",
                               "moerouterscorefunction",
                               "moerouteractivationfunc",
                               "routerscorefunction",
                               "gatingfunction"};
  if (contains(kActivation, letters)) return Fact{.names = {"silu", "swish", "swiglu"}};
  if (contains(kScore, letters)) return Fact{.names = {layout.scoring_func}};
  if (letters == "topkmethod") return Fact{.names = {layout.topk_method}};
  if (letters == "normtype" || letters == "normalization" || letters == "normalizationtype" ||
      letters == "layernormtype")
    return Fact{.names = {"rmsnorm", "rms_norm", "RMSNorm", "rms"}};
  if (letters == "positionembeddingtype" || letters == "positionalembedding" || letters == "posemb" ||
      letters == "positionembedding" || letters == "positionalencoding")
    return Fact{.names = {"rope", "rotary"}};
  if (letters == "attentiontype" || letters == "attntype")
    return Fact{.names = {layout.attention, "full", "full_attention", "causal"}};
  static const Words kEachLayer = {"moelayerfreq",   "moelayerfrequency", "moelayerinterval",
                                   "moefrequency",   "moeeverynlayers",   "decodersparsestep",
                                   "expertinterval", "expertlayerperiod", "interleavemoelayerstep",
                                   "moelayerstep"};
  if (contains(kEachLayer, letters)) return Fact{.number = 1};
  static const Words kSingle = {"ngroup",        "topkgroup",         "numexpertgroup", "numexpertgroups",
                                "nexpertgroups", "moenumexpertgroup", "moetopkgroup",   "nlimitedgroups",
                                "epsize",        "pretrainingtp",     "tpsize"};
  if (contains(kSingle, letters)) return Fact{.number = 1, .or_zero = true};
  if (letters == "topk") return Fact{.number = 50};  // what transformers 4 wrote of its sampling
  return std::nullopt;
}

Statement judge_fact(const Fact& fact, const Json& value) {
  if (const auto* name = value.get<std::string>())
    return contains(fact.names, *name) ? Statement::without_effect : Statement::unknown;
  const auto number = number_of(value);
  const bool same = number && fact.number && (*number == *fact.number || (fact.or_zero && *number == 0));
  return same ? Statement::without_effect : Statement::unknown;
}

// Multiplied by 1 nothing changes. Not so what attention's scores are multiplied by, in place of head_dim^-0.5.
bool is_factor(const Words& words) {
  static const Words kFactors = {"factor", "factors",    "scale", "scaling", "multiplier", "mult",
                                 "ratio",  "percentage", "pct",   "percent", "scalar",     "temperature"};
  return std::any_of(words.begin(), words.end(),
                     [](std::string_view word) { return contains(kFactors, word); });
}

bool is_of_scores(const Words& words) {
  static const Words kScores = {"attention", "attn", "softmax", "query", "qk", "q", "key"};
  return std::any_of(words.begin(), words.end(), [](std::string_view word) { return contains(kScores, word); });
}

// Sizes and counts without which there is no such model: 0 is not "off" there.
bool is_size_of_all(const Layout& layout, const std::string& letters) {
  static const Words kSizes = {
      "numexperts",          "nexperts",          "nroutedexperts", "numroutedexperts", "numlocalexperts",
      "moeintermediatesize", "intermediatesize",  "expertsize",     "ffnsize",          "headsize",
      "embeddingsize",       "maxsequencelength", "moenumexperts",  "moetopk",          "expertffnhiddensize"};
  return contains(kSizes, letters) ||
         std::find(layout.sizes.begin(), layout.sizes.end(), letters) != layout.sizes.end();
}

bool is_empty(const Json& value) {
  if (const auto* list = value.get<Json::Array>()) return list->empty();
  if (const auto* object = value.get<Json::Object>()) return object->empty();
  const auto* text = value.get<std::string>();
  return text != nullptr && (text->empty() || *text == "none");
}

}  // namespace

Statement judge(const Layout& layout, std::string_view key, const Json& value) {
  if (value.is_null()) return Statement::without_effect;
  const std::string letters = letters_of(key);
  if (const auto fact = fact_of(layout, letters)) return judge_fact(*fact, value);
  if (is_size_of_all(layout, letters)) return Statement::unknown;

  // What is not off when it is false: no_bias, disable_rope.
  static const Words kNegations = {"no", "not", "disable", "disabled", "without", "skip", "remove", "non"};
  const Words words = words_of(key);
  if (contains(kNegations, words.front()) && words.size() > 1) {
    const auto* negated = value.get<bool>();
    if (negated == nullptr) return Statement::unknown;
    return judge(layout, key.substr(words.front().size() + 1), Json(!*negated));
  }

  const auto number = number_of(value);
  const bool zero = number && *number == 0;
  if (always_has(layout, subject_of(key))) {
    if (is_bool(value, true)) return Statement::without_effect;
    return is_bool(value, false) || zero || is_empty(value) ? Statement::contrary : Statement::unknown;
  }
  if (is_bool(value, false) || is_empty(value)) return Statement::without_effect;
  if (!number) return Statement::unknown;
  if (!is_factor(words)) return zero ? Statement::without_effect : Statement::unknown;
  return *number == 1 && !is_of_scores(words) ? Statement::without_effect : Statement::unknown;
}

}  // namespace switchyard::config
