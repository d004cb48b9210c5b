"""What a user can get wrong ends in one line that names it, exit code 2, and nothing half-written."""

import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal

import harness
from harness import CliTest, HEADER_BYTES, tiny_config


class RefusedTraining(CliTest):
    def refused(self, *options, names=(), out="run", config=None, **changes):
        """Training with a changed configuration must fail on it, in one line, before anything is written."""
        path = config if config is not None else self.write_config(**changes)
        finished = self.fails(2, "train", path, "--out", out, *options, names=names)
        self.assertEqual(len(finished.lines), 1, finished)
        self.assertFalse((self.dir / out).exists() or (self.dir / out).is_symlink(), f"{out} was left behind")
        return finished


class BadConfiguration(RefusedTraining):
    def test_unknown_keys(self):
        self.refused(names=[r"train\.stepz", r"steps"], train__stepz=3)
        self.refused(names=[r"model\.num_expert\b", "num_experts"], model__num_expert=4)
        self.refused(names=["checkpiont", "checkpoint"], checkpiont={"every": 3})
        self.refused(names=[r"data\.train\.0\.pth", "path"], data__train=[{"pth": "data/train_000.bin"}])
        self.refused("--set", "train.lrr=0.1", names=[r"train\.lrr", r"\blr\b"])

    def test_names_with_line_breaks(self):
        """What the operating system takes for a name of a file; a key, and a value, of a configuration."""
        self.refused(names=[r"extends", r"no file .*a\\nb\.json"], extends="a\nb.json")
        self.refused(names=[r"a\\nb\.bin"], data__train=["data/a\nb.bin"])
        self.refused(names=[r"a\\nb\.json"], config="a\nb.json")
        self.refused(names=[r"train\.a.b"], train={"a\nb": 1})
        (self.dir / "a\nb").write_text("a file")
        finished = self.fails(2, "train", self.write_config(), "--out", "a\nb/run", names=[r"a\\nb"])
        self.assertTrue(all(re.match("(info|error): ", line) for line in finished.lines), finished)
        for command in (["eval", "a\nb"], ["inspect", "a\nb"], ["generate", "a\nb", "--prompt", "x"], ["export", "a\nb", "--out", "out"],
                        ["sweep", "a\nb"], ["plan", "a\nb"], ["bench", "a\nb"], ["train", self.write_config(), "--set", "a\nb=1"], ["a\nb"]):
            finished = self.fails(2, *command, names=[r"a(\\n|.)b"])
            self.assertEqual(len(finished.lines), 1, finished)

    def test_wrong_types(self):
        self.refused(names=[r"train\.steps", "many"], train__steps="many")
        self.refused(names=[r"train\.steps"], train__steps=2.5)
        self.refused(names=[r"train\.lr\b"], train__lr=[0.1])
        self.refused(names=[r"model\.norm_topk_prob"], model__norm_topk_prob="yes")
        self.refused(names=[r"data\.train"], data__train=3)
        self.refused(names=[r"\bmodel\b"], model=[])
        self.refused("--set", "train.steps=ten", names=[r"train\.steps", "ten"])

    def test_impossible_values(self):
        self.refused(names=["num_attention_heads", "num_key_value_heads"], model__num_key_value_heads=3)
        mixtral = tiny_config("mixtral")
        self.refused(names=["hidden_size", "num_attention_heads"],
                     config=self.write_config(mixtral, model__num_attention_heads=6))
        self.refused(names=["num_experts_per_tok"], model__num_experts_per_tok=5)
        self.refused(names=["num_experts_per_tok"], model__num_experts_per_tok=0)
        self.refused(names=["vocab_size"], model__vocab_size=-1)
        self.refused(names=["model_type", "mixtral", "qwen3_moe"], model__model_type="gpt2")
        self.refused(names=["global_batch_size", "micro_batch_size"], train__global_batch_size=5)
        self.refused(names=[r"train\.steps"], train__steps=0)
        self.refused(names=[r"train\.lr\b"], train__lr=-1)
        self.refused(names=[r"train\.schedule", "cosine"], train__schedule="cosin")
        self.refused(names=[r"train\.dtype", "float32"], train__dtype="float16")
        self.refused(names=[r"router\.type", "softmax_topk"], router__type="softmax")
        self.refused(names=[r"router\.p\b", "top_p"], router__p=0.5)
        self.refused(names=[r"router\.p\b", r"\(0, 1\]"], router={"type": "top_p", "p": 1.5})
        self.refused(names=[r"router\.min_experts", "max_experts"],
                     router={"type": "dynamic_k", "min_experts": 2, "max_experts": 1})
        self.refused(names=[r"router\.max_experts", "4"], router={"type": "top_p", "max_experts": 5})
        self.refused(names=[r"router\.estimator", "attention_entropy"],
                     router={"type": "dynamic_k", "estimator": "mood"})
        self.refused(names=[r"router\.capacity_factor"], router__capacity_factor=0)
        self.refused(names=["seq_len", "max_position_embeddings"], model__max_position_embeddings=16)
        self.refused(names=["mlp_only_layers"], model__mlp_only_layers=[7])

    def test_missing_keys(self):
        self.refused(names=[r"\bmodel\b"], model=None)
        self.refused(names=[r"model\.hidden_size"], model__hidden_size=None)
        self.refused(names=[r"train\.steps"], train__steps=None)
        self.refused(names=[r"data\.train"], data__train=None)

    def test_files_that_are_no_configuration(self):
        self.refused(config="nowhere.json", names=[r"nowhere\.json"])
        broken = self.dir / "broken.json"
        broken.write_text('{"model": {"vocab_size": 3,}}\n')
        self.refused(config="broken.json", names=[r"broken\.json"])
        broken.write_text("")
        self.refused(config="broken.json", names=[r"broken\.json"])
        broken.write_text("[1, 2]\n")
        self.refused(config="broken.json", names=[r"broken\.json"])
        self.refused(config="data", names=["data"])
        twice = self.write_config(name="twice.json")
        text = pathlib.Path(twice).read_text()
        pathlib.Path(twice).write_text(text.replace('"steps"', '"steps": 3, "steps"', 1))
        self.refused(config="twice.json", names=[r"twice\.json", "steps"])

    def test_overrides_that_are_none(self):
        for bad in ("train.steps", "=3", "train..steps=3", ""):
            with self.subTest(bad):
                self.refused("--set", bad, config=self.write_config())


