// Prompts and choices of each schema, written out as lm_eval 0.4.13 makes them; and what is refused.
#include "tasks/task_file.h"

#include <gtest/gtest.h>

#include <string>

#include "core/error.h"
#include "tasks/python_text.h"
#include "temp_dir.h"

namespace switchyard::tasks {
namespace {

using Texts = std::vector<std::string>;

struct Files {
  test::TempDir dir;
  TaskFile read(const std::string& text, const std::string& name = "task.jsonl",
                const Texts& choices = {}) const {
    test::write_bytes(dir / name, text);
    return read_task_file(dir / name, choices);
  }
  std::string error(const std::string& text, const Texts& choices = {}) const {
    return test::message_of<InputError>([&] { read(text, "task.jsonl", choices); });
  }
};

TEST(PythonText, StripsWhatPythonStrips) {
  EXPECT_EQ(stripped(" \t\x1f x y\u00a0\u3000\n"), "x y");
  EXPECT_EQ(right_stripped(" a \u2003"), " a");
  EXPECT_EQ(stripped(" \u00a0"), "");
  EXPECT_EQ(n_characters("caf\u00e9 \U0001f600"), 6);
}

TEST(PythonText, CapitalisesTheFirstAndLowersTheRest) {
  EXPECT_EQ(capitalised("he Sees A TV."), "He sees a tv.");
  EXPECT_EQ(capitalised("\u00e9T\u00c9"), "\u00c9t\u00e9");
  EXPECT_EQ(capitalised("[title] How"), "[title] how");
  EXPECT_EQ(capitalised(""), "");
}

TEST(PythonText, ReplacesFromLeftToRight) { EXPECT_EQ(replaced("a   b    c", "  ", " "), "a  b  c"); }

TEST(TaskFile, HellaSwag) {
  const Files files;
  const TaskFile task = files.read(
      R"({"activity_label": "Making tea", "ctx_a": "A man [substeps] pours.", "ctx_b": "then He", "ctx": "unused",)"
      R"( "endings": [" drinks [step] it. ", "walks  away [title] Done", "[all", "x[a\nb]y"], "label": "1"})"
      "\n\n"
      R"({"activity_label": "B", "ctx_a": "c", "ctx_b": "", "endings": ["d", "e"], "label": 0})");
  EXPECT_EQ(task.schema, Schema::hellaswag);
  ASSERT_EQ(task.questions.size(), 2U);
  // The bracket leaves two spaces, of which one stays. One that does not close, or not on its line, stays.
  EXPECT_EQ(task.questions[0].prompt, "Making tea: A man pours. Then he");
  EXPECT_EQ(task.questions[0].choices, (Texts{"drinks it.", "walks away. Done", "[all", "x[a\nb]y"}));
  EXPECT_EQ(task.questions[0].answer, 1U);
  EXPECT_EQ(task.questions[1].prompt, "B: c");  // the space before nothing is stripped
  EXPECT_EQ(task.questions[1].answer, 0U);
  EXPECT_EQ(task.questions[1].line, 3);
}

TEST(TaskFile, ArcInBothForms) {
  const Files files;
  for (
      const std::string line :
      {R"({"id": "a", "question": "Why? ", "choices": {"text": ["x", "y", "z"], "label": ["1", "2", "3"]}, "answerKey": "3"})",
       R"({"question": {"stem": "Why? ", "choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}, {"text": "z", "label": "3"}]}, "answerKey": "3"})"}) {
    const TaskFile task = files.read(line);
    EXPECT_EQ(task.schema, Schema::arc);
    EXPECT_EQ(task.questions[0].prompt, "Question: Why? \nAnswer:");
    EXPECT_EQ(task.questions[0].choices, (Texts{"x", "y", "z"}));
    EXPECT_EQ(task.questions[0].answer, 2U);
    EXPECT_EQ(task.questions[0].target, "z");
  }
}

TEST(TaskFile, Piqa) {
  const TaskFile task = Files().read(R"({"goal": "Open it", "sol1": "Pull", "sol2": "Push", "label": 1})");
  EXPECT_EQ(task.schema, Schema::piqa);
  EXPECT_EQ(task.questions[0].prompt, "Question: Open it\nAnswer:");
  EXPECT_EQ(task.questions[0].choices, (Texts{"Pull", "Push"}));
  EXPECT_EQ(task.questions[0].answer, 1U);
}

