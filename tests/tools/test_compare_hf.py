#!/usr/bin/env python3
"""tools/compare_hf.py without `transformers`: its random models are such as switchyard takes, hold every option, and
are the same each time; what it allows hides no wrong gradient."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import compare_hf  # noqa: E402
import random_models  # noqa: E402

MODELS = 240


def documented_keys():
    """{layout or "rope": keys} of the tables of docs/configuration.md, which config_test holds to the reader's."""
    page = (ROOT / "docs" / "configuration.md").read_text()
    model = page[page.index("\n## model\n"):page.index("\n## model.rope_parameters\n")]
    keys = {layout: set() for layout in random_models.LAYOUTS}
    for heading, table in re.findall(r"^([A-Z][^\n|]*):\n\n((?:\|[^\n]*\n)+)", model, re.MULTILINE):
        layouts = [f for f in keys if f"`{f}`" in heading] or list(keys)
        for layout in layouts:
            keys[layout] |= set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))
    rope = page[page.index("\n## model.rope_parameters\n"):page.index("\n## router\n")]
    keys["rope"] = set(re.findall(r"^\| `(\w+)`", rope, re.MULTILINE))
    return keys


class RandomModels(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.models = [random_models.random_model(1, number) for number in range(MODELS)]

    def test_the_same_numbers_give_the_same_models(self):
        self.assertEqual([random_models.random_model(1, number) for number in range(MODELS)], self.models)
        self.assertNotEqual([random_models.random_model(2, number) for number in range(MODELS)], self.models)
        self.assertEqual(random_models.random_batch(1, 5), random_models.random_batch(1, 5))
        # A model is found again by its two numbers on another machine too.
        model = random_models.random_model(3, 2)
        self.assertEqual({key: model[key] for key in ("model_type", "hidden_size", "v_head_dim")},
                         {"model_type": "deepseek_v3", "hidden_size": 12, "v_head_dim": 7})

    def test_every_option_is_there(self):
        known = documented_keys()
        self.assertGreater(len(known["deepseek_v3"]), 35)
        never = set(random_models.NEVER)
        for layout in random_models.LAYOUTS:
            used = set().union(*(model for model in self.models if model["model_type"] == layout))
            self.assertEqual(known[layout] - used - never, random_models.NEVER_OF[layout], layout)
        scalings = [model[key] for model in self.models for key in ("rope_scaling", "rope_parameters")
                    if model.get(key)]
        self.assertEqual(known["rope"] - set().union(*scalings), set())

    def test_every_word_and_both_sides_of_every_switch(self):
        seen = {}
        for model in self.models:
            for part in (model, model.get("rope_scaling") or {}, model.get("rope_parameters") or {}):
                for key, value in part.items():
                    word = repr(value) if isinstance(value, (bool, str)) else type(value).__name__
                    seen.setdefault(key, set()).add(word)
        for key, values in seen.items():
            if values & {"True", "False"}:
                self.assertEqual(values, {"True", "False"}, key)
        self.assertEqual(seen["rope_type"], {"'default'", "'linear'", "'yarn'"})
        self.assertEqual(seen["model_type"], {repr(layout) for layout in random_models.LAYOUTS})

    def test_special_models_are_among_them(self):
        def some(what, condition):
            self.assertTrue(any(condition(model) for model in self.models), what)

        def dense(model):
            layers = model["num_hidden_layers"]
            return (model.get("first_k_dense_replace", 0) >= layers or
                    len(model.get("mlp_only_layers", [])) == layers or model.get("decoder_sparse_step", 1) > layers)

        some("dense", dense)
        some("one layer", lambda model: model["num_hidden_layers"] == 1)
        some("one expert a token, normalised, no balance loss",
             lambda model: model["num_experts_per_tok"] == 1 and model["model_type"] == "mixtral" and
             model.get("router_aux_loss_coef") == 0)
        some("all experts", lambda model: model["num_experts_per_tok"] == model.get("num_local_experts"))
        some("no shared experts", lambda model: model.get("n_shared_experts") == 0)
        some("a window of one token", lambda model: model.get("sliding_window") == 1)
        some("groups", lambda model: model.get("n_group", 1) > 1 and model["topk_group"] < model["n_group"])

    def test_switchyard_takes_them(self):
        binary = compare_hf.default_binary()
        if not os.access(binary, os.X_OK):
            self.skipTest(f"{binary} is not built")
        with tempfile.TemporaryDirectory() as temporary:
            path = pathlib.Path(temporary) / "config.json"
            for number, model in enumerate(self.models[:45]):
                path.write_text(json.dumps(model))
                done = subprocess.run([binary, "inspect", str(path)], capture_output=True, text=True, check=False)
                self.assertEqual(done.returncode, 0, f"{number}: {done.stderr}{model}")


class Tolerances(unittest.TestCase):
    """judge() on {tensor: (difference, largest value)}."""
    ORDINARY = {"logits": (1e-6, 3.0), "grad.model.embed_tokens.weight": (1e-6, 2.0),
                "grad.model.layers.0.mlp.experts.0.up_proj.weight": (1e-7, 0.3)}
    GATE = "grad.model.layers.0.mlp.gate.weight"

    def beyond(self, **differences):
        return [row.name for row in compare_hf.judge(self.ORDINARY | differences) if not row.within]

    def test_rounding_passes(self):
        self.assertEqual(self.beyond(), [])

    def test_what_is_zero_by_construction_is_compared_with_its_layer(self):
        self.assertEqual(self.beyond(**{self.GATE: (2e-10, 1e-10)}), [])
        self.assertEqual(self.beyond(**{self.GATE: (5e-9, 0.0)}), [])

    def test_a_wrong_gradient_is_not_taken_for_rounding(self):
        # Where there is a gradient in one program and rounding in the other.
        self.assertEqual(self.beyond(**{self.GATE: (1e-4, 1e-10)}), [self.GATE])
        # A small tensor, a thousandth of the layer's largest, one percent off.
        self.assertEqual(self.beyond(**{self.GATE: (3e-6, 3e-4)}), [self.GATE])
        # The layer counts, not the model: an embedding's large gradient excuses nothing.
        large = "grad.model.embed_tokens.weight"
        self.assertEqual(self.beyond(**{self.GATE: (3e-6, 3e-4), large: (0.0, 1e4)}), [self.GATE])

    def test_other_tensors_have_no_floor(self):
        self.assertEqual(self.beyond(**{"weights.0": (1e-9, 1e-10)}), ["weights.0"])

    def test_not_a_number_is_beyond(self):
        nan = float("nan")
        self.assertEqual(self.beyond(**{self.GATE: (nan, 1.0)}), [self.GATE])
        self.assertEqual(self.beyond(**{self.GATE: (nan, nan)}), [self.GATE])
        self.assertEqual(self.beyond(logits=(float("inf"), 1.0)), ["logits"])


class Arguments(unittest.TestCase):
    def test_one_thing_is_compared(self):
        for arguments in ([], ["config.json", "--random", "3"], ["--random", "0"], ["--random", "3", "--set", "a=1"]):
            done = subprocess.run([sys.executable, "-B", str(ROOT / "tools" / "compare_hf.py"), *arguments],
                                  capture_output=True, text=True, check=False)
            self.assertEqual(done.returncode, 2, arguments)
            self.assertNotIn("Traceback", done.stderr)

    def test_nothing_here_needs_torch(self):
        self.assertNotIn("torch", sys.modules)


if __name__ == "__main__":
    unittest.main()
