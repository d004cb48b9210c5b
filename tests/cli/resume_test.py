"""A run that was interrupted and resumed is, bit for bit, the run that was not."""

import pathlib
import random
import re
import resource
import shutil
import signal
import time

import harness
from harness import CliTest, tiny_config

WHOLE_STEPS = 60


class Resume(CliTest):
    def setUp(self):
        super().setUp()
        # A checkpoint every second step: much of the run's time is spent writing one.
        self.config = self.write_config(train__steps=WHOLE_STEPS, checkpoint__every=2, train__eval_every=20)

    def uninterrupted(self):
        begin = time.monotonic()
        self.ok("train", self.config, "--out", "whole")
        return time.monotonic() - begin

    def resume(self, run, **popen):
        return self.start("train", self.config, "--out", run, "--resume", "auto", **popen)

    def finish_resumed(self, run):
        finished = self.finish(self.resume(run))
        self.assertEqual(finished.code, 0, finished)
        self.assert_same_run(run, "whole")

    def kill(self, process):
        """Kills and collects a process; true where it was still running."""
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return process.returncode == -signal.SIGKILL

    def wait_until(self, process, condition):
        """Polls until the condition holds or the process ends. True if it held while the process ran."""
        end = time.monotonic() + harness.TIMEOUT
        while process.poll() is None:
            if condition():
                return True
            self.assertLess(time.monotonic(), end, "the awaited moment did not come")
            time.sleep(0.0005)
        return False

    def test_killed_at_random_moments(self):
        duration = self.uninterrupted()
        rng = random.Random(11)
        kills = 0
        for _ in range(8):
            process = self.resume("run")
            time.sleep(rng.uniform(0.02, 0.5) * duration)
            kills += self.kill(process)
            if process.returncode == 0:
                break
        self.assertGreater(kills, 0, "the run was over before it could be killed")
        self.finish_resumed("run")

    def test_killed_while_a_checkpoint_is_written(self):
        self.uninterrupted()
        directory = self.dir / "run" / "checkpoints"

        def being_written():
            return directory.is_dir() and any(
                not re.fullmatch(r"step_\d+|latest|best", entry.name) for entry in directory.iterdir())

        caught = 0
        for _ in range(4):
            # What the kill before this one left behind must not be taken for what this process writes.
            if directory.is_dir():
                for entry in directory.iterdir():
                    self.assertFalse(entry.name == "latest" and not entry.exists(), "latest points to nothing")
            left = {entry.name for entry in directory.iterdir()} if directory.is_dir() else set()
            process = self.resume("run")
            newest = max((name for name in left if name.startswith("step_")), default="")
            moved_on = self.wait_until(process, lambda: max(
                (path.name for path in self.checkpoints("run")), default="") > newest)
            if moved_on and self.wait_until(process, being_written):
                caught += self.kill(process)
            else:
                self.finish(process)
                break
        self.assertGreater(caught, 0, "no kill fell into the writing of a checkpoint")
        self.finish_resumed("run")
        left = {entry.name for entry in directory.iterdir()}
        self.assertEqual({name for name in left if not re.fullmatch(r"step_\d+|latest|best", name)}, set(),
                         "what the killed processes left is cleared away")

    def test_killed_before_the_first_checkpoint(self):
        self.config = self.write_config(train__steps=WHOLE_STEPS, checkpoint__every=50)
        self.ok("train", self.config, "--out", "whole")
        process = self.start("train", self.config, "--out", "run")
        log = self.dir / "run" / "metrics.jsonl"
        self.assertTrue(self.wait_until(process, lambda: log.exists() and log.read_bytes().count(b"\n") >= 3))
        self.assertTrue(self.kill(process))
        self.assertEqual(self.checkpoints("run"), [])
        self.finish_resumed("run")

    def test_a_metrics_line_cut_in_the_middle(self):
        self.uninterrupted()
        shutil.copytree(self.dir / "whole", self.dir / "run", symlinks=True)
        for name in ("step_000060",):
            shutil.rmtree(self.dir / "run" / "checkpoints" / name)
        latest = self.dir / "run" / "checkpoints" / "latest"
        latest.unlink()
        latest.symlink_to("step_000058")
        log = self.dir / "run" / "metrics.jsonl"
        lines = log.read_bytes().splitlines(keepends=True)
        log.write_bytes(b"".join(lines[:59]) + lines[59][:40])
        self.finish_resumed("run")

    def test_both_layouts_and_the_document_mask(self):
        for model in harness.MODELS:
            with self.subTest(model):
                self.config = self.write_config(tiny_config(model), data__document_mask=True, data__eot_token=40,
                                                router__balance_scope="global_batch", checkpoint__every=3)
                self.ok("train", self.config, "--out", f"{model}_whole")
                # Continue from an earlier checkpoint, in another directory's copy of the run.
                run = self.dir / f"{model}_cut"
                self.ok("train", self.config, "--out", run.name, "--set", "checkpoint.keep=0")
                for path in self.checkpoints(run.name)[2:]:
                    shutil.rmtree(path)
                (run / "checkpoints" / "latest").unlink()
                (run / "checkpoints" / "latest").symlink_to(self.checkpoints(run.name)[-1].name)
                self.ok("train", self.config, "--out", run.name, "--resume", "auto")
                self.assert_same_run(run.name, f"{model}_whole")

    def check_who_takes_signals(self, pid):
        """One thread alone, and not the first: a handler on a thread that multiplies writes its frame into the heap, since
        oneDNN's products use the stack pointer for a buffer."""
        takers = []
        for status in pathlib.Path(f"/proc/{pid}/task").glob("*/status"):
            blocked = int(re.search(r"^SigBlk:\s*(\w+)", status.read_text(), re.M)[1], 16)
            if not all(blocked >> (number - 1) & 1 for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)):
                takers.append(int(status.parent.name))
        self.assertEqual(len(takers), 1)
        self.assertNotIn(pid, takers)

    def test_signals_finish_the_step_and_save(self):
        # Checkpoints only at the end, so the one that is there was made by the signal.
        # So many steps that the signal reaches a running process on a busy machine too.
        self.config = self.write_config(train__steps=1500, checkpoint__every=0)
        self.ok("train", self.config, "--out", "whole")
        log = self.dir / "run" / "metrics.jsonl"
        for number, name in enumerate((signal.SIGTERM, signal.SIGINT, signal.SIGHUP)):
            lines = log.read_bytes().count(b"\n") if log.exists() else 0
            process = self.resume("run")
            self.assertTrue(self.wait_until(
                process, lambda: log.exists() and log.read_bytes().count(b"\n") >= lines + 3 + number))
            self.check_who_takes_signals(process.pid)
            process.send_signal(name)
            finished = self.finish(process)
            self.assertEqual(finished.code, 128 + name, finished)
            self.assertIn("--resume", finished.err, "it says how to go on")
            steps = [line["step"] for line in self.metrics("run")]
            self.assertLess(steps[-1], 1500, "it went on to the end")
            self.assertEqual(self.latest("run").name, f"step_{steps[-1]:06d}", "it saved where it stopped")
        self.finish_resumed("run")

    def test_nohup_keeps_a_run_going(self):
        self.config = self.write_config(train__steps=300, checkpoint__every=0)
        process = self.start("train", self.config, "--out", "run", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
        log = self.dir / "run" / "metrics.jsonl"
        self.assertTrue(self.wait_until(process, lambda: log.exists() and log.read_bytes().count(b"\n") >= 3))
        process.send_signal(signal.SIGHUP)
        self.assertEqual(self.finish(process).code, 0)
        self.assertEqual(len(self.metrics("run")), 300)

    def test_resuming_a_finished_run_changes_nothing(self):
        self.uninterrupted()
        before = harness.snapshot(self.dir / "whole")
        for changed in [], ["--set", "train.lr=0.5"], ["--set", "train.steps=30"]:
            finished = self.ok("train", self.config, "--out", "whole", "--resume", "auto", *changed)
            self.assertIn("nothing to do: step 60", finished.out)
            self.assertTrue(before == harness.snapshot(self.dir / "whole"), changed)

    def test_resume_from_a_named_checkpoint(self):
        self.config = self.write_config(checkpoint__keep=0)
        self.ok("train", self.config, "--out", "whole")
        first = self.checkpoints("whole")[0]
        self.ok("train", self.config, "--out", "run", "--resume", first)
        whole, run = self.metrics("whole"), self.metrics("run")
        self.assertEqual(run[-1]["step"], whole[-1]["step"])
        by_step = {line["step"]: harness.without_timing(line) for line in whole}
        for line in run:
            self.assertEqual(harness.without_timing(line), by_step[line["step"]])
        self.assertEqual(self.weights("run"), self.weights("whole"))

    def test_going_back_to_an_earlier_checkpoint(self):
        """What the run had done since then is set aside, whole, and is not taken for its own again."""
        self.config = self.write_config(train__steps=15, checkpoint__every=3, checkpoint__keep=2, train__eval_every=3)
        self.ok("train", self.config, "--out", "run", "--set", "checkpoint.keep=0")
        self.ok("eval", "run", "--json", "run/eval.json")
        self.ok("eval", "run/checkpoints/step_000003", "--json", "run/eval_early.json")
        before = harness.snapshot(self.dir / "run")
        step_3 = self.dir / "run" / "checkpoints" / "step_000003"
        # As a process that was killed while it pointed a link.
        (self.dir / "run" / "checkpoints" / ".tmp_latest").symlink_to("step_000003")
        back = self.ok("train", self.config, "--out", "run", "--resume", step_3, "--set", "train.steps=9", "--set", "train.lr=1e-4")
        self.assertIn("4 later checkpoints, to step 15, and its log until then are now the run ", back.err)
        self.assertIn("run/abandoned_1; remove it when it is not needed", back.err)
        # Rotation keeps two and the best of the new branch, not those of the old one.
        self.assertEqual([path.name for path in self.checkpoints("run")][-2:], ["step_000006", "step_000009"])
        self.assertLessEqual(len(self.checkpoints("run")), 3)
        self.assertEqual([line["step"] for line in self.metrics("run")], list(range(1, 10)))
        aside = harness.snapshot(self.dir / "run" / "abandoned_1")
        for name in aside:
            self.assertTrue(aside[name] == before[name], name)
        self.assertEqual([path.name for path in self.checkpoints("run/abandoned_1")],
                         ["step_000006", "step_000009", "step_000012", "step_000015"])
        # What judged the weights that it has left goes with them.
        self.assertFalse((self.dir / "run" / "eval.json").exists())
        self.assertIn("eval.json", aside)
        self.assertTrue((self.dir / "run" / "eval_early.json").exists())
        # It is a run of its own.
        self.assertIn("nothing to do: step 15", self.ok("train", self.config, "--resume", "run/abandoned_1").out)
        self.ok("eval", "run/abandoned_1")
        # Once more: the next free name. Stopped before it saves, the run still goes on from where it went back to.
        self.ok("train", self.config, "--resume", self.dir / "run" / "checkpoints" / "step_000006", "--set", "train.steps=7",
                "--set", "checkpoint.every=0")
        self.assertTrue((self.dir / "run" / "abandoned_2" / "checkpoints" / "step_000009").is_dir())
        process = self.start("train", self.config, "--resume", self.dir / "run" / "checkpoints" / "step_000006", "--set",
                             "train.steps=100000", "--set", "checkpoint.every=0")
        self.assertTrue(self.wait_until(process, lambda: len(self.metrics("run")) > 20))
        self.assertTrue(self.kill(process))
        on = self.ok("train", self.config, "--out", "run", "--resume", "auto", "--set", "train.steps=8")
        self.assertIn("step_000006 after step 6", on.err)

    def test_another_runs_checkpoint_does_not_touch_a_run(self):
        self.config = self.write_config(train__steps=6, checkpoint__every=3)
        self.ok("train", self.config, "--out", "mine", "--set", "train.seed=1")
        self.ok("train", self.config, "--out", "other", "--set", "train.seed=2")
        before = harness.snapshot(self.dir / "mine")
        self.fails(2, "train", self.config, "--out", "mine", "--resume", "other", "--set", "train.seed=2", "--set", "train.steps=9",
                   names=["mine: holds a run already", "--out"])
        self.assertTrue(before == harness.snapshot(self.dir / "mine"))

    def test_samples_in_another_order_are_said(self):
        data = [{"path": f"data/train_00{i}.bin", "domain": name, "weight": 1} for i, name in enumerate("ab")]
        self.config = self.write_config(train__steps=2, data__train=data)
        self.ok("train", self.config, "--out", "run")

        def said(steps, *changes):
            sets = [word for change in (f"train.steps={steps}", *changes) for word in ("--set", change)]
            return "drawn anew" in self.ok("train", self.config, "--out", "run", "--resume", "auto", *sets).err
        twice = ("data.train.0.weight=2", "data.train.1.weight=2")
        self.assertFalse(said(3, *twice), "the shares are the same")
        self.assertTrue(said(4, twice[0]))
        self.assertFalse(said(5, twice[0]))
        self.assertTrue(said(6, twice[0], "train.seq_len=16"))

    def test_a_named_checkpoint_where_nothing_is_to_be_done(self):
        self.config = self.write_config(train__steps=9, checkpoint__every=3, checkpoint__keep=0)
        self.ok("train", self.config, "--out", "run")
        before = harness.snapshot(self.dir / "run")
        done = self.ok("train", self.config, "--resume", self.dir / "run" / "checkpoints" / "step_000003", "--set", "train.steps=3",
                       "--set", "checkpoint.keep=1", "--set", "checkpoint.keep_best=false")
        self.assertIn("nothing to do: step 3", done.out)
        self.assertTrue(before == harness.snapshot(self.dir / "run"))

    def test_checkpoints_that_lie_elsewhere(self):
        """On a larger disk, behind a link."""
        self.config = self.write_config(train__steps=3, checkpoint__every=3, checkpoint__keep=0)
        (self.dir / "far").mkdir()
        (self.dir / "run").mkdir()
        (self.dir / "run" / "checkpoints").symlink_to(self.dir / "far")
        self.ok("train", self.config, "--out", "run", "--resume", "auto")
        self.ok("train", self.config, "--out", "run", "--resume", "auto", "--set", "train.steps=6")
        self.ok("train", self.config, "--out", "run", "--resume", self.dir / "far" / "step_000003", "--set", "train.steps=5")
        self.assertEqual([path.name for path in self.checkpoints("run/abandoned_1")], ["step_000006"])
        self.assertEqual([path.name for path in self.checkpoints("run")], ["step_000003", "step_000005"])
        # The run that is named is the one that goes on, not the place where its checkpoints lie.
        for steps, named in ((6, "run"), (7, "run/"), (8, "run/checkpoints"), (9, "run/checkpoints/latest"),
                             (10, "run/checkpoints/step_000009")):
            self.ok("train", self.config, "--resume", named, "--set", f"train.steps={steps}")
            self.assertEqual(self.metrics("run")[-1]["step"], steps, named)
        self.assertEqual(sorted(path.name for path in self.dir.glob("metrics.jsonl")), [])
        self.ok("train", self.config, "--out", "plain")
        (self.dir / "ck").symlink_to(self.dir / "plain" / "checkpoints")
        self.ok("eval", "ck")

    def test_checkpoints_on_a_disk_of_their_own(self):
        self.config = self.write_config(train__steps=9, checkpoint__every=3, checkpoint__keep=0)
        with harness.small_disk(self.dir / "disk", 64 << 20) as mounted:
            if not mounted:
                self.skipTest("mounting a file system is not allowed here")
            (self.dir / "run").mkdir()
            (self.dir / "run" / "checkpoints").symlink_to(self.dir / "disk")
            self.ok("train", self.config, "--out", "run", "--resume", "auto")
            back = self.ok("train", self.config, "--resume", "run/checkpoints/step_000003", "--set", "train.steps=4")
            self.assertIn("2 later checkpoints", back.err)
            self.assertEqual([path.name for path in self.checkpoints("run")], ["step_000003", "step_000004"])
            self.assertEqual([path.name for path in self.checkpoints("run/abandoned_1")], ["step_000006", "step_000009"])
            self.assertIn("nothing to do: step 9", self.ok("train", self.config, "--resume", "run/abandoned_1").out)
            shutil.rmtree(self.dir / "run" / "abandoned_1")  # the link alone
            self.ok("train", self.config, "--resume", "run/checkpoints/step_000003", "--set", "train.steps=5")
            self.assertEqual([path.name for path in self.checkpoints("run/abandoned_2")], ["step_000004"])

    def test_later_checkpoints_than_the_one_that_latest_names(self):
        """As a process leaves them that is killed between pointing `latest` back and moving the others."""
        self.config = self.write_config(train__steps=9, checkpoint__every=3, checkpoint__keep=0)
        self.ok("train", self.config, "--out", "run")
        latest = self.dir / "run" / "checkpoints" / "latest"
        latest.unlink()
        latest.symlink_to("step_000003")
        on = self.ok("train", self.config, "--out", "run", "--resume", "auto", "--set", "train.steps=6", "--set", "train.lr=1e-4")
        self.assertIn("2 later checkpoints, to step 9", on.err)
        self.assertEqual([path.name for path in self.checkpoints("run/abandoned_1")], ["step_000006", "step_000009"])
        self.assertEqual([path.name for path in self.checkpoints("run")], ["step_000003", "step_000006"])

    def test_ended_before_its_first_checkpoint_in_another_directory(self):
        self.config = self.write_config(train__steps=4, checkpoint__every=2)
        self.ok("train", self.config, "--out", "first")
        again = ("train", self.config, "--out", "second", "--resume", "first", "--set", "checkpoint.every=0", "--set")
        process = self.start(*again, "train.steps=100000")
        log = self.dir / "second" / "metrics.jsonl"
        self.assertTrue(self.wait_until(process, lambda: log.exists() and log.read_bytes().count(b"\n") >= 3))
        self.assertTrue(self.kill(process))
        self.fails(2, *again, "train.steps=6", names=["second: holds a run already"])  # another command
        process = self.start(*again, "train.steps=100000")
        self.assertTrue(self.wait_until(process, lambda: log.read_bytes().count(b"\n") >= 3))
        self.assertTrue(self.kill(process), "the same command begins it again")
        # Where it began is not known to another command.
        self.fails(2, "train", self.config, "--out", "second", "--resume", "auto", names=["second: has no checkpoint, and its log begins with step 5"])
        # A fresh run of the same configuration is another one.
        process = self.start("train", self.config, "--out", "third", "--set", "checkpoint.every=0", "--set", "train.steps=100000")
        log = self.dir / "third" / "metrics.jsonl"
        self.assertTrue(self.wait_until(process, lambda: log.exists() and log.read_bytes().count(b"\n") >= 3))
        self.assertTrue(self.kill(process))
        self.fails(2, "train", self.config, "--out", "third", "--resume", "first", "--set", "checkpoint.every=0", "--set",
                   "train.steps=100000", names=["third: holds a run already"])

    def test_a_log_that_cannot_be_set_aside(self):
        """Then nothing is: another attempt finds all that there was."""
        self.config = self.write_config(train__steps=9, checkpoint__every=3, checkpoint__keep=0)
        self.ok("train", self.config, "--out", "run")
        before = harness.snapshot(self.dir / "run")
        back = ("train", self.config, "--resume", self.dir / "run" / "checkpoints" / "step_000003", "--set", "train.steps=4")
        limit = {"preexec_fn": lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))}
        self.fails(2, *back, names=["abandoned_1: what the run has done after step 3 cannot be set aside there"], **limit)
        self.assertTrue(before == harness.snapshot(self.dir / "run"))
        self.assertEqual((self.dir / "run" / "checkpoints" / "latest").readlink().name, "step_000009")

    def test_a_run_is_not_overwritten(self):
        self.config = self.write_config(train__steps=4)
        self.ok("train", self.config, "--out", "run")
        before = harness.snapshot(self.dir / "run")
        self.fails(2, "train", self.config, "--out", "run", names=["run", "resume"])
        self.assertTrue(before == harness.snapshot(self.dir / "run"))

    def test_two_processes_do_not_share_a_run(self):
        self.config = self.write_config(train__steps=100_000, checkpoint__every=100)
        process = self.start("train", self.config, "--out", "run")
        log = self.dir / "run" / "metrics.jsonl"
        self.assertTrue(self.wait_until(process, lambda: log.exists() and log.stat().st_size > 0))
        self.fails(2, "train", self.config, "--out", "run", "--resume", "auto", names=["run"])
        self.assertTrue(self.kill(process), "the first process went on undisturbed")

    def test_another_model_cannot_continue(self):
        self.config = self.write_config(train__steps=4)
        self.ok("train", self.config, "--out", "run")
        for change in ("model.hidden_size=64", "model.num_experts=8", "train.seed=9"):
            before = harness.snapshot(self.dir / "run" / "checkpoints")
            self.fails(2, "train", self.config, "--out", "run", "--resume", "auto", "--set", change,
                       names=[change.split("=")[0].split(".")[1]])
            self.assertTrue(before == harness.snapshot(self.dir / "run" / "checkpoints"), change)


if __name__ == "__main__":
    harness.main()
