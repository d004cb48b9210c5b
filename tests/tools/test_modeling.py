#!/usr/bin/env python3
"""tools/modeling_switchyard.py computes what switchyard computes: its routers as tests/golden/router_* has them, and
models of every layout with every router as the built binary does. Needs torch, safetensors and, for models,
transformers; without them it is skipped."""

import json
import sys
import unittest
from pathlib import Path

try:
    import torch
    from safetensors.torch import load_file
except ImportError:
    torch = None

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

if torch is not None:
    import modeling_switchyard as modeling

# Of a tensor's largest value. The golden numbers are those of float64, rounded to float32.
TOLERANCE = 2e-6


@unittest.skipIf(torch is None, "without torch and safetensors")
class GoldenRouters(unittest.TestCase):
    def check(self, name, found, expected):
        difference = (found.reshape(expected.shape) - expected.double()).abs().max().item()
        largest = expected.abs().max().item()
        self.assertLessEqual(difference, TOLERANCE * (largest or 1), f"{name}: {difference} of {largest}")

    def routed(self, case, golden):
        """The router in float64 with the golden parameters, and the arguments of its forward pass."""
        shape = dict(case["shape"])
        sizes = [shape.pop(key) for key in ("hidden_size", "n_experts", "n_slots")]
        router = modeling.make_router(case["router"], *sizes, **shape).double().train()
        params = {name.removeprefix("param."): value.double() for name, value in golden.items()
                  if name.startswith("param.")}
        if case["router"].get("estimator") == "threshold":  # has no statistics
            params = {name: value for name, value in params.items() if not name.startswith("complexity_")}
        router.load_state_dict(params)
        real = golden["token"] >= 0
        x = golden["x"].double().requires_grad_()
        if "epsilon" in golden:
            router.noise = lambda mu: golden["epsilon"].double()
        given = {"real": real}
        if "attention_entropy" in golden:
            given["attention_entropy"] = golden["attention_entropy"].double()
        return router, x, given

    def run_case(self, case, golden):
        router, x, given = self.routed(case, golden)
        n_seq = case["n_seq"]
        routing = router(x.view(n_seq, -1, x.shape[-1]), **given)
        E = case["shape"]["n_experts"]

        # By expert: the order of slots is nobody's business.
        def by_expert(expert_TK, weight_TK):
            used = expert_TK >= 0
            return torch.zeros(len(expert_TK), E, dtype=torch.float64).scatter_add(
                1, expert_TK.long() * used, weight_TK.double() * used)

        weight_TE = torch.zeros(len(x), E, dtype=torch.float64).scatter_add(1, routing.expert_TK, routing.weight_TK)
        self.check("weight", weight_TE, by_expert(golden["expert"], golden["weight"]))
        self.assertTrue(torch.equal(routing.taken_TE.bool(), by_expert(golden["expert"],
                                                                       torch.ones_like(golden["weight"])).bool()))
        real = given["real"]
        if "addend" in golden:
            self.check("addend", routing.addend_TD * real[:, None], golden["addend"])
        loss = router.loss(routing)
        self.check("loss", loss.detach(), sum(golden[f"{kind}_loss"] for kind in ("router", "balance", "z")))
        dweight_TE = by_expert(golden["expert"], golden["dweight"])
        total = loss + (weight_TE * dweight_TE).sum()
        if "daddend" in golden:
            total = total + (routing.addend_TD * golden["daddend"].double() * real[:, None]).sum()
        total.backward()
        self.check("dx", x.grad, golden["dx"])
        for name, parameter in router.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.check(name, gradient, golden[f"grad.{name}"])
        router.after_step()
        for name, state in router.named_buffers():
            self.check(name, state, golden[f"after.{name}"])
        self.assertFalse(router.sums)

    def test_every_case(self):
        cases = sorted((ROOT / "tests/golden").glob("router_*"))
        self.assertGreater(len(cases), 50)
        for directory in cases:
            with self.subTest(directory.name):
                self.run_case(json.loads((directory / "case.json").read_text()),
                              load_file(directory / "tensors.safetensors"))


if __name__ == "__main__":
    unittest.main()
