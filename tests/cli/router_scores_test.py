"""What experts are scored and weighed by, from the command line: each option trains, goes on to the same bits after a
stop, and is exported with the code that computes it."""

import json
import math
import shutil

import harness
from harness import CliTest

# router.KEY or model.KEY; every score function with every router that has them, and what all routers have.
CASES = (
    *({"router.type": kind, "router.score_function": score, "model.routed_scaling_factor": 2.5}
      for kind in ("sigmoid_group", "quantile") for score in ("sigmoid", "softmax", "sqrtsoftplus")),
    {"router.type": "expert_threshold", "router.score_function": "sqrtsoftplus"},
    *({"router.type": kind, "model.norm_topk_prob": normalised, "model.routed_scaling_factor": 2.5}
      for kind in ("softmax_topk", "lpr") for normalised in (True, False)),
    {"router.z_loss_coef": 0.004},
    {"router.type": "quantile", "router.score_function": "softmax", "router.z_loss_coef": 0.004},
    *({"router.type": kind, "router.logit_norm": 1.5} for kind in ("softmax_topk", "top_p", "dynamic_k")),
    {"router.type": "quantile", "router.score_function": "softmax", "router.logit_norm": 1.5},
    *({"router.type": kind, "router.num_hash_layers": 1} for kind in ("softmax_topk", "lpr", "kmeans", "sigmoid_group")),
    {"router.type": "quantile", "router.score_function": "sqrtsoftplus", "router.num_hash_layers": 2},
)


class RouterScores(CliTest):
    def settings(self, case):
        return [word for path, value in case.items() for word in ("--set", f"{path}={json.dumps(value)}")]

    def test_every_option_trains_and_resumes_to_the_same_bits(self):
        for layout in ("qwen3_moe", "mixtral"):
            config = self.write_config(harness.tiny_config(layout), train__steps=6, checkpoint__every=3, checkpoint__keep=0,
                                       router={"type": "softmax_topk"})
            for number, case in enumerate(CASES):
                if layout == "mixtral" and number % 2:  # every other one: the layout is not what is tested
                    continue
                with self.subTest(layout=layout, **case):
                    run, again = f"{layout}-{number}", f"{layout}-{number}-again"
                    self.ok("train", config, "--out", run, *self.settings(case))
                    losses = [line["loss"] for line in self.metrics(run) if "loss" in line]
                    self.assertTrue(all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0], losses)
                    shutil.copytree(self.dir / run, self.dir / again, symlinks=True)
                    shutil.rmtree(self.latest(again))
                    self.ok("train", config, "--out", again, "--resume", "auto", *self.settings(case))
                    self.assert_same_run(again, run)

    def test_hash_layers_keep_their_table(self):
        config = self.write_config(harness.tiny_config(), train__steps=2)
        self.ok("train", config, "--out", "run", "--set", "router.num_hash_layers=1")
        self.ok("export", "run", "--out", "out", "--dtype", "bfloat16")
        read = lambda place: {name: tensor for file in sorted(place.glob("*.safetensors"))
                              for name, tensor in harness.read_safetensors(file).items()}
        table = read(self.latest("run"))["model.layers.0.mlp.gate.tid2eid"]
        self.assertEqual(read(self.dir / "out")["model.layers.0.mlp.gate.tid2eid"], table)
        self.assertNotIn("model.layers.1.mlp.gate.tid2eid", read(self.latest("run")))
        # What a layer does not learn, a run of another seed deals anew.
        self.ok("train", config, "--out", "other", "--set", "router.num_hash_layers=1", "--set", "train.seed=4")
        self.assertNotEqual(read(self.latest("other"))["model.layers.0.mlp.gate.tid2eid"], table)

    def test_what_does_not_fit_is_refused(self):
        config = self.write_config(harness.tiny_config(), router={"type": "softmax_topk"})
        for case, name in (
                ({"router.type": "lpr", "router.logit_norm": 1}, r"router\.logit_norm: is 1, but router\.type is \"lpr\""),
                ({"router.type": "quantile", "router.logit_norm": 1},
                 r"router\.logit_norm: is 1, but score_function is \"sigmoid\""),
                ({"router.num_hash_layers": 3}, r"router\.num_hash_layers: is 3, more than .* \(2\)"),
                ({"router.type": "top_p", "router.num_hash_layers": 1}, r"router\.num_hash_layers: is 1, but .*top_p"),
                ({"router.type": "sigmoid_group", "router.z_loss_coef": 0.004}, r"router\.z_loss_coef: is 0\.004")):
            with self.subTest(**case):
                self.fails(2, "train", config, "--out", "none", *self.settings(case), names=[name])

    def test_other_weights_than_a_router_gives_are_said(self):
        config = self.write_config(harness.tiny_config("mixtral"), train__steps=1, router={"type": "softmax_topk"})
        said = self.ok("train", config, "--out", "a", "--set", "router.type=lpr", "--set", "model.norm_topk_prob=false").err
        self.assertIn('model.norm_topk_prob false has no effect: weights of router.type "lpr" sum to 1', said)
        said = self.ok("train", config, "--out", "b", "--set", "model.norm_topk_prob=false").err
        self.assertNotIn("no effect", said)


if __name__ == "__main__":
    harness.main()
