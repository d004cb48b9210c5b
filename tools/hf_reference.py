"""One model run through `transformers`, told in the names of the public model repositories.

Shared by make_golden.py and compare_hf.py. Everything is float32, on the CPU, with attention and experts in
their plain ("eager") form.
"""

import math
import re
from dataclasses import dataclass

import torch
from transformers import AutoConfig, AutoModelForCausalLM

LAYOUTS = ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe")
FUSED_EXPERTS = re.compile(r"(?P<layer>model\.layers\.\d+)\.mlp\.experts\.(?P<kind>gate_up_proj|down_proj)$")
MIXTRAL_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}


def build_config(options):
    """The configuration object of a config.json's content."""
    options = dict(options)
    if options["model_type"] == "deepseek_v3":
        # transformers' default is 128, and another number than the query heads' breaks its model.
        options.setdefault("num_key_value_heads", options["num_attention_heads"])
    return AutoConfig.for_model(options.pop("model_type"), **options)


def random_tokens(vocab_size, n_seq, seq_len, seed):
    return torch.randint(vocab_size, (n_seq, seq_len), generator=torch.Generator().manual_seed(seed))


def build_model(config):
    model = AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32)
    return _for_training(model)


def add_mtp_layers(model):
    """DeepSeek-V3's layers for multi-token prediction, which DeepseekV3ForCausalLM has no modules for, from its own
    decoder layer and norm. They follow the other layers, so that their tensors get the public names; the model's
    own forward pass stops before them."""
    config, layers = model.config, model.model.layers
    decoder_layer, norm = type(layers[-1]), type(model.model.norm)
    for _ in range(config.num_nextn_predict_layers):
        layer = decoder_layer(config, len(layers))
        layer.enorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        layer.hnorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        layer.eh_proj = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        layer.shared_head = torch.nn.Module()
        layer.shared_head.norm = norm(config.hidden_size, eps=config.rms_norm_eps)
        layers.append(layer)
    return _for_training(model)


def mtp_losses(model, hidden, tokens):
    """The cross entropy of each depth (arXiv 2412.19437, section 2.2): position i predicts token i+k+1 from the
    hidden state before and token i+k. hidden [B, S, D]: the output of model.model."""
    losses = []
    for k, layer in enumerate(model.model.layers[model.config.num_hidden_layers:], start=1):
        n = tokens.shape[1] - 1 - k  # positions with a target
        hidden = hidden[:, :n]
        joined = torch.cat([layer.enorm(model.model.embed_tokens(tokens[:, k:k + n])), layer.hnorm(hidden)], dim=-1)
        later = torch.full((n, n), float("-inf")).triu(1)[None, None]
        angles = model.model.rotary_emb(hidden, torch.arange(n)[None])
        hidden = layer.shared_head.norm(
            layer(layer.eh_proj(joined), attention_mask=later, position_embeddings=angles))
        losses.append(torch.nn.functional.cross_entropy(
            model.lm_head(hidden).flatten(0, 1), tokens[:, k + 1:].flatten().long()))
    return losses


def load_model(directory):
    model = AutoModelForCausalLM.from_pretrained(
        directory, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32)
    return _for_training(model)


def _for_training(model):
    # With a pad_token_id, torch would drop that row's gradient; to switchyard it is a token like any other.
    model.get_input_embeddings().padding_idx = None
    return model.train()


def fill_random(model, generator):
    """Weights that make every product of order one, away from special points: no norm of one, no bias of zero."""
    with torch.no_grad():
        for name, tensor in list(model.named_parameters()) + choice_biases(model):
            if tensor.numel() == 0:  # n_shared_experts 0 is a layer of width 0
                continue
            noise = torch.randn(tensor.shape, generator=generator)
            if name.endswith("norm.weight"):
                tensor.copy_(1 + 0.2 * noise)
            elif tensor.dim() == 1:
                tensor.copy_(0.3 * noise)
            else:
                tensor.copy_(1.2 / math.sqrt(tensor.shape[-1]) * noise)


