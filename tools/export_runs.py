"""Runs of our own, exported, as `transformers` and switchyard read them: text, and routers. Used by check_export.py."""

import array
import hashlib
import importlib.util
import json
import struct
import subprocess

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

SENTENCES = ("The court held that the claim was barred.", "A naive reading, then: \u00e9t\u00e9, \u65e5\u672c\u8a9e and \U0001f600.",
             "def f(x):\n    return x + 1\n", "  Two spaces,\ttabs, and 1,234 numbers.")
PROMPTS = ("The court held that", "  two  spaces\nand lines", "caf\u00e9 \u65e5\u672c \U0001f600!", "x")
CODE = "modeling_switchyard.py"
# Float32 sums in another order, relative to the largest logit.
TOLERANCE = 1e-5
# More than one expert a token where a router can; the last holds back what an expert takes. With losses that show.
ROUTERS = ({"type": "lpr", "reg_coef": 0.5, "z_loss_coef": 0.01}, {"type": "softmax_topk", "balance_scope": "model"},
           {"type": "top_p", "p": 0.6, "max_experts": 3, "entropy_coef": 0.1, "balance_scope": "layer"},
           {"type": "dynamic_k", "max_experts": 4, "balance_coef": 0.1}, {"type": "quantile"},
           {"type": "expert_threshold", "max_experts": 3, "threshold_decay": 0.5}, {"type": "kmeans"},
           {"type": "sigmoid_group", "balance_coef": 0.1}, {"capacity_factor": 0.75})
# Options that change what is computed; of one layout.
OPTIONS = ({"type": "lpr", "bias": "quantile", "unit_ball": True},
           *({"type": "lpr", key: False, "bias": "quantile"} for key in ("prototype_addend", "prototype_routing")),
           {"type": "lpr", "bias": "sign"}, {"type": "lpr", "bias": "smebu"}, {"type": "lpr", "bias": "phi"},
           {"type": "quantile", "bias": "smebu", "bias_update_speed": 0.05}, {"type": "quantile", "bias": "phi"},
           {"type": "sigmoid_group", "bias_mean_free": True}, {"type": "sigmoid_group", "bias": "smebu"},
           {"type": "sigmoid_group", "bias": "phi"}, {"type": "quantile", "simbal_coef": 0.1},
           {"type": "top_p", "max_experts": 3, "simbal_coef": 0.1},
           *({"type": kind, "variance_coef": 0.5, "orthogonality_coef": 0.3} for kind in ("softmax_topk", "quantile", "lpr")),
           {"type": "softmax_topk", "orthogonality_coef": 1, "capacity_factor": 0.8},
           *({"type": "lpr", "similarity": name} for name in ("dot", "gaussian", "mahalanobis", "cross_attention", "kl",
                                                              "js", "hellinger", "wasserstein")),
           {"type": "lpr", "similarity": "cross_attention", "num_heads": 2},
           {"type": "lpr", "key_update": "ema", "diversity": "euclidean", "reg_scope": "micro_batch"},
           *({"type": "dynamic_k", "max_experts": 4, "estimator": name}
             for name in ("activation_norm_l1", "attention_entropy", "router_entropy", "hidden_entropy", "loss_gradient")),
           {"type": "dynamic_k", "max_experts": 4, "estimator": "threshold", "threshold": 5.6},
           {"type": "dynamic_k", "max_experts": 4, "flops_target": 0.3, "estimator": "router_entropy"},
           {"type": "quantile", "score_function": "softmax", "z_loss_coef": 0.01, "bias_ema": 0.5},
           {"type": "expert_threshold", "score_function": "softmax", "max_experts": 4, "threshold_decay": 0.5},
           *({"type": kind, "score_function": "sqrtsoftplus"} for kind in ("quantile", "sigmoid_group", "expert_threshold")),
           *({"type": kind, "logit_norm": 1.5} for kind in ("softmax_topk", "top_p")),
           *({"type": kind, "num_hash_layers": 1} for kind in ("softmax_topk", "lpr")),
           {"type": "quantile", "num_hash_layers": 2, "score_function": "sqrtsoftplus"},
           {"type": "sigmoid_group", "score_function": "softmax", "z_loss_coef": 0.01},
           {"type": "top_p", "renormalise": True, "max_experts": 4, "balance_scope": "sequence"})


def byte_tokenizer():
    return None, lambda text: list(text.encode()), 256, 256