class BadCommandLine(CliTest):
    def test_unknown_commands_and_options(self):
        config = self.write_config()
        for arguments, name in ((("trian", config), "did you mean 'train'"), (("evaluate",), "did you mean 'eval'"),
                                (("help", "trian"), "did you mean 'train'"),
                                (("help", "confg"), "did you mean 'config'"), (("train",), "CONFIG|config"),
                                (("train", config, "--stes", "3"), "--stes"),
                                (("train", config, "--allow-new-data"), "--allow-new-data: .*--resume"),
                                (("train", config, "--out"), "--out"), (("train", config, "extra"), "extra"),
                                (("inspect",), "PATH|path"), (("eval",), "CHECKPOINT|checkpoint")):
            with self.subTest(arguments):
                finished = self.fails(2, *arguments, names=[name])
                self.assertEqual(len(finished.lines), 1, finished)

    def test_counts(self):
        for command, option, values in (
                ("eval", "--batch", ("-1", "0", "1e30", "x", "1.5")), ("eval", "--seq-len", ("0",)),
                ("eval", "--threads", ("-1", "5000")), ("eval", "--max-tokens", ("-1",)),
                ("generate", "--top-k", ("-1", "1.5")), ("generate", "--max-new-tokens", ("0", "1e30")),
                ("generate", "--seed", ("-1", "99999999999999999999"))):
            for value in values:
                prompt = ("--prompt-tokens", "1") if command == "generate" else ()
                with self.subTest(option=option, value=value):
                    finished = self.fails(2, command, "nowhere", *prompt, option, value,
                                          names=[f"{option}: is {value}, expected a whole number"])
                    self.assertLess(len(finished.lines[0]), 160)

    def test_help_is_printed_without_a_command(self):
        for arguments in ((), ("help",)):
            finished = self.ok(*arguments)
            self.assertIn("inspect", finished.out)
        self.assertIn("--max-tokens", self.ok("help", "eval").out)
        self.assertIn("the highest learning rate", self.ok("help", "config", "lr").out)
        self.assertIn("\ntrain: seed steps ", self.ok("help", "config").out)
        self.fails(2, "help", "config", "train.lrr", names=[r"train\.lr\b"])

    def test_resume_from_what_is_no_checkpoint(self):
        config = self.write_config()
        self.fails(2, "train", config, "--out", "run", "--resume", "nowhere", names=["nowhere"])
        self.fails(2, "train", config, "--out", "run", "--resume", "data", names=["data"])
        self.assertFalse((self.dir / "run").exists())


