"""README.md's commands do what the page says: each line of its blocks is run, in the page's order, in a directory that
looks like a checkout. Runs are cut to a few steps; what installs, builds or needs a large Python package is not run, and
listed below by name, so that a command that is in neither group fails."""

import copy
import gzip
import json
import re
import shlex
import stat
import subprocess
import unittest

import harness
from harness import ROOT, CliTest, tiny_config

# Begins of commands that are not run here, and why.
NOT_RUN = {
    "scripts/quickstart.sh": "it installs and builds; the options of its commands are run one by one below",
    "scripts/test.sh": "it runs this test",
    "cmake --preset": "it builds",
    "pip install": "it needs a network",
    "tools/debian_corpus.py": "it needs a network; tests/tools/test_debian_corpus.py runs it on packages of its own",
    "scripts/compare_routers.sh": "it trains 15 models in whole; compare_routers_test.py runs it on smaller ones",
    "streamlit run": "it needs streamlit; tests/tools/test_dashboard.py runs the page",
    "tools/compare_hf.py": "it needs transformers; tests/tools/test_compare_hf.py runs what does not",
    "mpirun": "it needs Open MPI and other machines; mpi_test.py runs it where it is installed",
}
NEEDS_PACKAGES = {"--train-bpe": "tokenizers", ".parquet": "pyarrow"}
STEPS = 4


def commands():
    """The command lines of README.md's blocks, continued lines joined, comments left out."""
    lines = []
    for block in re.findall(r"^```(?:sh)?\n(.*?)^```$", (ROOT / "README.md").read_text(), re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True, posix=False)
            if words and re.match(r"(build/|tools/|scripts/|cmake |pip |streamlit |mpirun )", " ".join(words)):
                lines.append(" ".join(words))
    return lines


def missing_package(command):
    for sign, package in NEEDS_PACKAGES.items():
        if sign in command:
            try:
                __import__(package)
            except ImportError:
                return package
    return None


class Readme(CliTest):
    def setUp(self):
        super().setUp()
        for name in ("configs", "tests", "tools", "scripts"):
            (self.dir / name).symlink_to(ROOT / name)
        self.write_what_the_page_takes_as_given()
        # The binary, with `train` cut to a few steps.
        (self.dir / "build").mkdir()
        wrapper = self.dir / "build" / "switchyard"
        wrapper.write_text("#!/bin/sh\nif [ \"$1\" = train ]; then\n"
                           f"  set -- \"$@\" --set train.steps={STEPS} --set train.seq_len=16 --set train.micro_batch_size=1"
                           " --set train.global_batch_size=2 --set train.eval_every=2 --set train.eval_tokens=64"
                           " --set checkpoint.every=2\nfi\n"
                           f"exec {shlex.quote(harness.BINARY)} \"$@\"\n")
        wrapper.chmod(wrapper.stat().st_mode | stat.S_IXUSR)

    def write_what_the_page_takes_as_given(self):
        """Shards of five domains, a configuration and a model of one's own, and text."""
        (self.dir / "c4").mkdir()
        texts = [json.dumps({"text": f"Paragraph {i} is about the number {i * i}."}) for i in range(300)]
        with gzip.open(self.dir / "c4" / "c4-train.00000.json.gz", "wt") as file:
            file.write("\n".join(texts) + "\n")
        for directory in ("corpus_bytes/prose", "corpus_bytes/reference", "corpus_bytes/technical", "corpus_bytes/legal",
                          "corpus_bytes/code", "c4val", "fineweb32k", "quickstart/finance", "quickstart/legal", "quickstart/code",
                          "quickstart/general"):
            subprocess.run([ROOT / "tools" / "prepare_data.py", "--input", "c4/*.json.gz", "--tokenizer", "bytes",
                            "--out", f"data/{directory}", "--val-fraction", "0.1"], cwd=self.dir, check=True, capture_output=True)
        mine = tiny_config()
        mine["data"] = {"train": [{"path": "data/c4val/train*.bin"}], "validation": [{"path": "data/c4val/val*.bin"}]}
        self.ok("train", self.write_config(mine, train__steps=2, checkpoint__every=2), "--out", "theirs")
        (self.dir / "path" / "to").mkdir(parents=True)
        self.ok("export", "theirs", "--out", "path/to/hf_model")
        dense = copy.deepcopy(mine)
        dense["model"] |= {"mlp_only_layers": [0, 1], "intermediate_size": 4 * dense["model"]["moe_intermediate_size"]}
        self.ok("train", self.write_config(dense, "dense.json", router=None, train__steps=2, checkpoint__every=2), "--out",
                "path/to/dense")
        self.write_config(mine, name="moe.json")
        del mine["model"]  # --init-from brings it
        self.write_config(mine, name="my.json")
        (self.dir / "opening.txt").write_text("The court held that")
        (self.dir / "runs").mkdir()
        (self.dir / "runs" / "other").symlink_to(self.dir / "theirs")

    def test_every_command(self):
        page = commands()
        self.assertGreater(len(page), 15)
        ran = 0
        for command in page:
            with self.subTest(command):
                program = shlex.split(command)[0]
                if "/" in program and not program.startswith("build/"):
                    self.assertTrue((ROOT / program).is_file(), "no such file")
                if any(command.startswith(begin) for begin in NOT_RUN):
                    continue
                package = missing_package(command)
                if package or "fineweb/" in command:  # its Parquet files are not made here
                    self.assertTrue(package or (ROOT / "tools" / "prepare_data.py").is_file())
                    continue
                done = subprocess.run(["bash", "-c", command], cwd=self.dir, text=True, capture_output=True,
                                      env=harness.environment(), timeout=harness.TIMEOUT)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                ran += 1
        self.assertGreaterEqual(ran, 11)

    def test_what_is_not_run_is_still_on_the_page(self):
        page = commands()
        for begin in NOT_RUN:
            self.assertTrue(any(command.startswith(begin) for command in page), begin)


if __name__ == "__main__":
    harness.main()