def byte_level_bpe():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.train_from_iterator(SENTENCES, trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|endoftext|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False))
    return tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, 0, 0


def mixtral_like():
    """Words by Metaspace, bytes as a last resort, <s> before a text: data are `<s> text </s>`."""
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += ["\u2581"] + [chr(c) for c in range(33, 127)]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                           decoders.Strip(" ", 1, 0)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)])
    return tokenizer, lambda text: tokenizer.encode(text, add_special_tokens=False).ids, 1, 2


TOKENIZERS = {"bytes": byte_tokenizer, "byte-level BPE": byte_level_bpe, "BPE that begins with <s>": mixtral_like}


def write_data(place, make):
    """A shard of the sentences, over and over, and its meta.json and tokenizer.json."""
    tokenizer, encode, begin, end = make()
    documents = [[begin, *encode(text), *([end] if begin != end else [])] for text in SENTENCES]
    tokens = [token for _ in range(40) for document in documents for token in document]
    place.mkdir()
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    (place / "train_000000.bin").write_bytes(header + array.array("H", tokens).tobytes())
    content = b"bytes" if tokenizer is None else tokenizer.to_str().encode()
    if tokenizer is not None:
        (place / "tokenizer.json").write_bytes(content)
    (place / "meta.json").write_text(json.dumps({
        "tokenizer": "bytes" if tokenizer is None else "made here", "eot_token": end, "begin_token": begin,
        "tokenizer_sha256": hashlib.sha256(content).hexdigest(), "vocab_size": max(tokens) + 1}))


def switchyard(binary, *arguments):
    return subprocess.run([binary, *map(str, arguments)], check=True, capture_output=True, text=True)


def train(binary, place, model, make, router, steps):
    """A run of a few steps in place/run, exported to place/exported."""
    write_data(place / "data", make)
    config = {"model": {**model, "vocab_size": 384}, "router": router, "data": {"train": [str(place / "data/train*.bin")]},
              "train": {"steps": steps, "seq_len": 32, "micro_batch_size": 4, "lr": 0.01}, "parallel": {"threads": 2}}
    (place / "run.json").write_text(json.dumps(config))
    switchyard(binary, "train", place / "run.json", "--out", place / "run")
    return switchyard(binary, "export", place / "run", "--out", place / "exported").stderr


def generated(binary, directory, prompt):
    report = json.loads(switchyard(binary, "generate", directory, "--prompt", prompt, "--greedy", "--max-new-tokens", 16,
                                   "--json").stdout)
    return report["prompt_tokens"], report["tokens"], report["text"]


def check_text(binary, place, model, make):
    """The run, its export and transformers on the export: the same tokens of a prompt, the same greedy text."""
    train(binary, place, model, make, {}, 60)
    exported = place / "exported"
    tokenizer = AutoTokenizer.from_pretrained(exported)
    ours = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32).eval()
    problems = []
    for prompt in PROMPTS:
        of_run, of_export = generated(binary, place / "run", prompt), generated(binary, exported, prompt)
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            whole = ours.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)[0].tolist()
        text = tokenizer.decode(whole, skip_special_tokens=True)[len(tokenizer.decode(ids, skip_special_tokens=True)):]
        theirs = (ids, whole[len(ids):], text)
        if of_run != of_export:
            problems.append(f"{prompt!r}: the run gives {of_run}, its export {of_export}")
        if of_export != theirs:
            problems.append(f"{prompt!r}: switchyard gives {of_export}, transformers {theirs}")
    if tokenizer.eos_token_id != ours.generation_config.eos_token_id:
        problems.append(f"eos is {tokenizer.eos_token_id}, in generation_config {ours.generation_config.eos_token_id}")
    return problems


def trusted(directory):
    """transformers' model with the router's own code, and what was amiss about loading it."""
    model, info = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, trust_remote_code=True, output_loading_info=True)
    return model.eval(), [f"{key}: {sorted(map(str, names))[:4]}" for key, names in info.items() if names]


def largest_difference(found, expected):
    """Of the largest value."""
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-30)).item()


def refusals(directory, layout):
    """from_pretrained opens no such model whose code is not trusted."""
    problems = []
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # refuses as it does when nobody answers its question in time
    for given in ({}, {"trust_remote_code": False}):
        try:
            AutoModelForCausalLM.from_pretrained(directory, **given)
            problems.append(f"from_pretrained opens {directory.name} by {given}")
        except ValueError as error:
            if "trust_remote_code" not in str(error):
                problems.append(f"from_pretrained says {str(error)[:200]!r}")
    return problems


