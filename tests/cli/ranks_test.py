"""Runs of several ranks, started with --nproc: the same training as of one rank, whatever they share; checkpoints that any
other number of ranks goes on from; evaluation; what is counted and what is refused.
"""

import json
import struct
import unittest

from harness import QWEN3_MOE, SEQ_LEN, CliTest, without_timing

DEEPSEEK = {"model_type": "deepseek_v3", "vocab_size": 257, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 4, "v_head_dim": 8,
            "intermediate_size": 48, "moe_intermediate_size": 16, "n_routed_experts": 8, "n_shared_experts": 1,
            "num_experts_per_tok": 2, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "routed_scaling_factor": 1.5,
            "first_k_dense_replace": 1, "num_nextn_predict_layers": 1, "max_position_embeddings": 64}
FILES = ("config.json", "model.safetensors", "state.safetensors")
# Of ranks, which a run of one does not have, or which say how the work was shared.
OF_RANKS = ("sent_bytes", "ideal_bytes", "rank_load", "room_needed", "rounds", "steps_redone")


def tensors_of(path):
    """Name -> float32 values, or float64, of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    tensors = {}
    for name, entry in json.loads(data[8:8 + length]).items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        kind = {"F32": "f", "F64": "d"}[entry["dtype"]]
        tensors[name] = struct.unpack(f"<{(last - first) // struct.calcsize(kind)}{kind}", data[8 + length + first:8 + length + last])
    return tensors


class RankRuns(CliTest):
    def config(self, **changes):
        return self.write_config(**{"train__steps": 6, "train__micro_batch_size": 1, "train__global_batch_size": 8,
                                    "train__eval_every": 3, "checkpoint__every": 3, "parallel__threads": 1, **changes})

    def train(self, out, ranks, *arguments, **changes):
        config = self.config(**changes)
        self.ok("train", config, "--out", out, *(["--nproc", ranks] if ranks > 1 else []), *arguments)
        return self.dir / out

    def metrics(self, run):
        lines = [without_timing(json.loads(line)) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if key not in OF_RANKS} for line in lines]

    def assert_same_bits(self, run, other):
        self.assertEqual(self.metrics(run), self.metrics(other))
        for file in FILES:
            self.assertEqual((run / "checkpoints" / "latest" / file).read_bytes(),
                             (other / "checkpoints" / "latest" / file).read_bytes(), file)

    def assert_near(self, run, other):
        """The same training in another order of sums. In six steps of learning rate 0.01 rounding of some 1e-7 of a gradient
        moves a weight by little; what one rank alone had learned would move it by 0.01."""
        weights, expected = (tensors_of(r / "checkpoints" / "latest" / "model.safetensors") for r in (run, other))
        self.assertEqual(weights.keys(), expected.keys())
        for name, values in weights.items():
            self.assertLess(max(abs(a - b) for a, b in zip(values, expected[name])), 2e-4, name)
        for a, b in zip(self.metrics(run), self.metrics(other)):
            for key in ("loss", "grad_norm", "val_loss"):
                if key in b:
                    self.assertAlmostEqual(a[key], b[key], delta=2e-4 * b[key], msg=key)

    def check_rows_without_room(self):
        """Two ranks with room for an even load alone do steps again, and train as one; their run."""
        one = self.train("one", 1)
        tight = self.train("tight", 2, parallel__expert=2, parallel__expert_room=1)
        self.assert_near(tight, one)
        last = json.loads((tight / "metrics.jsonl").read_text().splitlines()[-1])
        self.assertGreater(last["steps_redone"], 0)
        self.assertGreater(last["room_needed"], 1)
        return tight


class Ranks(RankRuns):
    def test_same_bits_on_1_2_4_and_8_ranks(self):
        for name, model, router, changes in (
                ("softmax", QWEN3_MOE, {"type": "softmax_topk", "balance_coef": 0.01, "jitter": 0.1}, {}),
                ("deepseek", DEEPSEEK, {"type": "sigmoid_group"}, {"train__mtp_loss_coef": 0.3, "train__recompute": "block"}),
                ("lpr", QWEN3_MOE, {"type": "lpr", "latent_dim": 8, "reg_coef": 0.1}, {"data__document_mask": True,
                                                                                      "data__eot_token": 40})):
            with self.subTest(name):
                given = {"model": model, "router": router, "train__same_bits": True, **changes}
                one = self.train(f"{name}1", 1, **given)
                for ranks in (2, 4, 8):
                    self.assert_same_bits(self.train(f"{name}{ranks}", ranks, **given), one)

    def test_what_ranks_share_changes_little(self):
        one = self.train("one", 1)
        for ranks, expert, zero, exchange in ((2, 1, 0, "auto"), (3, 1, 1, "auto"), (2, 2, 1, "rows"), (4, 2, 2, "all"),
                                              (4, 4, 0, "all"), (8, 2, 1, "rows")):
            with self.subTest(ranks=ranks, expert=expert, zero=zero, exchange=exchange):
                self.assert_near(self.train(f"run{ranks}{expert}{zero}", ranks, parallel__expert=expert, parallel__zero=zero,
                                            parallel__token_exchange=exchange), one)

    def test_moments_may_lie_anywhere_to_the_bit(self):
        whole = self.train("zero0", 3, parallel__zero=0)
        self.assert_same_bits(self.train("zero1", 3, parallel__zero=1), whole)
        # With one micro-batch a rank level 2 adds the same numbers in the same order.
        whole = self.train("zero0x8", 8, parallel__zero=0)
        self.assert_same_bits(self.train("zero2x8", 8, parallel__zero=2), whole)

    def test_any_ranks_go_on_from_a_checkpoint_of_any(self):
        """A checkpoint at step 3 of each layout holds the same tensors as what another layout writes that has read it: with the
        step done, nothing is left to train. And the same layout goes on as if it had not stopped, to the bit."""
        layouts = ((1, 1, 1), (2, 1, 0), (2, 2, 1), (4, 2, 2))
        for number, (ranks, expert, zero) in enumerate(layouts):
            given = {"parallel__expert": expert, "parallel__zero": zero}
            whole = self.train(f"whole{number}", ranks, **given)
            half = f"half{number}"
            self.train(half, ranks, **given, train__steps=3, train__schedule="constant", train__warmup_ratio=0)
            for other, (to_ranks, to_expert, to_zero) in enumerate(layouts):
                if other == number:
                    continue
                with self.subTest(start=layouts[number], then=layouts[other]):
                    self.check_layouts_hold_the_same(half, f"re{number}{other}", to_ranks, to_expert, to_zero)
            with self.subTest(resumed=layouts[number]):
                stopped = self.dir / f"stopped{number}"
                self.train(stopped.name, ranks, "--resume", str(self.dir / f"whole{number}" / "checkpoints" / "step_000003"), **given)
                for file in FILES:
                    self.assertEqual((stopped / "checkpoints" / "latest" / file).read_bytes(),
                                     (whole / "checkpoints" / "latest" / file).read_bytes(), file)

    def check_layouts_hold_the_same(self, start, out, ranks, expert, zero):
        """A learning rate of 1e-30 leaves every weight as it is; moments change as on one rank, whose checkpoint is compared."""
        given = {"train__steps": 4, "train__lr": 1e-30, "train__schedule": "constant", "train__warmup_ratio": 0,
                 "train__same_bits": expert == 1 and zero < 2}
        checkpoint = str(self.dir / start / "checkpoints" / "step_000003")
        run = self.train(out, ranks, "--resume", checkpoint, parallel__expert=expert, parallel__zero=zero, **given)
        before = tensors_of(self.dir / start / "checkpoints" / "step_000003" / "model.safetensors")
        self.assertEqual(tensors_of(run / "checkpoints" / "latest" / "model.safetensors"), before)

    def test_evaluation_is_the_same_number_on_any_ranks(self):
        run = self.train("run", 1)
        texts = []
        for ranks in (1, 2, 3, 5):
            finished = self.ok("eval", run, "--batch", 2, "--json", "-", "--threads", 1, "--nproc", ranks)
            result = json.loads(finished.out)
            result.pop("tokens_per_second")
            texts.append(json.dumps(result))
        self.assertEqual(texts, texts[:1] * 4)

    def test_bytes_are_those_of_the_formulas(self):
        for ranks, expert, zero, scope in ((2, 1, 0, "sequence"), (2, 2, 1, "sequence"), (4, 2, 2, "global_batch")):
            with self.subTest(ranks=ranks, expert=expert, zero=zero):
                run = self.train(f"bytes{ranks}{expert}{zero}", ranks, parallel__expert=expert, parallel__zero=zero,
                                 parallel__token_exchange="all", router__balance_scope=scope)
                lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
                micro_batches = 8 // ranks
                width, slots = QWEN3_MOE["hidden_size"], QWEN3_MOE["num_experts_per_tok"]
                # Forward, a layer sends a token's slots, its row and its weights, and gets a row back; backward a row each way
                # and the weights' gradient. 4 bytes each. Counts of the global batch take one more forward pass.
                forward, backward = 2 * width + 2 * slots, 2 * width + slots
                passes = (2 if scope == "global_batch" else 1) * forward + backward
                tokens = ranks * (expert - 1) * micro_batches * SEQ_LEN * QWEN3_MOE["num_hidden_layers"] * 4 * passes
                for line in lines:
                    self.assertEqual(line["sent_bytes"]["gradients"], line["ideal_bytes"]["gradients"])
                    self.assertEqual(line["sent_bytes"]["weights"], line["ideal_bytes"]["weights"])
                    self.assertEqual(len(line["wait_seconds"]), ranks)
                    if "val_loss" not in line:
                        self.assertEqual(line["sent_bytes"]["tokens"], tokens)

    def test_rows_without_room_are_done_again(self):
        tight = self.check_rows_without_room()
        self.assert_same_bits(self.train("again", 2, parallel__expert=2, parallel__expert_room=1), tight)

    def test_refused_in_one_line(self):
        for ranks, changes, names in (
                (2, {"parallel__ranks": 4}, [r"parallel\.ranks: is 4, but 2 ranks were started; use mpirun -n 4 or --nproc 4"]),
                (3, {"parallel__expert": 2}, [r"parallel\.expert: 2 does not divide the 3 ranks"]),
                (3, {"parallel__expert": 3}, [r"parallel\.expert: 3 does not divide model\.num_experts, 4"]),
                (9, {}, [r"train\.global_batch_size: 8 micro-batches for 9 ranks: 1 would have nothing to do; use at most 8"]),
                (2, {"parallel__expert_room": 0.5}, [r"parallel\.expert_room: 0\.5 is less than an even load, 1"]),
                (3, {"train__same_bits": True}, [r"train\.same_bits: needs a number of ranks that is a power of two"]),
                (2, {"data__train": [{"path": "data/none_*.bin"}]}, [r"none_"])):
            with self.subTest(changes):
                self.fails(2, "train", self.config(**changes), "--out", "refused", "--nproc", ranks, names=names)
                self.assertFalse((self.dir / "refused" / "metrics.jsonl").exists())


if __name__ == "__main__":
    unittest.main()