class BadData(RefusedTraining):
    """Shards that are missing, foreign, cut, or do not fit the model."""

    def with_shard(self, content, name="bad.bin", **changes):
        (self.dir / "data" / name).write_bytes(content)
        return {"data__train": [{"path": f"data/{name}"}], **changes}

    def test_paths_that_match_nothing(self):
        self.refused(names=[r"data/nothing_\*\.bin"], data__train=[{"path": "data/nothing_*.bin"}])
        self.refused(names=[r"data/nothing\.bin"], data__train=[{"path": "data/nothing.bin"}])
        self.refused(names=[r"data/nothing\.bin"], data__validation=[{"path": "data/nothing.bin"}])
        (self.dir / "empty").mkdir()
        self.refused(names=["empty"], data__train=[{"path": "empty"}])
        self.refused(names=[r"empty/\*\.bin"], data__train=[{"path": "empty/*.bin"}])
        self.refused(names=[r"data\.train"], data__train=[])
        self.refused(names=["path"], data__train=[{"path": ""}])

    def test_truncated_shards(self):
        whole = harness.shard_bytes(harness.learnable_tokens(400))
        for length in (len(whole) - 1, len(whole) - 2, HEADER_BYTES + 1, HEADER_BYTES, HEADER_BYTES - 1, 4, 0):
            with self.subTest(length=length):
                self.refused(names=[r"bad\.bin"], **self.with_shard(whole[:length]))
        self.refused(names=[r"bad\.bin"], **self.with_shard(whole + b"\0\0"))

    def test_foreign_shards(self):
        tokens = harness.learnable_tokens(400)
        for content in (harness.shard_bytes(tokens, magic=12345), harness.shard_bytes(tokens, version=2),
                        harness.shard_bytes(tokens, magic=20240801), harness.shard_bytes(tokens, claimed=-5),
                        harness.shard_bytes(tokens, claimed=2 ** 31 - 1), b"PAR1" * 600, b"\x1f\x8b" + b"x" * 3000):
            self.refused(names=[r"bad\.bin"], **self.with_shard(content))

    def test_tokens_beyond_the_vocabulary(self):
        for token_bytes, token in ((2, 257), (2, 65535), (4, 300), (4, 2 ** 31 + 5), (4, 2 ** 32 - 1)):
            for position in (0, 137, 399):
                with self.subTest(token=token, position=position):
                    tokens = harness.learnable_tokens(400)
                    tokens[position] = token
                    offset = HEADER_BYTES + position * token_bytes
                    changes = self.with_shard(harness.shard_bytes(tokens, token_bytes=token_bytes))
                    self.refused(names=[r"bad\.bin", rf"\b{offset}\b"], **changes)
        changes = self.with_shard(harness.shard_bytes([300] * 100), data__validation=[{"path": "data/bad.bin"}])
        changes.pop("data__train")
        self.refused(names=[r"bad\.bin", rf"\b{HEADER_BYTES}\b"], **changes)

    def test_sequences_longer_than_the_data(self):
        # 32 inputs need 33 tokens.
        self.refused(names=["seq_len|sequence", r"\b32\b"],
                     **self.with_shard(harness.shard_bytes(harness.learnable_tokens(32))))
        self.ok("train", self.write_config(**self.with_shard(harness.shard_bytes(harness.learnable_tokens(33)))),
                "--out", "enough")

    def test_domains(self):
        path = {"path": "data/train_000.bin"}
        self.refused(names=["weight"], data__train=[{**path, "domain": "a", "weight": 0.5},
                                                    {"path": "data/train_001.bin", "domain": "b"}])
        self.refused(names=["weight"], data__train=[{**path, "weight": -1}])
        self.refused(names=["eot_token"], data__document_mask=True)


