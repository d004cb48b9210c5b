"""Hugging Face model directories: eval, inspect, train --init-from and export, and every way in which one is wrong."""

import ast
import json
import pathlib
import re
import shutil
import struct

import harness
from harness import CliTest

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
CODE = pathlib.Path(__file__).resolve().parents[2] / "tools" / "modeling_switchyard.py"


def read_raw(path):
    """name -> (dtype, shape, bytes)"""
    content = pathlib.Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8:8 + length])
    header.pop("__metadata__", None)
    data = content[8 + length:]
    return {name: (e["dtype"], e["shape"], data[slice(*e["data_offsets"])]) for name, e in header.items()}


def write_raw(path, tensors):
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    pathlib.Path(path).write_bytes(struct.pack("<Q", len(text)) + text + b"".join(t[2] for t in tensors.values()))


def narrow(tensor, dtype):
    """F32 to BF16 by cutting, to F16 by Python's rounding: any values do, as long as they are of that type."""
    _, shape, data = tensor
    if dtype == "BF16":
        return dtype, shape, b"".join(data[i + 2:i + 4] for i in range(0, len(data), 4))
    count = len(data) // 4
    return dtype, shape, struct.pack(f"<{count}e", *struct.unpack(f"<{count}f", data))


def stacked(tensors):
    """The experts of each layer as transformers 5 holds them: gate_up_proj [E, 2F, D] and down_proj [E, D, F]."""
    parts, left = {}, {}
    for name, tensor in tensors.items():
        found = re.fullmatch(r"(model\.layers\.\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight", name)
        if found:
            kind = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}.get(found[3], found[3])
            parts.setdefault(f"{found[1]}.mlp.experts", {})[int(found[2]), kind] = tensor
        else:
            left[name.replace("block_sparse_moe", "mlp")] = tensor
    for prefix, experts in parts.items():
        count = len(experts) // 3
        dtype, (f, d), _ = experts[0, "gate_proj"]
        left[f"{prefix}.gate_up_proj"] = (dtype, [count, 2 * f, d], b"".join(
            experts[e, kind][2] for e in range(count) for kind in ("gate_proj", "up_proj")))
        left[f"{prefix}.down_proj"] = (dtype, [count, d, f], b"".join(experts[e, "down_proj"][2] for e in range(count)))
    return left


