"""Dependencies between modules point downward only: no file of src/ or cuda/ includes a header of a module that its own may
not know."""
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]

BELOW = {
    "core": [],
    "config": ["core"],
    "data": ["core"],
    "machine": ["core"],
    "ops": ["core", "cuda"],
    "cuda": ["core", "ops"],
    "parallel": ["core", "ops", "machine"],
    "router": ["core", "config", "ops"],
    "model": ["core", "config", "ops", "parallel", "router"],
    "plan": ["core", "config", "ops", "router", "model"],
    "tokenizer": ["core"],
    "generate": ["core", "config", "model"],
    "checkpoint": ["core", "config", "router", "model", "data", "tokenizer", "parallel"],
    "tasks": ["core", "model", "parallel", "tokenizer", "generate", "checkpoint"],
    "train": ["core", "config", "ops", "router", "model", "data", "parallel", "checkpoint"],
    "bench": ["core", "config", "ops", "router", "model", "plan", "data", "generate", "parallel", "checkpoint", "train"],
    "sweep": ["core", "config"],
    "commands": ["core", "config", "ops", "router", "model", "data", "tokenizer", "generate", "parallel", "checkpoint",
                 "plan", "tasks", "train", "bench", "sweep", "machine"],
}
# Of the commands' folder only the sources that src/CMakeLists.txt names training_commands.
TRAINERS = {"parallel", "train", "bench"}


class Modules(unittest.TestCase):
    def test_every_folder_is_a_module_with_known_dependencies(self):
        self.assertEqual(sorted(path.name for path in (ROOT / "src").iterdir() if path.is_dir()),
                         sorted(set(BELOW) - {"cuda"}))

    def test_includes_go_down(self):
        checked = dict.fromkeys(BELOW, 0)
        for path in sorted([*(ROOT / "src").glob("*/**/*.[ch]*"), *(ROOT / "cuda").glob("*.[ch]*")]):
            module = path.relative_to(ROOT / "src").parts[0] if ROOT / "src" in path.parents else "cuda"
            for line, text in enumerate(path.read_text().splitlines(), 1):
                found = re.match(r'#include "([^/"]+)/', text)
                if found:
                    checked[module] += 1
                    self.assertIn(found[1], BELOW[module] + [module],
                                  f"{path.relative_to(ROOT)}:{line}: {module} may not include {found[1]}")
        self.assertEqual([module for module, count in checked.items() if count == 0], [])

    def test_only_commands_that_train_know_a_trainer(self):
        text = (ROOT / "src" / "CMakeLists.txt").read_text()
        training = set(re.search(r"set\(training_commands (.*?)\)", text, re.DOTALL)[1].split())
        self.assertLessEqual({"commands/train.cpp", "commands/eval.cpp"}, training)
        for path in sorted((ROOT / "src" / "commands").glob("*")):
            if f"commands/{path.stem}.cpp" in training:
                continue
            included = set(re.findall(r'^#include "([^/"]+)/', path.read_text(), re.MULTILINE))
            self.assertFalse(included & TRAINERS, path.name)

    def test_contracts_of_operators_stand_above_both_implementations(self):
        """A header of ops/ includes neither; cuda/ sees the contracts and nothing of the CPU's implementation."""
        contracts = sorted((ROOT / "src" / "ops").glob("*.h"))
        for path in [*contracts, *sorted((ROOT / "cuda").glob("*.[ch]*"))]:
            for line, text in enumerate(path.read_text().splitlines(), 1):
                below = r"ops/cpu/|cuda/" if path in contracts else r"ops/cpu/"
                self.assertIsNone(re.match(f'#include "({below})', text), f"{path.relative_to(ROOT)}:{line}: {text}")

    def test_one_source_knows_the_json_library(self):
        """Everything else uses core/json.h: the library's header is the slowest of all, and what is strict is decided once."""
        sources = [path for folder in ("src", "cuda", "tests") for path in sorted((ROOT / folder).glob("**/*"))
                   if path.suffix in {".cpp", ".h", ".cu", ".cuh"}]
        self.assertEqual([str(path.relative_to(ROOT)) for path in sources if "nlohmann" in path.read_text()],
                         ["src/core/json.cpp"])

    def test_the_build_links_what_may_be_included(self):
        text = (ROOT / "src" / "CMakeLists.txt").read_text()
        for module, linked in re.findall(r"^switchyard_module\((\w+) ?(.*)\)$", text, re.MULTILINE):
            modules = re.findall(r"switchyard_(\w+)", linked)
            self.assertLessEqual(set(modules), set(BELOW[module]), module)


if __name__ == "__main__":
    unittest.main()