TEST(TaskFile, MmluAsksForLettersAndNamesItsSubject) {
  const Files files;
  const std::string
      shot = R"({"question": "One?", "subject": "us_history", "choices": ["a","b","c","d"], "answer": 0})",
      other = R"({"question": "Odd?", "subject": "virology", "choices": ["a","b","c","d"], "answer": 2})",
      line = R"({"question": " Two? ", "subject": "us_history", "choices": ["e","f","g","h"], "answer": 3})";
  const TaskFile task = files.read(line);
  EXPECT_EQ(task.schema, Schema::mmlu);
  const Question& q = task.questions[0];
  EXPECT_EQ(q.choices, (Texts{"A", "B", "C", "D"}));
  EXPECT_EQ(q.answer, 3U);
  const std::string description =
                        "The following are multiple choice questions (with answers) about us history.\n\n",
                    asked = "Two?\nA. e\nB. f\nC. g\nD. h\nAnswer:";
  EXPECT_EQ(full_prompt(task, q, {}), description + asked);
  // Examples are of the question's subject alone.
  const Examples examples{1, files.read(other + "\n" + shot, "dev.jsonl"), {}};
  EXPECT_EQ(full_prompt(task, q, examples),
            description + "One?\nA. a\nB. b\nC. c\nD. d\nAnswer: A\n\n" + asked);
  EXPECT_EQ(full_prompt(task, q, {0, {}, "Now: "}), "Now: " + asked);
}

TEST(TaskFile, BbhSharesTheChoicesOfAllItsQuestions) {
  const Files files;
  const std::string three = R"j({"input": "Which?\nOptions:\n(A) x\n(B) y\n(C) z", "target": "(C)"})j",
                    two = R"j({"input": "Or?\nOptions:\n(A) x\n(B) y", "target": "(B)"})j",
                    strange = R"j({"input": "Hm?\nOptions:\n(A) x\n(B) y", "target": "x"})j";
  const TaskFile task = files.read(two + "\n" + three + "\n" + strange + "\n");
  EXPECT_EQ(task.schema, Schema::bbh);
  EXPECT_EQ(task.questions[0].prompt, "Q: Or?\nOptions:\n(A) x\n(B) y\nA:");
  for (const Question& q : task.questions) EXPECT_EQ(q.choices, (Texts{"(A)", "(B)", "(C)"}));
  EXPECT_EQ(task.questions[0].answer, 1U);
  EXPECT_EQ(task.questions[1].answer, 2U);
  EXPECT_EQ(task.questions[2].answer, std::nullopt);
  // As the authors publish it: one object.
  const TaskFile whole =
      files.read("{\"canary\": \"\",\n \"examples\": [" + two + ",\n" + three + "]}", "b.json");
  EXPECT_EQ(whole.questions[1].choices, task.questions[1].choices);
  EXPECT_EQ(whole.questions[1].line, 2);
  const TaskFile words = files.read(R"({"input": "Did he?\nOptions:\n- Yes\n- No", "target": "No"})");
  EXPECT_EQ(words.questions[0].choices, (Texts{"Yes", "No"}));
  const TaskFile given =
      files.read(R"({"input": "not True is", "target": "False"})", "c.jsonl", {"True", "False"});
  EXPECT_EQ(given.questions[0].choices, (Texts{"True", "False"}));
  EXPECT_EQ(given.questions[0].answer, 1U);
}

TEST(TaskFile, OursAndGsm8k) {
  const Files files;
  const TaskFile ours = files.read(R"({"context": "The sky is", "choices": ["blue", "green"], "answer": 0})");
  EXPECT_EQ(ours.schema, Schema::choices);
  EXPECT_EQ(ours.questions[0].prompt, "The sky is");
  const TaskFile sums = files.read(
      "{\"question\": \"1+1?\", \"answer\": \"One more.\\n#### 2\"}\n"
      "{\"question\": \"1+2?\", \"answer\": \"#### 3\"}\n");
  EXPECT_EQ(sums.schema, Schema::gsm8k);
  EXPECT_TRUE(sums.questions[0].choices.empty());
  // The first that differ from the question: for the first question that is the second.
  EXPECT_EQ(full_prompt(sums, sums.questions[0], {1, {}, {}}),
            "Question: 1+2?\nAnswer: #### 3\n\nQuestion: 1+1?\nAnswer:");
  EXPECT_EQ(full_prompt(sums, sums.questions[1], {1, {}, {}}),
            "Question: 1+1?\nAnswer: One more.\n#### 2\n\nQuestion: 1+2?\nAnswer:");
  EXPECT_CONTAINS(test::message_of<InputError>([&] {
                    full_prompt(sums, sums.questions[1], {2, {}, {}});
                  }),
                  "--shots 2: ");
}