class Import(CliTest):
    def model(self, case="qwen3_moe", dtype="F32", sharded=False, name="model"):
        """A directory as transformers writes it, of a golden case's weights."""
        directory = self.dir / name
        directory.mkdir()
        shutil.copy(GOLDEN / case / "config.json", directory)
        tensors = read_raw(GOLDEN / case / "model.safetensors")
        if dtype != "F32":
            tensors = {n: t if n.endswith("e_score_correction_bias") else narrow(t, dtype) for n, t in tensors.items()}
        if not sharded:
            write_raw(directory / "model.safetensors", tensors)
            return directory
        names, weight_map = list(tensors), {}
        for i, part in enumerate((names[:5], names[5:]), 1):
            file = f"model-{i:05}-of-00002.safetensors"
            write_raw(directory / file, {n: tensors[n] for n in part})
            weight_map |= {n: file for n in part}
        self.write_index(directory, weight_map)
        return directory

    def write_index(self, directory, weight_map):
        (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    def tensors(self, directory):
        return {n: t for file in sorted(directory.glob("*.safetensors")) for n, t in read_raw(file).items()}

    def data(self, directory):
        vocab = json.loads((directory / "config.json").read_text())["vocab_size"]
        harness.write_shard(self.dir / "small.bin", [t % vocab for t in harness.learnable_tokens(301)])
        return "small.bin"

    def loss(self, directory, *options):
        finished = self.ok("eval", directory, "--data", self.data(directory), "--seq-len", 16, *options, "--json", "-")
        return json.loads(finished.out)["loss"]

    def test_round_trip_is_bit_for_bit(self):
        for case in ("mixtral_tied", "qwen3_moe", "deepseek_v3", "olmoe"):
            for dtype, name in (("F32", "float32"), ("BF16", "bfloat16"), ("F16", "float16")):
                for sharded in (False, True):
                    with self.subTest(case=case, dtype=dtype, sharded=sharded):
                        tag = f"{case}-{dtype}-{sharded}"
                        source = self.model(case, dtype, sharded, tag)
                        (source / "tokenizer.json").write_text("{}")
                        for options in ((), ("--dtype", name), ("--max-shard-size", "5KB")):
                            out = self.dir / "out"
                            shutil.rmtree(out, ignore_errors=True)
                            self.ok("export", source, "--out", out, *options)
                            self.assertEqual(self.tensors(out), self.tensors(source))
                            self.assertEqual((out / "tokenizer.json").read_text(), "{}")
                            config = json.loads((out / "config.json").read_text())
                            self.assertEqual(config["torch_dtype"], name)
                            index = out / "model.safetensors.index.json"
                            if options[:1] == ("--max-shard-size",):
                                weight_map = json.loads(index.read_text())["weight_map"]
                                self.assertGreater(len(set(weight_map.values())), 1)
                                for tensor, file in weight_map.items():
                                    self.assertIn(tensor, read_raw(out / file))
                                self.assertEqual(self.loss(out), self.loss(source))
                            else:
                                self.assertFalse(index.exists())

    def test_the_same_weights_under_other_names(self):
        for case in ("mixtral_tied", "qwen3_moe", "deepseek_v3", "olmoe"):
            for dtype in ("F32", "BF16"):
                source = self.model(case, dtype, name=f"{case}-{dtype}")
                tensors, expected = self.tensors(source), self.loss(source)
                experts = stacked(tensors)
                self.assertTrue(any(name.endswith(".mlp.experts.gate_up_proj") for name in experts))
                wrapped = {"module._orig_mod." + name.removeprefix("model."): t for name, t in experts.items()}
                wrapped["rotary_emb.inv_freq"] = ("F32", [2], bytes(8))
                wrapped["position_ids"] = ("I64", [1], bytes(8))
                for spelling, content in (("stacked", experts), ("wrapped", wrapped)):
                    with self.subTest(case=case, dtype=dtype, spelling=spelling):
                        write_raw(source / "model.safetensors", content)
                        self.assertEqual(self.loss(source), expected)
                        out = self.dir / f"{case}-{dtype}-{spelling}"
                        self.ok("export", source, "--out", out)
                        self.assertEqual(self.tensors(out), tensors)
        config = self.run_of(source)
        self.ok("train", config, "--init-from", source, "--out", "run")
        self.ok("inspect", source)

    def test_experts_both_stacked_and_one_by_one(self):
        source = self.model()
        tensors = self.tensors(source)
        name, one = next((n, t) for n, t in tensors.items() if ".experts.0.gate_proj" in n)
        write_raw(source / "model.safetensors", stacked(tensors) | {name: one})
        self.fails(2, "eval", source, "--data", self.data(source),
                   names=["1 there under two names", re.escape(name), r"mlp\.experts\.gate_up_proj and|and .*gate_up_proj"])
        few = stacked(tensors)
        stack = next(n for n in few if n.endswith("gate_up_proj"))
        dtype, (count, rows, width), data = few[stack]
        few[stack] = (dtype, [count - 1, rows, width], data[:len(data) // count * (count - 1)])
        write_raw(source / "model.safetensors", few)
        self.fails(2, "eval", source, "--data", self.data(source),
                   names=[rf"2 missing: .*experts\.{count - 1}\.gate_proj"])

    def test_what_stands_for_a_file_is_named(self):
        pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"
        for content, said in ((pointer, "Git LFS pointer.*git lfs pull"), ("<!doctype html>", "web page"), ("", "empty")):
            for name in ("model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"):
                with self.subTest(content=content[:9], name=name):
                    source = self.model(sharded=True)
                    data = self.data(source)
                    (source / name).write_text(content)
                    self.fails(2, "eval", source, "--data", data, names=[re.escape(name), said])
                    shutil.rmtree(source)

    def test_an_export_states_the_router_that_was_trained(self):
        for router, layout in (({"type": "lpr"}, False), ({"type": "top_p"}, True), ({"capacity_factor": 0.5}, True)):
            with self.subTest(router=router):
                run, out, plain = (self.dir / f"{name}-{len(json.dumps(router))}" for name in ("run", "out", "plain"))
                self.ok("train", self.write_config(router=router, train__steps=3), "--out", run)
                for place in (out, self.latest(run)):
                    if place == out:
                        self.assertIn("--as-layout", self.ok("export", run, "--out", out).err)
                    config = json.loads((place / "config.json").read_text())
                    self.assertEqual(config["model_type"], "switchyard_qwen3_moe")
                    self.assertEqual(config["architectures"], ["SwitchyardQwen3MoeForCausalLM"])
                    self.assertEqual(config["auto_map"], {
                        "AutoConfig": "modeling_switchyard.SwitchyardQwen3MoeConfig",
                        "AutoModelForCausalLM": "modeling_switchyard.SwitchyardQwen3MoeForCausalLM"})
                    self.assertEqual((place / CODE.name).read_bytes(), CODE.read_bytes())
                    self.assertEqual(config["router"], json.loads((run / "config.json").read_text())["router"])
                losses = [json.loads(self.ok("eval", place, "--data", "data/val.bin", "--seq-len", 32, "--json", "-").out)
                          ["loss"] for place in (run, out)]
                self.assertEqual(losses[0], losses[1])
                # Weights bring their router to a run that names neither model nor router.
                self.ok("train", self.write_config(model=None, router=None, train__steps=1), "--init-from", out,
                        "--out", f"{run}-again")
                self.assertEqual(json.loads((self.dir / f"{run}-again" / "config.json").read_text())["router"],
                                 json.loads((run / "config.json").read_text())["router"])
                said = self.ok("export", out, "--as-layout", "--out", plain).err
                config = json.loads((plain / "config.json").read_text())
                self.assertEqual((config["model_type"], "router" in config, "auto_map" in config),
                                 ("qwen3_moe", False, False))
                self.assertFalse((plain / CODE.name).exists())
                self.assertEqual("at random" in said, not layout, said)
                self.assertEqual(self.tensors(plain), self.tensors(out))
        finished = self.ok("train", self.write_config(train__steps=1), "--out", "own")
        finished = self.ok("export", "own", "--out", "own-out")
        self.assertNotIn("warning", finished.err)
        self.assertEqual(json.loads((self.dir / "own-out/config.json").read_text())["model_type"], "qwen3_moe")
        for place in (self.dir / "own-out", self.latest("own")):
            self.assertFalse((place / CODE.name).exists())

    def test_an_export_keeps_what_weights_sum_to(self):
        for layout, key, value in (("qwen3_moe", "routed_scaling_factor", 2.5), ("mixtral", "norm_topk_prob", False)):
            with self.subTest(layout):
                run, out, plain = (self.dir / f"{layout}-{name}" for name in ("run", "out", "plain"))
                source = self.model(layout, name=f"{layout}-source")
                model = json.loads((source / "config.json").read_text())
                data = self.data(source)
                config = self.write_config(model=model | {key: value}, router=None, data={"train": [str(self.dir / data)]},
                                           train__steps=2, train__seq_len=16)
                self.ok("train", config, "--out", run)
                said = self.ok("export", run, "--out", out).err
                self.assertRegex(said, rf"does not have this model's router \({key} is {str(value).lower()}, {layout}")
                for place in (out, self.latest(run)):
                    config = json.loads((place / "config.json").read_text())
                    self.assertEqual((config["model_type"], config[key]), (f"switchyard_{layout}", value))
                    self.assertTrue((place / CODE.name).exists())
                losses = [json.loads(self.ok("eval", place, "--data", data, "--seq-len", 16, "--json", "-").out)["loss"]
                          for place in (run, out)]
                self.assertEqual(losses[0], losses[1])
                self.ok("export", out, "--as-layout", "--out", plain)
                config = json.loads((plain / "config.json").read_text())
                self.assertEqual((config["model_type"], config.get(key) == value, "router" in config),
                                 (layout, False, False))
                self.assertFalse((plain / CODE.name).exists())
                loss = json.loads(self.ok("eval", plain, "--data", data, "--seq-len", 16, "--json", "-").out)["loss"]
                self.assertNotEqual(loss, losses[0])
                # Under the layout's own name transformers would compute the layout's weights.
                (plain / "config.json").write_text(json.dumps(config | {key: value}))
                self.fails(2, "eval", plain, "--data", data, "--seq-len", 16, names=[rf"{key}: is .*remove it"])

    def test_the_code_for_transformers_names_every_class(self):
        classes = {node.name for node in ast.walk(ast.parse(CODE.read_text())) if isinstance(node, ast.ClassDef)}
        for case in ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe"):
            with self.subTest(case):
                source = self.model(case, name=case)
                config = json.loads((source / "config.json").read_text())
                config |= {"model_type": f"switchyard_{case}", "router": {"capacity_factor": 0.5}}
                (source / "config.json").write_text(json.dumps(config))
                self.ok("export", source, "--out", f"{case}-out")
                names = json.loads((self.dir / f"{case}-out/config.json").read_text())["auto_map"].values()
                self.assertEqual({name.split(".")[0] for name in names}, {CODE.stem})
                self.assertLessEqual({name.split(".")[1] for name in names}, classes)

    def test_an_export_brings_a_tokenizer(self):
        meta = {"tokenizer": "bytes", "tokenizer_sha256": "", "vocab_size": 257, "eot_token": 256}
        (self.dir / "data" / "meta.json").write_text(json.dumps(meta))
        self.ok("train", self.write_config(train__steps=2), "--out", "run")
        recorded = json.loads((self.latest("run") / "tokenizer_meta.json").read_text())
        self.assertEqual(recorded["begin_token"], 256)
        (self.dir / "run" / "generation_config.json").write_text('{"eos_token_id": [7, 256]}')
        self.ok("export", "run", "--out", "out")
        for directory in (self.latest("run"), self.dir / "out"):
            config = json.loads((directory / "config.json").read_text())
            self.assertEqual((config["bos_token_id"], config["eos_token_id"]), (256, 256))
        self.assertEqual(json.loads((self.dir / "out" / "generation_config.json").read_text())["eos_token_id"], [7, 256])
        self.assertTrue((self.dir / "out" / "tokenizer_config.json").exists())
        prompts = ("The court", "caf\u00e9 \u65e5\u672c \U0001f600", " \n\t  x")
        for prompt in prompts:
            of_run, of_export = (json.loads(self.ok("generate", place, "--prompt", prompt, "--greedy", "--json",
                                                    "--max-new-tokens", 8).out) for place in ("run", "out"))
            self.assertEqual(of_run["prompt_tokens"], [256, *prompt.encode()])
            for key in ("prompt_tokens", "tokens", "text"):
                self.assertEqual(of_export[key], of_run[key])
        self.ok("export", "out", "--out", "again")
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "config.json"):
            self.assertEqual((self.dir / "again" / name).read_bytes(), (self.dir / "out" / name).read_bytes())

    def test_export_rounds_to_nearest_even(self):
        source = self.model()
        tensors = read_raw(source / "model.safetensors")
        name = "model.norm.weight"
        values = [1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, 1 + 3 * 2**-11, 2**-25, 3 * 2**-25, -0.0, 65519.0]
        count = tensors[name][1][0]
        values = (values * count)[:count]
        tensors[name] = ("F32", [count], struct.pack(f"<{count}f", *values))
        write_raw(source / "model.safetensors", tensors)
        self.ok("export", source, "--out", "half", "--dtype", "float16")
        self.assertEqual(self.tensors(self.dir / "half")[name][2], struct.pack(f"<{count}e", *values))
        self.ok("export", source, "--out", "brain", "--dtype", "bfloat16")
        words = struct.unpack(f"<{count}H", self.tensors(self.dir / "brain")[name][2])
        self.assertEqual(words[0], 0x3F80)  # a tie, to even: down
        self.assertEqual(words[1], 0x3F82)  # a tie, to even: up
        tensors[name] = ("F32", [count], struct.pack(f"<{count}f", *[65520.0] * count))
        write_raw(source / "model.safetensors", tensors)
        self.fails(2, "export", source, "--out", "over", "--dtype", "float16", names=[name, "too large"])
        self.assertFalse((self.dir / "over").exists())
        self.assertFalse((self.dir / ".tmp_over").exists())
        self.fails(2, "export", source, "--out", "brain", names=["brain", "already"])

    def test_biases_stay_float32(self):
        self.ok("export", self.model("deepseek_v3"), "--out", "out", "--dtype", "bfloat16")
        kinds = {n.endswith("e_score_correction_bias"): t[0] for n, t in self.tensors(self.dir / "out").items()}
        self.assertEqual(kinds, {True: "F32", False: "BF16"})

    def test_eval_and_inspect(self):
        source = self.model(sharded=True)
        single = self.model(name="single")
        self.assertEqual(self.loss(source), self.loss(single))
        finished = self.ok("eval", source, "--data", self.data(source))
        self.assertIn("--seq-len", finished.err)
        info = json.loads(self.ok("inspect", source, "--tensors", "--json").out)
        self.assertEqual(info["kind"], "model_directory")
        self.assertEqual({t["name"] for t in info["tensors"]}, set(self.tensors(source)))

    def run_of(self, source, **changes):
        config = harness.tiny_config()
        config["model"] = json.loads((source / "config.json").read_text())
        config["router"] = {}
        config["data"] = {"train": [self.data(source)]}
        config["train"] |= {"seq_len": 16, "steps": 2, "lr": 1e-30, "weight_decay": 0}
        return self.write_config(config, **changes)

    def test_training_begins_with_the_weights(self):
        source = self.model("mixtral", "BF16", sharded=True)
        for changes in ({}, {"model": None}):
            shutil.rmtree(self.dir / "run", ignore_errors=True)
            self.ok("train", self.run_of(source, **changes), "--init-from", source, "--out", "run")
            self.ok("export", "run", "--out", f"out{len(changes)}", "--dtype", "bfloat16")
            self.assertEqual(self.tensors(self.dir / f"out{len(changes)}"), self.tensors(source))
        # A run begins with another run's weights; with a checkpoint there, --resume auto wins.
        self.ok("train", self.run_of(source), "--init-from", "run", "--out", "next", "--resume", "auto")
        finished = self.ok("train", self.run_of(source, train__steps=3), "--init-from", source, "--out", "next",
                           "--resume", "auto")
        self.assertIn("has no effect", finished.err)
        self.assertEqual(self.metrics("next")[-1]["step"], 3)
        self.fails(2, "train", self.run_of(source), "--init-from", source, "--resume", "run", names=["--init-from"])

    def test_code_of_others_is_not_named_where_it_is_not_copied(self):
        source = self.model("mixtral_tied")
        config = json.loads((source / "config.json").read_text())
        (source / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoConfig": "configuration_foo.FooConfig"}}))
        self.ok("export", source, "--out", "out")
        self.assertNotIn("auto_map", json.loads((self.dir / "out" / "config.json").read_text()))

    def test_another_model_is_refused_with_every_key(self):
        source = self.model("qwen3_moe")
        config = self.run_of(source, model__norm_topk_prob=None, model__rms_norm_eps=0.01, model__vocab_size=90,
                             model__initializer_range=0.5)
        failed = self.fails(2, "train", config, "--init-from", source, "--out", "run",
                            names=["rms_norm_eps is 0.01", "vocab_size is 90"])
        self.assertNotIn("initializer_range", failed.error)
        self.assert_holds_no_file(self.dir / "run")

    def test_checkpoints_in_shards(self):
        config = self.write_config(checkpoint__max_shard_size="20KB", train__steps=6)
        self.ok("train", config, "--out", "run")
        self.assertGreater(len(self.weights("run")), 1)
        self.ok("train", self.write_config(checkpoint__max_shard_size="20KB", train__steps=8), "--out", "run",
                "--resume", "auto")
        self.ok("eval", "run", "--data", "data/val.bin")
        self.fails(2, "train", self.write_config(checkpoint__max_shard_size="20 elephants"), "--out", "r2",
                   names=["checkpoint.max_shard_size", "elephants"])

    def refused(self, change, names, case="qwen3_moe", sharded=False):
        directory = self.model(case, sharded=sharded)
        tensors = self.tensors(directory)
        change(directory, tensors)
        if not sharded:
            write_raw(directory / "model.safetensors", tensors)
        self.fails(2, "eval", directory, "--data", self.data(directory), names=names)
        shutil.rmtree(directory)

    def test_every_tensor_is_accounted_for(self):
        norm = "model.norm.weight"
        self.refused(lambda d, t: t.pop(norm), ["1 missing: model.norm.weight"])
        self.refused(lambda d, t: t.update(more=t[norm]), ["1 not known: more"])
        self.refused(lambda d, t: t.update({norm: (t[norm][0], [1, *t[norm][1]], t[norm][2])}), ["another shape", norm])
        self.refused(lambda d, t: write_raw(d / "model-2.safetensors", {norm: t[norm]}), ["1 there twice", norm])
        self.refused(lambda d, t: t.update({norm: ("F8_E4M3", [len(t[norm][2])], t[norm][2])}), [norm, "F8_E4M3"])

        def quantise(directory, _):
            config = json.loads((directory / "config.json").read_text())
            config["quantization_config"] = {"quant_method": "fp8"}
            (directory / "config.json").write_text(json.dumps(config))
        self.refused(quantise, ["quantization_config", "fp8"])

    def test_index_agrees_with_the_files(self):
        def index(change):
            def apply(directory, tensors):
                path = directory / "model.safetensors.index.json"
                weight_map = json.loads(path.read_text())["weight_map"]
                change(directory, weight_map)
                self.write_index(directory, weight_map)
            return apply
        one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
        norm = "model.norm.weight"
        self.refused(index(lambda d, m: m.update({norm: one if m[norm] == two else two})),
                     ["another file than the index says", norm], sharded=True)
        self.refused(index(lambda d, m: m.pop(norm)), ["not in the index", norm], sharded=True)
        self.refused(index(lambda d, m: m.update(ghost=one)), ["of the index in no file", "ghost"], sharded=True)
        self.refused(lambda d, t: (d / two).unlink(), [two, "not there"], sharded=True)
        self.refused(lambda d, t: shutil.copy(d / two, d / "model-9.safetensors"), ["model-9"], sharded=True)
        self.refused(index(lambda d, m: m.update({norm: "../x"})), ["not the name of a file"], sharded=True)

    def test_what_may_be_there_besides(self):
        directory = self.model("mixtral_tied")
        path, tensors = directory / "model.safetensors", self.tensors(directory)
        expected = self.loss(directory)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = ("F32", [2], bytes(8))
        write_raw(path, tensors)
        self.assertEqual(self.loss(directory), expected)
        dtype, shape, data = tensors["lm_head.weight"]
        tensors["lm_head.weight"] = (dtype, shape, data[:-1] + bytes([data[-1] ^ 1]))
        write_raw(path, tensors)
        self.fails(2, "eval", directory, "--data", self.data(directory), names=["lm_head.weight", "differs"])
        directory = self.model("deepseek_v3", name="mtp")
        expected, tensors = self.loss(directory), self.tensors(directory)
        layers = json.loads((directory / "config.json").read_text())["num_hidden_layers"]
        tensors[f"model.layers.{layers}.enorm.weight"] = ("BF16", [3], bytes(6))
        # As transformers writes a model without shared experts: they have a width of 0.
        tensors["model.layers.1.mlp.shared_experts.extra.weight"] = ("F32", [0, 16], b"")
        write_raw(directory / "model.safetensors", tensors)
        self.assertEqual(self.loss(directory), expected)
        self.assertIn("1 tensors of multi-token", self.ok("eval", directory, "--data", self.data(directory)).err)


if __name__ == "__main__":
    harness.main()
