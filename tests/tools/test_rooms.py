"""The doors between rooms open downward only: no file of src/ includes a header of a room that its own may not know."""
import pathlib
import re
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]

BELOW = {
    "core": [],
    "config": ["core"],
    "data": ["core"],
    "cpu": ["core", "ops"],
    "ops": ["core", "cpu", "cuda"],
    "parallel": ["core", "ops"],
    "router": ["core", "config", "ops"],
    "model": ["core", "config", "ops", "router"],
    "tokenizer": ["core"],
    "generate": ["core", "config", "model"],
    "checkpoint": ["core", "config", "router", "model", "data", "tokenizer"],
    "train": ["core", "config", "ops", "router", "model", "data", "parallel", "checkpoint"],
    "commands": ["core", "config", "ops", "router", "model", "data", "tokenizer", "generate", "parallel", "checkpoint",
                 "train"],
}
# Of the commands' folder only the sources that src/CMakeLists.txt names training_commands.
TRAINERS = {"parallel", "train"}


class Rooms(unittest.TestCase):
    def test_every_folder_is_a_room_with_known_doors(self):
        self.assertEqual(sorted(path.name for path in (ROOT / "src").iterdir() if path.is_dir()), sorted(BELOW))

    def test_includes_go_down(self):
        checked = 0
        for path in sorted((ROOT / "src").glob("*/*.[ch]*")):
            room = path.parent.name
            for line, text in enumerate(path.read_text().splitlines(), 1):
                found = re.match(r'#include "([^/"]+)/', text)
                if found:
                    checked += 1
                    self.assertIn(found[1], BELOW[room] + [room],
                                  f"{path.relative_to(ROOT)}:{line}: {room} may not include {found[1]}")
        self.assertGreater(checked, 100)

    def test_only_commands_that_train_know_a_trainer(self):
        text = (ROOT / "src" / "CMakeLists.txt").read_text()
        training = set(re.search(r"set\(training_commands (.*?)\)", text)[1].split())
        self.assertLessEqual({"commands/train.cpp", "commands/eval.cpp"}, training)
        for path in sorted((ROOT / "src" / "commands").glob("*")):
            if f"commands/{path.name}" in training:
                continue
            included = set(re.findall(r'^#include "([^/"]+)/', path.read_text(), re.MULTILINE))
            self.assertFalse(included & TRAINERS, path.name)

    def test_every_operator_goes_to_the_device_of_its_run(self):
        """What calls the CPU's version of an operator asks first whether the run is on a CUDA device."""
        checked = 0
        for path in sorted((ROOT / "src" / "ops").glob("*.cpp")):
            # A function's body: from a line that ends in ") {" to the brace at the beginning of a line.
            pattern = r"^\w[^\n(]*?(\w+)\(([^{};]*)\) \{\n(.*?)^\}"
            for name, parameters, body in re.findall(pattern, path.read_text(), re.MULTILINE | re.DOTALL):
                if "Context&" not in parameters or "cpu::" not in body:
                    continue
                checked += 1
                self.assertIn("SY_ON_CUDA", body, f"{path.relative_to(ROOT)}: {name}")
        self.assertGreater(checked, 60)

    def test_the_build_links_what_may_be_included(self):
        text = (ROOT / "src" / "CMakeLists.txt").read_text()
        for room, linked in re.findall(r"^switchyard_room\((\w+) ?(.*)\)$", text, re.MULTILINE):
            rooms = re.findall(r"switchyard_(\w+)", linked)
            self.assertLessEqual(set(rooms), set(BELOW[room]), room)


if __name__ == "__main__":
    unittest.main()
