#include "train/evaluator.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <numeric>

#include "core/progress.h"
#include "train/ranks.h"

namespace switchyard::train {

namespace {

// Of the first `to_predict` targets of the domain. The first token of a stream, which is not predicted, begins
// a document and has no text, so that the targets of a whole split have all its bytes.
std::optional<data::TextSize> predicted_text(const Domain& domain, std::int64_t to_predict) {
  std::optional<data::TextSize> text = domain.text;
  const std::int64_t tokens = domain.stream.size();
  if (!text || (!text->is_estimate && to_predict == tokens - 1)) return text;
  return data::TextSize{text->bytes * static_cast<double>(to_predict) / static_cast<double>(tokens), true};
}

std::optional<data::TextSize> sum_of(const std::optional<data::TextSize>& a,
                                     const std::optional<data::TextSize>& b) {
  if (!a || !b) return std::nullopt;
  return data::TextSize{a->bytes + b->bytes, a->is_estimate || b->is_estimate};
}

// Which windows of a domain are evaluated: the w-th begins at token begin(w) and predicts inputs(w).
struct Windows {
  std::int64_t seq_len, to_predict, count;
  std::int64_t spread_over;  // whole windows of the domain; 0: the windows follow one another

  std::int64_t begin(std::int64_t w) const { return (spread_over > 0 ? w * spread_over / count : w) * seq_len; }
  std::int64_t inputs(std::int64_t w) const {  // 0 or less beyond the last
    return std::min(seq_len, to_predict - w * seq_len);
  }
};

Windows windows_of(const Domain& domain, std::size_t d, std::size_t n_domains, const EvalSettings& settings) {
  std::int64_t to_predict = domain.stream.size() - 1;
  if (to_predict < 1)
    throw_input("{}: one token alone predicts nothing; give more data",
                domain.stream.shards().front().path().string());
  const std::int64_t seq_len = settings.seq_len, whole = to_predict / seq_len;
  if (!settings.share_of_domain.empty() && whole > 0) {
    const double wanted = settings.share_of_domain[d] * static_cast<double>(settings.max_tokens) *
                          static_cast<double>(n_domains) / static_cast<double>(seq_len);
    const std::int64_t count = std::clamp<std::int64_t>(std::llround(wanted), 1, whole);
    return {seq_len, count * seq_len, count, whole};
  }
  if (settings.max_tokens > 0) to_predict = std::min(to_predict, settings.max_tokens);
  return {seq_len, to_predict, (to_predict + seq_len - 1) / seq_len, 0};
}

}  // namespace

std::optional<double> bits_per_byte(double loss, std::int64_t tokens,
                                    const std::optional<data::TextSize>& text) {
  if (!text || text->bytes <= 0) return std::nullopt;
  return loss * static_cast<double>(tokens) / std::numbers::ln2 / text->bytes;
}

EvalResult evaluate(model::Transformer& model, const std::vector<Domain>& domains, const EvalSettings& settings,
                    Context& ctx, const parallel::Group& all) {
  const auto start = std::chrono::steady_clock::now();
  EvalResult result{
      .domains = {},
      .load = LoadCounts(model.routing().n_main_layers(), std::max<std::int64_t>(1, model.config().num_experts),
                         static_cast<std::int64_t>(domains.size()))};
  BatchBuffers buffers(settings.batch, settings.seq_len, settings.begin_token, model.config().sliding_window,
                       ctx.device);
  std::vector<float> loss_values(static_cast<std::size_t>(settings.batch * settings.seq_len));
  const CopyOn loss_T(ctx.device,
                      Tensor(loss_values.data(), Shape{settings.batch * settings.seq_len}, DType::f32));
  std::vector<std::int32_t> window(static_cast<std::size_t>(settings.seq_len) + 1);
  double loss_sum = 0;
  Context host;

  for (std::size_t d = 0; d < domains.size(); ++d) {
    const data::TokenStream& stream = domains[d].stream;
    const Windows of_domain = windows_of(domains[d], d, domains.size(), settings);
    const std::int64_t to_predict = of_domain.to_predict, windows = of_domain.count;
    const std::vector<std::size_t> domain_B(static_cast<std::size_t>(settings.batch), d);
    const std::int64_t batches = (windows + settings.batch - 1) / settings.batch;
    std::vector<double> loss_of_window(static_cast<std::size_t>(windows));
    for (std::int64_t round = 0; round * all.size() < batches; ++round) {
      const std::int64_t first = (round * all.size() + all.place()) * settings.batch;  // window
      mark("evaluation batch", round);
      for (std::int64_t b = 0; b < settings.batch; ++b) {
        const std::int64_t inputs = of_domain.inputs(first + b);
        const auto tokens = std::span(window).first(inputs > 0 ? static_cast<std::size_t>(inputs) + 1 : 0);
        if (!tokens.empty()) stream.read(of_domain.begin(first + b), tokens);
        buffers.set_sequence(b, tokens);
      }
      const model::Batch batch = buffers.load(ctx);
      in_rounds(model, settings.batch * settings.seq_len, all, ctx, [&] { model.forward(batch, ctx); });
      model.loss(loss_T.tensor(), batch, ctx);
      loss_T.write_back();
      result.load.add(model.routing().counts(), domain_B);
      result.counts += model::count_tokens(buffers.on_host());
      for (std::int64_t b = 0; b < settings.batch && first + b < windows; ++b) {
        const auto of_window = loss_values.begin() + b * settings.seq_len;
        loss_of_window[static_cast<std::size_t>(first + b)] =
            std::accumulate(of_window, of_window + settings.seq_len, 0.0);
      }
    }
    all.sum_numbers(loss_of_window);  // each was one rank's, and 0 elsewhere
    const double domain_sum = std::accumulate(loss_of_window.begin(), loss_of_window.end(), 0.0);
    if (!std::isfinite(domain_sum))
      throw DivergedError(fmt::format("the loss over {} is not finite; the weights of this model have diverged",
                                      stream.shards().front().path().string()));
    result.domains.push_back({domains[d].name, domain_sum / static_cast<double>(to_predict), to_predict,
                              predicted_text(domains[d], to_predict)});
    result.tokens += to_predict;
    result.text = d == 0 ? result.domains[0].text : sum_of(result.text, result.domains[d].text);
    loss_sum += domain_sum;
  }
  if (result.load.n_layers() > 0) all.sum(result.load.sums(), parallel::Traffic::sums, host);
  std::vector<double> counts = {static_cast<double>(result.counts.tokens),
                                static_cast<double>(result.counts.keys)};
  all.sum_numbers(counts);
  result.counts = {static_cast<std::int64_t>(counts[0]), static_cast<std::int64_t>(counts[1])};
  result.loss = loss_sum / static_cast<double>(result.tokens);
  result.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return result;
}

}  // namespace switchyard::train
