// eval.tasks of a configuration: what a training run is asked beside its loss.
#pragma once

#include "config/config.h"
#include "train/run.h"

namespace switchyard::commands {

// Not set where the run has no tasks. `says`: whether this rank says what it has read. Throws InputError: a
// file that is none (tasks/task_file.h) or whose answers are generated, two files of one name, too few
// examples, or data that do not say which tokenizer made them.
train::AskTasks tasks_of_training(const config::Run& run, bool says);

}  // namespace switchyard::commands