class BadCheckpoint(CliTest):
    """A checkpoint with any file missing, cut or changed by one bit is refused, and named."""

    def setUp(self):
        super().setUp()
        self.config = self.write_config(train__steps=2)
        self.ok("train", self.config, "--out", "good")
        self.good = self.latest("good")
        self.longer = self.write_config(name="longer.json", train__steps=4)

    def copy(self):
        shutil.rmtree(self.dir / "bad", ignore_errors=True)
        shutil.copytree(self.dir / "good", self.dir / "bad", symlinks=True)
        return self.dir / "bad" / "checkpoints" / self.good.name

    def refused(self, file):
        """Resuming, evaluating and inspecting refuse, name the file, and leave the run as it is."""
        before = harness.snapshot(self.dir / "bad")
        for arguments in (("train", self.longer, "--out", "bad", "--resume", "auto"),
                          ("eval", "bad/checkpoints/" + self.good.name, "--data", "data/val.bin"),
                          ("inspect", "bad/checkpoints/" + self.good.name)):
            self.fails(2, *arguments, names=[file])
        self.assertTrue(before == harness.snapshot(self.dir / "bad"), "a refused resume changed the run")
        self.fails(2, "train", self.longer, "--out", "new", "--resume", "bad/checkpoints/" + self.good.name,
                   names=[file])
        self.assertFalse((self.dir / "new").exists(), "a refused resume left a directory")

    def files(self):
        names = sorted(path.name for path in self.good.iterdir())
        self.assertIn("model.safetensors", names)
        return names

    def test_missing_files(self):
        for name in self.files():
            with self.subTest(name):
                (self.copy() / name).unlink()
                self.refused(name)

    def test_truncated_files(self):
        for name in self.files():
            for keep in (0.0, 0.5, 1.0):
                with self.subTest(name, keep=keep):
                    path = self.copy() / name
                    content = path.read_bytes()
                    path.write_bytes(content[:min(int(len(content) * keep), len(content) - 2)])
                    self.refused(name)

    def test_flipped_bits(self):
        for name in self.files():
            with self.subTest(name):
                path = self.copy() / name
                content = bytearray(path.read_bytes())
                position, named = len(content) // 2, name
                if name == "manifest.json":  # a digit of a size or a sum: it then vouches for another file
                    position = max(i for i, byte in enumerate(content) if chr(byte).isdigit())
                    named = "json|safetensors"
                content[position] ^= 1
                path.write_bytes(bytes(content))
                self.refused(named)

    def test_a_file_that_the_manifest_does_not_know(self):
        (self.copy() / "model-00002.safetensors").write_bytes(b"more")
        self.refused("model-00002.safetensors")