def check_logits(binary, place, model):
    tokens = torch.randint(256, (2, 24), generator=torch.Generator().manual_seed(5))
    save_file({"tokens": tokens.to(torch.int32)}, place / "tokens.safetensors")
    switchyard(binary, "dump", place / "exported", "--tokens", place / "tokens.safetensors", "--out", place / "dump.st")
    with torch.no_grad():
        whole = model(tokens, use_cache=True)
        masked = model(torch.cat([tokens[:, :3], tokens], 1), attention_mask=torch.cat(
            [torch.zeros(2, 3, dtype=torch.long), torch.ones_like(tokens)], 1)).logits[:, 3:]
    ours = load_file(place / "dump.st")["logits"].reshape(whole.logits.shape)
    difference = largest_difference(whole.logits, ours)
    if difference > TOLERANCE:
        return [f"logits differ by {difference:.1e} of the largest"]
    difference = largest_difference(masked, whole.logits)
    return [f"left padding moves logits by {difference:.1e} of the largest"] if difference > TOLERANCE else []


def check_greedy(binary, place, model, tokenizer):
    """With a cache, token by token. A capacity looks at all tokens of a call: it is left out."""
    problems = []
    for prompt in PROMPTS:
        ids = tokenizer(prompt)["input_ids"]
        with torch.no_grad():
            whole = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=16)[0].tolist()
        ours = generated(binary, place / "exported", prompt)
        if ours[:2] != (ids, whole[len(ids):]):
            problems.append(f"{prompt!r}: switchyard gives {ours[:2]}, transformers {(ids, whole[len(ids):])}")
    return problems


def check_step(binary, place, model, router):
    """A step on one batch that is the whole of the data: its losses, and the state after it, by both programs."""
    tokens = (torch.arange(4 * 32 + 1) * 7919 % 251).tolist()
    (place / "batch").mkdir()
    header = struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253)
    (place / "batch/train_000000.bin").write_bytes(header + array.array("H", tokens).tobytes())
    # What is drawn at random differs.
    quiet = {"jitter": 0.0} | ({"align_weight": 0.0} if router.get("type") == "lpr" else {})
    config = {"data": {"train": [str(place / "batch/train*.bin")]}, "router": {**router, **quiet},
              "train": {"steps": 1, "seq_len": 32, "micro_batch_size": 4, "lr": 0.01}, "parallel": {"threads": 2}}
    (place / "step.json").write_text(json.dumps(config))
    switchyard(binary, "train", place / "step.json", "--init-from", place / "exported", "--out", place / "step")
    logged = json.loads((place / "step/metrics.jsonl").read_text().splitlines()[0])
    inputs = torch.tensor(tokens[:-1]).view(4, 32)
    gates = [block.gate for block in model.routed_experts()]
    for gate in gates:
        vars(gate.options).update(quiet)
    output = model.train()(inputs, labels=inputs, shift_labels=torch.tensor(tokens[1:]).view(4, 32),
                           output_router_logits=True)
    theirs = {"loss": output.loss.item() - output.aux_loss.item(), "aux_loss": output.aux_loss.item()}
    ours = {"loss": logged["loss"], "aux_loss": sum(logged[f"{kind}_loss"] for kind in ("balance", "z", "router"))}
    # The loss is of order 1 to 6, in float32.
    problems = [f"{key}: {theirs[key]}, switchyard {ours[key]}" for key in ours
                if abs(theirs[key] - ours[key]) > 1e-5 * max(1, abs(ours[key]))]
    output.loss.backward()
    if not all(p.grad is not None and p.grad.isfinite().all() for gate in gates for p in gate.parameters()
               if p.requires_grad):
        problems.append("a parameter of the router has no gradient")
    model.after_step()
    after = load_file(place / "step/checkpoints/latest/model.safetensors")
    for layer, block in enumerate(model.model.layers):
        for name, state in block.mlp.named_buffers() if hasattr(block.mlp, "gate") else ():
            expected = next(t for key, t in after.items() if key.startswith(f"model.layers.{layer}.") and key.endswith(name))
            if name.split(".")[-1] in ("expert_keys", "ema_sums", "ema_counts"):
                continue  # of latents with noise
            # A quantile moves by at most its bin where a rounding puts a token into the next one.
            if (difference := largest_difference(state, expected)) > 1e-3:
                problems.append(f"layer {layer}, {name} after a step differs by {difference:.1e} of the largest")
    return problems


