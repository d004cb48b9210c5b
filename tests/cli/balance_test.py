"""Ways to balance experts, in whole runs from the command line: each learns, on one rank and on two to the same bits, goes on
from a checkpoint bit for bit, and is evaluated and exported as it was trained."""

import json

import harness
from harness import CliTest, read_safetensors
from ranks_test import DEEPSEEK

BIAS, MOMENTUM, LOAD = "e_score_correction_bias", "bias_momentum", "expert_load"
# What a step moves, by rule; the quantile's bias has no state but itself.
STATE = {"none": [], "quantile": [BIAS], "sign": [BIAS], "smebu": [BIAS, MOMENTUM], "phi": [BIAS, LOAD]}
RULES = {"sigmoid_group": ("sign", "smebu", "phi"), "quantile": ("quantile", "sign", "smebu", "phi"),
         "lpr": ("none", "quantile", "sign", "smebu", "phi")}
GATES = ("softmax_topk", "sigmoid_group", "quantile", "top_p", "dynamic_k", "expert_threshold")


class Balance(CliTest):
    def gate_rows(self, place):
        """{name below the gate of the first layer: values}."""
        tensors = {}
        for file in sorted(place.glob("model*.safetensors")):
            tensors |= read_safetensors(file)
        first = min(name.split(".gate.")[0] for name in tensors if ".mlp.gate." in name)
        return {name.removeprefix(f"{first}.gate."): values for name, (_, _, values) in tensors.items()
                if name.startswith(f"{first}.gate.")}

    def try_router(self, name, router, **changes):
        """Trains for 12 steps on one rank and on two, and from the checkpoint of step 6; returns the run's gate."""
        config = self.write_config(**{
            "router": router, "train__steps": 12, "train__micro_batch_size": 1, "train__same_bits": True,
            "checkpoint__every": 6, "checkpoint__keep": 0, "parallel__threads": 1, "router__balance_coef": 0, **changes})
        self.ok("train", config, "--out", name)
        losses = self.losses(name)
        self.assertLess(losses[-1], losses[0] - 0.5)
        self.ok("train", config, "--out", f"{name}-2", "--nproc", 2)
        self.assertEqual(self.losses(f"{name}-2"), losses)
        self.assertEqual(self.weights(f"{name}-2"), self.weights(name))
        self.ok("train", config, "--out", f"{name}-on", "--resume", self.checkpoints(name)[0])
        self.assertEqual(self.weights(f"{name}-on"), self.weights(name))
        self.assertEqual((self.latest(f"{name}-on") / "state.safetensors").read_bytes(),
                         (self.latest(name) / "state.safetensors").read_bytes())
        return self.gate_rows(self.latest(name))

    def test_every_rule_of_a_bias(self):
        for kind, rules in RULES.items():
            for rule in rules:
                with self.subTest(kind, bias=rule):
                    name = f"{kind}-{rule}"
                    own = {"latent_dim": 8} if kind == "lpr" else {}
                    rows = self.try_router(name, {"type": kind, "bias": rule, **own})
                    self.assertEqual(sorted(set(rows) & {BIAS, MOMENTUM, LOAD}), sorted(STATE[rule]))
                    for row in STATE[rule]:
                        self.assertGreater(len(set(rows[row])), 1, f"{row}: {rows[row]}")
                    if rule != "none" and not (kind == "sigmoid_group" and rule == "sign"):
                        self.assertAlmostEqual(sum(rows[BIAS]), 0, delta=1e-5)  # float32 of four experts, 12 steps
                    page = self.ok("inspect", name).out
                    self.assertIn(f"bias {rule}", page)

    def test_a_mean_free_step(self):
        rows = self.try_router("free", {"type": "sigmoid_group", "bias_mean_free": True, "bias_update_speed": 0.1})
        self.assertAlmostEqual(sum(rows[BIAS]), 0, delta=1e-5)
        self.assertGreater(max(rows[BIAS]), 0.01)

    def test_simbal_of_every_linear_gate(self):
        for kind in GATES:
            with self.subTest(kind):
                router = {"type": kind, "simbal_coef": 0.05}
                self.try_router(kind, router)
                # Its loss is the first that a run reports, entropy aside, and falls: rows come to be orthonormal.
                own = [line["router_loss"] for line in self.metrics(kind)]
                self.assertGreater(own[0], 0.05)
                self.assertLess(own[-1], own[0])
        self.fails(2, "train", self.write_config(router={"type": "kmeans", "simbal_coef": 0.05}), "--out", "no",
                   names=["router.simbal_coef", "no such option"])

    def test_what_makes_experts_differ(self):
        # Sums of differing signs: each alone says whether it falls. Beside experts whose outputs start alike by chance.
        for kind, own in (("softmax_topk", {}), ("sigmoid_group", {}), ("top_p", {"entropy_coef": 0}),
                          ("lpr", {"latent_dim": 8, "reg_coef": 0})):
            for key, coef in (("variance_coef", 3.0), ("orthogonality_coef", 3.0)):
                with self.subTest(kind, key=key):
                    self.try_router(f"{kind}-{key}", {"type": kind, key: coef, **own})
                    own_loss = [line["router_loss"] for line in self.metrics(f"{kind}-{key}")]
                    self.assertEqual(own_loss[0] < 0, key == "variance_coef", own_loss)
                    self.assertLess(own_loss[-1], own_loss[0])
        self.ok("eval", "softmax_topk-orthogonality_coef")
        config = self.write_config(router={"type": "softmax_topk", "orthogonality_coef": 0.1}, parallel__expert=2)
        self.fails(2, "train", config, "--out", "no", "--nproc", 2,
                   names=["router.orthogonality_coef: is 0.1, but parallel.expert is 2"])
        config = self.write_config(router={"type": "softmax_topk", "variance_coef": 0.1}, parallel__expert=2)
        self.ok("train", config, "--out", "parts", "--nproc", 2)

    def test_an_export_of_the_layouts_own_router_has_the_layouts_tensors(self):
        for rule, left in (("sign", None), ("smebu", MOMENTUM), ("phi", LOAD)):
            with self.subTest(rule):
                config = self.write_config(model=DEEPSEEK | {"num_nextn_predict_layers": 0}, train__steps=3,
                                           router={"type": "sigmoid_group", "bias": rule})
                self.ok("train", config, "--out", f"run-{rule}")
                said = self.ok("export", f"run-{rule}", "--out", f"out-{rule}").err
                rows = self.gate_rows(self.dir / f"out-{rule}")
                self.assertEqual(sorted(rows), sorted(["weight", BIAS]))
                self.assertEqual(rows[BIAS], self.gate_rows(self.latest(f"run-{rule}"))[BIAS])
                if left is None:
                    self.assertNotIn("left out", said)
                else:
                    self.assertRegex(said, f"left out, since training alone reads it: model.layers.1.mlp.gate.{left}")
                self.assertEqual(json.loads((self.dir / f"out-{rule}" / "config.json").read_text())["model_type"],
                                 "deepseek_v3")
                losses = [json.loads(self.ok("eval", place, "--data", "data/val.bin", "--seq-len", harness.SEQ_LEN,
                                             "--batch", 2, "--json", "-").out)["loss"]
                          for place in (f"run-{rule}", f"out-{rule}")]
                self.assertEqual(losses[0], losses[1])
                # A run that begins with the export has the bias, and a momentum or load that begins anew.
                said = self.ok("train", config, "--init-from", f"out-{rule}", "--out", f"again-{rule}").err
                if left is not None:
                    self.assertRegex(said, f"kept weight, {BIAS}; begin anew {left}; left nothing")

    def test_another_rule_takes_the_bias_that_is_there(self):
        self.ok("train", self.write_config(train__steps=3, router={"type": "sigmoid_group", "bias": "smebu"}), "--out", "a")
        config = self.write_config(train__steps=1, train__lr=1e-30, router={"type": "sigmoid_group", "bias_update_speed": 0})
        said = self.ok("train", config, "--init-from", "a", "--out", "b").err
        self.assertRegex(said, f"kept weight, {BIAS}; begin anew nothing; left {MOMENTUM}")
        self.assertEqual(self.gate_rows(self.latest("b"))[BIAS], self.gate_rows(self.latest("a"))[BIAS])


if __name__ == "__main__":
    harness.main()
