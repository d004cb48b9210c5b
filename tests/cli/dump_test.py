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

    def test_the_loss_of_a_run_is_by_its_own_coefficients(self):
        """A step of the run on the same tokens has it, too."""
        config = self.write_config(data__train=["data/val.bin"], data__validation=[], train__steps=1, train__lr=1e-30,
                                   train__micro_batch_size=15, train__global_batch_size=15, train__warmup_ratio=0,
                                   router={"type": "top_p", "entropy_coef": 0, "z_loss_coef": 0.1, "balance_coef": 0.3})
        self.ok("train", config, "--out", "run")
        (step,) = self.metrics("run")
        data = harness.learnable_tokens(501, seed=3)  # val.bin's
        harness.write_tokens(self.dir / "tokens.safetensors", *(data[32 * b:32 * b + 32] for b in range(15)))
        self.ok("dump", "run", "--tokens", "tokens.safetensors", "--out", "out.safetensors")
        written = harness.read_safetensors(self.dir / "out.safetensors")
        auxiliary = written["loss"][2][0] - written["cross_entropy"][2][0]
        # Of order 1, a difference of two float32 numbers; routers see each token once in both.
        self.assertAlmostEqual(auxiliary, sum(step[f"{kind}_loss"] for kind in ("balance", "z")), delta=2e-6)
        self.assertTrue(all(step[f"{kind}_loss"] > 0.01 for kind in ("balance", "z")), step)

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
