"""`switchyard eval --task`: figures follow from the log-probabilities of each question, and these from the logits."""

import json
import math
import pathlib

import harness
from harness import CliTest

FILES = pathlib.Path(__file__).resolve().parents[1] / "tasks"
META = {"tokenizer": "bytes", "tokenizer_sha256": None, "vocab_size": 257, "eot_token": 256}
CHOICE_TASKS = ("hellaswag", "arc", "piqa", "mmlu", "bbh", "choices")


def first_largest(values):
    return values.index(max(values))


class Tasks(CliTest):
    def setUp(self):
        super().setUp()
        text = b"".join((FILES / f"{name}.jsonl").read_bytes() for name in CHOICE_TASKS)
        harness.write_shard(self.dir / "data" / "train_000.bin", [256, *text])
        (self.dir / "data" / "train_001.bin").unlink()
        (self.dir / "data" / "meta.json").write_text(json.dumps(META))
        config = harness.tiny_config()
        config["model"]["max_position_embeddings"] = 512
        self.ok("train", self.write_config(config, train__steps=12, data__validation=[], train__eval_every=0), "--out", "run")

    def ask(self, *files, options=(), model="run"):
        """-> (the report of each task, the samples)."""
        done = self.ok("eval", model, "--task", *files, *options, "--json", "-", "--samples", "samples.jsonl")
        samples = [json.loads(line) for line in (self.dir / "samples.jsonl").read_text().splitlines()]
        return json.loads(done.out)["tasks"], samples

    def write_questions(self, *lines, name="q.jsonl"):
        (self.dir / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
        return name

    def log_probability(self, context, continuation):
        """By the logits of `dump`, in double."""
        tokens = [256, *(context + continuation).encode()]
        harness.write_tokens(self.dir / "tokens.safetensors", tokens)
        self.ok("dump", self.latest("run"), "--tokens", "tokens.safetensors", "--out", "dump.safetensors")
        _, shape, logits = harness.read_safetensors(self.dir / "dump.safetensors")["logits"]
        vocab, total = shape[-1], 0.0
        for t in range(len(tokens) - len(continuation.encode()), len(tokens)):
            row = logits[(t - 1) * vocab:t * vocab]
            total += row[tokens[t]] - math.log(sum(math.exp(x) for x in row))
        return total

    def test_figures_follow_from_the_log_probabilities(self):
        reports, samples = self.ask(*(FILES / f"{name}.jsonl" for name in CHOICE_TASKS))
        self.assertEqual([report["task"] for report in reports], list(CHOICE_TASKS))
        for report in reports:
            own = [sample for sample in samples if sample["task"] == report["task"]]
            lines = (FILES / f"{report['task']}.jsonl").read_text().splitlines()
            self.assertEqual((report["schema"], report["questions"], report["shots"]), (report["task"], len(lines), 0))
            n = report["questions"]
            lengths = {"acc": lambda choice: 1, "acc_norm": len, "acc_bytes": lambda choice: len(choice.encode())}
            for metric, length in lengths.items():
                right = [first_largest([p / length(choice) for p, choice in zip(s["log_probabilities"], s["choices"])])
                         == s["answer"] for s in own]
                self.assertEqual([s[metric] for s in own], right)
                share = sum(right) / n
                self.assertAlmostEqual(report[metric], share, delta=1e-12)
                self.assertAlmostEqual(report[f"{metric}_stderr"], math.sqrt(share * (1 - share) / (n - 1)), delta=1e-12)
        # Nothing of this is the same everywhere, or the comparison would say little.
        self.assertGreater(len({report["acc"] for report in reports}), 2)
        self.assertTrue(any(sample["acc"] != sample["acc_norm"] for sample in samples))

    def test_log_probabilities_are_those_of_the_logits(self):
        _, samples = self.ask(FILES / "choices.jsonl", options=("--limit", 4))
        for sample in samples:
            for choice, found in zip(sample["choices"], sample["log_probabilities"]):
                # Of a float32 model, a few dozen tokens, batched otherwise.
                self.assertAlmostEqual(found, self.log_probability(sample["prompt"].rstrip(), " " * (
                    len(sample["prompt"]) - len(sample["prompt"].rstrip())) + " " + choice), delta=1e-3)

    def test_batches_and_ranks_change_nothing(self):
        (expected,), samples = self.ask(FILES / "arc.jsonl", options=("--batch", 1))
        for options in (("--batch", 7), ("--batch", 200), ("--nproc", 2, "--threads", 1)):
            with self.subTest(options):
                (report,), others = self.ask(FILES / "arc.jsonl", options=options)
                for sample, other in zip(samples, others, strict=True):
                    for a, b in zip(sample["log_probabilities"], other["log_probabilities"], strict=True):
                        self.assertAlmostEqual(a, b, delta=1e-3)  # products of other shapes: float32 rounding
                self.assertEqual(report["questions"], expected["questions"])

    def test_an_export_scores_the_same(self):
        self.ok("export", "run", "--out", "exported")
        (expected,), samples = self.ask(FILES / "piqa.jsonl")
        (report,), others = self.ask(FILES / "piqa.jsonl", model="exported")
        self.assertEqual([s["log_probabilities"] for s in others], [s["log_probabilities"] for s in samples])
        self.assertEqual(report["acc"], expected["acc"])

    def test_shots(self):
        a, b, c = ({"context": f"{name} is", "choices": [name, "not"], "answer": i} for name, i in (("p", 0), ("q", 1), ("r", 0)))
        name = self.write_questions(a, b, c)
        _, samples = self.ask(name, options=("--shots", 2))
        shown = {"p": "p is p\n\n", "q": "q is not\n\n", "r": "r is r\n\n"}
        self.assertEqual([s["prompt"] for s in samples], [shown["q"] + shown["r"] + "p is", shown["p"] + shown["r"] + "q is",
                                                          shown["p"] + shown["q"] + "r is"])
        shots = self.write_questions(a, c, name="shots.jsonl")
        (report,), samples = self.ask(name, options=("--shots", 1, "--shots-file", shots, "--description", "Say. ",
                                                     "--limit", 1))
        self.assertEqual(samples[0]["prompt"], "Say. " + shown["p"] + "p is")
        self.assertEqual((report["questions"], report["shots"]), (1, 1))
        self.assertNotIn("acc_stderr", [key for key, value in report.items() if value is not None])
        self.fails(2, "eval", "run", "--task", name, "--shots", 3, names=["--shots 3", "2 examples"])
        self.fails(2, "eval", "run", "--task", name, "--shots-file", shots, names=["--shots-file"])
        self.fails(2, "eval", "run", "--task", name, "--shots", 1, "--shots-file", FILES / "piqa.jsonl",
                   names=["piqa.jsonl: its schema is piqa"])

    def test_generated_answers(self):
        (report,), samples = self.ask(FILES / "gsm8k.jsonl", options=("--max-new-tokens", 20, "--limit", 5))
        self.assertEqual((report["schema"], report["questions"]), ("gsm8k", 5))
        for sample in samples:
            whole = json.loads(self.ok("generate", "run", "--prompt", sample["prompt"], "--greedy", "--max-new-tokens", 20,
                                       "--json").out)["text"]
            self.assertEqual(sample["text"], whole.split("Question:")[0])
        for batch in (1, 2, 16):  # prompts of 100 to 300 bytes: shorter ones go on while longer ones are still shown
            (again,), others = self.ask(FILES / "gsm8k.jsonl", options=("--max-new-tokens", 20, "--limit", 5, "--batch", batch))
            self.assertEqual(others, samples)
            self.assertEqual([again[m] for m in ("strict_match", "flexible_extract")],
                             [report[m] for m in ("strict_match", "flexible_extract")])
        for metric in ("strict_match", "flexible_extract"):
            self.assertEqual(report[metric], sum(sample[metric] for sample in samples) / 5)
        _, ranked = self.ask(FILES / "gsm8k.jsonl", options=("--max-new-tokens", 20, "--limit", 5, "--nproc", 2,
                                                             "--threads", 1))
        self.assertEqual([s["prompt"] for s in ranked], [s["prompt"] for s in samples])
        self.fails(2, "eval", "run", "--task", FILES / "gsm8k.jsonl", "--max-new-tokens", 512, names=["--max-new-tokens 512", "512 tokens"])

    def test_what_is_too_long(self):
        fits = {"context": "c" * 900, "choices": ["a", "b"], "answer": 0}
        done = self.ok("eval", "run", "--task", self.write_questions(fits), "--json", "-")
        self.assertEqual(json.loads(done.out)["tasks"][0]["truncated"], 2)
        self.assertRegex(done.err, "2 prompts are longer than the 512 tokens")
        _, cut = self.ask("q.jsonl")
        _, short = self.ask(self.write_questions({**fits, "context": "c" * 800}))
        # What is left of both is the same, which begins with no begin token.
        self.assertEqual(cut[0]["log_probabilities"], short[0]["log_probabilities"])
        longer = {"context": "c", "choices": ["a", "b" * 600], "answer": 0}
        self.fails(2, "eval", "run", "--task", self.write_questions(fits, longer), names=[r"q\.jsonl:2: choice 1 alone has 601"])
        self.fails(2, "eval", "run", "--task", "q.jsonl", "--seq-len", 513, names=["--seq-len 513"])

    def test_bad_files_and_options(self):
        good = {"context": "c", "choices": ["a", "b"], "answer": 0}
        for lines, names in (([], ["q.jsonl"]), ([good, {"text": "x"}], [r"q\.jsonl:2", "no schema"]),
                             ([good, {**good, "answer": 2}], [r"q\.jsonl:2: answer is 2"]),
                             ([{**good, "choices": ["", "b"]}], [r"q\.jsonl:1: choice 0 is empty"])):
            with self.subTest(names):
                self.fails(2, "eval", "run", "--task", self.write_questions(*lines), names=names)
        name = self.write_questions(good)
        self.fails(2, "eval", "run", "--task", "none.jsonl", names=["none.jsonl"])
        self.fails(2, "eval", "run", "--task", name, "--data", "data/val.bin", names=["--data"])
        self.fails(2, "eval", "run", "--shots", "1", names=["--task"])
        self.fails(2, "eval", "run", "--task", name, "--samples", "missing/s.jsonl", names=["missing/s.jsonl"])
        self.ok("export", "run", "--out", "bare")
        (self.dir / "bare" / "tokenizer.json").unlink()
        self.fails(2, "eval", "bare", "--task", name, names=["no tokenizer.json", "--tokenizer"])
        self.ok("eval", "bare", "--task", name, "--tokenizer", "bytes")

    def train_with_tasks(self, out, *options, **changes):
        settings = {"train__steps": 6, "train__eval_every": 3, "data__validation": [], "eval__limit": 9, "eval__shots": 1,
                    "eval__tasks": [str(FILES / "choices.jsonl"), str(FILES / "arc.jsonl")], **changes}
        return self.ok("train", self.write_config(name=f"{out}.json", **settings), "--out", out, *options)

    def test_in_training(self):
        done = self.train_with_tasks("asked")
        asked = {line["step"]: line["tasks"] for line in self.metrics("asked") if "tasks" in line}
        self.assertEqual(sorted(asked), [3, 6])
        done_again, _ = self.ask(FILES / "choices.jsonl", FILES / "arc.jsonl", model="asked", options=(
            "--limit", 9, "--shots", 1, "--seq-len", harness.SEQ_LEN, "--batch", 2))
        for report in done_again:
            seen = asked[6][report["task"]]
            self.assertEqual(seen, {key: report[key] for key in seen})
            self.assertEqual(set(seen), {name + end for name in ("acc", "acc_norm", "acc_bytes") for end in ("", "_stderr")})
            self.assertRegex(done.out, rf"(?m)^step 6  {report['task']}: acc {report['acc']:.4f}, acc_norm ")
        # To ask changes nothing that is learned.
        self.ok("train", self.write_config(name="silent.json", train__steps=6, data__validation=[], train__eval_every=0),
                "--out", "silent")
        self.assertEqual(self.losses("asked"), self.losses("silent"))
        self.assertEqual(self.weights("asked"), self.weights("silent"))

    def test_in_training_on_ranks(self):
        self.train_with_tasks("one", parallel__threads=1)
        for options in ({}, {"parallel__expert": 2, "parallel__expert_room": 1}):
            out = f"two{len(options)}"
            self.train_with_tasks(out, "--nproc", 2, parallel__threads=1, **options)
            one, two = self.metrics("one")[-1]["tasks"], self.metrics(out)[-1]["tasks"]
            for task, figures in one.items():
                for name, value in figures.items():
                    # Sums over ranks round otherwise, so that one of nine questions may be answered otherwise.
                    self.assertAlmostEqual(two[task][name], value, delta=1.5 / 9, msg=f"{task} {name}")

    def test_tasks_that_cannot_be_asked_in_training(self):
        def refused(*names, **changes):
            changes = {"data__validation": [], "train__eval_every": 2, **changes}
            self.fails(2, "train", self.write_config(name="bad.json", **changes), "--out", "bad", names=names)
            self.assertFalse((self.dir / "bad").exists())

        choices = str(FILES / "choices.jsonl")
        refused("eval.tasks", "generated", eval__tasks=[str(FILES / "gsm8k.jsonl")])
        refused("two files are called choices", eval__tasks=[choices, choices])
        refused("none.jsonl", eval__tasks=["none.jsonl"])
        refused(r"eval\.tasks", "array of paths", eval__tasks="none.jsonl")
        refused("--shots 99|99 examples", eval__tasks=[choices], eval__shots=99)
        refused("choice 3 alone has", eval__tasks=[str(FILES / "hellaswag.jsonl")])
        refused("eval_every", "eval.tasks")
        refused(r"none_\*\.bin", eval__tasks=[choices], data__train=["data/none_*.bin"])
        (self.dir / "data" / "meta.json").unlink()
        refused("eval.tasks", "meta.json", eval__tasks=[choices])


if __name__ == "__main__":
    harness.main()
