"""`switchyard dump`: what compare_hf.py compares, here against the golden files."""

import pathlib
import shutil

import harness
from harness import CliTest

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"


class Dump(CliTest):
    def test_equals_the_golden_files(self):
        for case in ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe"):
            with self.subTest(case):
                directory = GOLDEN / case
                self.ok("dump", directory, "--tokens", directory / "golden.safetensors", "--out", "out.safetensors")
                written = harness.read_safetensors(self.dir / "out.safetensors")
                golden = harness.read_safetensors(directory / "golden.safetensors")
                names = {name for name in golden if name.startswith("grad.")} | {"logits", "loss"}
                self.assertLessEqual(names, set(written))
                for name in names:
                    want, got = golden[name][2], written[name][2]
                    self.assertEqual(len(want), len(got), name)
                    # Relative to the tensor's largest value: float32 sums in another order, through both passes.
                    largest = max(abs(value) for value in want) or 1.0
                    worst = max(abs(a - b) for a, b in zip(want, got))
                    self.assertLess(worst / largest, 1e-4 if name.startswith("grad.") else 1e-5, name)

    def test_bad_input(self):
        tokens = GOLDEN / "mixtral" / "golden.safetensors"
        self.fails(2, "dump", "nowhere", "--tokens", tokens, "--out", "out.safetensors", names=["nowhere"])
        shutil.copytree(GOLDEN / "mixtral", self.dir / "copy")
        self.fails(2, "dump", "copy", "--tokens", self.dir / "copy" / "model.safetensors", "--out", "out.safetensors",
                   names=["tokens"])
        (self.dir / "copy" / "model.safetensors").unlink()
        (self.dir / "copy" / "golden.safetensors").unlink()
        self.fails(2, "dump", "copy", "--tokens", tokens, "--out", "out.safetensors", names=["copy", "no .safetensors file"])
        self.assertFalse((self.dir / "out.safetensors").exists())


if __name__ == "__main__":
    harness.main()
