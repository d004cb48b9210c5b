"""A model with another router than it was trained with: what is taken, begins anew and is left; eval and generate of it without
training, calibration, and compare-routing."""

import json
import pathlib
import re
import shutil

import harness
from harness import CliTest, read_safetensors

GOLDEN = pathlib.Path(__file__).resolve().parents[1] / "golden"
LAYOUTS = ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe")
BIAS = "e_score_correction_bias"
LPR = ["norm.weight", "norm.bias", "encoder.weight", "encoder.bias", "out_proj.weight", "out_proj.bias", "expert_keys"]
# What each router keeps below the layer's gate, with the options that it has by itself.
ROWS = {"softmax_topk": ["weight"], "top_p": ["weight"], "sigmoid_group": ["weight", BIAS], "quantile": ["weight", BIAS],
        "dynamic_k": ["weight", "complexity_mean", "complexity_var"], "expert_threshold": ["weight", "thresholds"],
        "kmeans": ["means"], "lpr": LPR}
OWN = {"mixtral": "softmax_topk", "qwen3_moe": "softmax_topk", "deepseek_v3": "sigmoid_group", "olmoe": "softmax_topk"}


def change_line(before, after):
    """What is said of rows that have one meaning wherever they have one name."""
    def names(rows):
        return ", ".join(rows) or "nothing"
    old, new = ROWS[before], ROWS[after]
    return (f"router {before} -> {after}: kept {names([row for row in new if row in old])}; begin anew "
            f"{names([row for row in new if row not in old])}; left {names([row for row in old if row not in new])}")


