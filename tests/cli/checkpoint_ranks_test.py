"""Checkpoints of several processes: the same files whoever writes them, and any number of ranks goes on from them."""
from harness import CliTest, main

TENSORS = ("model-", "state.safetensors", "config.json", "model.safetensors.index.json")


class CheckpointsOfRanks(CliTest):
    def config(self):
        return self.write_config(train__micro_batch_size=1, train__steps=6, checkpoint__max_shard_size=30000,
                                 parallel__threads=1, train__same_bits=True)

    def train(self, config, out, *arguments):
        return self.ok("train", config, "--out", out, *arguments)

    def tensor_files(self, run):
        return {path.name: path.read_bytes() for path in self.latest(run).iterdir() if path.name.startswith(TENSORS)}

    def test_files_do_not_tell_how_many_ranks_wrote_them(self):
        config = self.config()
        self.train(config, "alone")
        expected = self.tensor_files("alone")
        self.assertGreater(len(expected), 5)
        for name, arguments in {"two": ["--nproc", "2"], "without_zero": ["--nproc", "4", "--set", "parallel.zero=0"],
                                "first": ["--nproc", "4", "--set", "checkpoint.writers=first"]}.items():
            self.train(config, name, *arguments)
            self.assertEqual(sorted(self.tensor_files(name)), sorted(expected))
            for file, content in self.tensor_files(name).items():
                self.assertTrue(content == expected[file], f"{name}: {file} differs")

    def test_a_run_goes_on_with_other_ranks_and_experts_elsewhere(self):
        """Experts on several ranks add in another order: losses are compared to 1e-5, some units of float32 at this size."""
        config = self.config()
        plain = ["--set", "train.same_bits=false"]
        layouts = {"alone": ([], []),
                   "a": (["--nproc", "4", "--set", "parallel.expert=2"], ["--nproc", "2", "--set", "parallel.expert=2"]),
                   "b": (["--nproc", "4", "--set", "parallel.expert=4", "--set", "checkpoint.writers=first"], []),
                   "c": ([], ["--nproc", "4", "--set", "parallel.expert=4"]),
                   "d": (["--nproc", "3"], ["--nproc", "2", "--set", "parallel.zero=0"])}
        for name, (before, after) in layouts.items():
            self.train(config, name, *plain, *before)
            self.train(config, name, *plain, *after, "--resume", "auto", "--set", "train.steps=9")
            for loss, reference in zip(self.losses(name), self.losses("alone"), strict=True):
                self.assertAlmostEqual(loss, reference, delta=1e-5, msg=name)

    def test_a_damaged_file_is_named(self):
        config = self.config()
        self.train(config, "run", "--nproc", "2")
        damaged = self.latest("run") / "state.safetensors"
        content = bytearray(damaged.read_bytes())
        content[-5] ^= 1
        damaged.write_bytes(content)
        finished = self.run_binary("train", config, "--out", "run", "--resume", "auto", "--nproc", "4", "--set",
                                   "train.steps=9")
        self.assertEqual(finished.code, 2, finished)
        self.assertIn("state.safetensors: has CRC-32", finished.err)


if __name__ == "__main__":
    main()