def check_saved(binary, place, model, data):
    """What save_pretrained writes opens again, and switchyard reads it."""
    model.eval().save_pretrained(place / "saved")
    again, problems = trusted(place / "saved")
    tokens = torch.arange(40).view(2, 20)
    with torch.no_grad():
        if not torch.equal(model(tokens).logits, again(tokens).logits):
            problems.append("a saved model has other logits")
    before, after = (load_file(place / name / "model.safetensors") for name in ("exported", "saved"))
    if before.keys() != after.keys() or not all(torch.equal(before[name], after[name]) for name in before):
        problems.append("a saved model has other tensors")
    losses = [json.loads(switchyard(binary, "eval", place / name, *data).stdout)["loss"] for name in ("exported", "saved")]
    if losses[0] != losses[1]:
        problems.append(f"to switchyard the export's loss is {losses[0]}, the saved model's {losses[1]}")
    return problems


def lm_eval_loss(directory, context, continuation):
    """Nats of a continuation to lm_eval, or None where it is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        return None
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM
    harness = HFLM(pretrained=str(directory), trust_remote_code=True, dtype="float32", device="cpu", batch_size=1)
    request = Instance(request_type="loglikelihood", doc={}, arguments=(context, continuation), idx=0)
    return -harness.loglikelihood([request], disable_tqdm=True)[0][0]


def check_lm_eval(place, model, tokenizer):
    context, continuation = SENTENCES[0][:17], SENTENCES[0][17:]
    theirs = lm_eval_loss(place / "exported", context, continuation)
    if theirs is None:
        return []
    begin, ids = len(tokenizer(context)["input_ids"]), torch.tensor([tokenizer(context + continuation)["input_ids"]])
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            model(ids[:, :-1]).logits[0, begin - 1:], ids[0, begin:], reduction="sum").item()
    return [] if abs(theirs - expected) < 1e-3 else [f"lm_eval gives {theirs} nats, not {expected}"]


def check_router(binary, place, model, router):
    """transformers computes the router by the code that lies beside the model, and refuses the model without; switchyard
    computes it from the export alone."""
    said = train(binary, place, model, byte_tokenizer, router, 5)
    exported, checkpoint, problems = place / "exported", place / "run" / "checkpoints" / "latest", []
    data = ("--data", place / "data/train_000000.bin", "--seq-len", 32, "--json", "-")
    losses = [json.loads(switchyard(binary, "eval", directory, *data).stdout)["loss"]
              for directory in (place / "run", exported)]
    if losses[0] != losses[1]:
        problems.append(f"the run's loss is {losses[0]}, its export's {losses[1]}")
    if json.loads((exported / "config.json").read_text())["model_type"] == model["model_type"]:  # the layout's own
        AutoModelForCausalLM.from_pretrained(exported)
        return problems + (["brings code"] if (exported / CODE).exists() else [])
    if "--as-layout" not in said:
        problems.append(f"export does not say so: {said!r}")
    for directory in (exported, checkpoint):
        problems += refusals(directory, model["model_type"])
    problems += trusted(checkpoint)[1]
    ours, amiss = trusted(exported)
    tokenizer = AutoTokenizer.from_pretrained(exported)
    problems += amiss + check_logits(binary, place, ours) + check_lm_eval(place, ours, tokenizer)
    if "capacity_factor" not in router:
        problems += check_greedy(binary, place, ours, tokenizer)
    problems += check_saved(binary, place, ours, data) + check_step(binary, place, ours, router)
    switchyard(binary, "export", exported, "--as-layout", "--out", place / "plain")
    AutoModelForCausalLM.from_pretrained(place / "plain")
    return problems


def cases(models):
    """(title, check of a binary in a place), over the layouts."""
    for layout, model in models.items():
        for name, make in TOKENIZERS.items():
            yield f"{layout}, text by {name}", lambda *at, model=model, make=make: check_text(*at, model, make)
        for router in ROUTERS + (OPTIONS if layout == "qwen3_moe" else ()):
            yield f"{layout}, router {json.dumps(router)}", lambda *at, model=model, router=router: check_router(
                *at, model, router)
