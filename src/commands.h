// One function a command; main.cpp reads the command line into these options. Each returns the exit code and
// throws InputError or RunError.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace switchyard {

struct TrainOptions {
  std::string config;
  std::vector<std::string> overrides;  // "a.b=c"
  std::string out;                     // empty: runs/<name of the config file>
  std::string resume;                  // empty: do not; "auto"; or a checkpoint or run directory
  std::string init_from;        // empty: random weights; or a model directory, checkpoint or run directory
  bool allow_new_data = false;  // resume although the data are not those of the checkpoint
  std::string device = "auto";  // auto, cpu, cuda
};

struct EvalOptions {
  std::string checkpoint;
  std::vector<std::string> data;  // empty: what the run validates on
  std::int64_t seq_len = 0;  // 0: what the checkpoint was trained with; of a model directory 2048 or its most
  std::int64_t batch = 8;
  std::int64_t max_tokens = 0;  // 0: all
  std::int64_t threads = 0;     // 0: one a core
  std::string json;             // empty: none; "-": standard output
  std::string device = "auto";
  std::string dtype;  // empty: on a CUDA device what the run trains in, else float32; float32, bfloat16
};

// Everything of one step on one batch, for tools/compare_hf.py.
struct DumpOptions {
  std::string directory;  // config.json and model*.safetensors, as Hugging Face has them
  std::string tokens;     // safetensors: "tokens", I32 [sequences, length]
  std::string out;        // safetensors
};

struct GenerateOptions {
  std::string checkpoint;                          // of a run, or a Hugging Face model directory
  std::string prompt, prompt_file, prompt_tokens;  // one of them; prompt "-": standard input
  std::string tokenizer;                           // empty: the checkpoint's; "bytes"; or a tokenizer.json
  std::int64_t max_new_tokens = 128;
  bool greedy = false;
  double temperature = 1;
  std::int64_t top_k = 0;
  double top_p = 1;
  std::uint64_t seed = 1;
  std::int64_t threads = 0;  // 0: one a core
  bool json = false;
  std::string device = "auto";
  std::string dtype;  // as EvalOptions::dtype
};

struct ExportOptions {
  std::string source;  // a checkpoint, a run directory or a Hugging Face model directory
  std::string out;
  std::string dtype;  // empty: as the source has it; float32, bfloat16, float16
  std::string max_shard_size = "5GB";
  bool as_layout = false;  // the layout's config.json, whatever the router is
};

constexpr const char* kAllTensors = "all";
struct InspectOptions {
  std::string path;
  std::string tensors;  // empty: do not list them; "weights"; or kAllTensors: the optimizer's state too
  bool json = false;
};

// Documents on standard input to their tokens on standard output: uint32 little-endian n, then n bytes of
// UTF-8; out of each one uint32 n, then n uint32 tokens.
struct TokenizeOptions {
  std::string tokenizer;         // a tokenizer.json, its directory, or "bytes"
  bool special_as_text = false;  // names of special tokens are text like any other
};

int run_train(const TrainOptions& options);
int run_eval(const EvalOptions& options);
int run_dump(const DumpOptions& options);
int run_generate(const GenerateOptions& options);
int run_export(const ExportOptions& options);
int run_inspect(const InspectOptions& options);
int run_tokenize(const TokenizeOptions& options);

}  // namespace switchyard
