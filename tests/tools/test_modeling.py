#!/usr/bin/env python3
"""tools/modeling_switchyard.py computes what switchyard computes: its routers as tests/golden/router_* has them, and
models of every layout with every router as the built binary does. Needs torch and safetensors, and for models transformers
and tokenizers; without them it is skipped."""

import json
import os
import re
import sys
import tempfile
import unittest
from pathlib import Path

try:
    import torch
    import torch.utils.checkpoint
    from safetensors.torch import load_file
except ImportError:
    torch = None

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

if torch is not None:
    import modeling_switchyard as modeling

try:
    import check_export
    import export_runs
    from transformers.utils import logging
except ImportError:
    check_export = None

BINARY = os.environ.get("SWITCHYARD_BIN", str(ROOT / "build" / "switchyard"))
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
        if "param.complexity_by_token" in golden:
            shape["vocab_size"] = len(golden["param.complexity_by_token"])
        if "param.tid2eid" in golden:
            shape |= {"vocab_size": len(golden["param.tid2eid"]) // shape["n_slots"], "hashed": True}
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
        if "param.complexity_by_token" in golden or "param.tid2eid" in golden:
            given["token"] = golden["token"].clamp(min=0).long()  # padding is a token, too, to transformers
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
        if routing.addend_TD is not None:
            total = total + (routing.addend_TD * golden["daddend"].double() * real[:, None]).sum()
        total.backward()
        self.check("dx", x.grad, golden["dx"])
        for name, parameter in router.named_parameters():
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            self.check(name, gradient, golden[f"grad.{name}"])
        if getattr(router, "by_token", False):
            router.observe_gradient(x.grad, given["token"], real)
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

    def test_padding_and_recomputation_count_nowhere(self):
        router = modeling.SigmoidGroupRouter(8, 4, 2, capacity_factor=0.5)
        x = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(1))
        real = torch.tensor([[True] * 6, [False] * 6])
        routing = torch.utils.checkpoint.checkpoint(router, x, real, use_reentrant=False)
        self.assertFalse(routing.taken_TK[6:].any() or routing.weight_TK[6:].any())
        self.assertLessEqual(routing.taken_TE.sum(0).max().item(), 2)  # ceil(0.5 * 6 * 2 / 4)
        routing.weight_TK.sum().backward()
        self.assertEqual(router.sums["count"].sum().item(), routing.taken_TK.sum().item())
        alone = router(x[:1])
        self.assertTrue(torch.equal(alone.weight_TK, routing.weight_TK[:6]))

    def test_an_unknown_option_is_named(self):
        with self.assertRaisesRegex(ValueError, "LatentPrototypeRouter has no option latent; it has .*latent_dim"):
            modeling.LatentPrototypeRouter(8, 4, 2, latent=3)
        with self.assertRaisesRegex(ValueError, "router.type is 'lrp'; known: softmax_topk, .*lpr"):
            modeling.make_router({"type": "lrp"}, 8, 4, 2)

    def test_the_page_runs(self):
        page = (ROOT / "docs/router_in_pytorch.md").read_text()
        (program,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.S) if block.startswith("import"))
        torch.manual_seed(1)
        names = {}
        exec(compile(program, "docs/router_in_pytorch.md", "exec"), names)
        self.assertLess(names["loss"].item(), 1.9)  # 2: x and the values beside it have nothing in common
        self.assertTrue(names["layer"].router.e_score_correction_bias.any())
        for name, router in modeling.ROUTERS.items():
            self.assertIn(f"| `{router.__name__}` | `{name}` |", page)


@unittest.skipIf(torch is None or check_export is None, "without torch, transformers and tokenizers")
@unittest.skipUnless(os.access(BINARY, os.X_OK), f"without {BINARY}")
class Models(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # tiny products
        cls.addClassCleanup(torch.set_num_threads, threads)

    def check(self, layout, router):
        with self.subTest(layout=layout, router=router), tempfile.TemporaryDirectory() as place:
            self.assertEqual(export_runs.check_router(BINARY, Path(place), check_export.MODELS[layout], router), [])

    def test_every_router_in_every_layout(self):
        for layout in check_export.LAYOUTS:
            for router in export_runs.ROUTERS:
                self.check(layout, router)

    def test_every_sum_of_weights(self):
        """norm_topk_prob and routed_scaling_factor other than the layout's, with its own router and with others."""
        for layout, normalised in (("mixtral", False), ("mixtral", True), ("qwen3_moe", True), ("olmoe", False)):
            model = check_export.MODELS[layout] | {"norm_topk_prob": normalised, "routed_scaling_factor": 2.5}
            for kind in ("softmax_topk", "sigmoid_group", "quantile", "lpr"):
                router = {"type": kind}
                with self.subTest(layout=layout, router=router, normalised=normalised), \
                        tempfile.TemporaryDirectory() as place:
                    self.assertEqual(export_runs.check_router(BINARY, Path(place), model, router), [])

    def test_every_option(self):
        for router in export_runs.OPTIONS:
            self.check("qwen3_moe", router)

    def test_hash_layers_weigh_by_the_layouts_scores(self):
        for kind in ("sigmoid_group", "lpr"):
            self.check("deepseek_v3", {"type": kind, "num_hash_layers": 1})

    def test_defaults_are_switchyards(self):
        for kind, router in modeling.ROUTERS.items():
            with self.subTest(kind), tempfile.TemporaryDirectory() as place:
                config = Path(place) / "run.json"
                config.write_text(json.dumps({"model": check_export.MODELS["mixtral"], "router": {"type": kind},
                                              "data": {"train": ["none.bin"]}, "train": {"steps": 1, "seq_len": 8, "micro_batch_size": 1}}))
                ours = json.loads(export_runs.switchyard(BINARY, "inspect", config, "--json").stdout)["config"]["router"]
                theirs = modeling.EVERY_ROUTER | router.options_of_type
                if "max_experts" in theirs:
                    theirs["max_experts"] = 2  # num_experts_per_tok
                self.assertEqual({key: value for key, value in ours.items() if key != "type"}, theirs)


if __name__ == "__main__":
    unittest.main()
