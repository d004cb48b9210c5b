"""`--device cuda`: training, evaluation and generation on the device give what the CPU gives.

CTest sets SWITCHYARD_DEVICE_BIN: the binary itself where it was built for CUDA (a test without a device is skipped), else
one whose device is the emulator of tests/simt.
"""

import json
import os
import pathlib
import re
import subprocess
import unittest

import harness
from harness import CliTest, tiny_config

DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")
STEPS = 3
# Each kernel has tests of its own under the sanitizers; whole runs take minutes there.
long_run = unittest.skipIf(harness.SANITIZED, "takes too long under the sanitizers")
DEEPSEEK_V3 = {
    "model_type": "deepseek_v3", "vocab_size": harness.VOCAB, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4,
    "v_head_dim": 8, "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 1,
    "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1, "num_nextn_predict_layers": 0, "max_position_embeddings": 64,
}
LPR = {"type": "lpr", "latent_dim": 8, "reg_coef": 0.1, "align_weight": 0.05}
NO_BIAS_OF = {"sigmoid_group": ("none", "quantile"), "quantile": ("none",)}  # words that these types do not have


def router_options():
    """[(type, key, value)]: words and switches of single types of router, from the page's table."""
    page = (pathlib.Path(__file__).resolve().parents[2] / "docs" / "configuration.md").read_text()
    rows = page[page.index("And those of single types."):page.index("\n## data\n")]
    options = []
    for key, kind, words, meaning in re.findall(r"^\| `(\w+)` \| (string|boolean) \|[^|]*\|([^|]*)\|([^|]*)\|", rows, re.M):
        values = [True] if kind == "boolean" else re.findall(r"`(\w+)`", words.partition(";")[0])
        types = re.findall(r"`(\w+)`", meaning.partition(":")[0])
        options += [(type, key, value) for type in types for value in values
                    if key != "bias" or value not in NO_BIAS_OF.get(type, ())]
    return options