def choice_biases(model):
    """DeepSeek-V3's e_score_correction_bias: saved, but not a parameter."""
    return [(name, buffer) for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")]


def public_tensors(model_type, named):
    """(name, tensor) of the modules -> {public name: tensor}; fused experts become one tensor each."""
    result = {}
    for name, tensor in named:
        fused = FUSED_EXPERTS.match(name)
        if fused is None:
            parts = {name: tensor}
        else:
            parts = {}
            for e, weight in enumerate(tensor):
                prefix = f"{fused['layer']}.mlp.experts.{e}"
                if fused["kind"] == "gate_up_proj":
                    gate, up = weight.chunk(2)
                    parts[f"{prefix}.gate_proj.weight"] = gate
                    parts[f"{prefix}.up_proj.weight"] = up
                else:
                    parts[f"{prefix}.down_proj.weight"] = weight
        for part, weight in parts.items():
            if model_type == "mixtral":
                part = part.replace(".mlp.", ".block_sparse_moe.")
                part = re.sub(r"(experts\.\d+)\.(\w+_proj)",
                              lambda found: f"{found[1]}.{MIXTRAL_NAMES[found[2]]}", part)
            result[part] = weight.detach().clone().contiguous()
    return result


def parameters_of(model):
    return public_tensors(model.config.model_type, model.named_parameters())


def gradients_of(model):
    return public_tensors(model.config.model_type, ((n, p.grad) for n, p in model.named_parameters()))


def has_balance_loss(model):
    """A dense model has no router that it could be of."""
    return (model.config.model_type in ("mixtral", "qwen3_moe", "olmoe") and
            any(hasattr(block.mlp, "gate") for block in model.model.layers))


@dataclass
class Routing:
    """One layer's choice. Slots stand in decreasing order of the score that chose them."""
    expert_TK: torch.Tensor
    weight_TK: torch.Tensor
    margin: float  # the smallest distance, over tokens, of a score that chose to one that just did not


def _gap(scores, kept):
    """The smallest gap, over rows, between the last kept score and the next."""
    if kept >= scores.shape[-1]:
        return float("inf")
    ordered = scores.sort(dim=-1, descending=True).values
    return (ordered[:, kept - 1] - ordered[:, kept]).min().item()


def _routing(config, gate, logits, weights, indices):
    margin = float("inf")
    if config.model_type == "deepseek_v3":
        choice = logits.sigmoid() + gate.e_score_correction_bias
        groups = choice.view(len(choice), config.n_group, -1)
        group_score = groups.topk(2, dim=-1).values.sum(-1)
        margin = _gap(group_score, config.topk_group)
        kept = torch.zeros_like(group_score).scatter_(1, group_score.topk(config.topk_group).indices, 1)
        choice = groups.masked_fill(kept.unsqueeze(-1) == 0, float("-inf")).flatten(1)
    else:
        choice = logits.softmax(-1)
    margin = min(margin, _gap(choice, indices.shape[-1]))
    order = choice.gather(1, indices).argsort(dim=-1, descending=True, stable=True)
    return Routing(indices.gather(1, order).to(torch.int32), weights.gather(1, order).contiguous(), margin)


@dataclass
class Pass:
    logits: torch.Tensor
    cross_entropy: torch.Tensor
    loss: torch.Tensor  # cross entropy and, where there are any, the balance loss and the weighted mtp_loss
    mtp_loss: torch.Tensor | None  # mean over the depths of multi-token prediction
    routing: dict       # layer -> Routing


def _padded(routing, n_seq, seq_len):
    """At the positions that a depth does not compute a token has no expert: -1, with weight 0."""
    n_slots = routing.expert_TK.shape[1]
    missing = seq_len - len(routing.expert_TK) // n_seq

    def pad(tensor, value):
        return torch.nn.functional.pad(
            tensor.view(n_seq, -1, n_slots), (0, 0, 0, missing), value=value).flatten(0, 1).contiguous()

    return Routing(pad(routing.expert_TK, -1), pad(routing.weight_TK, 0.0), routing.margin)


def run(model, tokens, mtp_loss_coef=0.0):
    """Forward pass; `loss` keeps its graph. tokens [B, S]."""
    config = model.config
    seen = {}
    hooks = []
    for layer, block in enumerate(model.model.layers):
        if hasattr(block.mlp, "gate"):
            def keep(gate, _, output, layer=layer):
                seen[layer] = _routing(config, gate, *(part.detach() for part in output))
            hooks.append(block.mlp.gate.register_forward_hook(keep))
    hidden = []
    hooks.append(model.model.norm.register_forward_hook(lambda _, __, output: hidden.append(output)))
    extra = {"output_router_logits": True} if has_balance_loss(model) else {}
    loss, mtp_loss = None, None
    try:
        output = model(input_ids=tokens, labels=tokens, use_cache=False, **extra)
        loss = output.loss
        if len(model.model.layers) > config.num_hidden_layers:
            mtp_loss = torch.stack(mtp_losses(model, hidden[0], tokens)).mean()
            loss = loss + mtp_loss_coef * mtp_loss
    finally:
        for hook in hooks:
            hook.remove()
    logits = output.logits
    cross_entropy = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), tokens[:, 1:].flatten().long()).detach()
    seen = {layer: _padded(routing, *tokens.shape) for layer, routing in seen.items()}
    return Pass(logits.detach(), cross_entropy, loss, None if mtp_loss is None else mtp_loss.detach(), seen)


def loss_and_gradients(model, tokens, mtp_loss_coef=0.0):
    model.zero_grad(set_to_none=True)
    result = run(model, tokens, mtp_loss_coef)
    result.loss.backward()
    result.loss = result.loss.detach()
    return result, gradients_of(model)


def adamw(model, lr, beta1, beta2, eps, weight_decay):
    """Decay on matrices alone: norms and biases have one dimension."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=lr, betas=(beta1, beta2), eps=eps, foreach=False)
