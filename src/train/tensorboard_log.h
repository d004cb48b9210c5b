// TensorBoard's event file: the scalars of a run's metrics. Format: TFRecord frames around protocol buffers,
// https://github.com/tensorflow/tensorboard/tree/master/tensorboard/compat/proto (event, summary). A run needs
// five fields of it, so they are encoded here: a library and a code generator would be many times the size.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

#include "core/file.h"

namespace switchyard::train {

class TensorBoardLog {
 public:
  // Begins a new file, events.out.tfevents.<seconds>.<host>.<process>, in `directory` and creates that if need
  // be. `last_step` > 0: the run goes on from there, and what older files say of later steps is dropped by the
  // reader. Throws InputError where it cannot be written.
  TensorBoardLog(const std::filesystem::path& directory, std::int64_t last_step);

  // Every number of a line of metrics.jsonl, tagged by where it stands: "loss", "val_balance/gini",
  // "layers/3/gini" (3: the element's "layer"). Lists of numbers have no place in a chart of scalars and are
  // left out, and so is the step. One event, one system call. Throws InputError.
  void append(std::int64_t step, std::string_view metrics_json);
  void close() { file_.close(); }

 private:
  OutputFile file_;
};

}  // namespace switchyard::train
