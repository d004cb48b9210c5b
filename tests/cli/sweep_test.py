"""`switchyard sweep`: what it runs, what it does not run again, how it stops, its table, and what is refused."""

import json
import math
import re
import shutil
import signal
import statistics
import time

import harness
from harness import CliTest

SET = {"train.steps": 4, "train.eval_every": 1, "train.eval_tokens": 64, "checkpoint.every": 2}


class Sweep(CliTest):
    def write_spec(self, **changes):
        self.write_config()
        spec = {"config": "config.json", "set": SET, "seeds": [1, 2, 3],
                "variants": [{"name": "base"}, {"name": "quantile", "set": {"router.type": "quantile", "router.balance_coef": 0, "router.z_loss_coef": 0}}],
                **changes}
        spec = {key: value for key, value in spec.items() if value is not None}
        if "budget" in spec and spec["set"] is SET:
            spec["set"] = {key: value for key, value in SET.items() if key != "train.steps"}
        (self.dir / "spec.json").write_text(json.dumps(spec))
        return "spec.json"

    def sweep(self, *options):
        finished = self.ok("sweep", "spec.json", "--out", "out", *options)
        return json.loads((self.dir / "out" / "sweep.json").read_text()), finished

    def table(self, *options):
        """What is printed, which may be another than what is kept in the file."""
        finished = self.ok("sweep", "spec.json", "--out", "out", "--table", "--json", "-", *options)
        return json.loads(finished.out), finished

    def result(self, run, name="eval"):
        return json.loads((self.dir / "out" / run / f"{name}.json").read_text())

    def test_means_and_paired_differences_are_those_of_the_runs(self):
        self.write_spec(jobs=2, detect=0.01, evaluate=[{"name": "all"}, {"name": "some", "max_tokens": 60}])
        table, finished = self.sweep()
        base, quantile = table["variants"]
        losses = {name: [self.result(f"{name}_seed{seed}")["loss"] for seed in (1, 2, 3)] for name in ("base", "quantile")}
        for row in (base, quantile):
            loss = losses[row["name"]]
            self.assertEqual(row["loss"]["all"]["each"], loss)
            self.assertAlmostEqual(row["loss"]["all"]["mean"], statistics.mean(loss), delta=1e-12)  # sums of three numbers
            self.assertAlmostEqual(row["loss"]["all"]["std_error"], statistics.stdev(loss) / math.sqrt(3), delta=1e-12)
            self.assertEqual((row["loss"]["all"]["tokens"], row["loss"]["some"]["tokens"]), (500, 60))
            self.assertEqual(row["loss"]["some"]["each"],
                             [self.result(f"{row['name']}_seed{seed}", "eval_some")["loss"] for seed in (1, 2, 3)])
            self.assertEqual(row["gini"]["each"],
                             [self.result(f"{row['name']}_seed{seed}")["balance"]["gini"] for seed in (1, 2, 3)])
            for i, percent in enumerate((25, 50, 75, 100)):
                self.assertEqual(row["validation_gini"][str(percent)]["each"],
                                 [self.metrics(f"out/{row['name']}_seed{seed}")[i]["val_balance"]["gini"] for seed in (1, 2, 3)])
            self.assertEqual(row["steps"], 4)
            self.assertEqual(row["training_tokens"], self.metrics(f"out/{row['name']}_seed1")[-1]["tokens"])
            described = self.ok("inspect", f"out/{row['name']}_seed1/config.json").out
            self.assertEqual(row["parameters"], {part: int(re.search(rf"  {part}: (\d+)", described)[1])
                                                 for part in ("total", "active")})
        self.assertNotIn("against", base)
        differences = [one - other for one, other in zip(losses["quantile"], losses["base"])]
        against = quantile["against"]
        self.assertEqual((against["name"], against["seeds"]), ("base", [1, 2, 3]))
        self.assertEqual(against["loss_difference"]["each"], differences)
        self.assertAlmostEqual(against["t"], statistics.mean(differences) / (statistics.stdev(differences) / math.sqrt(3)),
                               delta=1e-9 * abs(against["t"]))  # the same sums in another order
        self.assertTrue(0 < against["p"] < 1)
        self.assertGreaterEqual(against["seeds_to_see_detect"], 2)
        self.assertIn("| quantile | 3 |", finished.out)
        self.assertEqual((self.dir / "out" / "sweep.markdown").read_text(), finished.out)

    def test_nothing_is_done_twice(self):
        self.write_spec(seeds=[1])
        self.sweep()
        before = harness.snapshot(self.dir / "out")
        _, finished = self.sweep()
        self.assertIn("0 of 2 runs to do", finished.err)
        self.assertEqual(harness.snapshot(self.dir / "out"), before)
        # One more seed, and another evaluation: that alone.
        self.write_spec(seeds=[1, 5], evaluate=[{"name": "validation", "max_tokens": 100}])
        table, finished = self.sweep("--json", "table.json")
        self.assertIn("4 of 4 runs to do", finished.err)
        self.assertEqual((self.dir / "out" / "base_seed1" / "metrics.jsonl").read_bytes(), before["base_seed1/metrics.jsonl"])
        self.assertEqual(table["variants"][0]["loss"]["validation"]["tokens"], 100)
        self.assertEqual(json.loads((self.dir / "table.json").read_text()), table)
        shutil.rmtree(self.dir / "out" / "base_seed5")
        _, finished = self.sweep("--table")
        self.assertIn("| base | 1 of 2 |", finished.out)

    def test_runs_of_other_settings_are_not_gone_on_with(self):
        self.write_spec(seeds=[1])
        self.sweep()
        self.write_spec(seeds=[1], set={**SET, "train.lr": 0.02})
        before = harness.snapshot(self.dir / "out")
        self.fails(2, "sweep", "spec.json", "--out", "out", names=["base_seed1", "train.lr is 0.01 there and 0.02 here"])
        self.assertEqual(harness.snapshot(self.dir / "out"), before)

    def start_until_it_trains(self, **popen):
        process = self.start("sweep", "spec.json", "--out", "out", **popen)
        metrics = self.dir / "out" / "base_seed1" / "metrics.jsonl"
        end = time.monotonic() + 50
        while not (metrics.exists() and metrics.read_bytes().count(b"\n") >= 3):
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)
        return process

    def test_nohup_keeps_a_sweep_going(self):
        self.write_spec(set={**SET, "train.steps": 200}, seeds=[1], variants=[{"name": "base"}])
        process = self.start_until_it_trains(preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        process.send_signal(signal.SIGHUP)
        finished = self.finish(process)
        self.assertEqual(finished.code, 0, finished)
        self.assertEqual(self.result("base_seed1")["step"], 200)

    def test_a_sweep_that_was_stopped_goes_on_to_the_same_figures(self):
        self.write_spec(set={**SET, "train.steps": 200}, seeds=[1], variants=[{"name": "base"}])
        self.ok("sweep", "spec.json", "--out", "whole")
        process = self.start_until_it_trains()
        process.send_signal(signal.SIGINT)
        finished = self.finish(process)
        self.assertEqual(finished.code, 128 + signal.SIGINT, finished)
        self.assertIn("the same command goes on", finished.err)
        self.assertTrue(self.checkpoints("out/base_seed1"), "the run did not save")
        self.assertLess(len(self.metrics("out/base_seed1")), 200)
        self.sweep()
        self.assert_same_run("out/base_seed1", "whole/base_seed1")

    def test_only_results_of_what_the_file_says_are_in_the_table(self):
        self.write_spec(seeds=[1])
        table, _ = self.sweep()
        losses = [row["loss"]["validation"]["mean"] for row in table["variants"]]
        # However OUT is written, and wherever it lies.
        shutil.move(self.dir / "out", self.dir / "moved")
        for out in ("moved", "./moved", "moved/", str(self.dir / "moved")):
            found = json.loads(self.ok("sweep", "spec.json", "--out", out, "--table", "--threads", "2", "--json", "-").out)
            self.assertEqual([row["loss"]["validation"]["mean"] for row in found["variants"]], losses)
            self.assertIn("0 of 2 runs to do", self.ok("sweep", "spec.json", "--out", out).err)
        shutil.move(self.dir / "moved", self.dir / "out")
        # Other data, other settings: what is there is not what is asked for.
        self.write_spec(seeds=[1], evaluate=[{"name": "validation", "data": "data/train_*.bin"}])
        table, _ = self.table()
        self.assertEqual([row["seeds_without_result"] for row in table["variants"]], [[1], [1]])
        self.write_spec(seeds=[1], set={**SET, "train.lr": 0.02})
        table, finished = self.table()
        self.assertEqual([row["seeds_without_result"] for row in table["variants"]], [[1], [1]])
        self.assertRegex(finished.err, r"base_seed1: is a run of other settings: train\.lr is 0\.01 there and 0\.02 here; it is not in the table")

    def test_a_program_that_is_replaced_meanwhile_goes_on_as_it_was(self):
        self.write_spec(seeds=[1, 2, 3], variants=[{"name": "base"}])
        program = self.dir / "program"
        shutil.copy(harness.BINARY, program)
        self.binary = str(program)
        process = self.start("sweep", "spec.json", "--out", "out")
        end = time.monotonic() + 50
        while not (self.dir / "out" / "logs" / "base_seed1.log").exists():
            self.assertLess(time.monotonic(), end)
            time.sleep(0.001)
        program.unlink()
        program.write_text("#!/bin/sh\nexit 3\n")
        finished = self.finish(process)
        self.assertEqual(finished.code, 0, finished)
        self.assertIn("| base | 3 |", finished.out)

    def test_a_model_without_experts_has_no_balance(self):
        self.write_spec(seeds=[1], variants=[{"name": "mixture"}, {"name": "dense", "set": {"model.mlp_only_layers": [0, 1], "model.intermediate_size": 16}}])
        mixture, dense = self.sweep()[0]["variants"]
        self.assertIsNotNone(mixture["gini"])
        self.assertIn("validation_gini", mixture)
        self.assertEqual((dense["gini"], dense["min_max"]), (None, None))
        self.assertNotIn("validation_gini", dense)

    def test_a_grid_its_names_and_what_is_compared_with_what(self):
        self.write_spec(grid={"train.lr": [0.01, 0.02]}, seeds=[1],
                        variants=[{"name": "base"}, {"name": "lpr", "set": {"router.type": "lpr", "router.balance_coef": 0, "router.z_loss_coef": 0}},
                                  {"name": "other", "grid": {"train.beta1": [0.5]}, "against": "fixed"},
                                  {"name": "fixed", "grid": {}, "against": "fixed"}])
        out = self.ok("sweep", "spec.json", "--dry-run").out
        for run in ("base_lr=0.01", "base_lr=0.02", "lpr_lr=0.01", "lpr_lr=0.02", "other_beta1=0.5", "fixed"):
            self.assertIn(f"--out runs/spec/{run}_seed1 ", out)
        self.assertEqual(out.count(" train "), 6)
        self.assertFalse((self.dir / "runs").exists())
        # What is not there yet is said, and is no hindrance.
        dry = self.ok("sweep", "spec.json", "--dry-run", "--set", 'data.validation=["data/later_*.bin"]')
        self.assertEqual(dry.err.count("evaluate.0.data: data/later_*.bin: no such file"), 1)
        # Kept for the other's sake: its baseline at the same point.
        out = self.ok("sweep", "spec.json", "--dry-run", "--only", "^lpr_lr=0.02$").out
        self.assertEqual([word for line in out.splitlines() if " train " in line for word in line.split() if "_seed" in word],
                         ["runs/spec/base_lr=0.02_seed1", "runs/spec/lpr_lr=0.02_seed1"])

    def test_a_variant_with_a_grid_of_its_own_may_be_compared_with_none(self):
        grid = {"train.lr": [0.01, 0.02]}
        for variants in ([{"name": "base"}, {"name": "lr", "against": "lr", "grid": grid}], [{"name": "lr", "grid": grid}]):
            self.write_spec(seeds=[1], variants=variants)
            table, _ = self.sweep()
            self.assertEqual([row["name"] for row in table["variants"]][-2:], ["lr_lr=0.01", "lr_lr=0.02"])
            self.assertTrue(all("against" not in row for row in table["variants"]))

    def test_a_part_of_a_sweep_leaves_the_whole_table(self):
        self.write_spec(seeds=[1])
        self.sweep("--only", "^quantile$", "--seeds", "1,2")
        table, finished = self.sweep("--only", "^base$")
        self.assertEqual([row["name"] for row in table["variants"]], ["base", "quantile"])
        self.assertEqual([row["seeds"] for row in table["variants"]], [[1, 2], [1, 2]])
        self.assertNotIn("quantile", finished.out)
        # One that is not asked for and cannot be read is no hindrance to what is.
        self.write_spec(seeds=[1], variants=[{"name": "base"}, {"name": "other", "config": "nowhere.json"}])
        finished = self.ok("sweep", "spec.json", "--out", "out", "--only", "^base$", "--table")
        self.assertIn("| base | 1 |", finished.out)
        self.assertRegex(finished.err, 'sweep.json stays as it is.*variant "other".*nowhere.json')

    def test_one_who_looks_with_other_settings_leaves_the_table(self):
        self.write_spec(seeds=[1])
        table, _ = self.sweep()
        for options in (("--table", "--set", "train.steps=7"), ("--table", "--set", "router.z_loss_coef=0")):
            seen, finished = self.sweep(*options)
            self.assertEqual(seen, table)
            self.assertIn("sweep.json stays as it is", finished.err)
        self.write_spec(seeds=[1], variants=[{"name": "other"}])
        self.assertEqual(self.sweep("--table")[0], table)
        record = self.dir / "out" / "evaluations.json"
        record.write_text("")
        self.fails(2, "sweep", "spec.json", "--out", "out", names=["evaluations.json", "remove it: what is evaluated is then evaluated again"])

    def test_a_seed_without_its_pair_is_no_part_of_the_difference(self):
        self.write_spec()
        self.sweep()
        shutil.rmtree(self.dir / "out" / "base_seed2")
        table, finished = self.sweep("--table")
        self.assertEqual(table["variants"][1]["against"]["seeds"], [1, 3])
        self.assertRegex(finished.out, r"\| quantile \| 3 \|.*± [0-9.]+ \(2 pairs\) \|")

    def test_other_data_under_the_same_names_are_not_the_same(self):
        test = self.dir / "data" / "test_000000.bin"
        harness.write_shard(test, harness.learnable_tokens(90, seed=30))
        self.write_spec(seeds=[1], variants=[{"name": "base"}], evaluate=[{"name": "test", "data": "data/test_*.bin"}])
        self.sweep()
        before = self.result("base_seed1")["tokens"]
        harness.write_shard(test, harness.learnable_tokens(70, seed=31))
        self.assertIn("| base | 0 of 1 |", self.sweep("--table")[1].out)
        _, finished = self.sweep()
        self.assertIn("1 of 1 runs to do", finished.err)
        self.assertLess(self.result("base_seed1")["tokens"], before)
        # Of earlier programs there is the command alone.
        record = self.dir / "out" / "evaluations.json"
        recorded = json.loads(record.read_text())
        record.write_text(json.dumps({result: entry["command"] for result, entry in recorded.items()}))
        self.assertIn("0 of 1 runs to do", self.sweep()[1].err)
        record.write_text(json.dumps(recorded))
        # A result of another program's, in the place of the sweep's.
        (self.dir / "out" / "base_seed1" / "eval.json").write_text('{"loss": 1.0, "tokens": 5}')
        _, finished = self.sweep()
        self.assertIn("1 of 1 runs to do", finished.err)
        self.assertGreater(self.result("base_seed1")["tokens"], 5)
        shard = next((self.dir / "data").glob("train_*.bin"))
        whole = shard.read_bytes()
        harness.write_shard(shard, harness.learnable_tokens(700, seed=32))
        self.fails(2, "sweep", "spec.json", "--out", "out", names=["base_seed1: was trained on other data: data.train: train_.* has other tokens"])
        table, finished = self.sweep("--table")
        self.assertIn("| base | 0 of 1 |", finished.out)
        self.assertIn("was trained on other data", finished.err)
        # What is done needs no data; what is not, does.
        shard.write_bytes(whole)
        (self.dir / "data").rename(self.dir / "gone")
        self.assertIn("0 of 1 runs to do", self.sweep()[1].err)
        self.fails(2, "sweep", "spec.json", "--out", "out", "--seeds", "1,2", names=[r"evaluate\.0\.data: data/test_"])
        (self.dir / "gone").rename(self.dir / "data")
        self.assertIn("0 of 1 runs to do", self.sweep()[1].err)

    def test_configurations_by_name(self):
        self.write_config(model=None)
        self.write_spec(config=None, configs={"one": "config.json", "two": "config.json"}, seeds=[1])
        table, _ = self.sweep()
        self.assertEqual([(row["name"], row.get("against", {}).get("name")) for row in table["variants"]],
                         [("one_base", None), ("one_quantile", "one_base"), ("two_base", None), ("two_quantile", "two_base")])

    def test_budgets(self):
        # A step has 4 sequences of 32 tokens.
        self.write_spec(budget={"tokens": 3 * 4 * 32}, seeds=[1], variants=[{"name": "base"}])
        self.assertEqual(self.sweep()[0]["variants"][0]["steps"], 3)
        flops = 3 * self.metrics("out/base_seed1")[0]["flops_per_token_static"]
        self.write_spec(budget={"flops": 5 * 4 * 32 * flops}, seeds=[1], variants=[{"name": "base"}])
        shutil.rmtree(self.dir / "out")
        self.assertEqual(self.sweep()[0]["variants"][0]["steps"], 5)
        self.write_spec(budget={"minutes": 0.002}, seeds=[1], variants=[{"name": "base"}])
        shutil.rmtree(self.dir / "out")
        steps = self.sweep()[0]["variants"][0]["steps"]
        speed = json.loads((self.dir / "out" / "speed_base.json").read_text())["parts"][0]["tokens_per_second"]["median"]
        self.assertEqual(steps, round(0.12 * speed / (4 * 32)))
        _, finished = self.sweep()
        self.assertIn("0 of 1 runs to do", finished.err)
        # One more seed is a run of as many steps.
        self.write_spec(budget={"minutes": 0.002}, seeds=[2], variants=[{"name": "base"}])
        self.assertEqual(self.sweep()[0]["variants"][0]["steps"], steps)
        # Of other settings the speed is another one.
        self.write_spec(budget={"minutes": 0.002}, seeds=[3], variants=[{"name": "base", "set": {"train.seq_len": 16}}])
        before = (self.dir / "out" / "speed_base.json").read_text()
        table, _ = self.sweep()
        self.assertNotEqual((self.dir / "out" / "speed_base.json").read_text(), before)
        speed = json.loads((self.dir / "out" / "speed_base.json").read_text())["parts"][0]["tokens_per_second"]["median"]
        self.assertEqual(table["variants"][0]["steps"], round(0.12 * speed / (4 * 16)))

    def test_equal_work_counts_the_keys_of_a_window(self):
        self.write_config(harness.tiny_config("mixtral"), name="mixtral.json")
        window = {"name": "window", "set": {"model.sliding_window": 4}}
        self.write_spec(config="mixtral.json", seeds=[1], variants=[{"name": "whole"}, window])
        self.sweep()
        flops = {name: 3 * self.metrics(f"out/{name}_seed1")[0]["flops_per_token_static"] for name in ("whole", "window")}
        self.assertLess(flops["window"], flops["whole"])
        shutil.rmtree(self.dir / "out")
        self.write_spec(config="mixtral.json", seeds=[1], budget={"flops": 9 * 4 * 32 * flops["window"]}, variants=[window])
        self.assertEqual(self.sweep()[0]["variants"][0]["steps"], 9)

    def test_a_run_that_fails_does_not_take_the_others_along(self):
        self.write_spec(seeds=[1], variants=[{"name": "bad", "set": {"data.train": ["data/nothing_*.bin"]}}, {"name": "good"}])
        finished = self.fails(1, "sweep", "spec.json", "--out", "out", names=["1 of 2 runs failed"])
        self.assertRegex(finished.err, "bad_seed1 failed with exit code 2: .*nothing_")
        self.assertIn("| bad | 0 of 1 |", finished.out)
        self.assertIn("| good | 1 |", finished.out)

    def test_a_launcher_starts_the_runs(self):
        launcher = self.dir / "launch"
        launcher.write_text('#!/bin/sh\necho "launched with $1"\nshift\nexec "$@"\n')
        launcher.chmod(0o755)
        self.write_spec(seeds=[1], variants=[{"name": "base"}])
        self.sweep("--launcher", "./launch two", "--set", "parallel.threads=1")
        self.assertIn("launched with two", (self.dir / "out" / "logs" / "base_seed1.log").read_text())
        self.assertEqual(len(self.metrics("out/base_seed1")), 4)
        shutil.rmtree(self.dir / "out")
        self.fails(1, "sweep", "spec.json", "--out", "out", "--launcher", "./nothing", names=["1 of 1 runs failed"])

    def test_bad_input(self):
        for changes, named in (
                ({"seeds": []}, "seeds"), ({"seeds": [1, 1]}, "seeds: has 1 twice"), ({"seeds": [-1]}, "seeds: has -1"),
                ({"config": None}, "variants.0.config"), ({"configs": {"a": "config.json"}}, "configs: is there beside config"),
                ({"config": "nowhere.json"}, "nowhere.json"),
                ({"variants": [{"name": "a/b"}]}, r"variants\.0\.name"), ({"variants": [{}]}, r"variants\.0\.name"),
                ({"variants": [{"name": "a"}, {"name": "a"}]}, "another variant has"),
                ({"variants": [{"name": "a", "against": "b"}]}, r"variants\.0\.against: is \"b\""),
                ({"variants": [{"name": "a", "sett": {}}]}, 'variants\\.0\\.sett.*"set"'),
                ({"variants": [{"name": "a", "set": {"train.lrr": 1}}]}, "--set train.lrr=1"),
                ({"variants": [{"name": "a", "set": {"train.seed": 1}}]}, "train.seed"),
                ({"grid": {"train.lr": []}}, "grid"), ({"grid": {"train.lr": 1}}, "grid"),
                ({"grid": {"data.train": [["a"]]}}, "grid.*variant"),
                ({"baseline": "nothing"}, "baseline"), ({"budget": {}}, "budget"),
                ({"budget": {"tokens": 1, "flops": 2}}, r"budget\.flops"), ({"budget": {"tokens": -1}}, r"budget\.tokens"),
                ({"budget": {"tokens": 3}}, "budget: is less than a step"),
                ({"budget": {"tokens": 512}, "variants": [{"name": "a", "set": {"train.steps": 5}}]}, '"a" sets train.steps=5.*budget'),
                ({"budget": {"tokens": 512}, "grid": {"train.steps": [5, 6]}}, "sets train.steps=5.*budget"),
                ({"seeds": [2**63]}, f"no whole number from 0 to {2**63 - 1}"),
                ({"variants": [{"name": "a"}, {"name": "b", "set": {"router.jiter": 1}}]}, 'variant "b": .*router.jiter'),
                ({"evaluate": [{"name": "a"}, {"name": "b", "data": "data/tset_*.bin"}]}, r"evaluate\.1\.data: data/tset_"),
                ({"variants": [{"name": "a", "set": {"data.validation": [], "train.eval_every": 0}}]}, r"evaluate\.0\.data: .*data\.validation"),
                ({"evaluate": []}, "evaluate"), ({"evaluate": [{"name": "a", "data": []}]}, r"evaluate\.0\.data"),
                ({"evaluate": [{"name": "a"}, {"name": "a"}]}, r"evaluate\.1\.name"),
                ({"jobs": 0}, "jobs"), ({"detect": -1}, "detect"), ({"bananas": 1}, "bananas")):
            with self.subTest(changes):
                self.write_spec(**changes)
                self.fails(2, "sweep", "spec.json", "--out", "out", names=[named])
                self.assertFalse((self.dir / "out").is_dir() and any((self.dir / "out").glob("*_seed*")))
        for budget, options, named in (({"tokens": 512}, ["--set", "train.steps=5"], "--set train.steps=5"),
                                       ({"minutes": 1}, ["--launcher", "mpirun -n 2"], r"budget\.minutes")):
            with self.subTest(options):
                self.write_spec(budget=budget)
                self.fails(2, "sweep", "spec.json", "--out", "out", *options, names=[named])
        self.write_spec()
        for options, named in ((["--set", "train.seed=9"], "--seeds"), (["--set", "parallel.threads=2"], "--threads"), (["--only", "nothing"], "--only"), (["--only", "("], "regular expression"),
                               (["--seeds", "1,1"], "--seeds"), (["--seeds", "x"], "--seeds: is x, expected a whole number of 0 or more"), (["--seeds", "1,-1"], "--seeds: is -1"),
                               (["--seeds", str(2**63)], "--seeds: is"), (["--dry-run", "--json", "t.json"], "--json"), (["--jobs", "0"], "--jobs")):
            with self.subTest(options):
                self.fails(2, "sweep", "spec.json", *options, names=[named])


if __name__ == "__main__":
    harness.main()
