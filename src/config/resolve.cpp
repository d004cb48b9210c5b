#include "config/resolve.h"

#include "config/hugging_face.h"
#include "config/names.h"
#include "config/router_section.h"

namespace switchyard::config {
namespace {

Json write_entries(const std::vector<DataEntry>& entries) {
  Json::Array out;
  for (const DataEntry& entry : entries) {
    Json::Object object{{"path", entry.path}, {"domain", entry.domain}};
    if (entry.weight) object.push_back({"weight", *entry.weight});
    out.push_back(Json(std::move(object)));
  }
  return Json(std::move(out));
}

Json write_data(const Data& data) {
  return Json(Json::Object{{"train", write_entries(data.train)},
                           {"validation", write_entries(data.validation)},
                           {"document_mask", data.document_mask},
                           {"eot_token", data.eot_token ? Json(*data.eot_token) : Json()},
                           {"begin_token", data.begin_token ? Json(*data.begin_token) : Json()}});
}

Json write_train(const Train& train) {
  return Json(Json::Object{{"seed", train.seed},
                           {"steps", train.steps},
                           {"seq_len", train.seq_len},
                           {"micro_batch_size", train.micro_batch_size},
                           {"global_batch_size", train.global_batch_size},
                           {"dtype", name_of(train.dtype)},
                           {"recompute", name_of(train.recompute)},
                           {"attention", name_of(train.attention)},
                           {"lr", train.lr},
                           {"min_lr_ratio", train.min_lr_ratio},
                           {"schedule", name_of(train.schedule)},
                           {"warmup_ratio", train.warmup_ratio},
                           {"decay_ratio", train.decay_ratio},
                           {"weight_decay", train.weight_decay},
                           {"beta1", train.beta1},
                           {"beta2", train.beta2},
                           {"eps", train.eps},
                           {"clip_norm", train.clip_norm},
                           {"spike", Json(Json::Object{{"deviations", train.spike.deviations},
                                                       {"grad_norm_factor", train.spike.grad_norm_factor},
                                                       {"window", train.spike.window},
                                                       {"patience", train.spike.patience}})},
                           {"mtp_loss_coef", train.mtp_loss_coef},
                           {"eval_every", train.eval_every},
                           {"eval_tokens", train.eval_tokens}});
}

}  // namespace

std::string to_resolved_json(const Run& run) {
  return to_text(Json(Json::Object{
      {"model", write_model(run.model)},
      {"router", write_router(run.router)},
      {"data", write_data(run.data)},
      {"train", write_train(run.train)},
      {"parallel", Json(Json::Object{{"threads", run.parallel.threads}})},
      {"checkpoint", Json(Json::Object{{"every", run.checkpoint.every},
                                       {"every_minutes", run.checkpoint.every_minutes},
                                       {"keep", run.checkpoint.keep},
                                       {"keep_every", run.checkpoint.keep_every},
                                       {"keep_best", run.checkpoint.keep_best},
                                       {"max_shard_size", run.checkpoint.max_shard_size}})},
      {"log", Json(Json::Object{{"every", run.log.every}, {"tensorboard", run.log.tensorboard}})}}));
}

}  // namespace switchyard::config
