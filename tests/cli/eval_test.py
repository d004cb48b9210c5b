"""`switchyard eval`: every token but the first is predicted exactly once, and how the work is cut changes nothing."""

import json
import math
import os

import harness
from harness import CliTest

TOTAL = 501  # tokens of data/val.bin


class Eval(CliTest):
    def setUp(self):
        super().setUp()
        self.ok("train", self.write_config(train__steps=8), "--out", "run")

    def report(self, *options, data=("data/val.bin",)):
        finished = self.ok("eval", self.latest("run"), "--data", *data, *options, "--json", "-")
        return json.loads(finished.out)

    def test_report(self):
        report = self.report()
        self.assertEqual(report["tokens"], TOTAL - 1)
        self.assertEqual(report["step"], 8)  # that was judged
        self.assertAlmostEqual(report["perplexity"] / math.exp(report["loss"]), 1.0, delta=1e-9)
        self.assertGreater(report["tokens_per_second"], 0)
        self.assertLess(report["loss"], 5.5)
        balance = report["balance"]
        for key in ("gini", "min_max", "cv", "max_vio", "utilisation"):
            self.assertIn(key, balance)
        self.assertEqual(len(balance["layers"]), 2)
        for layer in balance["layers"]:
            for key in ("gini", "min_max", "cv", "max_vio", "utilisation"):
                self.assertIn(key, layer)

    def test_balance_figures_come_from_the_counts(self):
        for layer in self.report()["balance"]["layers"]:
            counts = sorted(layer["counts"])
            self.assertEqual(sum(counts), 2 * (TOTAL - 1), "two slots a token, each token once")
            n, total = len(counts), sum(counts)
            gini = sum((2 * i - n - 1) * c for i, c in enumerate(counts, 1)) / (n * total)
            # Exact in double; printed figures may be rounded to some nine digits.
            self.assertAlmostEqual(layer["gini"], gini, delta=1e-8)
            self.assertAlmostEqual(layer["min_max"], counts[0] / counts[-1], delta=1e-8)
            self.assertAlmostEqual(layer["max_vio"], counts[-1] * n / total - 1, delta=1e-8)
            self.assertAlmostEqual(layer["utilisation"], sum(c > 0 for c in counts) / n, delta=1e-8)

    def test_what_the_run_validates_on_by_domain(self):
        harness.write_shard(self.dir / "data" / "other.bin", harness.learnable_tokens(301, seed=4))
        validation = [{"path": "data/val.bin", "domain": "one"}, {"path": "data/other.bin", "domain": "other"}]
        self.ok("train", self.write_config(train__steps=4, data__validation=validation), "--out", "domains")
        report = json.loads(self.ok("eval", self.latest("domains"), "--json", "-").out)
        self.assertEqual([(domain["name"], domain["tokens"]) for domain in report["domains"]],
                         [("one", TOTAL - 1), ("other", 300)])
        mean = sum(domain["loss"] * domain["tokens"] for domain in report["domains"]) / (TOTAL - 1 + 300)
        self.assertAlmostEqual(report["loss"] / mean, 1.0, delta=1e-12)  # the same sums, in double
        seen = self.metrics("domains")[-1]["val_layers"]
        for layer, while_training in zip(report["balance"]["layers"], seen, strict=True):
            by_domain = layer["counts_by_domain"]
            self.assertEqual({name: sum(counts) for name, counts in by_domain.items()},
                             {"one": 2 * (TOTAL - 1), "other": 2 * 300})
            self.assertEqual([sum(counts) for counts in zip(*by_domain.values())], layer["counts"])
            self.assertGreaterEqual(layer["specialisation"], 0)
            self.assertLessEqual(layer["specialisation"], 1)  # two domains: one bit at most
            # Another batch size sums in another order, which can move a token that is near a tie.
            self.assertEqual(while_training["layer"], layer["layer"])
            self.assertAlmostEqual(while_training["gini"], layer["gini"], delta=0.01)
            for name, counts in by_domain.items():
                self.assertEqual(sum(while_training["counts_by_domain"][name]), sum(counts))

    def test_no_data_at_all(self):
        self.ok("train", self.write_config(train__steps=2, data__validation=[]), "--out", "blind")
        self.fails(2, "eval", self.latest("blind"), names=["data.validation", "--data"])

    def test_batch_does_not_matter(self):
        reference = self.report("--batch", 1)
        for batch in (2, 3, 7, 64):  # 16 windows of 32: batches that divide them, that do not, and one for all
            report = self.report("--batch", batch)
            self.assertEqual(report["tokens"], reference["tokens"])
            # The matrix products of other shapes sum in another order: float32 rounding only.
            self.assertAlmostEqual(report["loss"] / reference["loss"], 1.0, delta=1e-5)

    def test_windows(self):
        # 500 predictions in windows of 32: 15 whole ones and a last of 20. Of 25: none short. Of 499: a last of one.
        # Of 500: one window; more than the data: the same one, short.
        for seq_len in (25, 32, 33, 64):
            report = self.report("--seq-len", seq_len)
            self.assertEqual(report["tokens"], TOTAL - 1, seq_len)
            self.assertTrue(math.isfinite(report["loss"]))
        # Shorter windows know less of the past: the loss of windows of one cannot see more than the token before.
        self.assertGreater(self.report("--seq-len", 1)["loss"], 0)

    def test_short_last_window_is_weighed_by_its_tokens(self):
        # The mean over all tokens is made of the means over the two parts, each with its own number of predictions:
        # 480 in whole windows (token 480 is the last target), then 20 from token 480 on.
        tokens = harness.learnable_tokens(TOTAL, seed=3)
        harness.write_shard(self.dir / "data" / "head.bin", tokens[:481])
        harness.write_shard(self.dir / "data" / "tail.bin", tokens[480:])
        head = self.report(data=("data/head.bin",))
        tail = self.report(data=("data/tail.bin",))
        self.assertEqual((head["tokens"], tail["tokens"]), (480, 20))
        both = (480 * head["loss"] + 20 * tail["loss"]) / 500
        # Equal up to float32 rounding: the same windows with the same contexts.
        self.assertAlmostEqual(self.report()["loss"] / both, 1.0, delta=1e-5)

    def test_max_tokens(self):
        report = self.report("--max-tokens", 100)
        self.assertEqual(report["tokens"], 100)
        harness.write_shard(self.dir / "data" / "head.bin", harness.learnable_tokens(TOTAL, seed=3)[:101])
        self.assertAlmostEqual(report["loss"] / self.report(data=("data/head.bin",))["loss"], 1.0, delta=1e-5)
        self.assertEqual(self.report("--max-tokens", 10 ** 9)["tokens"], TOTAL - 1)

    def test_two_shards_are_one_stream(self):
        tokens = harness.learnable_tokens(TOTAL, seed=3)
        harness.write_shard(self.dir / "data" / "cut_0.bin", tokens[:200])
        harness.write_shard(self.dir / "data" / "cut_1.bin", tokens[200:])
        report = self.report(data=("data/cut_*.bin",))
        self.assertEqual(report["tokens"], TOTAL - 1)
        self.assertAlmostEqual(report["loss"] / self.report()["loss"], 1.0, delta=1e-5)

    def test_directories_are_domains(self):
        for name, n_tokens, n_bytes, seed in (("law", 301, 900, 4), ("code", 201, 300, 5)):
            path = harness.write_shard(self.dir / name / "val_000000.bin", harness.learnable_tokens(n_tokens, seed=seed))
            (path.parent / "meta.json").write_text(json.dumps({"splits": {"val": {"tokens": n_tokens, "bytes": n_bytes}}}))
        law, code = (self.report(data=(name,)) for name in ("law", "code"))
        self.assertEqual([domain["name"] for domain in law["domains"]], ["data"])
        both = self.report(data=("law/val_*.bin", "code/"))
        self.assertEqual([domain["name"] for domain in both["domains"]], ["law", "code"])
        self.assertEqual([domain["loss"] for domain in both["domains"]], [law["loss"], code["loss"]])
        self.assertEqual(both["tokens"], law["tokens"] + code["tokens"])
        # At most so many of each, and text per token of each.
        some = self.report("--max-tokens", 100, data=("law", "code"))
        self.assertEqual([domain["tokens"] for domain in some["domains"]], [100, 100])
        for domain, text_per_token in zip(some["domains"], (3, 1.5)):
            self.assertAlmostEqual(domain["bits_per_byte"], domain["loss"] / math.log(2) * domain["tokens"] / (domain["tokens"] + 1)
                                   / text_per_token, delta=0.02 * domain["bits_per_byte"])  # 900 of 301, not of 300
        # Of one name: by their paths. A pattern that the shell has taken apart stays one stream.
        harness.write_shard(self.dir / "other" / "law" / "val.bin", harness.learnable_tokens(90, seed=6))
        self.assertEqual([domain["name"] for domain in self.report(data=("law", "other/law/val.bin"))["domains"]],
                         [str(self.dir.resolve() / "law"), str(self.dir.resolve() / "other" / "law")])
        harness.write_shard(self.dir / "law" / "val_000001.bin", harness.learnable_tokens(101, seed=7))
        cut = self.report(data=("law/val_000000.bin", "law/val_000001.bin"))
        self.assertEqual([(domain["name"], domain["tokens"]) for domain in cut["domains"]], [("data", 301 + 101 - 1)])
        one = self.report(data=("law/val_000000.bin", str(self.dir / "law" / "val_000001.bin")))
        self.assertEqual([domain["name"] for domain in one["domains"]], ["data"])

    def test_json_file_and_table(self):
        finished = self.ok("eval", self.latest("run"), "--data", "data/val.bin", "--json", "report.json")
        report = json.loads((self.dir / "report.json").read_text())
        self.assertEqual(report["tokens"], TOTAL - 1)
        self.assertIn("perplexity", finished.out.lower())
        self.assertIn("gini", finished.out.lower())

    def test_bits_per_byte_by_domain(self):
        validation = []
        for name, n_tokens, n_bytes in (("law", 301, 900), ("code", 201, 300)):
            path = harness.write_shard(self.dir / name / "val_000000.bin", harness.learnable_tokens(n_tokens, seed=4))
            (path.parent / "meta.json").write_text(json.dumps({"splits": {"val": {"tokens": n_tokens, "bytes": n_bytes}}}))
            validation.append({"path": f"{name}/val_*.bin", "domain": name})
        self.ok("train", self.write_config(train__steps=2, data__validation=validation), "--out", "text")

        def report(*options):
            finished = self.ok("eval", self.latest("text"), *options, "--json", "-")
            return json.loads(finished.out), finished.err

        def expect(part, nats, n_bytes, estimated):
            # The same quotients in double, in another order.
            self.assertAlmostEqual(part["bits_per_byte"] / (nats / math.log(2) / n_bytes), 1.0, delta=1e-12)
            self.assertEqual(part["bits_per_byte_is_estimated"], estimated)

        whole, text = report()
        law, code = whole["domains"]
        expect(law, 300 * law["loss"], 900, False)
        expect(code, 200 * code["loss"], 300, False)
        expect(whole, 300 * law["loss"] + 200 * code["loss"], 1200, False)
        self.assertNotIn("estimated", text)
        for name, part in (("law", law), ("code", code), ("all domains", whole)):
            self.assertRegex(text, rf"(?m)^{name} +{part['loss']:.4f} +{part['perplexity']:.3f} "
                                   rf"+{part['bits_per_byte']:.4f} +{part['tokens']}$")
        # Another batch size than the run's: float32 rounding.
        seen = self.metrics("text")[-1]["val_bits_per_byte"]
        self.assertAlmostEqual(seen / whole["bits_per_byte"], 1.0, delta=1e-5)

        part, text = report("--max-tokens", 100)
        law, code = part["domains"]
        expect(law, 100 * law["loss"], 100 * 900 / 301, True)
        expect(code, 100 * code["loss"], 100 * 300 / 201, True)
        self.assertRegex(text, rf"(?m)^law .* ~{law['bits_per_byte']:.4f} +100$")
        self.assertIn("estimated", text)

        (self.dir / "code" / "meta.json").unlink()
        partly, text = report()
        self.assertIn("bits_per_byte", partly["domains"][0])
        self.assertNotIn("bits_per_byte", partly["domains"][1])
        self.assertNotIn("bits_per_byte", partly)
        self.assertRegex(text, r"(?m)^all domains .* unknown +500$")

    def test_other_layouts(self):
        for layout in ("mixtral", "olmoe"):
            config = self.write_config(harness.tiny_config(layout), train__steps=8)
            self.ok("train", config, "--out", layout)
            finished = self.ok("eval", self.latest(layout), "--data", "data/val.bin", "--json", "-")
            self.assertEqual(json.loads(finished.out)["tokens"], TOTAL - 1)

    def test_latest_and_run_directory(self):
        by_name = self.ok("eval", "run/checkpoints/latest", "--data", "data/val.bin", "--json", "-")
        self.assertEqual(json.loads(by_name.out)["loss"], self.report()["loss"])

    def test_bad_options(self):
        checkpoint = self.latest("run")
        for options, name in ((("--seq-len", "0"), "seq-len"), (("--seq-len", "-3"), "seq-len"),
                              (("--batch", "0"), "batch"), (("--batch", "two"), "batch"),
                              (("--max-tokens", "-1"), "max-tokens"), (("--sequence", "3"), "sequence")):
            with self.subTest(options):
                self.fails(2, "eval", checkpoint, "--data", "data/val.bin", *options, names=[name])
        self.fails(2, "eval", checkpoint, "--data", "data/none_*.bin", names=[r"none_\*\.bin"])
        self.fails(2, "eval", "nowhere", "--data", "data/val.bin", names=["nowhere"])
        self.fails(2, "eval", "data", "--data", "data/val.bin", names=["data"])
        harness.write_shard(self.dir / "data" / "one.bin", [40])
        self.fails(2, "eval", checkpoint, "--data", "data/one.bin", names=[r"one\.bin|1 token"])

    def test_report_that_cannot_be_written(self):
        self.fails(2, "eval", self.latest("run"), "--data", "data/val.bin", "--json", "missing/report.json",
                   names=["missing/report.json"])
        # Tried before the data are, and what is there stays.
        self.fails(2, "eval", self.latest("run"), "--data", "nowhere.bin", "--json", "missing/report.json",
                   names=["missing/report.json"])
        (self.dir / "old.json").write_text("old")
        self.fails(2, "eval", self.latest("run"), "--data", "nowhere.bin", "--json", "old.json", names=["nowhere.bin"])
        self.assertEqual((self.dir / "old.json").read_text(), "old")
        self.fails(2, "eval", self.latest("run"), "--data", "nowhere.bin", "--json", "new.json", names=["nowhere.bin"])
        self.assertFalse((self.dir / "new.json").exists())
        (self.dir / "place").mkdir()
        self.fails(2, "eval", self.latest("run"), "--data", "nowhere.bin", "--json", "place", names=["place: is a directory"])
        # What is no plain file is not opened before its time: a reader of a pipe would see its end.
        os.mkfifo(self.dir / "pipe")
        process = self.start("eval", self.latest("run"), "--data", "data/val.bin", "--json", "pipe")
        self.assertIn("loss", json.loads((self.dir / "pipe").read_text()))
        self.finish(process)
        (self.dir / "link.json").symlink_to("real.json")
        self.ok("eval", self.latest("run"), "--data", "data/val.bin", "--json", "link.json")
        self.assertTrue((self.dir / "link.json").is_symlink())
        self.assertIn("loss", json.loads((self.dir / "real.json").read_text()))
        self.fails(2, "eval", self.latest("run"), "--data", "data/val.bin", "--json", "/dev/full", names=["/dev/full"])


if __name__ == "__main__":
    harness.main()