@unittest.skipUnless(DEVICE_BINARY, "SWITCHYARD_DEVICE_BIN is not set")
class OnTheDevice(CliTest):
    def setUp(self):
        super().setUp()
        if DEVICE_BINARY == harness.BINARY:
            probe = self.run_on_device("train", self.config(harness.QWEN3_MOE), "--out", "probe")
            if probe.code == 2 and "CUDA device" in probe.err:
                self.skipTest(probe.err.strip())

    def run_on_device(self, *arguments, **variables):
        # The emulator's device does nothing before somebody waits for it, and copies what page-locked memory holds then.
        environment = {**harness.environment(), "SIMT_STREAMS": "lazy", **variables}
        done = subprocess.run([DEVICE_BINARY, *map(str, arguments), "--device", "cuda"], cwd=self.dir, text=True,
                              capture_output=True, env=environment, timeout=10 * harness.TIMEOUT)
        return harness.Finished(list(map(str, arguments)), done.returncode, done.stdout, done.stderr)

    def on_device(self, *arguments, **variables):
        done = self.run_on_device(*arguments, **variables)
        self.assertEqual(done.code, 0, str(done))
        return done

    def config(self, model, router=None, **changes):
        config = tiny_config()
        config["model"] = model
        if router:
            config["router"] = router
        config["train"].update(steps=STEPS, seq_len=16, micro_batch_size=2, global_batch_size=4)
        config["checkpoint"] = {"every": STEPS}
        return self.write_config(config, **changes)

    def assert_same_on_both(self, config, name=""):
        """Losses, gradient norms and loads of three steps. -> the run on the device"""
        self.ok("train", config, "--out", f"{name}_cpu")
        done = self.on_device("train", config, "--out", f"{name}_device")
        for cpu, device in zip(self.metrics(f"{name}_cpu"), self.metrics(f"{name}_device"), strict=True):
            step = cpu["step"]
            # Sums of float32 in another order: a few units of 6e-8 in each of some hundred terms. AdamW divides a
            # gradient by its own size, so that from the second step on small ones hand on their relative rounding.
            for key, relative in (("loss", 1e-5), ("mtp_loss", 1e-5), ("router_loss", 1e-4), ("grad_norm", 1e-5 if step == 1 else 1e-4)):
                if key in cpu or key in device:
                    self.assertLessEqual(abs(cpu[key] - device[key]), relative * abs(cpu[key]), f"step {step}: {key}")
            # Load figures are counts: one token that is routed otherwise, on a tie in rounding, moves them.
            self.assertAlmostEqual(cpu["gini"], device["gini"], delta=0.02, msg=f"step {step}")
        return done

    def test_qwen3_moe(self):
        self.assert_same_on_both(self.config(harness.QWEN3_MOE))

    @long_run
    def test_mixtral_with_a_sliding_window_and_documents(self):
        self.assert_same_on_both(self.config({**harness.MIXTRAL, "sliding_window": 9},
                                         data__document_mask=True, data__eot_token=40))

    @long_run
    def test_olmoe(self):
        self.assert_same_on_both(self.config(harness.OLMOE))

    def test_deepseek_v3(self):
        self.assert_same_on_both(self.config(DEEPSEEK_V3, {"type": "sigmoid_group"}))

    @long_run
    def test_latent_prototypes(self):
        self.assert_same_on_both(self.config(harness.QWEN3_MOE, LPR))

    def test_latent_prototypes_with_quantile_bias(self):
        self.assert_same_on_both(self.config(harness.QWEN3_MOE, {**LPR, "bias": "quantile", "bias_ema": 0.5}))

    @long_run
    def test_a_bias_that_is_solved_on_each_micro_batch_and_settled(self):
        # One solve: a second one puts each bias within some 1e-6 of a token's margin, where rounding decides.
        router = {"type": "quantile", "bias_ema": 0.5, "bias_solves": 1, "settle_tokens": 70}
        self.assert_same_on_both(self.config(harness.QWEN3_MOE, router, checkpoint__every=1))

    @long_run
    def test_dense(self):
        self.assert_same_on_both(self.config({**harness.QWEN3_MOE, "mlp_only_layers": [0, 1]}))

    @long_run
    def test_a_micro_batch_is_recorded_and_replayed(self):
        """Which a wait for the device would not survive: the emulator refuses to read while it records."""
        for name, model, router in (("groups", DEEPSEEK_V3, {"type": "sigmoid_group"}), ("statistics", harness.QWEN3_MOE, LPR)):
            done = self.on_device("train", self.config(model, router, train__steps=1), "--out", name)
            self.assertIn("replayed as a CUDA graph", done.err, name)

    def test_what_is_not_recorded_learns_the_same(self):
        config = self.config(harness.QWEN3_MOE, LPR)
        self.on_device("train", config, "--out", "recorded")
        done = self.on_device("train", config, "--out", "called", SWITCHYARD_NO_GRAPH="1")
        self.assertIn("SWITCHYARD_NO_GRAPH is set", done.err)
        self.assertNotIn("replayed", done.err)
        self.assert_same_run("called", "recorded")
        if DEVICE_BINARY == harness.BINARY:
            return  # a device records whatever may be recorded
        done = self.on_device("train", config, "--out", "failed", SIMT_FAIL_CAPTURE="1")
        self.assertIn("a step is not recorded, and each of its kernels started by the host, which is slower: "
                      "CUDA: cudaStreamEndCapture", done.err)
        self.assert_same_run("failed", "recorded")

    @long_run
    def test_every_router_is_replayed_and_learns_what_it_learns_on_the_cpu(self):
        routers = {
            "jitter": {"type": "softmax_topk", "jitter": 0.1},
            "lpr_noise": {**LPR, "jitter": 0.1, "key_update": "ema", "diversity": "euclidean", "reg_scope": "micro_batch"},
            "lpr_cosine": {**LPR, "diversity": "cosine"},
            "quantile": {"type": "quantile"},
            "logit_norm": {"type": "softmax_topk", "logit_norm": 1.5},
            "hash_layers": {"type": "quantile", "score_function": "sqrtsoftplus", "num_hash_layers": 1},
            "expert_threshold": {"type": "expert_threshold", "max_experts": 4},
            "kmeans": {"type": "kmeans"},
            "dynamic_k": {"type": "dynamic_k", "max_experts": 4},
            "attention_entropy": {"type": "dynamic_k", "estimator": "attention_entropy", "max_experts": 4},
            "loss_gradient": {"type": "dynamic_k", "estimator": "loss_gradient", "max_experts": 4},
            "top_p": {"type": "top_p", "p": 0.6, "max_experts": 4},
            "simbal": {"type": "softmax_topk", "simbal_coef": 0.05},
            "differing_experts": {"type": "softmax_topk", "variance_coef": 0.5, "orthogonality_coef": 0.5},
        }
        for name, router in routers.items():
            with self.subTest(name):
                done = self.assert_same_on_both(self.config(harness.QWEN3_MOE, router), name)
                self.assertIn("replayed as a CUDA graph", done.err)

    @long_run
    def test_every_word_and_switch_of_every_router_computes_what_it_computes_on_the_cpu(self):
        # What must stand beside a word; docs/configuration.md has the words, and config_test holds it to them.
        beside = {"threshold": {"threshold": 2.8}, "euclidean": {"reg_scope": "micro_batch"}}
        model = {**harness.QWEN3_MOE, "num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "head_dim": 4,
                 "num_key_value_heads": 1, "moe_intermediate_size": 8}
        options = router_options()
        self.assertEqual({type for type, _, _ in options},
                         {"sigmoid_group", "quantile", "expert_threshold", "top_p", "dynamic_k", "lpr"})
        self.assertGreater(len(options), 25)
        for type, key, value in options:
            with self.subTest(f"{type}, {key} {value}"):
                router = {"type": type, key: value, **beside.get(value, {})}
                config = self.config(model, router, train__steps=2, train__seq_len=8, train__micro_batch_size=1,
                                     train__global_batch_size=2, data__validation=[])
                self.assert_same_on_both(config, f"{type}_{key}_{value}")

    @long_run
    def test_targets_that_differ_from_step_to_step_are_not_replayed(self):
        """With documents the share of a position in the loss of multi-token prediction is another in every step."""
        model = {**DEEPSEEK_V3, "num_nextn_predict_layers": 1}
        router = {"type": "sigmoid_group"}
        alike = self.assert_same_on_both(self.config(model, router, train__mtp_loss_coef=0.3), "alike")
        self.assertIn("replayed as a CUDA graph", alike.err)
        documents = self.config(model, router, train__mtp_loss_coef=0.3, data__document_mask=True, data__eot_token=40)
        self.assertNotIn("replayed", self.assert_same_on_both(documents, "documents").err)

    @long_run
    def test_recomputing_changes_nothing(self):
        config = self.config(harness.QWEN3_MOE, LPR, train__dtype="bfloat16")
        for train, place in ((self.on_device, "device"), (self.ok, "cpu")):
            for recompute in ("none", "swiglu", "block"):
                train("train", config, "--set", f"train.recompute={recompute}", "--out", f"{place}_{recompute}")
            for recompute in ("swiglu", "block"):
                self.assert_same_run(f"{place}_{recompute}", f"{place}_none")

    def test_a_model_that_does_not_fit_is_refused_with_the_numbers(self):
        done = self.run_on_device("train", self.config({**harness.QWEN3_MOE, "hidden_size": 16384, "vocab_size": 4000000}),
                                  "--out", "large")
        self.assertEqual(done.code, 2, str(done))
        self.assertRegex(done.err, r"too little memory: the run needs [0-9.]+ MiB on .*, of which [0-9.]+ MiB are free")
        self.assertFalse((self.dir / "large").exists())

    @unittest.skipIf(DEVICE_BINARY == harness.BINARY, "the emulator alone can be told to have no memory")
    def test_memory_that_runs_out_in_the_middle_is_said_of_what_asked_for_it(self):
        config = self.config(harness.QWEN3_MOE, LPR)
        said = set()
        for number in range(1, 40):
            done = self.run_on_device("train", config, "--out", f"run{number}", SIMT_FAIL_MALLOC=str(number))
            if done.code == 0:
                break  # so often is memory asked for
            self.assertEqual(done.code, 1, str(done))
            line = done.err.strip().splitlines()[-1]
            self.assertRegex(line, r"out of .*memory: .* needs [0-9.]+ MiB")
            said.add(line.split(" needs ")[0])
        self.assertEqual(done.code, 0, str(done))
        self.assertGreater(len(said), 3, said)

    def test_a_program_without_cudnn_says_what_to_build_with(self):
        if DEVICE_BINARY == harness.BINARY:
            self.skipTest("this binary may have cuDNN")
        done = self.run_on_device("train", self.config(harness.QWEN3_MOE, train__dtype="bfloat16", train__attention="cudnn"),
                                  "--out", "run")
        self.assertEqual(done.code, 2, str(done))
        self.assertRegex(done.err, 'train.attention: is "cudnn": this program was built without cuDNN.*-DSWITCHYARD_CUDNN=ON')

    def test_cudnn_does_not_say_what_a_router_asks_of_attention(self):
        router = {"type": "dynamic_k", "estimator": "attention_entropy"}
        done = self.run_on_device("train", self.config(harness.QWEN3_MOE, router, train__dtype="bfloat16",
                                                       train__attention="cudnn"), "--out", "run")
        self.assertEqual(done.code, 2, str(done))
        self.assertRegex(done.err, 'train.attention: is "cudnn": .*router.estimator')

    @long_run
    def test_bfloat16_learns_what_float32_learns(self):
        """Activations and weights in bf16 on the device: the same curve but for rounding, in training and evaluation."""
        mtp = {**DEEPSEEK_V3, "num_nextn_predict_layers": 1}
        models = {"qwen3": (harness.QWEN3_MOE, None, {}), "lpr": (harness.QWEN3_MOE, LPR, {}),
                  "v3": (mtp, {"type": "sigmoid_group"}, {"train__mtp_loss_coef": 0.3})}
        for name, (model, router, changes) in models.items():
            config = self.config(model, router, train__steps=6, train__lr=0.01, **changes)
            self.ok("train", config, "--out", f"{name}_cpu")
            self.on_device("train", config, "--set", "train.dtype=bfloat16", "--out", f"{name}_device")
            cpu, device = self.metrics(f"{name}_cpu"), self.metrics(f"{name}_device")
            self.assertLess(device[-1]["loss"], device[0]["loss"] - 0.02)
            for one, other in zip(cpu, device, strict=True):
                # bf16 rounds to 2^-9.
                self.assertLess(abs(one["loss"] - other["loss"]), 5e-3 * one["loss"], f"{name}, step {one['step']}")
            self.assertLess(abs(cpu[0]["grad_norm"] - device[0]["grad_norm"]), 0.02 * cpu[0]["grad_norm"], name)
            losses = {}
            for dtype in ("float32", "bfloat16"):
                self.on_device("eval", f"{name}_device", "--dtype", dtype, "--json", "eval.json")
                losses[dtype] = json.loads((self.dir / "eval.json").read_text())["loss"]
            self.on_device("eval", f"{name}_device", "--json", "eval.json")
            self.assertEqual(losses["bfloat16"], json.loads((self.dir / "eval.json").read_text())["loss"], "the run's own")
            self.assertNotEqual(losses["bfloat16"], losses["float32"])
            self.assertLess(abs(losses["bfloat16"] - losses["float32"]), 2e-3 * losses["float32"], name)
            self.on_device("generate", f"{name}_device", "--prompt-tokens", "41,42,43", "--greedy", "--max-new-tokens", "4")

    @long_run
    def test_fp8_learns_what_it_learns_on_the_cpu(self):
        """Training in FP8 on the device: the CPU's curve but for the rounding of what lies in bf16."""
        mtp = {**DEEPSEEK_V3, "num_nextn_predict_layers": 1}
        models = {"qwen3": (harness.QWEN3_MOE, LPR, {}), "v3": (mtp, {"type": "sigmoid_group"}, {"train__mtp_loss_coef": 0.3})}
        for name, (model, router, changes) in models.items():
            config = self.config(model, router, train__dtype="fp8", **changes)
            self.ok("train", config, "--out", f"{name}_cpu")
            self.on_device("train", config, "--out", f"{name}_device")
            self.on_device("train", config, "--set", "train.dtype=bfloat16", "--out", f"{name}_bfloat16")
            cpu, device, bfloat16 = (self.metrics(f"{name}_{kind}") for kind in ("cpu", "device", "bfloat16"))
            self.assertNotEqual(device[0]["grad_norm"], bfloat16[0]["grad_norm"])
            for one, other in zip(cpu, device, strict=True):
                # bf16 rounds to 2^-9. Where that moves a value over the middle between two of E4M3, it moves by 2^-3.
                self.assertLess(abs(one["loss"] - other["loss"]), 5e-3 * one["loss"], f"{name}, step {one['step']}")
            self.assertLess(abs(cpu[0]["grad_norm"] - device[0]["grad_norm"]), 0.03 * cpu[0]["grad_norm"], name)
            losses = []
            for dtype in ((), ("--dtype", "bfloat16")):
                self.on_device("eval", f"{name}_device", *dtype, "--json", "eval.json")
                losses.append(json.loads((self.dir / "eval.json").read_text())["loss"])
            self.assertEqual(*losses)

    def test_fp8_is_refused_where_there_are_no_instructions_for_it(self):
        done = self.run_on_device("train", self.config(harness.QWEN3_MOE, train__dtype="fp8"), "--out", "run",
                                  SWITCHYARD_NO_WGMMA="1")
        self.assertEqual(done.code, 2, str(done))
        self.assertRegex(done.err, 'train.dtype: is "fp8": .*compute capability 9.0.*; or set it to "bfloat16"')
        self.assertFalse((self.dir / "run").exists())

    def test_bfloat16_goes_on_from_a_checkpoint_as_if_it_had_not_stopped(self):
        config = self.config(harness.QWEN3_MOE, train__dtype="bfloat16")
        longer = ("--set", f"train.steps={STEPS + 1}", "--set", "train.schedule=constant")
        self.on_device("train", config, *longer, "--out", "through")
        self.on_device("train", config, *longer, "--out", "resumed")
        self.on_device("train", config, *longer, "--resume", f"resumed/checkpoints/step_{STEPS:06}", "--out", "resumed")
        self.assert_same_run("resumed", "through")

    def test_evaluation_and_text_of_a_checkpoint_are_the_same_on_both(self):
        self.ok("train", self.config(harness.QWEN3_MOE), "--out", "run")
        self.ok("eval", "run", "--json", "cpu.json")
        self.on_device("eval", "run", "--json", "device.json")
        cpu, device = (json.loads((self.dir / f"{name}.json").read_text()) for name in ("cpu", "device"))
        self.assertAlmostEqual(cpu["loss"], device["loss"], delta=1e-5 * cpu["loss"])
        self.assertEqual(cpu["tokens"], device["tokens"])
        generate = ("generate", "run", "--prompt-tokens", "41,42,43", "--greedy", "--max-new-tokens", "8", "--json")
        self.assertEqual(json.loads(self.ok(*generate).out)["tokens"], json.loads(self.on_device(*generate).out)["tokens"])

    def test_a_checkpoint_of_one_goes_on_on_the_other(self):
        config = self.config(harness.QWEN3_MOE)
        longer = ("--set", f"train.steps={STEPS + 1}", "--resume", "auto", "--out")
        last = {}
        for name, first, second in (("cpu", self.ok, self.ok), ("up", self.ok, self.on_device),
                                    ("down", self.on_device, self.ok)):
            first("train", config, "--out", name)
            second("train", config, *longer, name)
            last[name] = self.metrics(name)[-1]
            self.assertEqual(last[name]["step"], STEPS + 1)
        for name in ("up", "down"):  # weights and moments have gone over: tolerance as above
            self.assertAlmostEqual(last[name]["loss"], last["cpu"]["loss"], delta=1e-5 * last["cpu"]["loss"])


class WithoutTheBackend(CliTest):
    def test_cuda_is_refused_with_the_reason(self):
        if DEVICE_BINARY == harness.BINARY:
            self.skipTest("this binary has the CUDA backend")
        self.ok("train", self.write_config(), "--out", "run", "--device", "auto")
        done = self.run_binary("eval", "run", "--device", "cuda")
        self.assertEqual(done.code, 2, str(done))
        self.assertIn("--device cuda: this program was built without the CUDA backend", done.err)

    def test_cudnn_on_the_cpu_is_refused(self):
        done = self.run_binary("train", self.write_config(train__dtype="bfloat16", train__attention="cudnn"), "--out", "run",
                               "--device", "cpu")
        self.assertEqual(done.code, 2, str(done))
        self.assertIn('train.attention: is "cudnn": the run computes on the CPU', done.err)
        self.assertFalse((self.dir / "run").exists())

    def test_an_unknown_device_is_refused(self):
        done = self.run_binary("eval", "run", "--device", "tpu")
        self.assertEqual(done.code, 2, str(done))
        self.assertIn("--device", done.err)


if __name__ == "__main__":
    unittest.main()