class NewRouter(CliTest):
    def model(self, case, **changes):
        """A directory as transformers writes it, of a golden case's weights."""
        directory = self.dir / ("-".join([case, *map(str, changes.values())]))
        directory.mkdir()
        config = json.loads((GOLDEN / case / "config.json").read_text()) | changes
        (directory / "config.json").write_text(json.dumps(config))
        shutil.copy(GOLDEN / case / "model.safetensors", directory)
        return directory

    def setUp(self):
        super().setUp()
        for name, count, seed in (("small", 1301, 1), ("other", 301, 2)):  # of the golden cases' vocabulary
            harness.write_shard(self.dir / f"{name}.bin", [t % 40 for t in harness.learnable_tokens(count, seed=seed)])

    def config(self, **changes):
        """Trains so slowly that no weight moves."""
        config = harness.tiny_config()
        del config["model"], config["router"]
        config["data"] = {"train": ["small.bin"]}
        config["train"] |= {"seq_len": 16, "steps": 1, "lr": 1e-30, "weight_decay": 0, "warmup_ratio": 0}
        return self.write_config(config, **changes)

    def start_from(self, source, out, *overrides, options=(), **changes):
        sets = [word for override in overrides for word in ("--set", override)]
        return self.ok("train", self.config(**changes), "--init-from", source, "--out", out, *sets, *options)

    def tensors(self, directory):
        return {name: t for file in sorted(directory.glob("model*.safetensors"))
                for name, t in read_safetensors(file).items()}

    def eval(self, source, *options):
        return json.loads(self.ok("eval", source, "--data", "small.bin", "--seq-len", 16, *options, "--json", "-").out)

    def set_router(self, *overrides):
        return [word for override in overrides for word in ("--set", override)]

    # --- train --init-from

    def test_every_router_begins_on_every_layout(self):
        for case in LAYOUTS:
            source = self.model(case)
            own = self.tensors(source)
            for router in ROWS:
                with self.subTest(case=case, router=router):
                    said = self.start_from(source, f"{case}-{router}", f"router.type={router}").err
                    lines = [line for line in said.splitlines() if "router " in line and "kept" in line]
                    if router == OWN[case]:
                        self.assertEqual(lines, [])
                    else:
                        self.assertEqual(len(lines), 1, said)
                        self.assertTrue(lines[0].endswith(change_line(OWN[case], router)), lines[0])
                    # No weight moves by a learning rate of 1e-30; what begins anew is moved by the step itself.
                    trained = self.tensors(self.latest(f"{case}-{router}"))
                    gates = {name for name in own if re.search(r"\.gate\.", name)}
                    for name, tensor in own.items():
                        if name not in gates or name.endswith("gate.weight") and "weight" in ROWS[router]:
                            self.assertEqual(trained[name][1:], tensor[1:], name)
                    rows = {name.split(".gate.")[1] for name in trained if ".gate." in name}
                    self.assertEqual(rows, set(ROWS[router]))

    def test_from_run_to_run_and_back(self):
        previous, before = self.model("mixtral"), "softmax_topk"
        for number, router in enumerate(("lpr", "dynamic_k", "kmeans", "top_p", "softmax_topk")):
            out = f"run{number}"
            said = self.start_from(previous, out, f"router.type={router}").err
            self.assertIn(change_line(before, router), said)
            previous, before = self.dir / out, router
        first, last = self.tensors(self.dir / "mixtral"), self.tensors(self.latest(out))
        self.assertEqual(first.keys(), last.keys())
        for name in first:  # lpr has no place for the gate, which the next router then begins anew
            self.assertEqual(first[name][2] == last[name][2], ".gate." not in name, name)

    def test_what_begins_anew_is_what_a_new_run_begins_with(self):
        source = self.model("qwen3_moe")
        model = json.loads((source / "config.json").read_text())
        self.start_from(source, "run", "router.type=lpr")
        self.ok("train", self.config(model=model, router={"type": "lpr"}), "--out", "fresh")
        run, fresh = self.tensors(self.latest("run")), self.tensors(self.latest("fresh"))
        for name in run:
            if ".gate." in name:  # what begins at 0 is one step of 1e-30 further
                self.assertLess(max(abs(a - b) for a, b in zip(run[name][2], fresh[name][2])), 1e-25, name)
            elif "proj" in name:  # drawn at random there
                self.assertNotEqual(run[name], fresh[name], name)

    def test_the_same_name_with_another_meaning_begins_anew(self):
        source = self.model("deepseek_v3")
        tensors = self.tensors(source)
        bias = next(name for name in tensors if name.endswith(BIAS))
        for overrides, kept in ((("quantile",), True), (("quantile", "score_function=softmax"), False),
                                (("lpr", "bias=quantile"), False)):
            with self.subTest(overrides):
                sets = [f"router.{'type=' if i == 0 else ''}{text}" for i, text in enumerate(overrides)]
                # The bias of the first step of training is what the first loss is made with: an evaluation shows it.
                said = self.ok("eval", source, "--data", "small.bin", "--seq-len", 16, *self.set_router(*sets)).err
                line = next(line for line in said.splitlines() if "kept" in line)
                self.assertEqual(BIAS in line.split("; begin anew")[0], kept, line)
                self.assertEqual(f"left weight, {BIAS}" in line or f"left {BIAS}" in line, not kept, line)
        self.assertTrue(any(tensors[bias][2]), "the case has biases")

    def test_options_of_one_router_that_change_its_rows(self):
        self.start_from(self.model("mixtral"), "lpr", "router.type=lpr")
        said = self.start_from(self.dir / "lpr", "wide", "router.latent_dim=8").err
        self.assertIn("router router.latent_dim is 8, there 16: kept norm.weight, norm.bias, out_proj.bias; begin anew "
                      "encoder.weight, encoder.bias, out_proj.weight, expert_keys; left encoder.weight, encoder.bias, "
                      "out_proj.weight, expert_keys", said)
        # An override of another type brings none of the options that the weights' router has.
        said = self.start_from(self.dir / "lpr", "p", "router.type=top_p", "router.p=0.5").err
        self.assertIn(change_line("lpr", "top_p"), said)
        router = json.loads((self.dir / "p" / "config.json").read_text())["router"]
        self.assertEqual((router["type"], router["p"], "latent_dim" in router), ("top_p", 0.5, False))

    def test_strict(self):
        source = self.model("mixtral")
        failed = self.fails(2, "train", self.config(), "--init-from", source, "--strict", "--out", "run",
                            "--set", "router.type=dynamic_k")
        self.assertTrue(failed.error.endswith(
            'mixtral: --strict: router.type is "dynamic_k", there "softmax_topk": kept weight; would begin anew '
            "complexity_mean, complexity_var; would be left nothing; set what the directory has, or leave out --strict"),
            failed.error)
        self.assert_holds_no_file(self.dir / "run")
        self.start_from(source, "same", options=["--strict"])
        self.fails(2, "train", self.config(), "--init-from", source, "--strict", "--set", "router.type=top_p", "--out", "run",
                   names=['--strict: router.type is "top_p", there "softmax_topk"; set'])  # needs no other rows
        self.start_from(source, "top_p", "router.type=top_p")
        self.fails(2, "train", self.config(), "--init-from", "top_p", "--strict", "--set", "router.type=kmeans",
                   "--out", "run", names=['router.type is "kmeans", there "top_p": kept nothing; would begin anew means'])
        self.fails(2, "train", self.write_config(), "--strict", "--out", "run", names=["--strict: .*add --init-from"])

    def test_strict_lists_whatever_the_router_computes_otherwise(self):
        source = self.model("mixtral")
        self.start_from(source, "quantile", "router.type=quantile")

        def refused(source, said, *overrides, config=None):
            failed = self.fails(2, "train", config or self.config(), "--init-from", source, "--strict", "--out", "run",
                                *self.set_router(*overrides))
            self.assertIn(said, failed.error)
            self.assert_holds_no_file(self.dir / "run")
        refused(source, "--strict: model.num_experts_per_tok is 1, there 2; set", "model.num_experts_per_tok=1")
        refused("quantile", "--strict: model.num_experts_per_tok is 1, there 2, router.capacity_factor is 0.5, there null, "
                'router.score_function is "softmax", there "sigmoid": kept weight; would begin anew e_score_correction_bias',
                "model.num_experts_per_tok=1", "router.capacity_factor=0.5", "router.score_function=softmax")
        # What acts in training alone is the run's affair.
        self.start_from("quantile", "losses", "router.balance_coef=0.5", "router.jitter=0.1", "router.bias_ema=0.5",
                        options=["--strict"])
        # What no run may change is refused with or without it, all at once.
        deepseek = self.model("deepseek_v3")
        config = json.loads((deepseek / "config.json").read_text())
        other = {"norm_topk_prob": not config["norm_topk_prob"], "routed_scaling_factor": 7.5, "n_group": 1, "topk_group": 1,
                 "rope_parameters": {**config["rope_parameters"], "rope_theta": 5e5}, "rms_norm_eps": 1e-2}
        del config["architectures"]
        for options in ([], ["--strict"]):
            path = self.config(model={**config, **other})
            failed = self.fails(2, "train", path, "--init-from", deepseek, "--out", "run", *options)
            for key in other:
                self.assertIn(f"model.{key.replace('rope_parameters', 'rope_')}", failed.error)

    def test_strict_looks_at_the_tokens_around_documents(self):
        self.start_from(self.model("mixtral"), "own")
        meta = {"tokenizer": "bytes", "tokenizer_sha256": None, "eot_token": 3, "begin_token": 3, "vocab_size": 40}
        (self.dir / "meta.json").write_text(json.dumps(meta))
        self.start_from("mixtral", "with_tokens")
        (self.dir / "meta.json").write_text(json.dumps(meta | {"eot_token": 5, "begin_token": 4}))
        said = self.start_from("with_tokens", "warned").err
        self.assertEqual(said.count("warning: documents of the training data"), 2, said)
        failed = self.fails(2, "train", self.config(), "--init-from", "with_tokens", "--strict", "--out", "run",
                            *self.set_router("model.num_experts_per_tok=1"))
        self.assertRegex(failed.error, "--strict: model.num_experts_per_tok is 1, there 2, documents of the training data begin "
                         "with token 4, .* with 3, documents of the training data end with token 5, .* with 3; set")

    def test_all_else_is_refused_as_ever(self):
        source = self.model("deepseek_v3")
        config = json.loads((source / "config.json").read_text())

        def refused(name, router, change):
            directory = self.dir / f"broken{len(list(self.dir.iterdir()))}"
            shutil.copytree(source, directory)
            path = directory / "model.safetensors"
            path.write_bytes(change(path.read_bytes()))
            self.fails(2, "train", self.config(), "--init-from", directory, "--set", f"router.type={router}", "--out", "run",
                       names=[name])
        first = next(i for i in range(config["num_hidden_layers"]) if i >= config["first_k_dense_replace"])
        # A name of the same length, so that offsets stay.
        refused("1 missing: model.norm.weight; 1 not known: model.morn.weight", "lpr",
                lambda data: data.replace(b'"model.norm.weight"', b'"model.morn.weight"'))
        refused(f"1 missing: model.layers.{first}.mlp.gate.{BIAS}; 1 not known", "softmax_topk",
                lambda data: data.replace(f"layers.{first}.mlp.gate.{BIAS}".encode(),
                                          f"layers.{first}.mlp.gate.e_score_correction_bios".encode()))

    def test_resume_with_another_router(self):
        self.start_from(self.model("mixtral"), "run")
        for router in ("quantile", "top_p"):  # one that keeps other rows, one that keeps the same
            failed = self.fails(2, "train", self.config(train__steps=2), "--init-from", "mixtral", "--out", "run",
                                "--resume", "auto", "--set", f"router.type={router}")
            self.assertTrue(failed.error.endswith(
                f'step_000001: cannot be resumed with another router: router.type is "{router}", in the checkpoint '
                '"softmax_topk"; use the checkpoint\'s, or begin a new run with its weights (--init-from)'), failed.error)

    def test_resume_with_state_of_another_meaning(self):
        """Rows of one name and shape, whose numbers say something else: as wrong as another router's."""
        source = self.model("qwen3_moe")
        for kind, before, after, row in (
                ("dynamic_k", "estimator=activation_norm_l2", "estimator=attention_entropy", "complexity_mean"),
                ("quantile", "score_function=sigmoid", "score_function=softmax", BIAS)):
            with self.subTest(kind):
                self.start_from(source, kind, f"router.type={kind}", f"router.{before}")
                before_resume = harness.snapshot(self.dir / kind)
                key, value = after.split("=")
                failed = self.fails(2, "train", self.config(train__steps=2), "--init-from", source, "--out", kind, "--resume", "auto",
                                    *self.set_router(f"router.type={kind}", f"router.{after}"),
                                    names=[rf'cannot be resumed with this configuration: router\.{key} is "{value}", in the checkpoint',
                                           rf"{row} there is .*, here .*--init-from"])
                self.assertNotIn("from here on the new one holds", failed.err)
                self.assertEqual(before_resume, harness.snapshot(self.dir / kind))

    def test_the_router_of_a_run_comes_with_its_model(self):
        """Its options, too, where its type is the layout's own; overrides come on top, another type in its place."""
        own = {"type": "softmax_topk", "balance_coef": 0.05, "balance_scope": "sequence", "jitter": 0.2, "z_loss_coef": 0.01}
        config = harness.tiny_config()
        config["router"] = own
        self.ok("train", self.write_config(config, train__steps=1), "--out", "first")
        del config["router"], config["model"]
        second = self.write_config(config, name="second.json", train__steps=1)

        def router_of(out, *overrides):
            self.ok("train", second, "--init-from", "first", "--out", out, "--strict", *self.set_router(*overrides))
            return json.loads((self.dir / out / "config.json").read_text())["router"]
        self.assertLessEqual(own.items(), router_of("same").items())
        self.assertLessEqual((own | {"jitter": 0.1}).items(), router_of("changed", "router.jitter=0.1").items())
        self.ok("train", second, "--init-from", "first", "--out", "other", *self.set_router("router.type=lpr"))
        other = json.loads((self.dir / "other" / "config.json").read_text())["router"]
        self.assertEqual((other["type"], other["jitter"]), ("lpr", 0))

    def test_several_ranks(self):
        source = self.model("deepseek_v3")
        for router in ("lpr", "expert_threshold"):
            losses = []
            for ranks, changes in ((1, {}), (2, {}), (2, {"parallel.expert": 2})):
                out = f"{router}{len(losses)}"
                said = self.start_from(source, out, f"router.type={router}", *[f"{k}={v}" for k, v in changes.items()],
                                       "train.micro_batch_size=1", "parallel.threads=1",
                                       options=["--nproc", ranks] if ranks > 1 else []).err
                self.assertEqual(said.count(change_line("sigmoid_group", router)), 1, said)
                losses.append(self.losses(out)[0])
                self.assertEqual({k: v for k, v in self.tensors(self.latest(out)).items() if ".experts." in k},
                                 {k: v for k, v in self.tensors(source).items() if ".experts." in k})
            for loss in losses[1:]:  # sums in another order
                self.assertAlmostEqual(loss / losses[0], 1, delta=1e-5)

    def test_lpr_fitted_to_the_gate(self):
        # A gate with large weights, which decides: random keys then send tokens elsewhere.
        source = self.dir / "run"
        model = json.loads((self.model("mixtral") / "config.json").read_text())
        self.ok("train", self.config(model=model, train__steps=60, train__lr=0.01), "--out", source)
        sets = ["router.type=lpr", "router.reg_coef=0", "train.seed=3"]
        self.start_from(source, "random", *sets)
        said = self.start_from(source, "fitted", *sets, options=["--fit-router", 1000]).err
        self.assertIn("router lpr: encoder.weight, encoder.bias and expert_keys fitted to the gates on 1024 tokens, "
                      "out_proj.weight set to 0", said)
        random, fitted = self.tensors(self.latest("random")), self.tensors(self.latest("fitted"))
        for name in random:
            moved = any(name.endswith(row) for row in ("encoder.weight", "encoder.bias", "expert_keys", "out_proj.weight"))
            if ".gate." in name and moved:
                self.assertNotEqual(random[name], fitted[name], name)
            else:  # one step of 1e-30
                self.assertLess(max(abs(a - b) for a, b in zip(random[name][2], fitted[name][2])), 1e-25, name)
        # The half of the latent that is a variance begins as ever: 5 experts fit into 5 of the 16 columns of the other half.
        changed = [i // 16 for i, (a, b) in enumerate(zip(*(t["model.layers.0.block_sparse_moe.gate.encoder.weight"][2]
                                                            for t in (random, fitted)))) if abs(a - b) > 1e-20]
        self.assertEqual(set(changed), set(range(5)))
        # The load of the experts is nearer to the gate's.
        own, by_random, by_fit = ([layer["counts"] for layer in self.eval(place)["balance"]["layers"]]
                                  for place in ("run", "random", "fitted"))
        def distance(counts):
            return sum(abs(a - b) for mine, theirs in zip(counts, own) for a, b in zip(mine, theirs))
        self.assertLess(distance(by_fit), distance(by_random) / 2)
        # Every rank fits by itself, of the batches of one.
        self.start_from(source, "ranks", *sets, "train.micro_batch_size=1", "parallel.threads=1",
                        options=["--fit-router", 1000, "--nproc", 2])
        self.start_from(source, "rank", *sets, "train.micro_batch_size=1", "parallel.threads=1", options=["--fit-router", 1000])
        self.assertAlmostEqual(self.losses("ranks")[0] / self.losses("rank")[0], 1, delta=1e-5)  # sums in another order
        config = self.config()
        for override, said in (("router.type=top_p", 'router.type is "top_p"; only "lpr"'),
                               ("router.similarity=dot", 'only "lpr" of similarity "cosine" is fitted')):
            self.fails(2, "train", config, "--init-from", source, "--out", "none", "--fit-router", 100, "--set",
                       "router.type=lpr", "--set", override, names=[f"--fit-router: .*{said}"])
        self.fails(2, "train", config, "--init-from", "fitted", "--out", "none", "--fit-router", 100,
                   names=['--fit-router: .*has a router of type "lpr", which has no linear gate'])
        self.fails(2, "train", self.write_config(), "--out", "none", "--fit-router", 100, names=["--fit-router: .*--init-from"])

    def test_another_number_of_experts_a_token(self):
        source, three = self.model("mixtral"), self.model("mixtral", num_experts_per_tok=3)
        said = self.start_from(source, "run", "model.num_experts_per_tok=3").err
        self.assertIn("model.num_experts_per_tok is 3, there 2", said)
        self.start_from(three, "expected")
        self.assertEqual(self.losses("run"), self.losses("expected"))
        self.assertEqual(self.eval(source, "--set", "model.num_experts_per_tok=3")["loss"], self.eval(three)["loss"])
        self.assertNotEqual(self.eval(source)["loss"], self.eval(three)["loss"])
        self.fails(2, "eval", source, "--data", "small.bin", "--set", "model.num_experts_per_tok=6",
                   names=["num_experts_per_tok"])

    # --- eval and generate

    def test_the_same_router_is_the_same_loss(self):
        for case in LAYOUTS:
            source = self.model(case)
            self.assertEqual(self.eval(source, "--set", f"router.type={OWN[case]}")["loss"], self.eval(source)["loss"])
        self.start_from(source, "lpr", "router.type=lpr", "router.latent_dim=8", train__lr=0.01)
        expected = self.eval("lpr")
        for override in ("router.type=lpr", "router.latent_dim=8", "router.jitter=0.3"):  # which is for training
            self.assertEqual(self.eval("lpr", "--set", override)["loss"], expected["loss"], override)

    def test_every_router_evaluates_and_generates_on_every_layout(self):
        for case in LAYOUTS:
            source = self.model(case)
            for router in ROWS:
                with self.subTest(case=case, router=router):
                    sets = self.set_router(f"router.type={router}")
                    finished = self.ok("eval", source, "--data", "small.bin", "--seq-len", 16, *sets, "--json", "-")
                    self.assertEqual(change_line(OWN[case], router) in finished.err, router != OWN[case], finished.err)
                    self.assertEqual(json.loads(finished.out)["tokens"], 1300)
                    self.ok("generate", source, "--prompt-tokens", "1,2,3", "--max-new-tokens", 3, "--greedy", *sets)

    def test_dynamic_k_of_one_number_is_static(self):
        for case in ("mixtral", "qwen3_moe"):  # whose weights are divided by their sum
            source = self.model(case)
            k = json.loads((source / "config.json").read_text())["num_experts_per_tok"]
            static = self.eval(source)
            dynamic = self.eval(source, *self.set_router("router.type=dynamic_k", f"router.min_experts={k}",
                                                         f"router.max_experts={k}"))
            # The softmax over the chosen logits in place of the chosen shares over their sum: float32 rounding.
            self.assertAlmostEqual(dynamic["loss"] / static["loss"], 1, delta=1e-6)
            self.assertEqual([layer["counts"] for layer in dynamic["balance"]["layers"]],
                             [layer["counts"] for layer in static["balance"]["layers"]])

    def test_a_run_with_the_router_evaluates_as_the_override(self):
        """What train --init-from starts with is what eval --set sees."""
        source = self.model("qwen3_moe")
        for router in ("lpr", "top_p"):  # what these keep no step moves, at this learning rate
            self.start_from(source, router, f"router.type={router}", "train.seed=1")
            self.assertEqual(self.eval(source, "--set", f"router.type={router}")["loss"], self.eval(router)["loss"])

    def test_other_keys_are_refused(self):
        source = self.model("mixtral")
        for command in (("eval", source, "--data", "small.bin"), ("generate", source, "--prompt-tokens", "1")):
            for override in ("train.lr=1", "model.hidden_size=8", "router=top_p", "type=top_p", "modelx=1"):
                failed = self.fails(2, *command, "--set", override)
                self.assertIn(f"--set {override}: of a model that is there only router.KEY and model.num_experts_per_tok can "
                              "be set; remove it", failed.error)
            for override, said in (("router.p=0.4", "p"), ("router.type=none", "softmax_topk"), ("router.type", "=")):
                self.fails(2, *command, "--set", override, names=[said])

    def test_calibration(self):
        source = self.model("mixtral")  # 5 experts, 2 a token
        calibrate = ["--calibrate", 1000, "--calibrate-data", "small.bin"]
        threshold = self.set_router("router.type=expert_threshold", "router.max_experts=5")

        def experts(*options):
            report = self.eval(source, *options)
            return [sum(layer["counts"]) / report["tokens"] for layer in report["balance"]["layers"]]
        # From 0 on every expert takes every token; calibrated, each has its share of 2/5 of the tokens that it was
        # calibrated on, 1,000 of these 1,300: some 3 percent of chance, and steps that see other tokens.
        self.assertEqual(experts(*threshold), [5, 5])
        for found in experts(*threshold, *calibrate):
            self.assertAlmostEqual(found, 2, delta=0.3)
        # Before any step the complexity is 1/2: one number for all tokens.
        dynamic = self.set_router("router.type=dynamic_k", "router.min_experts=1", "router.max_experts=5",
                                  "router.estimator=router_entropy")
        self.assertEqual(experts(*dynamic), [3, 3])
        for found in experts(*dynamic, *calibrate):
            self.assertNotEqual(found, 3)
            self.assertAlmostEqual(found, 3, delta=0.5)
        # A quantile bias makes the load more even.
        quantile = self.set_router("router.type=quantile")
        before, after = (self.eval(source, *quantile, *more)["balance"]["gini"] for more in ([], calibrate))
        self.assertLess(after, before / 2)
        # The number of ranks makes no difference but of rounding.
        one, two = (self.eval(source, *quantile, *calibrate, "--nproc", ranks)["loss"] for ranks in (1, 2))
        self.assertAlmostEqual(one / two, 1, delta=1e-5)
        finished = self.ok("eval", source, "--data", "small.bin", "--seq-len", 16, *quantile, *calibrate)
        self.assertIn("router quantile: calibrated on 1024 tokens in 8 steps", finished.err)
        for everything in (10**9, 2**63 - 1):
            finished = self.ok("eval", source, "--data", "small.bin", "--seq-len", 16, *quantile, "--calibrate", everything,
                               "--calibrate-data", "other.bin")
            self.assertIn("calibrated on 288 tokens in 3 steps, all that the data have in whole windows", finished.err)

    def test_calibration_that_has_nothing_to_do(self):
        source = self.model("mixtral")
        finished = self.ok("eval", source, "--data", "small.bin", "--seq-len", 16, "--calibrate", 100, "--calibrate-data",
                           "small.bin", "--json", "-")
        self.assertIn("router softmax_topk keeps nothing beside its trained weights: there is nothing to calibrate",
                      finished.err)
        self.assertEqual(json.loads(finished.out)["loss"], self.eval(source)["loss"])
        command = ("eval", source, "--data", "small.bin", "--seq-len", 16)
        self.fails(2, *command, "--calibrate", 100,
                   names=["--calibrate: .*mixtral is a model directory, which says nothing of data; give --calibrate-data"])
        self.fails(2, *command, "--calibrate-data", "small.bin", names=["--calibrate-data: is given without --calibrate"])
        self.fails(2, *command, "--calibrate", 0, names=["--calibrate"])
        harness.write_shard(self.dir / "tiny.bin", [1, 2, 3])
        self.fails(2, *command, "--calibrate", 10, "--calibrate-data", "tiny.bin", names=["no whole window of 16 tokens"])
        # A run's own training data are the default.
        self.start_from(source, "run", "router.type=quantile")
        finished = self.ok("eval", "run", "--data", "small.bin", "--calibrate", 200)
        self.assertIn("calibrated on 256 tokens in 2 steps", finished.err)

    def test_generate(self):
        source = self.model("mixtral")

        def tokens(*options):
            return json.loads(self.ok("generate", source, "--prompt-tokens", "1,2,3,4,5", "--max-new-tokens", 20, "--greedy",
                                      "--json", *options).out)["tokens"]
        self.assertEqual(tokens("--set", "router.type=softmax_topk"), tokens())
        three = self.model("mixtral", num_experts_per_tok=3)
        self.assertEqual(tokens("--set", "model.num_experts_per_tok=3"),
                         json.loads(self.ok("generate", three, "--prompt-tokens", "1,2,3,4,5", "--max-new-tokens", 20,
                                            "--greedy", "--json").out)["tokens"])
        calibrated = self.ok("generate", source, "--prompt-tokens", "1,2", "--set", "router.type=dynamic_k", "--calibrate",
                             500, "--calibrate-data", "small.bin", "--max-new-tokens", 2)
        self.assertIn("router dynamic_k: calibrated on", calibrated.err)

    # --- compare-routing

    def compare(self, source, routers, *options):
        return self.ok("compare-routing", source, "--data", "small.bin", "--seq-len", 16, "--routers", routers, *options)

    def test_compare_routing(self):
        source = self.model("qwen3_moe")  # 6 experts, 3 a token
        routers = "dynamic_k:min_experts=1:max_experts=4,softmax_topk:num_experts_per_tok=1,quantile"
        calibrate = ["--calibrate", 500, "--calibrate-data", "other.bin"]
        rows = json.loads(self.compare(source, routers, *calibrate, "--json", "-").out)["routers"]
        self.assertEqual([row["router"] for row in rows], ["softmax_topk (own)", *routers.split(",")])
        own, dynamic, single, quantile = rows
        expected = [self.eval(source), self.eval(source, *calibrate, *self.set_router(
            "router.type=dynamic_k", "router.min_experts=1", "router.max_experts=4")),
            self.eval(source, "--set", "model.num_experts_per_tok=1"),
            self.eval(source, *calibrate, "--set", "router.type=quantile")]
        for row, alone in zip(rows, expected, strict=True):
            self.assertEqual(row["loss"], alone["loss"], row["router"])
            self.assertEqual(row["flops"], alone["flops"])
            self.assertEqual(row["balance"]["gini"], alone["balance"]["gini"])
            self.assertGreater(row["tokens_per_second"], 0)
            self.assertAlmostEqual(row["saved"], 1 - alone["flops"]["per_token"] / own["flops"]["per_token_static"], delta=1e-12)
        self.assertEqual((own["experts_per_token"], own["saved"], single["experts_per_token"]), (3, 0, 1))
        self.assertGreater(single["saved"], 0)
        self.assertTrue(1 < dynamic["experts_per_token"] < 4)
        self.assertEqual(quantile["experts_per_token"], 3)

        table = self.compare(source, routers).out.splitlines()
        self.assertEqual(table[0].split(), ["router", "loss", "experts/token", "MFLOPs/token", "saved", "tokens/s", "Gini",
                                            "min/max"])
        self.assertEqual([line.split()[0] for line in table[1:]], ["softmax_topk", *routers.split(",")])
        self.assertRegex(table[1], rf"^softmax_topk \(own\) +{own['loss']:.4f} +3\.000 ")
        self.compare(source, "top_p", "--json", "report.json", "--nproc", 2)
        self.assertEqual(len(json.loads((self.dir / "report.json").read_text())["routers"]), 2)

    def test_routers_that_are_none(self):
        source = self.model("mixtral")
        for spec, said in (("nothing", "router.type"), ("dynamic_k:", r'--routers dynamic_k:: "" is no KEY=VALUE'),
                           ("top_p:p", '"p" is no KEY=VALUE'), ("p=1", '"p=1" is no type of a router'),
                           ("top_p:p=3", r"--routers top_p:p=3: .*router\.p"), ("softmax_topk:type=lpr", "given already"),
                           ("top_p:latent_dim=3", "latent_dim"),
                           ("softmax_topk:hidden_size=3", "hidden_size")):
            with self.subTest(spec):
                self.fails(2, "compare-routing", source, "--data", "small.bin", "--seq-len", 16, "--routers", spec,
                           names=[said])
        self.fails(2, "compare-routing", source, "--data", "small.bin", names=["--routers"])
        # Before anything is computed.
        failed = self.fails(2, "compare-routing", source, "--data", "nowhere.bin", "--routers", "top_p", "--json", "missing/a.json",
                            names=["missing/a.json"])
        self.assertEqual(len(failed.lines), 1, failed)


if __name__ == "__main__":
    harness.main()
