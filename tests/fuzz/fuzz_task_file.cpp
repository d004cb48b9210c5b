// Any text as a file of questions: refused with one line, or questions that can be asked.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "one_line.h"
#include "tasks/task_file.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace switchyard;
  const std::string text(reinterpret_cast<const char*>(data), size);
  attempt([&] {
    const tasks::TaskFile file = tasks::parse_task_file(text, "input");
    if (file.questions.empty()) std::abort();
    for (const tasks::Question& question : file.questions) {
      if (question.answer && *question.answer >= question.choices.size()) std::abort();
      tasks::full_prompt(file, question, {});
    }
  });
  return 0;
}
