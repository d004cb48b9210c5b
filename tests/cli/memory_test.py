"""What a run takes of memory: said before it is taken, near what it comes to, refused with what fits, and chosen by
`train.micro_batch_size` "auto"."""

import json
import os
import re
import resource
import unittest

import harness
from harness import CliTest, learnable_tokens, write_shard

DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")
MIB = 1 << 20
# Of 64 sequences activations are most of what a run takes, and a step is little work: many tokens of narrow layers.
MODEL = {**harness.QWEN3_MOE, "num_hidden_layers": 6, "max_position_embeddings": 256}
WIDE = {"train__seq_len": 256, "train__micro_batch_size": 64, "train__global_batch_size": 64, "train__steps": 2,
        "checkpoint__every": 0, "data__validation": [], "train__warmup_ratio": 0}


def limited_to(address_space):
    """For Popen: what `ulimit -v` sets, in bytes."""
    return {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))}


@unittest.skipIf(harness.SANITIZED, "the sanitizer takes memory and address space of its own")
class MemoryTest(CliTest):
    def setUp(self):
        super().setUp()
        for name in ("train_000.bin", "train_001.bin"):
            write_shard(self.dir / "data" / name, learnable_tokens(20000, seed=4))

    def config(self, name="config.json", model=MODEL, **changes):
        return self.write_config({**harness.tiny_config(), "model": model}, name, **{**WIDE, **changes})

    def table(self, err):
        entries = re.findall(r"  ([a-z][a-z ]*?) +([0-9.]+) MiB$", err, re.M)
        self.assertEqual(len(entries), len({name for name, _ in entries}), err)
        return {name: float(mib) for name, mib in entries}

    def planned(self, **changes):
        """The plan's peak in MiB, of a run that is refused as soon as it is known; and what the process has by then."""
        done = self.run_binary("train", self.config("planned.json", **changes), "--out", "planned", *self.ranks, **limited_to(self.LITTLE))
        self.assertEqual(done.code, 2, str(done))
        free = float(re.search(r"of ([0-9.]+) MiB free on", done.err)[1]) * MIB
        table = self.table(done.err)
        return (table["peak"] - table["process so far"]) * MIB, self.LITTLE - free

    # Too little for 64 sequences, enough to start.
    LITTLE, ranks = 260 * MIB, []

    def limit_for(self, share, **changes):
        """An address space in which there is this share of what all sequences at once need."""
        needed, before = self.planned(**changes)
        return limited_to(int(before + share * needed))

    def peak(self, run):
        return max(line["memory_bytes"] for line in self.metrics(run)) / MIB

    # --- the table

    def test_the_prediction_is_near_what_the_process_comes_to(self):
        """10 %: what the system resident counts in whole large pages, and the library's own buffers, are estimates."""
        for name, changes in {"none": {}, "swiglu": {"train__recompute": "swiglu"}, "block": {"train__recompute": "block"},
                              "several": {"train__micro_batch_size": 16}, "bfloat16": {"train__dtype": "bfloat16"},
                              "halves": {"train__micro_batch_size": 16, "train__same_bits": True}}.items():
            with self.subTest(name):
                done = self.ok("train", self.config(**changes), "--out", name)
                table = self.table(done.err)
                self.assertAlmostEqual(table["peak"] / self.peak(name), 1, delta=0.1, msg=str(done))
                self.assertLessEqual(table["steady"], table["peak"])

    def test_the_parts_are_those_that_there_are(self):
        table = self.table(self.ok("train", self.config(), "--out", "run").err)
        self.assertEqual(list(table), ["parameters", "gradients", "moments", "activations", "workspace", "data", "products",
                                       "process so far", "steady", "peak"])
        self.assertAlmostEqual(table["moments"], 2 * table["parameters"], delta=0.2)
        self.assertAlmostEqual(sum(list(table.values())[:-2]), table["steady"], delta=0.6)  # of rounding each to 0.1
        self.assertNotIn("exchange", table)
        ranks = self.table(self.ok("train", self.config(train__micro_batch_size=16, parallel__zero=1, parallel__threads=1, train__steps=1),
                                   "--out", "ranks", "--nproc", "2").err)
        self.assertGreater(ranks["exchange"], 0)
        self.assertAlmostEqual(ranks["moments"], table["moments"] / 2, delta=0.2)

    # --- what does not fit

    def test_what_does_not_fit_is_refused_before_it_is_taken_and_what_is_advised_fits(self):
        limit = self.limit_for(0.7)
        config = self.config()
        refused = self.fails(2, "train", config, "--out", "refused", names=(
            r"too little memory: the run needs [0-9.]+ MiB on this process's address space \(ulimit -v\), of which [0-9.]+ MiB are "
            r"free, [0-9.]+ too few", r"it fits with train.micro_batch_size=\d+ \(needs [0-9.]+ MiB\)"), **limit)
        self.assertGreater(self.table(refused.err)["activations"], 0)
        self.assertFalse((self.dir / "refused").exists())
        advice = refused.error.split("it fits with ")[1].split(", or ")
        for number, each in enumerate(advice):
            settings = re.findall(r"([a-z]+\.[a-z_]+=\w+)", each)
            self.assertTrue(settings, each)
            options = [word for setting in settings for word in ("--set", setting)]
            with self.subTest(each):
                self.ok("train", config, *options, "--set", "train.steps=1", "--out", f"advised{number}", **limit)

    def test_of_ranks_the_one_with_least_is_named(self):
        self.ranks, changes = ["--nproc", "2"], {"parallel__threads": 1, "train__micro_batch_size": 32}
        limit = self.limit_for(0.7, **changes)
        refused = self.fails(2, "train", self.config(**changes), "--out", "refused", *self.ranks,
                             names=(r"rank [01] \(host \S+\): too little memory: the run needs", "it fits with "), **limit)
        self.assertFalse((self.dir / "refused").exists(), refused)

    # --- train.micro_batch_size "auto"

    AUTO = {"train__micro_batch_size": "auto"}

    def chosen(self, run):
        return json.loads((self.dir / run / "config.json").read_text())["train"]["micro_batch_size"]

    def test_auto_takes_what_fits_and_a_limit_makes_it_smaller(self):
        config = self.config(**self.AUTO)
        done = self.ok("train", config, "--out", "all")
        self.assertEqual(self.chosen("all"), 64)
        self.assertRegex(done.err, r'train.micro_batch_size "auto": 64: 64 sequences need [0-9.]+ MiB of the [0-9.]+ MiB that are '
                                   r"free on this machine.*; a whole step of a rank")
        done = self.ok("train", config, "--out", "some", **self.limit_for(0.9))
        size = self.chosen("some")
        self.assertTrue(1 <= size < 64 and 64 % size == 0, size)
        self.assertNotIn("defined over a micro-batch", done.err)
        self.assertRegex(done.err, rf'"auto": {size}: .* address space \(ulimit -v\); {2 * size} would take more than 90 %')
        for router, key in (({"type": "quantile", "bias_solves": 1}, "bias_solves"),
                            ({"type": "softmax_topk", "balance_scope": "layer"}, "balance_scope")):
            done = self.ok("train", self.config(**self.AUTO, router=router, train__steps=1), "--out", key)
            self.assertIn(f"info: router.{key} is defined over a micro-batch", done.err)
        # To rounding: the order in which sums over tokens are added up is another.
        for one, other in zip(self.losses("all"), self.losses("some")):
            self.assertAlmostEqual(one, other, delta=1e-4 * one)

    def test_a_run_goes_on_with_what_it_took(self):
        steps = {"train__steps": 2, "checkpoint__every": 1, "train__schedule": "constant"}
        config = self.config(**self.AUTO, **steps)
        limit = self.limit_for(0.5)
        self.ok("train", config, "--out", "whole", **limit)
        self.ok("train", self.config("half.json", **self.AUTO, **{**steps, "train__steps": 1}), "--out", "run", **limit)
        size = self.chosen("run")
        self.assertLess(size, 64)
        self.assertEqual(self.chosen("whole"), size)
        done = self.ok("train", config, "--out", "run", "--resume", "auto")  # without the limit all would fit
        self.assertIn(f'train.micro_batch_size "auto": {size}, with which the run began', done.err)
        self.assertEqual(self.chosen("run"), size)
        self.assert_same_run("run", "whole")
        # Where that does not fit any more, it says what would.
        little = self.limit_for(0.25)
        refused = self.fails(2, "train", self.config("longer.json", **self.AUTO, **{**steps, "train__steps": 3}), "--out", "run",
                             "--resume", "auto", names=("too little memory", "it fits with train.micro_batch_size="), **little)
        self.assertIn(f'"auto": {size}, with which the run began', refused.err)

    def test_ranks_choose_alike(self):
        config = self.config(**self.AUTO, parallel__threads=1, train__steps=1)
        self.ranks = ["--nproc", "2"]
        self.ok("train", config, "--out", "run", *self.ranks)
        self.assertEqual(self.chosen("run"), 32)
        limit = self.limit_for(0.9, parallel__threads=1, train__micro_batch_size=32)
        self.ok("train", config, "--out", "some", *self.ranks, **limit)
        self.assertLess(self.chosen("some"), 32)

    def test_bad_values_are_refused_with_their_path(self):
        for changes, named in (({"train__micro_batch_size": "automatic"}, r'train.micro_batch_size: is "automatic", expected a whole number or "auto"'),
                               ({"train__micro_batch_size": 0}, r"train.micro_batch_size: is 0, expected an integer"),
                               ({"train__micro_batch_size": [1]}, r"train.micro_batch_size: is "),
                               ({**self.AUTO, "train__global_batch_size": None},
                                r"train.global_batch_size: missing, and it has no default where train.micro_batch_size is .auto.; add it")):
            with self.subTest(named):
                self.fails(2, "train", self.config(**changes), "--out", "run", names=(named,))
        self.fails(2, "train", self.config(**self.AUTO), "--out", "run", names=(
            'train.micro_batch_size: is "auto", but not even the smallest micro-batch fits: 1 sequence need',), **self.limit_for(0.05))
        self.assertFalse((self.dir / "run").exists())

    @unittest.skipUnless(DEVICE_BINARY and DEVICE_BINARY != harness.BINARY, "the emulator alone can be told how much memory it has")
    def test_on_a_device_by_its_memory(self):
        small = {"train__seq_len": 16, "train__global_batch_size": 8, "train__steps": 1, **self.AUTO}
        config = self.config(model=harness.QWEN3_MOE, **small)
        self.binary, self.patience, sizes = DEVICE_BINARY, 10, {}
        for memory in (None, 1_100_000):
            self.variables = {"SIMT_DEVICE_BYTES": str(memory)} if memory else {}
            done = self.ok("train", config, "--device", "cuda", "--out", f"run{memory}")
            sizes[memory] = self.chosen(f"run{memory}")
            self.assertRegex(done.err, r'"auto": \d+: \d sequences? need [0-9.]+ MiB of the [0-9.]+ MiB that are free on ')
        self.assertEqual(sizes[None], 8)
        self.assertLess(sizes[1_100_000], 8)


if __name__ == "__main__":
    harness.main()
