"""`--device cuda` with several ranks, which NCCL lets meet: the same training as of one rank, recorded with its exchanges.

CTest sets SWITCHYARD_DEVICE_BIN: one whose devices are the emulator's of tests/simt, and meet by its stand-in for NCCL; or the
binary itself where it was built for CUDA, which needs four devices.
"""

import json
import os
import unittest

import harness
import ranks_test
from harness import MIXTRAL, QWEN3_MOE

DEVICE_BINARY = os.environ.get("SWITCHYARD_DEVICE_BIN", "")
RANKS = 4  # at most
LPR = {"type": "lpr", "latent_dim": 8, "reg_coef": 0.1, "bias": "quantile"}
RUNS = {
    "qwen3_moe": {"model": QWEN3_MOE, "router": {"type": "softmax_topk", "balance_coef": 0.01, "balance_scope": "global_batch"}},
    "mixtral": {"model": {**MIXTRAL, "sliding_window": 9}, "data__document_mask": True, "data__eot_token": 40},
    "deepseek_v3": {"model": ranks_test.DEEPSEEK, "router": {"type": "sigmoid_group"}, "train__mtp_loss_coef": 0.3,
                    "train__recompute": "block"},
    "lpr": {"model": QWEN3_MOE, "router": LPR},
}
ROUTERS = ("softmax_topk", "sigmoid_group", "quantile", "top_p", "dynamic_k", "expert_threshold", "kmeans", "lpr")
# Whole runs take minutes under the sanitizers; the stand-in and the sums have tests of their own there.
long_run = unittest.skipIf(harness.SANITIZED, "takes too long under the sanitizers")


