#!/usr/bin/env python3
"""A compiler launcher: tools/ptxas.py [--warn] [ccache] nvcc ARGUMENTS... -o OBJECT

Runs the command, writes what ptxas says of each kernel to OBJECT.ptxas, and fails where a kernel keeps registers in local memory
or ptxas warns of anything, unless ALLOWED below says why. --warn: says so and goes on, for a ptxas of another version than the one
that ALLOWED is of. With --report DIRECTORY alone: a table of all that was written under it."""
import pathlib
import re
import subprocess
import sys

# Words of a kernel's name (X_cu: of the file X.cu), the most bytes of its stack, spilled registers among them, and why they do not
# matter, or not yet.
ALLOWED = (
    (("rope_cu", "table_kernel"), 40, "cos() of large angles in double; once, when a model is made"),
    (("attention_cu", "dkv_kernel"), 24, "plain tiles, of float32 and unusual widths, which wait for shared memory"),
    (("attention_mma_cu", "forward_kernel"), 112, "scores, weights and sums of heads of 128 take all 255 registers; 8 bytes on 8.0, and on "
                                                  "9.0 attention_wgmma has the usual widths"),
    (("attention_mma_cu", "dq_kernel"), 16, "some addresses beside 255 registers of heads of 128"),
    (("attention_mma_cu", "dkv_kernel"), 8, "one number, for two blocks on a multiprocessor"),
    (("attention_wgmma_cu", "forward_kernelILi256E"), 32, "64 rows of 256 sums and 64 scores a warpgroup"),
    (("elementwise_cu", "AddNormal"), 40, "cos() in double"),
    (("elementwise_cu", "SumByHalves"), 320, "a stack of sums, which the kernel asks for: its depth is known only when it runs"),
    (("token_rows_cu", "collect_rows_kernel"), 240, "a stack of sums as well, for numbers of places that have no kernel of their own"),
)

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
QUIET = ("Compiling entry function", "Function properties for", "Compile time =", "bytes gmem")
COLUMNS = ("architecture", "registers", "stack", "spills", "shared", "kernel")


def read(text):
    """The kernels that ptxas has compiled, each a dictionary of COLUMNS, and its lines that are neither that nor usual."""
    kernels, remarks, entry, stack = [], [], None, (0, 0, 0)
    for line in text.splitlines():
        if found := ENTRY.search(line):
            entry, stack = found, (0, 0, 0)
        elif found := STACK.search(line):
            stack = tuple(int(number) for number in found.groups())
        elif (found := USED.search(line)) and entry:
            kernels.append(dict(zip(COLUMNS, (entry[2], int(found[1]), stack[0], stack[1] + stack[2], int(found[2] or 0), entry[1]))))
            entry = None
        elif line.startswith("ptxas") and not any(words in line for words in QUIET):
            remarks.append(line)
    return kernels, remarks


def faults(kernels, remarks):
    """A line for each thing that is not as it is to be."""
    wrong = list(remarks)
    for kernel in kernels:
        allowed = max((most for words, most, _ in ALLOWED if all(word in kernel["kernel"] for word in words)), default=0)
        if kernel["stack"] > allowed or (kernel["spills"] and not allowed):
            wrong.append("{kernel} ({architecture}): {registers} registers, {spills} bytes of spills, a stack of {stack} bytes"
                         .format(**kernel))
    return wrong


def write(path, kernels):
    path.write_text("".join("\t".join(str(kernel[column]) for column in COLUMNS) + "\n" for kernel in kernels))


def report(directory):
    lines = [line.split("\t") for path in sorted(pathlib.Path(directory).glob("**/*.ptxas")) for line in path.read_text().splitlines()]
    if not lines:
        sys.exit(f"ptxas.py: no kernel's registers under {directory}: build the target switchyard_cuda with the preset cuda first")
    names = subprocess.run(["c++filt"], input="\n".join(line[-1] for line in lines), capture_output=True, text=True, check=True)
    for line, name in zip([list(COLUMNS)] + lines, ["kernel"] + names.stdout.splitlines()):
        name = re.sub(r"^void |switchyard::ops::cuda::|\(anonymous namespace\)::|__nv_", "", name.split("(switchyard", 1)[0])
        print(" ".join(f"{cell:>12}" for cell in line[:-1]), name)


def main(arguments):
    if arguments[:1] == ["--report"]:
        return report(arguments[1])
    warn = arguments[:1] == ["--warn"]
    arguments = arguments[warn:]
    done = subprocess.run(arguments, capture_output=True, text=True)
    sys.stdout.write(done.stdout)
    kernels, remarks = read(done.stderr)
    sys.stderr.write("".join(line + "\n" for line in done.stderr.splitlines()
                             if not (line.startswith("ptxas info") or STACK.search(line))))
    if done.returncode != 0 or "-o" not in arguments or "-c" not in arguments:
        return done.returncode
    target = pathlib.Path(arguments[arguments.index("-o") + 1])
    write(target.with_name(target.name + ".ptxas"), kernels)
    wrong = faults(kernels, remarks)
    if not wrong:
        return 0
    if not warn:
        target.unlink()
    print(f"tools/ptxas.py: {target.name}: use fewer registers, or say in ALLOWED why it does not matter:", *wrong, sep="\n  ",
          file=sys.stderr)
    return 0 if warn else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
