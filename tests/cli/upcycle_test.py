"""train --upcycle-from: a dense model's network becomes experts, and what is no dense model of this attention is refused."""

import copy
import json
import struct

import harness
from harness import CliTest

DENSE = {**harness.QWEN3_MOE, "mlp_only_layers": [0, 1]}
DEEPSEEK = {
    "model_type": "deepseek_v3", "vocab_size": harness.VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "q_lora_rank": 12, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 4, "n_shared_experts": 1,
    "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1,
    "max_position_embeddings": 64,
}
# Weights of a token sum to one only up to rounding, and sums of experts are rounded one by one: some units of float32's
# 6e-8 of a loss near 3.
DIGITS = 5


class Upcycle(CliTest):
    def setUp(self):
        super().setUp()
        self.dense = self.trained("dense", DENSE)

    def config(self, model, **changes):
        config = harness.tiny_config()
        config["model"] = copy.deepcopy(model)
        return harness.deep_update(config, changes)

    def trained(self, name, model):
        """A run of the dense model, far enough for its networks to matter."""
        path = self.write_config(self.config(model, router=None), f"{name}.json")
        self.ok("train", path, "--out", name)
        return self.dir / name

    def first_loss(self, name, model, *options, **changes):
        short = {"train.steps": 1, "data.validation": [], "train.eval_every": 0}
        path = self.write_config(self.config(model, **short, **changes), f"{name}.json")
        self.finished = self.ok("train", path, "--out", name, *options)
        return self.losses(self.dir / name)[0]

    def dense_loss(self, dense, model):
        return self.first_loss(f"{dense.name}_again", model, "--init-from", dense, router=None)

    def test_copies_whose_weights_sum_to_one_are_the_dense_model(self):
        want = self.dense_loss(self.dense, DENSE)
        model = {**harness.QWEN3_MOE, "moe_intermediate_size": 48}
        for k in (1, 2, 4):
            for router in ("softmax_topk", "sigmoid_group", "dynamic_k", "quantile", "kmeans"):
                with self.subTest(k=k, router=router):
                    got = self.first_loss(f"copies_{k}_{router}", {**model, "num_experts_per_tok": k}, "--upcycle-from",
                                          self.dense, router={"type": router})
                    self.assertAlmostEqual(got, want, DIGITS)
                    self.assertIn("4 experts a layer, each a copy of the dense network", self.finished.err)

    def test_every_other_router_begins_near_it(self):
        """Weights of top_p and expert_threshold do not sum to one, and lpr adds a little to what experts see; all are far
        nearer to the dense model than to one that knows nothing (5.5)."""
        want = self.dense_loss(self.dense, DENSE)
        for router, near in (("top_p", 0.3), ("expert_threshold", 0.3), ("lpr", 0.01)):
            got = self.first_loss(router, {**harness.QWEN3_MOE, "moe_intermediate_size": 48}, "--upcycle-from", self.dense,
                                  router={"type": router})
            self.assertAlmostEqual(got, want, delta=near)

    def test_a_layer_that_stays_dense_is_copied(self):
        model = {**harness.QWEN3_MOE, "moe_intermediate_size": 48, "mlp_only_layers": [1]}
        self.assertAlmostEqual(self.first_loss("half", model, "--upcycle-from", self.dense),
                               self.dense_loss(self.dense, DENSE), DIGITS)

    def test_slices_that_all_come_are_the_dense_model(self):
        """Routers that begin with zeros give all experts the same weight."""
        want = self.dense_loss(self.dense, DENSE)
        for experts, normalised in ((3, True), (6, True), (6, False)):
            with self.subTest(experts=experts, normalised=normalised):
                model = {**harness.QWEN3_MOE, "num_experts": experts, "num_experts_per_tok": experts,
                         "norm_topk_prob": normalised, "initializer_range": 1e-12}
                got = self.first_loss(f"slices_{experts}_{normalised}", model, "--upcycle-from", self.dense)
                self.assertAlmostEqual(got, want, DIGITS)
                self.assertIn(f"{experts} experts a layer, {experts // 3} of each of 3 slices of 16 neurons", self.finished.err)

    def test_slices_of_one_network_are_chosen_together(self):
        """Whatever a gate begins with: all that make a network have one row of it."""
        want = self.dense_loss(self.dense, DENSE)
        for experts, k, router in ((6, 3, "softmax_topk"), (9, 6, "softmax_topk"), (9, 3, "quantile")):
            with self.subTest(experts=experts, k=k, router=router):
                model = {**harness.QWEN3_MOE, "num_experts": experts, "num_experts_per_tok": k}
                got = self.first_loss(f"group_{experts}_{k}_{router}", model, "--upcycle-from", self.dense,
                                      router={"type": router})
                # Of six experts two networks come, whose weights differ and sum to one.
                self.assertAlmostEqual(got, want, DIGITS)

    def test_gates_that_begin_with_clusters(self):
        """The loss stays the dense model's, and what the gates choose follows what the tokens are: counts are not those of
        random gates."""
        model = {**harness.QWEN3_MOE, "moe_intermediate_size": 48, "num_experts_per_tok": 1}
        want = self.dense_loss(self.dense, DENSE)
        random = self.first_loss("random", model, "--upcycle-from", self.dense)
        counts = [layer["counts"] for layer in self.metrics(self.dir / "random")[0]["layers"]]
        got = self.first_loss("clusters", model, "--upcycle-from", self.dense, "--fit-router", 1000)
        self.assertAlmostEqual(got, want, DIGITS)
        self.assertAlmostEqual(random, want, DIGITS)
        self.assertIn("router softmax_topk: gates set to 4 clusters a layer of what they see of 1024 tokens", self.finished.err)
        self.assertNotEqual([layer["counts"] for layer in self.metrics(self.dir / "clusters")[0]["layers"]], counts)
        two = self.first_loss("two", model, "--upcycle-from", self.dense, "--fit-router", 1000, "--nproc", 2)
        self.assertAlmostEqual(two, got, DIGITS)
        grouped = {**harness.QWEN3_MOE, "num_experts": 6, "num_experts_per_tok": 3}
        got = self.first_loss("grouped", grouped, "--upcycle-from", self.dense, "--fit-router", 500)
        self.assertAlmostEqual(got, want, DIGITS)
        for router in ("lpr", "kmeans"):
            path = self.write_config(self.config(model, router={"type": router}), "bad.json")
            self.fails(2, "train", path, "--out", "bad", "--upcycle-from", self.dense, "--fit-router", 100,
                       names=[f'--fit-router: a router of type "{router}" has no linear gate'])
        self.fails(2, "train", self.write_config(self.config(model), "bad.json"), "--out", "bad", "--fit-router", 100,
                   names=["--fit-router: there are no weights to fit a router to"])

    def test_fewer_slices_than_there_are_do_not_give_the_dense_model(self):
        """So that the tests above would fail if experts were copies of anything else."""
        model = {**harness.QWEN3_MOE, "num_experts": 3, "num_experts_per_tok": 1, "initializer_range": 1e-12}
        got = self.first_loss("few", model, "--upcycle-from", self.dense)
        self.assertGreater(abs(got - self.dense_loss(self.dense, DENSE)), 1e-3)

    def test_weights_that_do_not_sum_to_one_are_made_up_for(self):
        model = {**harness.QWEN3_MOE, "moe_intermediate_size": 48, "norm_topk_prob": False, "initializer_range": 1e-12}
        self.assertAlmostEqual(self.first_loss("plain", model, "--upcycle-from", self.dense),
                               self.dense_loss(self.dense, DENSE), DIGITS)

    def test_shared_experts_and_a_scaling_factor(self):
        dense_model = {**DEEPSEEK, "first_k_dense_replace": 2}
        dense = self.trained("deepseek", dense_model)
        want = self.dense_loss(dense, dense_model)
        for shared in (0, 1, 2):
            with self.subTest(shared=shared):
                experts = {0: 6, 1: 4, 2: 3}[shared]
                model = {**DEEPSEEK, "n_shared_experts": shared, "n_routed_experts": experts, "num_experts_per_tok": experts,
                         "initializer_range": 1e-12}
                got = self.first_loss(f"shared_{shared}", model, "--upcycle-from", dense, router=None)
                self.assertAlmostEqual(got, want, DIGITS)

    def published(self, kind, **changes):
        """A Mixtral of one expert is a dense model: its weights under the names that `kind` has."""
        model = {**harness.MIXTRAL, "num_local_experts": 1, "num_experts_per_tok": 1, "intermediate_size": 48,
                 "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
        run = self.trained(f"{kind}_run", model)
        self.ok("export", run, "--out", f"{kind}_export")
        tensors = harness.read_safetensors(self.dir / f"{kind}_export" / "model.safetensors")
        config = {key: value for key, value in model.items() if key not in ("num_local_experts", "num_experts_per_tok")}
        directory = self.dir / kind
        directory.mkdir()
        (directory / "config.json").write_text(json.dumps({**config, "model_type": kind, **changes}))
        names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
        header, body = {}, b""
        for name, (dtype, shape, values) in tensors.items():
            if name.endswith("gate.weight"):
                continue
            data = struct.pack(f"<{len(values)}f", *values)
            for old, new in names.items():
                name = name.replace(f"block_sparse_moe.experts.0.{old}", f"mlp.{new}")
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(body), len(body) + len(data)]}
            body += data
        text = json.dumps(header).encode()
        (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + body)
        return directory, self.dense_loss(run, model)

    def test_a_published_dense_model_becomes_a_mixtral(self):
        for kind in ("llama", "mistral"):
            with self.subTest(kind=kind):
                directory, want = self.published(kind)
                model = {**harness.MIXTRAL, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
                self.assertAlmostEqual(self.first_loss(f"mixtral_{kind}", model, "--upcycle-from", directory), want, DIGITS)

    def test_ranks_that_share_the_experts_and_the_optimizer(self):
        model = {**harness.QWEN3_MOE, "num_experts": 6, "num_experts_per_tok": 6, "initializer_range": 1e-12}
        want = self.first_loss("one", model, "--upcycle-from", self.dense)
        for name, changes in (("experts", {"parallel.expert": 2}), ("zero", {"parallel.zero": 2})):
            got = self.first_loss(name, model, "--upcycle-from", self.dense, "--nproc", 2, **changes)
            self.assertAlmostEqual(got, want, DIGITS)

    def test_it_goes_on_like_any_other_run(self):
        model = {**harness.QWEN3_MOE, "moe_intermediate_size": 48}
        path = self.write_config(self.config(model), "on.json")
        self.ok("train", path, "--out", "whole", "--upcycle-from", self.dense)
        losses = self.losses(self.dir / "whole")
        self.assertLess(losses[-1], losses[0])
        finished = self.ok("train", path, "--out", "whole", "--upcycle-from", self.dense, "--resume", "auto")
        self.assertIn("--upcycle-from", finished.err)
        self.assertIn("has no effect: the run goes on from its own checkpoint", finished.err)

    def refused(self, model, *options, names=()):
        self.fails(2, "train", self.write_config(self.config(model), "bad.json"), "--out", "bad", *options, names=names)
        self.assertFalse((self.dir / "bad").exists())

    def test_what_cannot_be_upcycled_is_said(self):
        moe = harness.QWEN3_MOE
        from_dense = ("--upcycle-from", self.dense)
        self.refused(DENSE, *from_dense, names=["no layer of experts"])
        self.refused({**moe, "hidden_size": 64}, *from_dense,
                     names=["cannot become this mixture", "model.hidden_size is 64, there 32"])
        self.refused({**moe, "rope_theta": 5e5}, *from_dense, names=["model.rope_theta"])
        self.refused({**moe, "moe_intermediate_size": 20}, *from_dense, names=["intermediate_size is 48", "width 20"])
        self.refused(moe, *from_dense, names=["3 slices of 16 for 4 experts", "multiple of 3"])
        self.refused(harness.MIXTRAL, *from_dense, names=['model_type: is "qwen3_moe"', "mixtral, llama, mistral"])
        self.refused(moe, "--upcycle-from", self.dir / "nowhere", names=["nowhere"])
        self.refused(moe, *from_dense, "--init-from", self.dense, names=["--upcycle-from", "not together with --init-from"])
        self.refused(moe, *from_dense, "--resume", self.dense, names=["--upcycle-from", "not together with --resume"])
        mixture = self.trained("mixture", moe)
        self.refused(moe, "--upcycle-from", mixture, names=["is a mixture already", "--init-from"])

    def test_a_published_model_must_say_what_it_is(self):
        model = {**harness.MIXTRAL, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
        directory, _ = self.published("llama")
        path = directory / "config.json"
        config = json.loads(path.read_text())
        for key in ("rms_norm_eps", "rope_theta", "num_key_value_heads"):
            path.write_text(json.dumps({k: v for k, v in config.items() if k != key}))
            self.refused(model, "--upcycle-from", directory, names=[str(path), f"{key}: missing"])
        path.write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
        self.refused(model, "--upcycle-from", directory, names=["quantised weights"])
        path.write_text(json.dumps({**config, "model_type": "gpt2"}))
        self.refused(model, "--upcycle-from", directory, names=['is "gpt2"'])


if __name__ == "__main__":
    harness.main()