class BadPlace(CliTest):
    """Output that cannot be written: a place without permission, a full disk, a quota."""

    def test_directories_that_cannot_be_made(self):
        (self.dir / "file").write_text("in the way\n")
        config = self.write_config()
        for place in ("file/run", "file", "/proc/switchyard-run", "/dev/null/run"):
            with self.subTest(place):
                # What is said before is what the run would take.
                finished = self.fails(2, "train", config, "--out", place, names=[place])
                self.assertEqual([line for line in finished.lines if not line.startswith("info: ")], [finished.error], finished)
        self.assertEqual((self.dir / "file").read_text(), "in the way\n")

    def test_directory_without_permission(self):
        config = self.write_config()
        place = self.dir / "closed"
        place.mkdir(mode=0o555)
        someone = {}
        if os.geteuid() == 0:  # root may write everywhere, so the command runs as nobody
            someone = {"user": 65534, "group": 65534, "extra_groups": []}
            self.dir.chmod(0o755)
            try:
                self.ok("--version", **someone)
            except PermissionError:
                self.skipTest("nobody may not run the binary where it is")
        self.fails(2, "train", config, "--out", "closed/run", names=["closed/run", "[Pp]ermission"], **someone)

    def whole_or_absent(self, run):
        """Every checkpoint there is can be evaluated; nothing but checkpoints is in their directory."""
        directory = self.dir / run / "checkpoints"
        names = {path.name for path in self.checkpoints(run)}
        if directory.is_dir():
            self.assertLessEqual({entry.name for entry in directory.iterdir()} - {"latest"}, names, "half-written")
            if names:
                self.assertEqual((directory / "latest").resolve().name, max(names))
            else:
                self.assertFalse((directory / "latest").is_symlink())
        for name in names:
            self.ok("eval", directory / name, "--data", "data/val.bin", "--json", "-")
        return len(names)

    def test_file_size_limit(self):
        def limit():  # stands for a quota: the write fails with EFBIG once the signal is ignored
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

        config = self.write_config()
        self.ok("train", config, "--out", "whole")
        self.fails(2, "train", config, "--out", "run", names=["run/checkpoints", "too large|large"], preexec_fn=limit)
        self.assertEqual(self.whole_or_absent("run"), 0)
        # The cause removed, the run goes on as if nothing had been.
        self.ok("train", config, "--out", "run", "--resume", "auto")
        self.assert_same_run("run", "whole")

    def test_full_disk(self):
        with harness.small_disk(self.dir / "disk", 1_600_000) as mounted:
            if not mounted:
                self.skipTest("mounting a small tmpfs is not permitted here")
            # A checkpoint is about 0.45 MB here: the disk fills after two or three of them.
            config = self.write_config(checkpoint__every=2, checkpoint__keep=0)
            self.ok("train", config, "--out", "whole")
            self.fails(2, "train", config, "--out", "disk/run", names=["disk/run", "space"])
            self.assertGreater(self.whole_or_absent("disk/run"), 0)
            shutil.copytree(self.dir / "disk" / "run", self.dir / "run", symlinks=True)
            self.ok("train", config, "--out", "run", "--resume", "auto")
            self.assert_same_run("run", "whole")

    def test_disk_that_is_full_from_the_start(self):
        with harness.small_disk(self.dir / "disk", 64 * 1024) as mounted:
            if not mounted:
                self.skipTest("mounting a small tmpfs is not permitted here")
            with open(self.dir / "disk" / "ballast", "wb", buffering=0) as ballast, contextlib.suppress(OSError):
                while True:
                    ballast.write(b"\0" * 4096)
            finished = self.run_binary("train", self.write_config(), "--out", "disk/run")
            self.assertEqual(finished.code, 2, finished)
            self.assertRegex(finished.err, "disk/run")
            self.assert_holds_no_file(self.dir / "disk" / "run")


