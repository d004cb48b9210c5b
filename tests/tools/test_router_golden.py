#!/usr/bin/env python3
"""The routers' golden files hold together: what the C++ is compared with is whole, finite and says what it should."""

import json
import math
import struct
import unittest
from pathlib import Path

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FORMATS = {"F32": "f", "I32": "i"}


def tensors_of(path):
    """{name: (shape, flat values)} of a safetensors file."""
    raw = path.read_bytes()
    (size,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    out = {}
    for name, entry in header.items():
        begin, end = (8 + size + offset for offset in entry["data_offsets"])
        values = struct.unpack(f"<{(end - begin) // 4}{FORMATS[entry['dtype']]}", raw[begin:end])
        out[name] = (entry["shape"], values)
    return out


class RouterGolden(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cases = {directory.name.removeprefix("router_"): directory for directory in GOLDEN.glob("router_*")}

    def each(self):
        for name, directory in sorted(self.cases.items()):
            yield (name, json.loads((directory / "case.json").read_text()),
                   tensors_of(directory / "tensors.safetensors"))

    def rows(self, tensor):
        (n_rows, width), values = tensor
        return [values[i * width:(i + 1) * width] for i in range(n_rows)]

    def test_every_option_has_a_case(self):
        seen = {}
        for _, case, _ in self.each():
            for key, value in case["router"].items():
                seen.setdefault((case["router"]["type"], key), set()).add(value)
        types = {kind for kind, _ in seen}
        self.assertEqual(types, {"softmax_topk", "sigmoid_group", "quantile", "top_p", "dynamic_k", "expert_threshold",
                                 "kmeans", "lpr"})
        everywhere = {key: set().union(*(v for (_, k), v in seen.items() if k == key)) for key in
                      ("balance_scope", "score_function", "estimator", "similarity", "diversity", "key_update", "bias",
                       "bias_mean_free", "renormalise", "unit_ball", "prototype_addend", "prototype_routing",
                       "num_heads", "reg_scope")}
        self.assertEqual(everywhere, {
            "balance_scope": {"layer", "sequence", "global_batch", "model"},
            "score_function": {"sigmoid", "softmax", "sqrtsoftplus"},
            "estimator": {"activation_norm_l2", "activation_norm_l1", "attention_entropy", "router_entropy", "hidden_entropy",
                          "loss_gradient", "threshold"},
            "similarity": {"cosine", "dot", "gaussian", "mahalanobis", "cross_attention", "kl", "js", "hellinger",
                           "wasserstein"},
            "diversity": {"orthogonal", "cosine", "euclidean"},
            "key_update": {"gradient", "ema"}, "bias": {"none", "quantile", "sign", "smebu", "phi"},
            "bias_mean_free": {True, False}, "renormalise": {True, False}, "unit_ball": {True, False},
            "prototype_addend": {True, False}, "prototype_routing": {True, False},
            "num_heads": {1, 2}, "reg_scope": {"global_batch", "micro_batch"}})
        for kind in types:
            self.assertGreater(len(seen[kind, "capacity_factor"]), 1, kind)
            if (kind, "simbal_coef") in seen:  # of a linear gate
                self.assertGreater(len(seen[kind, "simbal_coef"]), 1, kind)

    def test_slots_are_in_order_and_padding_has_none(self):
        for name, case, tensors in self.each():
            with self.subTest(name):
                token = tensors["token"][1]
                self.assertIn(-1, token)
                n_experts = case["shape"]["n_experts"]
                for t, expert_K, weight_K in zip(token, self.rows(tensors["expert"]), self.rows(tensors["weight"])):
                    used = [e for e in expert_K if e >= 0]
                    self.assertEqual(list(expert_K), used + [-1] * (len(expert_K) - len(used)))
                    self.assertEqual(len(set(used)), len(used))
                    self.assertTrue(all(e < n_experts for e in used))
                    self.assertEqual(sorted(weight_K, reverse=True), list(weight_K))
                    self.assertTrue(all((w > 0) == (e >= 0) for e, w in zip(expert_K, weight_K)))
                    if t < 0:
                        self.assertEqual(used, [])

    def test_padding_gets_no_gradient(self):
        for name, _, tensors in self.each():
            with self.subTest(name):
                for t, dx_D in zip(tensors["token"][1], self.rows(tensors["dx"])):
                    self.assertFalse(t < 0 and any(dx_D))

    def test_no_expert_is_above_its_capacity(self):
        for name, case, tensors in self.each():
            with self.subTest(name):
                factor = case["router"]["capacity_factor"]
                if factor is None:
                    continue
                (_, K), experts = tensors["expert"]
                n_tokens = sum(t >= 0 for t in tensors["token"][1])
                most = math.ceil(factor * n_tokens * K / case["shape"]["n_experts"])
                counts = [experts.count(e) for e in range(case["shape"]["n_experts"])]
                self.assertEqual(max(counts), most)

    def test_every_row_has_a_gradient_or_a_next_state(self):
        for name, _, tensors in self.each():
            with self.subTest(name):
                rows = {name.removeprefix("param.") for name in tensors if name.startswith("param.")}
                learned = {name.removeprefix("grad.") for name in tensors if name.startswith("grad.")}
                state = {name.removeprefix("after.") for name in tensors if name.startswith("after.")}
                self.assertEqual(learned | state, rows)
                self.assertEqual(learned & state, set())
                for row in rows:
                    after = tensors.get(f"grad.{row}", tensors.get(f"after.{row}"))
                    self.assertEqual(after[0], tensors[f"param.{row}"][0], row)
                for tensor, (_, values) in tensors.items():
                    self.assertTrue(all(math.isfinite(value) for value in values), tensor)

    def test_no_decision_hangs_on_a_rounding(self):
        for name, case, _ in self.each():
            with self.subTest(name):
                self.assertLess(case["float32_share_of_tolerance"], 0.25)
                for kind, distance in case["smallest_distances"].items():
                    self.assertGreater(distance, 1e-6 if kind == "bin" else 9e-5, kind)


if __name__ == "__main__":
    unittest.main()