@unittest.skipUnless(DEVICE_BINARY, "SWITCHYARD_DEVICE_BIN is not set")
class RanksOnDevices(ranks_test.RankRuns):
    binary, always, patience = DEVICE_BINARY, ["--device", "cuda"], 10
    variables = {"SIMT_DEVICES": str(RANKS)}

    def setUp(self):
        super().setUp()
        if DEVICE_BINARY == harness.BINARY:
            probe = self.run_binary("train", self.config(), "--out", "probe", "--nproc", RANKS)
            if probe.code == 2:
                self.skipTest(probe.err.strip())

    def config(self, **changes):
        return super().config(**{"train__steps": 2, "train__seq_len": 16, "train__global_batch_size": 4, "train__eval_every": 0,
                                 "train__eval_tokens": 128, "checkpoint__every": 2, "data__validation": None, **changes})

    def ok(self, *arguments, **popen):
        finished = super().ok(*arguments, **popen)
        self.assertNotIn("ran for the first time", finished.err)  # a kernel that was not rehearsed
        return finished

    @long_run
    def test_every_kernel_of_a_step_and_an_evaluation_is_rehearsed(self):
        """Whatever a layout or a router starts: ok() looks."""
        for number, changes in enumerate((
                *({"router": {"type": type}} for type in ROUTERS),
                *({"router": {"type": "softmax_topk", "balance_coef": 0.01, "balance_scope": "global_batch"},
                   "parallel__expert": expert, "train__same_bits": expert == 1} for expert in (1, 2)),
                {"model": ranks_test.DEEPSEEK, "router": {"type": "sigmoid_group"}, "train__mtp_loss_coef": 0.3, "parallel__zero": 2,
                 "train__recompute": "block"},
                {"model": {**MIXTRAL, "sliding_window": 9}, "data__document_mask": True, "data__eot_token": 40, "parallel__zero": 0},
                {"train__dtype": "bfloat16", "parallel__sums": "library"},
                {"train__dtype": "bfloat16", "router": LPR, "parallel__expert_room": 1, "parallel__overlap": True})):
            with self.subTest(**changes):
                self.train(f"run{number}", 2, **{"data__validation": ["data/val.bin"], "train__eval_every": 1, "parallel__expert": 2,
                                                 **changes})

    def sent_bytes(self, run):
        return [json.loads(line)["sent_bytes"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    @long_run
    def test_every_layout_trains_as_on_one_device(self):
        for name, run in RUNS.items():
            one = self.train(name, 1, **run)
            for ranks, expert, zero in ((2, 2, 1), (4, 2, 2)):
                with self.subTest(name, ranks=ranks, expert=expert, zero=zero):
                    self.assert_near(self.train(f"{name}{ranks}", ranks, parallel__expert=expert, parallel__zero=zero, **run), one)

    @long_run
    def test_every_router_of_every_layout_trains_as_on_one_device(self):
        for layout, model in (("qwen3_moe", QWEN3_MOE), ("mixtral", MIXTRAL), ("deepseek_v3", ranks_test.DEEPSEEK)):
            for router in ROUTERS:
                given = {"model": model, "router": LPR if router == "lpr" else {"type": router}}
                one = self.train(f"{layout}_{router}", 1, **given)
                with self.subTest(layout=layout, router=router):  # two groups of two, each with all experts
                    self.assert_near(self.train(f"{layout}_{router}_4", 4, parallel__expert=2, **given), one)

    def test_a_micro_batch_is_recorded_with_its_exchanges(self):
        """And what is replayed counts what it sends, as the formulas say."""
        config = self.config(parallel__expert=2, parallel__zero=2, router__balance_scope="global_batch", train__global_batch_size=8)
        done = self.ok("train", config, "--out", "run", "--nproc", 2)
        self.assertIn("replayed as a CUDA graph", done.err)
        micro_batches, tokens = 4, 16
        width, slots = QWEN3_MOE["hidden_size"], QWEN3_MOE["num_experts_per_tok"]
        passes = 2 * (2 * width + 2 * slots) + 2 * width + slots  # counts of the global batch take one more forward pass
        for line in (json.loads(text) for text in (self.dir / "run" / "metrics.jsonl").read_text().splitlines()):
            self.assertEqual(line["sent_bytes"]["tokens"],
                             2 * micro_batches * tokens * QWEN3_MOE["num_hidden_layers"] * 4 * passes)
            for kind in ("gradients", "weights"):
                self.assertEqual(line["sent_bytes"][kind], line["ideal_bytes"][kind], kind)

    @long_run
    def test_same_bits_on_1_2_and_4_devices(self):
        for dtype in ("float32", "bfloat16", "fp8"):
            given = {"train__same_bits": True, "train__dtype": dtype, **RUNS["qwen3_moe"]}
            one = self.train(f"one_{dtype}", 1, **given)
            for ranks in (2, 4):
                with self.subTest(dtype, ranks=ranks):
                    self.assert_same_bits(self.train(f"{dtype}{ranks}", ranks, **given), one)

    @long_run
    def test_rounded_weights_are_those_of_one_device(self):
        """Wherever moments, gradients and experts lie, every rank computes with all weights' rounded values. Sums in another order
        move a rounding to bfloat16 here and there, and in FP8, where an expert's rows come in another order, a scale of 128 of
        them: a loss, a mean of many, moves by far less than the 2^-8 or 2^-4 of one product. Stale weights moved it by 4 %."""
        for dtype in ("bfloat16", "fp8"):
            given = {"train__dtype": dtype, **RUNS["qwen3_moe"]}
            one = self.metrics(self.train(f"{dtype}_one", 1, **given))
            for ranks, expert, zero in ((2, 1, 0), (2, 2, 1), (4, 2, 1), (4, 1, 2)):
                with self.subTest(dtype, ranks=ranks, expert=expert, zero=zero):
                    run = self.train(f"{dtype}{ranks}{expert}{zero}", ranks, parallel__expert=expert, parallel__zero=zero, **given)
                    for a, b in zip(self.metrics(run), one, strict=True):
                        self.assertLess(abs(a["loss"] - b["loss"]), 2e-3 * b["loss"], a["step"])
                        self.assertLess(abs(a["grad_norm"] - b["grad_norm"]), 0.05 * b["grad_norm"], a["step"])

    @long_run
    def test_moments_and_gradients_may_lie_anywhere_to_the_bit(self):
        whole = self.train("zero0", 4, parallel__zero=0)
        for zero in (1, 2):
            self.assert_same_bits(self.train(f"zero{zero}", 4, parallel__zero=zero), whole)

    @long_run
    def test_exchanges_beside_the_work_change_no_bit(self):
        """Tokens of experts, and gradients of layers: with zero 0 and 1 in a step's last micro-batch, with 2 in each. The
        emulator's streams run as late or as early as events allow: a missing one shows."""
        for name, ranks, expert, zero, micro_batches, streams, changes in (
                ("qwen3_moe", 2, 2, 1, 2, "lazy", {}),
                ("deepseek_v3", 2, 2, 1, 2, "eager", {}),
                ("lpr", 2, 2, 1, 2, "lazy", {}),
                ("qwen3_moe", 2, 1, 2, 1, "lazy", {}),
                ("qwen3_moe", 2, 1, 2, 3, "eager", {"train__recompute": "block"}),
                ("qwen3_moe", 4, 4, 2, 1, "lazy", {"train__recompute": "block"}),
                ("mixtral", 2, 1, 0, 1, "eager", {}),
                ("mixtral", 4, 2, 0, 3, "lazy", {}),
                ("mixtral", 4, 1, 1, 1, "eager", {"train__dtype": "bfloat16"}),
                ("deepseek_v3", 4, 2, 2, 3, "lazy", {}),
                ("qwen3_moe", 2, 1, 1, 3, "eager", {"train__same_bits": True})):
            with self.subTest(name, ranks=ranks, expert=expert, zero=zero, micro_batches=micro_batches, streams=streams):
                given = {"parallel__expert": expert, "parallel__zero": zero, "train__global_batch_size": micro_batches * ranks,
                         **RUNS[name], **changes}
                layout = f"{name}{ranks}{expert}{zero}{micro_batches}"
                self.variables = RanksOnDevices.variables
                in_turn = self.train(f"{layout}inturn", ranks, **given)
                self.variables = {**RanksOnDevices.variables, "SIMT_STREAMS": streams}
                beside = self.train(f"{layout}beside", ranks, parallel__overlap=True, **given)
                self.assert_same_bits(beside, in_turn)
                self.assertEqual(self.sent_bytes(beside), self.sent_bytes(in_turn))

    @long_run
    def test_symmetric_memory_changes_no_bit(self):
        """The stand-in refuses memory that does not lie in the same place of the same window on all ranks."""
        for name, ranks, changes in (("qwen3_moe", 2, {"parallel__expert": 2}), ("deepseek_v3", 2, {"parallel__zero": 2}),
                                     ("lpr", 4, {"parallel__expert": 2, "parallel__overlap": True})):
            with self.subTest(name, ranks=ranks):
                given = {**RUNS[name], **changes, "data__validation": ["data/val.bin"], "train__eval_every": 1}
                plain = self.train(f"{name}plain", ranks, **given)
                self.assert_same_bits(self.train(f"{name}symmetric", ranks, parallel__symmetric_memory=True, **given), plain)

    def test_symmetric_memory_that_cannot_be_is_refused(self):
        config = self.config(parallel__symmetric_memory=True)
        self.variables = {**self.variables, "SIMT_NCCL_VERSION": "22705"}
        self.fails(2, "train", config, "--out", "refused", "--nproc", 2,
                   names=[r"parallel\.symmetric_memory: NCCL 2\.27\.5 has none; 2\.28\.0 or newer is needed; set it to false"])
        self.variables = {**RanksOnDevices.variables, "SIMT_NCCL_NO_WINDOWS": "1"}
        self.fails(1, "train", config, "--out", "refused", "--nproc", 2,
                   names=[r"NCCL 2\.28\.9 makes no windows .*set parallel\.symmetric_memory to false"])

    @long_run
    def test_sums_of_the_library_are_near_those_in_order(self):
        ordered = self.train("ordered", 4, parallel__expert=2)
        for overlap in (False, True):
            library = self.train(f"library{overlap}", 4, parallel__sums="library", parallel__expert=2, parallel__overlap=overlap)
            self.assert_near(library, ordered)

    @long_run
    def test_rows_without_room_are_done_again(self):
        self.check_rows_without_room()

    @long_run
    def test_older_versions_of_the_library_exchange_the_same(self):
        new = self.train("new", 2, parallel__expert=2)
        self.variables = {**self.variables, "SIMT_NCCL_VERSION": "21805"}
        self.assert_same_bits(self.train("old", 2, parallel__expert=2), new)

    @long_run
    def test_ranks_that_dawdle_come_to_the_same(self):
        prompt = self.train("prompt", 4, parallel__expert=2)
        self.variables = {**self.variables, "SIMT_NCCL_DELAY": "5"}
        self.assert_same_bits(self.train("dawdling", 4, parallel__expert=2), prompt)

    @long_run
    def test_rows_go_where_they_are_needed_to_the_bit(self):
        """Whatever the model, the layout, what is made again and what goes on beside; and fewer bytes are sent."""
        settings = (("qwen3_moe", 2, 2, {"parallel__overlap": True}),
                    ("qwen3_moe", 4, 4, {"parallel__zero": 2, "parallel__overlap": True}),
                    ("mixtral", 4, 2, {"train__dtype": "bfloat16"}), ("mixtral", 4, 4, {"parallel__overlap": True}),
                    ("deepseek_v3", 2, 2, {"parallel__overlap": True}), ("deepseek_v3", 4, 4, {}),
                    ("lpr", 4, 2, {"train__recompute": "swiglu"}), ("lpr", 2, 2, {"parallel__expert_room": 1}))
        for name, ranks, expert, more in settings:
            with self.subTest(name, ranks=ranks, expert=expert, **more):
                run = f"{name}{ranks}{expert}"
                given = {"parallel__expert": expert, **RUNS[name], **more, "train__eval_every": 2,
                         "data__validation": [{"path": "data/val.bin"}]}
                everywhere = self.train(run + "all", ranks, **given)
                rows = self.train(run + "rows", ranks, parallel__token_exchange="rows", **given)
                self.assert_same_bits(rows, everywhere)
                for few, all_of_them in zip(self.sent(rows), self.sent(everywhere)):
                    self.assertLess(few, all_of_them)

    def sent(self, run):
        return [json.loads(line)["sent_bytes"]["tokens"] for line in (run / "metrics.jsonl").read_text().splitlines()]

    @long_run
    def test_bytes_of_rows_are_those_that_go_between_processors(self):
        """Hidden states, that is: slots and weights go to every rank on devices."""
        slots, width, tokens = QWEN3_MOE["num_experts_per_tok"], QWEN3_MOE["hidden_size"], 4 * 16 * QWEN3_MOE["num_hidden_layers"]
        given = {"parallel__token_exchange": "rows", "parallel__expert": 4, "train__steps": 1}
        on_devices = self.sent(self.train("devices", 4, **given))[0]
        self.always = ["--device", "cpu"]
        rows, rest = divmod(self.sent(self.train("processors", 4, **given))[0], 4 * (4 * width + 3 * slots))
        self.assertEqual(rest, 0)
        self.assertEqual(on_devices, 4 * (rows * 4 * width + 3 * tokens * 3 * slots))

    @long_run
    def test_ranks_that_dawdle_bring_rows_to_the_same(self):
        # Rows that come again right before gradients do: the shortest time that others have to read them.
        given = {"parallel__expert": 4, "parallel__token_exchange": "rows", **RUNS["deepseek_v3"], "train__recompute": "swiglu"}
        prompt = self.train("prompt", 4, **given)
        for streams, seed in (("lazy", 3), ("eager", 4)):
            self.variables = {**RanksOnDevices.variables, "SIMT_NCCL_DELAY": str(seed), "SIMT_STREAMS": streams}
            self.assert_same_bits(self.train(f"dawdling{streams}", 4, parallel__overlap=streams == "eager", **given), prompt)

    @long_run
    def test_a_run_by_rows_goes_on_to_the_same_bits(self):
        given = {"parallel__expert": 2, "parallel__token_exchange": "rows", "checkpoint__every": 1}
        whole = self.train("whole", 2, **given)
        resumed = self.train("resumed", 2, "--resume", str(whole / "checkpoints" / "step_000001"), **given)
        for file in ranks_test.FILES:
            self.assertEqual(*((run / "checkpoints" / "latest" / file).read_bytes() for run in (resumed, whole)), file)

    @long_run
    def test_rows_are_named_where_all_tokens_everywhere_is_twice_too_many(self):
        for slots, named in ((1, True), (4, False)):  # of 4 ranks 1, or at least 2 of 3 others in the mean
            model = {**QWEN3_MOE, "num_experts_per_tok": slots}
            said = self.ok("train", self.config(model=model, parallel__expert=4), "--out", f"run{slots}", "--nproc", 4).err
            self.assertEqual('"rows" sends it to these alone' in said, named, said)

    def test_rows_need_devices_that_reach_each_other(self):
        self.variables = {**self.variables, "SIMT_NO_PEERS": "1"}
        self.fails(2, "train", self.config(parallel__expert=2, parallel__token_exchange="rows"), "--out", "refused", "--nproc", 2,
                   names=[r'parallel\.token_exchange: "rows" .* ranks 0 and 1 do not reach .*; set it to "all"'])

    def test_refused_in_one_line(self):
        self.fails(2, "train", self.config(train__same_bits=True, parallel__sums="library"), "--out", "refused", "--nproc", 2,
                   names=[r'train\.same_bits: not with parallel\.sums "library"'])


if __name__ == "__main__":
    harness.main()