class NonFinite(CliTest):
    # Each update multiplies the weights by about -1e5: the products of the experts leave float32's range in a few
    # steps.
    EXPLODES = {"train.lr": 1000, "train.weight_decay": 100, "train.clip_norm": 0, "train.schedule": "constant",
                "train.warmup_ratio": 0}
    UNWATCHED = {**EXPLODES, "train.spike": "false"}  # else the steps are left out before anything overflows

    def test_loss_that_is_not_finite(self):
        config = self.write_config(checkpoint__every=1, **{key.replace(".", "__"): value
                                                           for key, value in {**self.UNWATCHED, "train.spike": False}.items()})
        finished = self.fails(1, "train", config, "--out", "run",
                              names=[r"\bstep \d+", r"\blayer \d", r"mlp|attn|norm", r"finite", "step_0000"])
        step = int(re.search(r"\bstep (\d+)", finished.error)[1])
        self.assertEqual([line["step"] for line in self.metrics("run")], list(range(1, step)))
        names = {path.name for path in self.checkpoints("run")}
        self.assertEqual(max(names), f"step_{step - 1:06d}")
        self.assertEqual({entry.name for entry in self.latest("run").parent.iterdir()}, names | {"latest"})
        for path in self.checkpoints("run"):
            self.ok("inspect", path)
            for name, (_, _, values) in harness.read_safetensors(path / "model.safetensors").items():
                self.assertTrue(all(value - value == 0 for value in values), f"{path.name}: {name} is not finite")

    def test_the_checkpoint_before_it_is_whole(self):
        config = self.write_config(train__steps=10)
        self.ok("train", config, "--out", "run")
        good = harness.snapshot(self.latest("run"))
        overrides = {**self.UNWATCHED, "train.steps": 20, "checkpoint.every": 0}
        self.fails(1, "train", config, "--out", "run", "--resume", "auto",
                   *[word for key, value in overrides.items() for word in ("--set", f"{key}={value}")],
                   names=[r"\bstep 1\d\b", "step_000010"])
        self.assertTrue(good == harness.snapshot(self.latest("run")))
        self.ok("eval", self.latest("run"), "--data", "data/val.bin", "--json", "-")

    def test_a_run_that_diverges_leaves_its_steps_out_and_ends(self):
        config = self.write_config(train__steps=40, checkpoint__every=1, checkpoint__keep=2,
                                   **{key.replace(".", "__"): value for key, value in self.EXPLODES.items()})
        finished = self.fails(1, "train", config, "--out", "run",
                              names=[r"\bstep 11\b", r"train\.spike", "twice the largest", "step_000001"])
        self.assertIn("going back to", finished.err)
        self.assertEqual([path.name for path in self.checkpoints("run")], ["step_000001"])

    def goes_back(self, spike, **changes):
        """A run of 30 steps that goes on with updates that break its weights."""
        config = self.write_config(train__steps=30, checkpoint__every=5, checkpoint__keep=0, train__eval_every=0)
        self.ok("train", config, "--out", "run")
        settings = {**self.EXPLODES, "train.steps": 80, "train.spike": json.dumps(spike), **changes}
        words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        return self.fails(1, "train", config, "--out", "run", "--resume", "auto", *words, names=[r"\bstep \d+", "train.lr"])

    def test_saves_amid_going_back_are_no_sign_that_it_has_helped(self):
        for every in (1, 10):
            with self.subTest(every=every):
                finished = self.goes_back({"deviations": 1e9, "grad_norm_factor": 0, "patience": 5}, **{"checkpoint.every": every})
                self.assertIn("going back 3 times has not helped", finished.error)
                self.assertEqual(finished.err.count("going back to"), 3)
                shutil.rmtree(self.dir / "run")

    def test_what_a_run_has_left_by_going_back_is_no_longer_its_own(self):
        finished = self.goes_back({"deviations": 1e9, "grad_norm_factor": 0, "patience": 5}, **{"checkpoint.every": 5})
        targets = re.findall(r"going back to (\S*step_\d+),", finished.err)
        self.assertEqual([path[-2:] for path in targets], ["30", "25", "20"])
        self.assertRegex(finished.error, "the last time to run/checkpoints/step_000020")
        # A process that is killed now, or ends as here, goes on from there: not from what was left behind.
        self.assertEqual(self.latest("run").name, "step_000020")
        self.assertEqual([path.name[-2:] for path in self.checkpoints("run")], ["05", "10", "15", "20"])
        self.assertEqual([[path.name[-2:] for path in self.checkpoints(f"run/abandoned_{n}")] for n in (1, 2)], [["30"], ["25"]])

    def test_a_validation_of_broken_weights_does_not_end_a_run_that_can_go_back(self):
        finished = self.goes_back({"deviations": 1e9, "grad_norm_factor": 0, "patience": 5}, **{"train.eval_every": 1})
        self.assertIn("going back 3 times has not helped", finished.error)
        self.assertRegex(finished.err, r"step \d+ is not evaluated: the loss over data/val\.bin is not finite")


if __name__ == "__main__":
    harness.main()
