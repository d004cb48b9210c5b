#!/usr/bin/env python3
"""tools/bench_peers.py without PyTorch: options, the order of the data, ratios, what is flagged, and the table."""

import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import bench_peers as peers  # noqa: E402
import run_config  # noqa: E402
import sample_order  # noqa: E402
import shards  # noqa: E402

MIB = 2**20


def rounds(way, speeds, loss=10.0, **more):
    return peers.Rounds(way, speeds, [loss], 512 * MIB, **more)


def results(other_loss=10.0):
    ways = [rounds(peers.OURS, [200.0, 220.0, 180.0]), rounds("eager", [100.0, 100.0, 120.0]),
            rounds("grouped_mm", [110.0, 105.0, 130.0], other_loss), rounds("eager+compile", [], error="no | compiler")]
    return {one.way: one for one in ways}


class Order(unittest.TestCase):
    def test_philox_gives_the_published_words(self):
        # Known answers of Random123: all bits clear, all bits set.
        self.assertEqual(sample_order.philox4x32((0,) * 4, (0,) * 2), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8))
        self.assertEqual(sample_order.philox4x32((2**32 - 1,) * 4, (2**32 - 1,) * 2), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD))

    def test_each_epoch_has_every_window_once_in_an_order_of_its_own(self):
        epochs = [[sample_order.window_of(37 * epoch + i, 37, 1) for i in range(37)] for epoch in range(2)]
        self.assertEqual([sorted(epoch) for epoch in epochs], [list(range(37))] * 2)
        self.assertNotEqual(*epochs)


class Figures(unittest.TestCase):
    def test_ratio_is_of_medians_and_its_range_of_rounds(self):
        found = results()
        self.assertEqual(peers.best_of(found, "float32").way, "grouped_mm")
        times, low, high = peers.ratio(found[peers.OURS], found["grouped_mm"])
        self.assertEqual((times, low, high), (200 / 110, 180 / 130, 220 / 105))

    def test_another_first_loss_is_flagged_and_never_the_best(self):
        for loss in (10.001, float("nan")):
            found = results(loss)
            self.assertEqual(peers.best_of(found, "float32").way, "eager")
            line = peers.row("86m", "float32", found, found["grouped_mm"])
            self.assertIn("DIFFERS", line)
            self.assertTrue(line.endswith("|  |"), line)
        self.assertFalse(peers.differs(*(results(10.001)[way] for way in (peers.OURS, "grouped_mm")), "bfloat16"))

    def test_table_has_a_row_of_eight_cells_for_each_way(self):
        about = {"processor": "P", "threads": 2, "torch": "t", "transformers": "h", "rounds": 3, "steps": 5, "load": 0.0,
                 "memory_without_model": 0, "shapes": {"86m": "S"}}
        compared = [("86m", "float32", results())]
        page = peers.page(about, compared)
        table = [line for line in page.splitlines() if line.startswith("|")]
        self.assertEqual([line.count("|") for line in table], [9] * 6)
        self.assertIn("| 86m | float32 | grouped_mm | 110 | 105 to 130 | 512 | 10.000000 | **1.82** |", table)
        self.assertIn("1.82 times as fast (1.38 to 2.10)", page)
        self.assertEqual([way["differs"] for way in peers.figures(about, compared)["compared"][0]["ways"]], [False] * 4)

    def test_each_way_is_once_first(self):
        self.assertEqual([peers.turns(["a", "b", "c"], n) for n in range(3)], [["a", "b", "c"], ["b", "c", "a"], ["c", "a", "b"]])


class Inputs(unittest.TestCase):
    def test_options(self):
        args = peers.parse(["--binary", "b", "--models", "86m,gpt2_small", "--ways", "eager", "--out", "a.md"])
        self.assertEqual((args.models, args.ways, args.rounds, args.out), (["86m", "gpt2_small"], ["eager"], 3, ["a.md"]))
        self.assertEqual(peers.parse(["--binary", "b"]).models, list(peers.MODELS))

    def test_configurations(self):
        for name, model in peers.MODELS.items():
            config = run_config.read(ROOT / model.config)
            ours = peers.our_config(config, model, "s.bin", "float32", 8)
            self.assertEqual("router" in ours, name != "gpt2_small")
            if "router" in ours:
                self.assertEqual(ours["router"]["balance_coef"], 0.0)
            self.assertEqual(set(peers.ways_of(config["model"], ["eager", "eager+compile"])),
                             {"plain", "compile"} if name == "gpt2_small" else {"eager", "eager+compile"})

    def test_tokens_are_a_shard_and_the_same_each_time(self):
        with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
            found = [shards.read_shard(peers.write_tokens(directory, 300, 1000)) for directory in (one, two)]
        self.assertEqual(*found)
        self.assertEqual((found[0][0], len(found[0][1])), ("uint16", 1000))
        self.assertLess(max(found[0][1]), 300)


if __name__ == "__main__":
    unittest.main()
