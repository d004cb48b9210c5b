"""tools/ptxas.py: what ptxas says of kernels ends the build where registers spill."""
import contextlib
import io
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import ptxas  # noqa: E402

SAID = """ptxas info    : 17 bytes gmem, 40 bytes cmem[4]
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 2048 bytes smem, 388 bytes cmem[0]
ptxas info    : Compile time = 3.1 ms
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    24 bytes stack frame, 16 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 64 registers, used 0 barriers, 24 bytes cumulative stack size
"""
SERIAL = "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to a call in 'f'\n"
SPILLS = """__global__ void __launch_bounds__(1024, 2) crowded(float* p) {
  float x[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) x[i] = p[i * 1024 + threadIdx.x];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 64; ++i) p[(63 - i) * 1024 + threadIdx.x] = x[i] * x[(i * 7 + 1) % 64];
}
"""


class Ptxas(unittest.TestCase):
    def test_reads_what_a_kernel_takes(self):
        kernels, remarks = ptxas.read(SAID)
        self.assertEqual([[kernel[column] for column in ptxas.COLUMNS] for kernel in kernels],
                         [["sm_80", 40, 0, 0, 2048, "_Z4goodPf"], ["sm_90", 64, 24, 36, 0, "_Z3badPf"]])
        self.assertEqual(remarks, [])

    def test_spills_and_warnings_are_faults(self):
        wrong = ptxas.faults(*ptxas.read(SAID + SERIAL + "ptxas warning : Unresolved extern variable\n"))
        self.assertEqual(len(wrong), 3)
        self.assertIn("C7510", wrong[0])
        self.assertIn("Unresolved", wrong[1])
        self.assertEqual(wrong[2], "_Z3badPf (sm_90): 64 registers, 36 bytes of spills, a stack of 24 bytes")

    def test_what_is_allowed_has_a_bound(self):
        for words, most, _ in ptxas.ALLOWED:
            kernel = dict(zip(ptxas.COLUMNS, ("sm_90", 64, most, 0, 0, "_Z" + "_".join(words))))
            self.assertEqual(ptxas.faults([kernel], []), [])
            self.assertEqual(len(ptxas.faults([kernel | {"stack": most + 8}], [])), 1)

    def test_every_allowance_is_of_a_kernel(self):
        for (file, *words), _, _ in ptxas.ALLOWED:
            text = (ROOT / "cuda" / (file.removesuffix("_cu") + ".cu")).read_text()
            for word in words:
                self.assertIn(word.split("ILi")[0], text)

    def test_every_kernel_says_how_large_its_blocks_are(self):
        """Then ptxas keeps to the registers that such blocks have, or spills, which is a fault."""
        found = 0
        for path in sorted((ROOT / "cuda").glob("*.*")):
            for bounds in re.findall(r"__global__ void(\s+__launch_bounds__\()?", path.read_text()):
                found += 1
                self.assertTrue(bounds, f"{path.name}: a kernel without __launch_bounds__")
        self.assertGreater(found, 50)

    def test_a_table_of_what_was_built(self):
        with tempfile.TemporaryDirectory() as folder:
            with self.assertRaisesRegex(SystemExit, "build the target"):
                ptxas.report(folder)
            ptxas.write(pathlib.Path(folder) / "x.cu.o.ptxas", ptxas.read(SAID)[0])
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                ptxas.report(folder)
            lines = out.getvalue().splitlines()
            self.assertEqual(lines[0].split(), list(ptxas.COLUMNS))
            self.assertEqual(lines[2].split(), ["sm_90", "64", "24", "36", "0", "bad(float*)"])

    def test_a_build_with_spills_fails_and_leaves_no_object(self):
        nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        if nvcc is None:
            self.skipTest("no nvcc in PATH or in /usr/local/cuda/bin")
        with tempfile.TemporaryDirectory() as folder:
            source, target = pathlib.Path(folder) / "x.cu", pathlib.Path(folder) / "x.o"
            roomy = SPILLS.replace("64", "8").replace("63", "7")
            for text, options, code, spills in ((SPILLS, [], 1, True), (SPILLS, ["--warn"], 0, True), (roomy, [], 0, False)):
                source.write_text(text)
                done = subprocess.run([sys.executable, str(ROOT / "tools" / "ptxas.py"), *options, nvcc, "-arch=sm_80", "-Xptxas=-v",
                                       "-c", str(source), "-o", str(target)], capture_output=True, text=True, timeout=300)
                self.assertEqual((done.returncode, target.exists()), (code, code == 0), done.stderr)
                self.assertEqual("bytes of spills" in done.stderr, spills)
                self.assertNotIn("ptxas info", done.stderr)


if __name__ == "__main__":
    unittest.main()