TEST(TaskFile, RefusesNamingTheLine) {
  const Files files;
  const std::string good = R"({"context": "a", "choices": ["b", "c"], "answer": 0})";
  const auto behind_a_good_one = [&](const std::string& line) {
    return files.error(good + "\n" + line + "\n");
  };
  EXPECT_CONTAINS(behind_a_good_one("{\"context\": 3"), "task.jsonl:2");
  EXPECT_CONTAINS(behind_a_good_one(R"({"text": "a"})"),
                  "task.jsonl:2: its keys are text, which fit no schema");
  EXPECT_CONTAINS(behind_a_good_one(R"([1])"), "task.jsonl:2: must be an object");
  EXPECT_CONTAINS(behind_a_good_one(R"({"goal": "a", "sol1": "b", "sol2": "c", "label": 0})"),
                  "task.jsonl:2: its keys are those of piqa, and the first question's those of choices");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": "a", "choices": ["b", "c"], "answer": 2})"),
                  "task.jsonl:2: answer is 2, and there are 2 choices");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": "a", "choices": ["b", "c"], "answer": -1})"),
                  "answer is -1");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": "a", "choices": ["b", "c"], "answer": 0.5})"),
                  "answer is 0.5");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": "a", "choices": ["b", ""], "answer": 0})"),
                  "task.jsonl:2: choice 1 is empty");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": "a", "choices": ["b"], "answer": 0})"), "has 1 choices");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": "a", "choices": "b", "answer": 0})"),
                  "choices must be a list");
  EXPECT_CONTAINS(behind_a_good_one(R"({"context": 1, "choices": ["b", "c"], "answer": 0})"),
                  "context must be a string");
  EXPECT_CONTAINS(files.error(R"({"goal": "a", "sol1": "b", "sol2": "c"})"), "task.jsonl:1: has no label");
  EXPECT_CONTAINS(
      files.error(R"({"activity_label": "a", "ctx_a": "", "ctx_b": "", "endings": ["b", "c"], "label": ""})"),
      "label is empty");
  // What is left of an ending without its markup counts.
  EXPECT_CONTAINS(
      files.error(R"({"activity_label": "a", "ctx_a": "", "ctx_b": "", "endings": ["b", "[x]"], "label": 0})"),
      "choice 1 is empty");
  EXPECT_CONTAINS(
      files.error(R"({"question": "a", "choices": {"text": ["b", "c"], "label": ["A"]}, "answerKey": "A"})"),
      "2 texts and 1 labels");
  EXPECT_CONTAINS(
      files.error(
          R"({"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "C"})"),
      R"(answerKey is "C", and the labels are A, B)");
  EXPECT_CONTAINS(files.error(R"({"question": "a", "choices": ["b", "c"], "answer": 0})"),
                  "a list of 4, has 2");
  EXPECT_CONTAINS(files.error(R"({"question": "a", "answer": "7"})"), "must end in \"#### \"");
  EXPECT_CONTAINS(files.error(R"({"input": "a", "target": "7"})"), "give --choices");
  EXPECT_CONTAINS(files.error(good, {"x", "y"}), "--choices");
  EXPECT_CONTAINS(files.error(""), "task.jsonl");
  EXPECT_CONTAINS(files.error(" \n\n"), "holds no question");
  EXPECT_CONTAINS(files.error("PAR1\x15"), "parquet_to_jsonl.py");
  EXPECT_CONTAINS(files.error("{\"context\": \"\xff\"}"), "byte 13 is not UTF-8");
  EXPECT_CONTAINS(test::message_of<InputError>([&] { read_task_file(files.dir / "none.jsonl"); }),
                  "none.jsonl");
}

}  // namespace
}  // namespace switchyard::tasks
