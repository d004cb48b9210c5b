"""The routers of switchyard in plain PyTorch, and the models of `transformers` (5.0 or later) with them.

It lies beside a model whose router `transformers` does not have, and config.json names it:

    model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True)
    model(ids, labels=ids, output_router_logits=True).loss    with aux_loss: all of the router's losses
    model.after_step()                                        after optimizer.step(): what moves without a gradient

Alone it needs PyTorch only:

    router = LatentPrototypeRouter(hidden_size=512, n_experts=64, k=8)
    routing = router(x)             x [sequences, tokens, 512]; expert_TK, weight_TK, and what experts see beside x
    router.loss(routing)            what training adds to the loss
    router.after_step()

Everything is computed in float32, or in float64 where x is. T tokens, D hidden size, E experts, K slots a token,
d latent width, B sequences, L layers with a router.
"""

import functools
import inspect
import math
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import distributed, nn

MODEL_KEYS = {"norm_topk_prob": True, "routed_scaling_factor": 1.0, "n_group": 1, "topk_group": 1}  # of config.json
EVERY_ROUTER = {"balance_coef": 0.001, "balance_scope": "global_batch", "z_loss_coef": 0.0, "variance_coef": 0.0,
                "orthogonality_coef": 0.0, "capacity_factor": None, "jitter": 0.0, "logit_norm": 0.0, "num_hash_layers": 0}


@dataclass
class Routing:
    """Where each token goes. A free slot, and every slot of padding, has weight 0 and is not taken."""
    expert_TK: torch.Tensor
    weight_TK: torch.Tensor
    taken_TK: torch.Tensor  # bool
    logit_TE: torch.Tensor
    probability_TE: torch.Tensor
    addend_TD: torch.Tensor = None  # what experts see beside x; None: nothing
    observed: tuple = ()  # of the router's own, for its loss and for after_step
    real_BS: torch.Tensor = None  # bool; False: padding
    overlap: torch.Tensor = 0.0  # with orthogonality_coef, in training: how alike tokens' experts are, summed

    @property
    def taken_TE(self):
        return torch.zeros_like(self.probability_TE).scatter(1, self.expert_TK, self.taken_TK.to(self.weight_TK.dtype))


class Router(nn.Module):
    """options: the keys of `router` in config.json, and those of MODEL_KEYS."""
    options_of_type = {}

    def __init__(self, hidden_size, n_experts, k, init_std=0.02, vocab_size=None, **options):
        super().__init__()
        defaults = MODEL_KEYS | EVERY_ROUTER | self.options_of_type
        if unknown := sorted(options.keys() - defaults.keys()):
            raise ValueError(f"{type(self).__name__} has no option {', '.join(unknown)}; it has {', '.join(defaults)}")
        self.hidden_size, self.n_experts, self.k, self.init_std = hidden_size, n_experts, k, init_std
        self.vocab_size = vocab_size  # of a router that keeps a number a token
        self.options = SimpleNamespace(**defaults | options)
        self.n_slots = getattr(self.options, "max_experts", None) or k
        self.sums = {}  # since the last after_step, of tokens seen in training
        self.build()
        self.reset_parameters()

    def state(self, name, *shape):
        """A value that no gradient moves; checkpoints keep it."""
        self.register_buffer(name, torch.zeros(shape))

    def build(self):
        self.weight = nn.Parameter(torch.zeros(self.n_experts, self.hidden_size))

    def reset_parameters(self):
        nn.init.normal_(self.weight, std=self.init_std)

    def choose(self, x_TD, attention_entropy_T):
        """The Routing without capacity, padding and routed_scaling_factor."""
        raise NotImplementedError

    def observe(self, routing, x_TD, real_T):
        """Adds to the sums, in training. Slots as they were chosen, before any capacity."""

    def update(self, sums):
        """Moves the state, after each step of the optimizer."""

    def own_loss(self, routing):
        """Of a linear gate: SimBal, how far its rows are from an orthonormal set."""
        if not getattr(self.options, "simbal_coef", 0):
            return 0.0
        W_ED = self.weight.to(routing.weight_TK.dtype)
        identity_EE = torch.eye(self.n_experts, dtype=W_ED.dtype, device=W_ED.device)
        return self.options.simbal_coef * (W_ED @ W_ED.T - identity_EE).abs().sum()

    def forward(self, x, real=None, attention_entropy=None, token=None):
        """x [B, S, D], or [T, D] for one sequence; real: bool [B, S], False: padding, which counts nowhere; token:
        [B, S], for a router that looks at it."""
        self.token_T = None if token is None else token.reshape(-1)
        x_TD = x.reshape(-1, self.hidden_size).to(torch.promote_types(x.dtype, torch.float32))
        n_seq = x.shape[0] if x.dim() == 3 else 1
        real_T = torch.ones(len(x_TD), dtype=torch.bool, device=x.device) if real is None else real.reshape(-1).bool()
        with torch.autocast(x.device.type, enabled=False):
            self.real_T = real_T
            routing = self.choose(x_TD, attention_entropy)
            routing.real_BS = real_T.view(n_seq, -1)
            routing.taken_TK = routing.taken_TK & real_T.unsqueeze(-1)
            routing.weight_TK = routing.weight_TK * self.options.routed_scaling_factor * routing.taken_TK
            # A token is counted once, also where a backward pass computes the layer again.
            counted = self.training and torch._C._current_graph_task_id() == -1
            if counted:
                with torch.no_grad():
                    self.observe(routing, x_TD, real_T)
            if self.options.capacity_factor is not None:
                self.limit_capacity(routing, int(real_T.sum()))
            if counted:
                self.add("count", routing.taken_TE.sum(0))
        return routing

    def loss(self, routing):
        return router_loss([self], [routing])

    @torch.no_grad()
    def after_step(self):
        sums, self.sums = self.sums, {}
        if not sums:
            return
        if distributed.is_available() and distributed.is_initialized():
            for total in sums.values():
                distributed.all_reduce(total)
        self.update(sums)

    def add(self, name, values):
        self.sums[name] = values.detach().double() + self.sums.get(name, 0)

    def logits(self, x_TD):
        logit_TE = F.linear(x_TD, self.weight.to(x_TD.dtype))
        if self.options.logit_norm:
            variance_T1, mean_T1 = torch.var_mean(logit_TE, dim=-1, correction=0, keepdim=True)
            logit_TE = self.options.logit_norm * (logit_TE - mean_T1) * (variance_T1 + 1e-12).rsqrt()
        return self.jittered(logit_TE)

    def jittered(self, logit_TE):
        jitter = self.options.jitter if self.training else 0
        return logit_TE + jitter * torch.randn_like(logit_TE) if jitter else logit_TE

    def largest(self, score_TE):
        """The largest scores, their experts, and that all of them are taken."""
        score_TK, expert_TK = score_TE.topk(min(self.n_slots, self.n_experts), dim=-1)
        return score_TK, expert_TK, torch.ones_like(expert_TK, dtype=torch.bool)

    def normalised(self, weight_TK):
        return weight_TK / (weight_TK.sum(-1, keepdim=True) + 1e-20) if self.options.norm_topk_prob else weight_TK

    def scores(self, logit_TE, function=None):
        """Scores, and the probabilities that they stand for in the balance loss."""
        function = function or self.options.score_function
        if function == "softmax":
            return (logit_TE.softmax(-1),) * 2
        score_TE = logit_TE.sigmoid() if function == "sigmoid" else F.softplus(logit_TE).sqrt()
        return score_TE, score_TE / score_TE.sum(-1, keepdim=True)

    def limit_capacity(self, routing, n_tokens):
        """An expert keeps the slots of largest weight; of equal ones the first."""
        most = math.ceil(self.options.capacity_factor * n_tokens * self.n_slots / self.n_experts * (1 - 1e-12))
        taken_TE = routing.taken_TE.bool()
        weight_TE = torch.zeros_like(routing.probability_TE).scatter(1, routing.expert_TK, routing.weight_TK.detach())
        weight_TE = weight_TE.masked_fill(~taken_TE, -math.inf)
        rank_TE = weight_TE.argsort(dim=0, descending=True, stable=True).argsort(dim=0)
        routing.taken_TK = routing.taken_TK & (rank_TE < most).gather(1, routing.expert_TK)
        routing.weight_TK = routing.weight_TK * routing.taken_TK


def router_loss(routers, routings):
    """The balance loss, the z-loss, the variance and the orthogonality loss, means over layers, and the routers' own,
    their sum; coefficients included."""
    options, L, E = routers[0].options, len(routers), routers[0].n_experts
    total = routings[0].weight_TK.new_zeros(())
    for router, routing in zip(routers, routings):
        total = total + router.own_loss(routing)
    real_BS = routings[0].real_BS
    n_B, n = real_BS.sum(1), real_BS.sum().clamp(min=1)
    if options.z_loss_coef:
        squares = sum((routing.logit_TE.logsumexp(-1).square() * real_BS.flatten()).sum() for routing in routings)
        total = total + options.z_loss_coef * squares / n / L
    total = total + options.orthogonality_coef * sum(routing.overlap for routing in routings) / n / L
    if not options.balance_coef and not options.variance_coef:
        return total

    def by_sequence(tensors_TE):
        return torch.stack([(each * real_BS.view(-1, 1)).view(*real_BS.shape, E).sum(1) for each in tensors_TE])

    count_LBE = by_sequence([routing.taken_TE for routing in routings])
    probability_LBE = by_sequence([routing.probability_TE for routing in routings])
    if options.variance_coef:
        squares = by_sequence([routing.probability_TE.square() for routing in routings]).sum()
        of_means = (probability_LBE.square() / n_B.clamp(min=1).unsqueeze(-1)).sum()
        total = total - options.variance_coef * (squares - of_means) / n / L
    if options.balance_scope == "model":
        balance = E * (count_LBE.sum((0, 1)) * probability_LBE.sum((0, 1))).sum() / (L * n) ** 2
    elif options.balance_scope == "sequence":
        each_LB = (count_LBE * probability_LBE).sum(-1) / n_B.clamp(min=1) ** 2
        balance = E / routers[0].n_slots * each_LB.sum() / L / (n_B > 0).sum().clamp(min=1)
    else:
        balance = E / routers[0].n_slots * (count_LBE.sum(1) * probability_LBE.sum(1)).sum() / L / n**2
    return total + options.balance_coef * balance


# ---- quantiles over a step's tokens, from histograms that are finest around the value in force ----

BINS, FIRST_EDGE, LAST_EDGE = 512, 1e-6, 100.0  # of each side


def _edges(device):
    steps = torch.arange(BINS, dtype=torch.float64, device=device) / (BINS - 1)
    return F.pad(FIRST_EDGE * (LAST_EDGE / FIRST_EDGE) ** steps, (1, 0))


def gap_histogram(gap_TE):
    """[E, 2 BINS], from the most negative gap to the largest."""
    bin_TE = torch.bucketize(gap_TE.abs().double(), _edges(gap_TE.device), right=True).clamp(max=BINS) - 1
    bin_TE = torch.where(gap_TE >= 0, BINS + bin_TE, BINS - 1 - bin_TE)
    count_EB = torch.zeros(gap_TE.shape[1], 2 * BINS, dtype=torch.float64, device=gap_TE.device)
    return count_EB.scatter_add_(1, bin_TE.T, torch.ones_like(bin_TE.T, dtype=torch.float64))


def quantile_of(count_EB, share):
    """[E]: below it lies `share` of an expert's counts, straight inside a bin; 0 without any."""
    right = _edges(count_EB.device)
    edges = torch.cat([-right.flip(0), right[1:]])
    target_E1 = share * count_EB.sum(1, keepdim=True)
    up_to_EB = count_EB.cumsum(1)
    bin_E1 = ((up_to_EB >= target_E1) & (count_EB > 0)).int().argmax(1, keepdim=True)
    count_E1, left_E1 = count_EB.gather(1, bin_E1), edges[bin_E1]
    inside_E1 = (target_E1 - up_to_EB.gather(1, bin_E1) + count_E1) / count_E1
    value_E1 = left_E1 + (edges[bin_E1 + 1] - left_E1) * inside_E1
    return torch.where(count_E1 > 0, value_E1, torch.zeros_like(value_E1)).squeeze(1)


# What the rules of a bias read.
BIAS_OPTIONS = {"bias_update_speed": 1e-3, "bias_kappa": 2.0, "bias_momentum": 0.5, "phi_strength": 1.0,
                "phi_decay": 0.99}


class WithChoiceBias(Router):
    """A bias that chooses with the scores, and does not weigh. The option `bias` says what moves it after a step: the
    quantile with which K/E of the tokens would choose each expert, a step towards balance (sign), that step softly
    clamped and with momentum (smebu), or the logarithm of an average load (phi)."""

    def build_bias(self):
        self.state("e_score_correction_bias", self.n_experts)
        if self.options.bias == "smebu":
            self.state("bias_momentum", self.n_experts)
        elif self.options.bias == "phi":
            self.register_buffer("expert_load", torch.ones(self.n_experts))  # 1 at balance
        elif self.options.bias not in ("sign", "quantile"):
            raise ValueError(f"bias is {self.options.bias!r}, which is not known")

    def choose_with_bias(self, score_TE):
        self.biased_TE = biased_TE = (score_TE + self.e_score_correction_bias).detach()
        if self.training and self.options.bias == "quantile" and self.k < self.n_experts:
            bias_E = self.e_score_correction_bias
            for _ in range(self.options.bias_solves):  # on the batch's own tokens; the bias that is kept stays
                bias_E = self.solved(bias_E, self.gaps_of(biased_TE[self.real_T]))
                biased_TE = (score_TE + bias_E).detach()
        expert_TK = biased_TE.topk(self.k, dim=-1).indices
        return expert_TK, torch.ones_like(expert_TK, dtype=torch.bool)

    def observe(self, routing, x_TD, real_T):
        if self.options.bias == "quantile" and self.k < self.n_experts:
            self.add("gaps", self.gaps_of(self.biased_TE[real_T]))

    def gaps_of(self, biased_TE):
        return gap_histogram(biased_TE.topk(self.k + 1, dim=-1).values[:, -1:] - biased_TE)

    def solved(self, bias_E, gaps_EB):
        if gaps_EB.sum() == 0:
            return bias_E
        solved_E = bias_E + quantile_of(gaps_EB, self.k / self.n_experts).to(bias_E.dtype)
        return solved_E - solved_E.mean()

    def update(self, sums):
        options, n_E = self.options, sums["count"]
        if options.bias == "quantile":
            if "gaps" in sums:
                bias_E, old = self.e_score_correction_bias, options.bias_ema
                bias_E.copy_(old * bias_E + (1 - old) * self.solved(bias_E, sums["gaps"]))
            return
        if options.bias == "none" or n_E.sum() == 0:
            return
        relative_E = n_E / n_E.mean()
        if options.bias == "phi":
            self.expert_load.copy_(options.phi_decay * self.expert_load + (1 - options.phi_decay) * relative_E)
            gradient_E = self.expert_load.double().clamp(min=1e-6).log()
            self.e_score_correction_bias.copy_(-options.phi_strength * (gradient_E - gradient_E.mean()))
            return
        move_E = (1 - relative_E).sign() if options.bias == "sign" else (options.bias_kappa * (1 - relative_E)).tanh()
        if options.bias == "smebu" or options.bias_mean_free:
            move_E = move_E - move_E.mean()
        move_E = options.bias_update_speed * move_E
        if options.bias == "smebu":
            keep = options.bias_momentum
            self.bias_momentum.copy_(keep * self.bias_momentum + (1 - keep) * move_E)
            move_E = self.bias_momentum
        self.e_score_correction_bias += move_E.to(self.e_score_correction_bias.dtype)


# ---- layers whose experts are chosen by a table ----


def hash_layer(base, own_scores):
    """The router of the first num_hash_layers layers under routers of class `base`: the experts of a token stand in a
    table, a gate's scores weigh them: those of score_function, where `base` has it, else `own_scores`."""

    class HashLayer(Router):
        options_of_type = base.options_of_type

        def build(self):
            super().build()
            self.state("tid2eid", self.vocab_size * self.k)  # token after token

        def own_loss(self, routing):
            return 0.0

        def choose(self, x_TD, attention_entropy_T):
            logit_TE = self.logits(x_TD)
            if self.token_T is None:
                raise ValueError("num_hash_layers: experts are chosen by the token; give the model input_ids")
            S_TE, _ = self.scores(logit_TE, getattr(self.options, "score_function", own_scores))
            expert_TK = self.tid2eid.view(-1, self.k)[self.token_T].long()
            weight_TK = self.normalised(S_TE.gather(1, expert_TK))
            # What does not choose is not balanced: no probabilities.
            return Routing(expert_TK, weight_TK, torch.ones_like(expert_TK, dtype=torch.bool), logit_TE,
                           torch.zeros_like(S_TE))

    return HashLayer


# ---- linear routers ----

GATE_OPTIONS = {"simbal_coef": 0.0}  # of every linear gate


class SoftmaxTopKRouter(Router):
    options_of_type = GATE_OPTIONS

    def choose(self, x_TD, attention_entropy_T):
        logit_TE = self.logits(x_TD)
        P_TE = logit_TE.softmax(-1)
        P_TK, expert_TK, taken_TK = self.largest(P_TE)
        return Routing(expert_TK, self.normalised(P_TK), taken_TK, logit_TE, P_TE)


class SigmoidGroupRouter(WithChoiceBias):
    options_of_type = {"balance_coef": 1e-4, "balance_scope": "sequence", "score_function": "sigmoid",
                       "bias": "sign", "bias_mean_free": False,
                       **BIAS_OPTIONS, **GATE_OPTIONS}

    def build(self):
        super().build()
        self.build_bias()

    def choose(self, x_TD, attention_entropy_T):
        logit_TE = self.logits(x_TD)
        S_TE, P_TE = self.scores(logit_TE)
        biased = (S_TE + self.e_score_correction_bias).detach().unflatten(-1, (self.options.n_group, -1))
        group_score = biased.topk(min(2, biased.shape[-1]), dim=-1).values.sum(-1)
        best = group_score.topk(self.options.topk_group, dim=-1).indices
        dropped = torch.ones_like(group_score, dtype=torch.bool).scatter(1, best, False)
        _, expert_TK, taken_TK = self.largest(biased.masked_fill(dropped.unsqueeze(-1), -math.inf).flatten(1))
        weight_TK = self.normalised(S_TE.gather(1, expert_TK))
        return Routing(expert_TK, weight_TK, taken_TK, logit_TE, P_TE)


class QuantileRouter(WithChoiceBias):
    options_of_type = {"balance_coef": 0.0, "score_function": "sigmoid", "bias": "quantile", "bias_mean_free": True,
                       "bias_ema": 0.0, "bias_solves": 0, "settle_tokens": 0,
                        **BIAS_OPTIONS, **GATE_OPTIONS}

    def build(self):
        super().build()
        self.build_bias()

    def choose(self, x_TD, attention_entropy_T):
        logit_TE = self.logits(x_TD)
        S_TE, P_TE = self.scores(logit_TE)
        expert_TK, taken_TK = self.choose_with_bias(S_TE)
        return Routing(expert_TK, self.normalised(S_TE.gather(1, expert_TK)), taken_TK, logit_TE, P_TE)


class TopPRouter(Router):
    options_of_type = {"p": 0.4, "max_experts": None, "entropy_coef": 1e-4, "renormalise": False,
                       **GATE_OPTIONS}

    def choose(self, x_TD, attention_entropy_T):
        logit_TE = self.logits(x_TD)
        P_TE = logit_TE.softmax(-1)
        P_TK, expert_TK, taken_TK = self.largest(P_TE)
        # An expert is taken while those before it do not reach p; the first always.
        taken_TK[:, 1:] = P_TK.cumsum(-1)[:, :-1] < self.options.p
        weight_TK = P_TK * taken_TK
        if self.options.renormalise:
            weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True)
        return Routing(expert_TK, weight_TK, taken_TK, logit_TE, P_TE)

    def own_loss(self, routing):
        real_T = routing.real_BS.flatten()
        unsure = (entropy(routing.logit_TE) * real_T).sum() / real_T.sum().clamp(min=1)
        return super().own_loss(routing) + self.options.entropy_coef * unsure


class DynamicKRouter(Router):
    """The complexity of a token says how many experts it has; it has no gradient."""
    options_of_type = {"min_experts": 1, "max_experts": None, "flops_target": 0.0, "estimator": "activation_norm_l2",
                       "threshold": 0.0, "statistics_decay": 0.99, **GATE_OPTIONS}

    def build(self):
        super().build()
        self.calibrated = self.options.estimator != "threshold"
        if self.calibrated:
            self.state("complexity_mean", 1)
            self.state("complexity_var", 1)
        self.by_token = self.options.estimator == "loss_gradient"
        if self.by_token:
            if self.vocab_size is None:
                raise ValueError("estimator loss_gradient: give the router vocab_size")
            self.state("complexity_by_token", self.vocab_size)  # 0: not seen yet

    def raw(self, x_TD, logit_TE, attention_entropy_T):
        estimator = self.options.estimator
        if estimator == "attention_entropy":
            if attention_entropy_T is None:
                raise ValueError("estimator attention_entropy: give the router attention_entropy [T]")
            return attention_entropy_T.to(x_TD.dtype)
        if self.by_token:
            if self.token_T is None:
                raise ValueError("estimator loss_gradient: give the router token [B, S], the model input_ids")
            known_T = self.complexity_by_token[self.token_T].to(x_TD.dtype)
            return torch.where(known_T == 0, self.complexity_mean.to(x_TD.dtype), known_T)
        if estimator == "router_entropy":
            return entropy(logit_TE)
        if estimator == "hidden_entropy":
            return entropy(x_TD)
        return x_TD.norm(p=1 if estimator == "activation_norm_l1" else 2, dim=-1)

    def choose(self, x_TD, attention_entropy_T):
        logit_TE = self.logits(x_TD)
        with torch.no_grad():
            raw_T = self.raw(x_TD, logit_TE, attention_entropy_T)
            if not self.calibrated:
                complexity_T = (raw_T > self.options.threshold).to(raw_T.dtype)
            else:  # a variance of 0: nothing seen yet
                scaled_T = (raw_T - self.complexity_mean) / self.complexity_var.to(raw_T.dtype).sqrt()
                complexity_T = torch.where(self.complexity_var == 0, 0.5, scaled_T.sigmoid())
            least, most = self.options.min_experts, self.n_slots
            if self.options.flops_target > 0:  # the mean of k, halfway between its ends, saves that share
                least = most * (1 - 2 * self.options.flops_target)
            k_T1 = (least + (most - least) * complexity_T + 0.5).floor().unsqueeze(-1)
        logit_TK, expert_TK, _ = self.largest(logit_TE)
        taken_TK = torch.arange(logit_TK.shape[-1], device=x_TD.device) < k_T1
        weight_TK = logit_TK.masked_fill(~taken_TK, -math.inf).softmax(-1)
        return Routing(expert_TK, weight_TK, taken_TK, logit_TE, logit_TE.softmax(-1), observed=(raw_T,))

    def observe(self, routing, x_TD, real_T):
        if self.by_token:
            real_T = real_T & (self.complexity_by_token[self.token_T] != 0)
        raw_T = routing.observed[0][real_T].double()
        self.add("moments", torch.stack([real_T.sum(), raw_T.sum(), raw_T.square().sum()]))

    def observe_gradient(self, dx_TD, token_T, real_T):
        """dx_TD: all that comes back to x from a loss that is a mean over this call's tokens."""
        norm_T = real_T * real_T.sum() * dx_TD.to(torch.promote_types(dx_TD.dtype, torch.float32)).norm(dim=-1)
        sum_2V = dx_TD.new_zeros(2, self.vocab_size, dtype=torch.float64)
        sum_2V[0].index_add_(0, token_T, norm_T.double())
        sum_2V[1].index_add_(0, token_T, real_T.double())
        self.add("gradients", sum_2V)

    def update(self, sums):
        if "gradients" in sums:
            (total_V, n_V), old_V = sums["gradients"], self.complexity_by_token.double()
            decay_V = torch.where(old_V == 0, 0.0, self.options.statistics_decay)
            new_V = decay_V * old_V + (1 - decay_V) * total_V / n_V.clamp(min=1)
            self.complexity_by_token.copy_(torch.where(n_V > 0, new_V, old_V))
        n, total, squares = sums["moments"]
        if not self.calibrated or n == 0:
            return
        decay = torch.where(self.complexity_var == 0, 0.0, self.options.statistics_decay)
        self.complexity_var.copy_(decay * self.complexity_var + (1 - decay) * (squares / n - (total / n) ** 2))
        self.complexity_mean.copy_(decay * self.complexity_mean + (1 - decay) * total / n)


class ExpertThresholdRouter(Router):
    """An expert takes every token whose score exceeds its threshold; a token may have none."""
    options_of_type = {"balance_coef": 0.0, "score_function": "sigmoid", "threshold_decay": 0.99, "max_experts": None,
                       "settle_tokens": 0, **GATE_OPTIONS}

    def build(self):
        super().build()
        self.state("thresholds", self.n_experts)

    def choose(self, x_TD, attention_entropy_T):
        logit_TE = self.logits(x_TD)
        S_TE, P_TE = self.scores(logit_TE)
        _, expert_TK, _ = self.largest(S_TE.masked_fill(S_TE <= self.thresholds, -math.inf))
        S_TK = S_TE.gather(1, expert_TK)
        return Routing(expert_TK, S_TK, S_TK > self.thresholds[expert_TK], logit_TE, P_TE, observed=(S_TE,))

    def observe(self, routing, x_TD, real_T):
        self.add("gaps", gap_histogram(routing.observed[0][real_T] - self.thresholds))

    def update(self, sums):
        move_E = quantile_of(sums["gaps"], 1 - self.k / self.n_experts).to(self.thresholds.dtype)
        self.thresholds += (1 - self.options.threshold_decay) * move_E


class KMeansRouter(Router):
    """Nothing is learned: the most similar running means of the tokens that an expert had."""
    options_of_type = {"balance_coef": 0.0, "mean_decay": 0.99}

    def build(self):
        self.state("means", self.n_experts, self.hidden_size)

    def reset_parameters(self):
        nn.init.normal_(self.means)

    def choose(self, x_TD, attention_entropy_T):
        unit_ED = F.normalize(self.means.to(x_TD.dtype), dim=-1)
        S_TE = self.jittered(F.normalize(x_TD, dim=-1) @ unit_ED.T)
        S_TK, expert_TK, taken_TK = self.largest(S_TE)
        return Routing(expert_TK, S_TK.softmax(-1), taken_TK, S_TE, S_TE.softmax(-1))

    def observe(self, routing, x_TD, real_T):
        self.add("of_expert", routing.taken_TE.T.double() @ x_TD.double())
        self.add("chosen", routing.taken_TE.sum(0))

    def update(self, sums):
        count_E1, decay = sums["chosen"].unsqueeze(-1), self.options.mean_decay
        new_ED = decay * self.means + (1 - decay) * sums["of_expert"] / count_E1.clamp(min=1)
        self.means.copy_(torch.where(count_E1 > 0, new_ED, self.means.double()))


def entropy(logit_TE):
    return -(logit_TE.softmax(-1) * logit_TE.log_softmax(-1)).sum(-1)


# ---- latent prototype routing (arXiv 2506.21328) ----


def _linear(module, y):
    return F.linear(y, module.weight.to(y.dtype), module.bias.to(y.dtype))


def _rms_norm(module, y):
    return F.rms_norm(y, y.shape[-1:], module.weight.to(y.dtype), module.eps)


class LatentSimilarity(nn.Module):
    """How like each key is to a token, and what the keys say back: V."""

    def __init__(self, options, n_experts):
        super().__init__()
        self.kind, self.sigma, self.heads = options.similarity, options.sigma, options.num_heads
        d = options.latent_dim
        if self.kind == "cross_attention":
            self.q_proj, self.k_proj = nn.Linear(d, d), nn.Linear(d, d)
            self.q_norm, self.k_norm = nn.RMSNorm(d, eps=1e-6), nn.RMSNorm(d, eps=1e-6)
            if self.heads > 1:
                self.v_proj = nn.Linear(d, d)
        elif self.kind == "mahalanobis":
            self.log_sigma = nn.Parameter(torch.zeros(d))
        elif self.kind in DISTANCES:
            self.key_log_var, self.proj = nn.Parameter(torch.zeros(n_experts, d)), nn.Linear(d, d)
        elif self.kind not in ("cosine", "dot", "gaussian"):
            raise ValueError(f"similarity is {self.kind!r}, which is not known")

    def forward(self, mu_Td, logvar_Td, key_Ed):
        """S [T, E], and a function from the softmax over S to V [T, d]."""
        dtype, values_Ed = mu_Td.dtype, key_Ed
        if self.kind == "cross_attention":
            return self.attend(mu_Td, key_Ed)
        if self.kind == "cosine":
            S_TE = F.normalize(mu_Td, dim=-1) @ F.normalize(key_Ed, dim=-1).T
        elif self.kind == "dot":
            S_TE = mu_Td @ key_Ed.T
        elif self.kind == "gaussian":
            S_TE = torch.exp(-(mu_Td.unsqueeze(1) - key_Ed).square().sum(-1) / (2 * self.sigma**2))
        elif self.kind == "mahalanobis":
            scale_d = torch.exp(-self.log_sigma.to(dtype))
            S_TE = 1 / (1 + ((mu_Td.unsqueeze(1) - key_Ed).square() * scale_d).sum(-1))
        else:
            var_T1d = logvar_Td.exp().clamp(min=1e-6).unsqueeze(1)
            var_Ed = self.key_log_var.to(dtype).exp().clamp(min=1e-6)
            S_TE = -DISTANCES[self.kind](mu_Td.unsqueeze(1), var_T1d, key_Ed, var_Ed)
            values_Ed = _linear(self.proj, key_Ed)
        return S_TE, lambda P_TE: P_TE @ values_Ed

    def attend(self, mu_Td, key_Ed):
        def split(y):  # [heads, rows, width of a head]
            return y.unflatten(-1, (self.heads, -1)).transpose(0, 1)

        q = split(_rms_norm(self.q_norm, _linear(self.q_proj, mu_Td)))
        k = split(_rms_norm(self.k_norm, _linear(self.k_proj, key_Ed)))
        S_HTE = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        if self.heads == 1:
            return S_HTE[0], lambda P_TE: P_TE @ key_Ed
        v = split(_linear(self.v_proj, key_Ed))
        return S_HTE.mean(0), lambda _: (S_HTE.softmax(-1) @ v).transpose(0, 1).flatten(1)


def _kl(mean_t, var_t, mean_k, var_k):
    return 0.5 * (var_k.log() - var_t.log() + (var_t + (mean_t - mean_k) ** 2) / var_k - 1).sum(-1)


def _js(mean_t, var_t, mean_k, var_k):
    middle = (mean_t + mean_k) / 2, (var_t + var_k) / 2
    return 0.5 * _kl(mean_t, var_t, *middle) + 0.5 * _kl(mean_k, var_k, *middle)


def _hellinger(mean_t, var_t, mean_k, var_k):
    both = var_t + var_k
    overlap = (2 * (var_t * var_k).sqrt() / both).sqrt() * torch.exp(-((mean_t - mean_k) ** 2) / (4 * both))
    return (1 - overlap.prod(-1) + 1e-6).sqrt()


def _wasserstein(mean_t, var_t, mean_k, var_k):
    return (((mean_t - mean_k) ** 2 + (var_t.sqrt() - var_k.sqrt()) ** 2).sum(-1) + 1e-6).sqrt()


DISTANCES = {"kl": _kl, "js": _js, "hellinger": _hellinger, "wasserstein": _wasserstein}  # of diagonal Gaussians


def diversity(kind, Y):
    """How alike the rows of Y are: 0 for fewer than two."""
    n = len(Y)
    if n < 2:
        return Y.new_zeros(())
    if kind == "euclidean":
        return -torch.pdist(Y).mean()
    N = F.normalize(Y, dim=-1)
    own = N.square().sum()  # the diagonal of N N^T
    if kind == "cosine":
        return (N.sum(0).square().sum() - own) / (n * (n - 1))
    return ((N.T @ N).square().sum() - 2 * own + n) / n**2  # the mean of (N N^T - I)^2


class LatentPrototypeRouter(WithChoiceBias):
    options_of_type = {"balance_coef": 0.0, "latent_dim": 16, "similarity": "cosine", "sigma": 1.0, "num_heads": 1,
                       "unit_ball": False, "prototype_addend": True, "prototype_routing": True, "reg_coef": 0.01, "div_weight": 1.0,
                       "diversity": "orthogonal", "diversity_lambda": 1.0, "kl_weight": 0.01, "align_weight": 0.05, "reg_scope": "global_batch",
                       "key_update": "gradient", "ema_decay": 0.8, "bias": "none", "bias_mean_free": True,
                       "bias_ema": 0.0, "bias_solves": 0, "settle_tokens": 0, **BIAS_OPTIONS}

    def build(self):
        D, E, d = self.hidden_size, self.n_experts, self.options.latent_dim
        self.norm, self.encoder = nn.LayerNorm(D, eps=1e-5), nn.Linear(D, 2 * d)
        self.out_proj = nn.Linear(d, D) if self.options.prototype_addend else None
        self.similarity_func = LatentSimilarity(self.options, E)
        if not self.options.prototype_routing:
            super().build()  # a gate that chooses in the prototypes' place
        if self.options.key_update == "ema":
            self.state("expert_keys", E, d)
            self.state("ema_sums", E, d)
            self.state("ema_counts", E)
        else:
            self.expert_keys = nn.Parameter(torch.zeros(E, d))
        if self.options.bias != "none":
            self.build_bias()

    def reset_parameters(self):
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=self.init_std)
                nn.init.zeros_(module.bias)
        if not self.options.prototype_routing:
            super().reset_parameters()
        nn.init.normal_(self.expert_keys)
        if self.options.unit_ball:
            with torch.no_grad():
                self.expert_keys.copy_(F.normalize(self.expert_keys, dim=-1))

    def noise(self, mu_Td):
        return torch.randn_like(mu_Td) if self.training else torch.zeros_like(mu_Td)

    def choose(self, x_TD, attention_entropy_T):
        norm, key_Ed = self.norm, self.expert_keys.to(x_TD.dtype)
        a_TD = F.silu(F.layer_norm(x_TD, x_TD.shape[-1:], norm.weight.to(x_TD.dtype), norm.bias.to(x_TD.dtype), norm.eps))
        mu_Td, logvar_Td = _linear(self.encoder, a_TD).chunk(2, dim=-1)
        S_TE, decode = self.similarity_func(mu_Td, logvar_Td, key_Ed)
        if self.options.prototype_routing:
            S_TE = choice_TE = self.jittered(S_TE)
        else:
            choice_TE = self.logits(x_TD)
        if self.options.bias != "none":
            expert_TK, taken_TK = self.choose_with_bias(choice_TE)
            choice_TK = choice_TE.gather(1, expert_TK)
        else:
            choice_TK, expert_TK, taken_TK = self.largest(choice_TE)
        S_TK = S_TE.gather(1, expert_TK)
        with torch.no_grad():  # what aligns the keys: each token's latent, shared out over experts
            z_Td = mu_Td + self.noise(mu_Td) * torch.exp(logvar_Td / 2)
            R_TE = torch.zeros_like(S_TE).scatter(1, expert_TK, S_TK).softmax(-1)
        addend_TD = _linear(self.out_proj, decode(S_TE.softmax(-1))) if self.out_proj is not None else None
        return Routing(expert_TK, choice_TK.softmax(-1), taken_TK, choice_TE, choice_TE.softmax(-1), addend_TD,
                       (mu_Td, logvar_Td, z_Td, R_TE))

    def own_loss(self, routing):
        options, key_Ed = self.options, self.expert_keys.to(routing.weight_TK.dtype)
        mu_Td, logvar_Td, z_Td, R_TE = (each[routing.real_BS.flatten()] for each in routing.observed)
        kl_T = -0.5 * (1 + logvar_Td - mu_Td.square() - logvar_Td.exp()).sum(-1)
        alike = diversity(options.diversity, mu_Td) + diversity(options.diversity, key_Ed)
        return options.reg_coef * (options.div_weight * options.diversity_lambda * alike
                                   + options.kl_weight * kl_T.sum() / max(1, len(kl_T))
                                   + options.align_weight * (key_Ed - R_TE.T @ z_Td).abs().mean())

    def observe(self, routing, x_TD, real_T):
        super().observe(routing, x_TD, real_T)
        if self.options.key_update == "ema":
            _, _, z_Td, R_TE = (each[real_T].double() for each in routing.observed)
            self.add("of_key", R_TE.T @ z_Td)
            self.add("share", R_TE.sum(0))

    def update(self, sums):
        super().update(sums)
        if self.options.key_update == "ema":
            decay = self.options.ema_decay
            self.ema_sums.copy_(decay * self.ema_sums + (1 - decay) * sums["of_key"])
            self.ema_counts.copy_(decay * self.ema_counts + (1 - decay) * sums["share"])
            self.expert_keys.copy_(self.ema_sums / self.ema_counts.clamp(min=1e-6).unsqueeze(-1))


ROUTERS = {"softmax_topk": SoftmaxTopKRouter, "sigmoid_group": SigmoidGroupRouter, "quantile": QuantileRouter,
           "top_p": TopPRouter, "dynamic_k": DynamicKRouter, "expert_threshold": ExpertThresholdRouter,
           "kmeans": KMeansRouter, "lpr": LatentPrototypeRouter}


def make_router(options, hidden_size, n_experts, k, hashed=False, own_scores="softmax", **more):
    """Of `router` in a config.json: {"type": "lpr", ...}. hashed: of one of the first num_hash_layers layers, whose scores
    are the layout's own."""
    options = dict(options)
    kind = options.pop("type", None)
    if kind not in ROUTERS:
        raise ValueError(f"router.type is {kind!r}; known: {', '.join(ROUTERS)}")
    router = hash_layer(ROUTERS[kind], own_scores) if hashed else ROUTERS[kind]
    return router(hidden_size, n_experts, k, **options, **more)


def attention_entropy(weight_BHSN, mask):
    """[T]: of each token's row, mean over heads, over the logarithm of how many positions it sees; 0 for one.
    mask: what was added to the scores, [B or 1, 1, S, N], or None: causal."""
    n_queries, n_keys = weight_BHSN.shape[-2:]
    entropy_BS = torch.special.entr(weight_BHSN.float()).sum(-1).mean(1)
    if mask is None:
        seen = torch.arange(n_keys - n_queries + 1, n_keys + 1, device=weight_BHSN.device)
    else:
        seen = (mask[:, 0, :, :n_keys] == 0).sum(-1)
    return torch.where(seen > 1, entropy_BS / seen.clamp(min=2).log(), 0.0).flatten()


class RoutedExperts(nn.Module):
    """A layer of `transformers` with experts, under another router."""

    def __init__(self, block, router):
        super().__init__()
        self.gate, self.experts = router, block.experts
        if hasattr(block, "shared_experts"):
            self.shared_experts = block.shared_experts
        self.real = self.attention_entropy = self.token = self.routing = None

    def forward(self, x_BSD):
        real = None if self.real is None else self.real[:, -x_BSD.shape[1]:]
        self.routing = routing = self.gate(x_BSD, real, self.attention_entropy, self.token)
        if getattr(self.gate, "by_token", False) and self.training and x_BSD.requires_grad:
            token_T, real_T = self.token.flatten(), routing.real_BS.flatten()
            x_BSD.register_hook(lambda dx_BSD: self.gate.observe_gradient(dx_BSD.flatten(0, 1), token_T, real_T))
        x_TD = x_BSD.flatten(0, 1)
        seen_TD = x_TD if routing.addend_TD is None else x_TD + routing.addend_TD.to(x_TD.dtype)
        if self.training and self.gate.options.orthogonality_coef:
            out_BSD = self.experts_apart(seen_TD, routing).view_as(x_BSD)
        else:
            out_BSD = self.experts(seen_TD, routing.expert_TK, routing.weight_TK).view_as(x_BSD)
        return out_BSD + self.shared_experts(x_BSD) if hasattr(self, "shared_experts") else out_BSD


    def experts_apart(self, seen_TD, routing):
        """What the experts add up to, one slot after the other, to compare what they give."""
        out_TKD = torch.stack([self.experts(seen_TD, routing.expert_TK[:, k:k + 1], routing.weight_TK[:, k:k + 1])
                               for k in range(routing.expert_TK.shape[1])], dim=1)
        unit_TKD = out_TKD.float() * (out_TKD.float().square().sum(-1, keepdim=True) + 1e-20).rsqrt()
        unit_TKD = unit_TKD * routing.taken_TK.unsqueeze(-1)
        cosine_TKK = unit_TKD @ unit_TKD.transpose(1, 2)
        n_T = routing.taken_TK.sum(-1)
        of_pairs_T = cosine_TKK.square().sum((1, 2)) - cosine_TKK.diagonal(dim1=1, dim2=2).square().sum(-1)
        routing.overlap = (of_pairs_T / (n_T * (n_T - 1)).clamp(min=1)).sum()
        return out_TKD.sum(1)


def _keep_attention_entropy(block, attention, args, kwargs, output):
    if output[1] is None:
        raise ValueError("this router reads attention's weights: load the model with attn_implementation='eager'")
    block.attention_entropy = attention_entropy(output[1].detach(), kwargs.get("attention_mask"))


class WithRouter:
    """A model of `transformers` whose layers have the router of its config.json."""
    _keep_in_fp32_modules_strict = [r"mlp\.gate(?=\.)"]

    def __init__(self, config):
        super().__init__(config)
        if config.router is None:
            raise ValueError("config.json has no `router`, which says what to compute")
        keys = {key: getattr(config, key) for key in MODEL_KEYS if getattr(config, key, None) is not None}
        n_hashed, own_scores = config.router.get("num_hash_layers", 0), getattr(config, "own_scores", "softmax")
        for layer in self.model.layers:
            if not hasattr(layer.mlp, "experts"):
                continue
            router = make_router(config.router, config.hidden_size, layer.mlp.experts.num_experts,
                                 config.num_experts_per_tok, init_std=config.initializer_range,
                                 hashed=n_hashed > 0, own_scores=own_scores, vocab_size=config.vocab_size, **keys)
            n_hashed -= 1
            layer.mlp = RoutedExperts(layer.mlp, router)
            if getattr(router.options, "estimator", None) == "attention_entropy":
                hook = functools.partial(_keep_attention_entropy, layer.mlp)
                layer.self_attn.register_forward_hook(hook, with_kwargs=True)
                self.set_attn_implementation("eager")

    def routed_experts(self):
        return [layer.mlp for layer in self.model.layers if isinstance(layer.mlp, RoutedExperts)]

    def after_step(self):
        """Moves what no gradient moves: biases, thresholds, means. To be called after optimizer.step()."""
        for block in self.routed_experts():
            block.gate.after_step()

    @classmethod
    def _can_set_experts_implementation(cls):
        return True  # the experts are transformers' own, which it looks for in this file's text

    def _init_weights(self, module):
        if isinstance(module, Router):
            module.reset_parameters()
        else:
            super()._init_weights(module)


def with_router_losses(forward):
    """`forward` of transformers' model with the losses of this one's routers."""
    signature = inspect.signature(forward)

    @functools.wraps(forward)
    def routed_forward(self, *args, output_router_logits=None, return_dict=None, **kwargs):
        if output_router_logits is None:
            output_router_logits = getattr(self.config, "output_router_logits", False)
        given = signature.bind(self, *args, **kwargs).arguments
        mask = given.get("attention_mask")
        blocks = self.routed_experts()
        for block in blocks:
            block.real = mask if mask is not None and mask.dim() == 2 else None
            block.token = given.get("input_ids")
        output = forward(self, *args, output_router_logits=False, return_dict=True, **kwargs)
        routings = [block.routing for block in blocks]
        for block in blocks:
            block.real = block.attention_entropy = block.routing = None  # a backward pass may look up tokens again
        if output_router_logits:
            output.router_logits = tuple(routing.logit_TE for routing in routings)
            output.aux_loss = router_loss([block.gate for block in blocks], routings)
            if output.loss is not None:
                output.loss = output.loss + output.aux_loss.to(output.loss.device)
        return output.to_tuple() if return_dict is False else output

    return routed_forward


try:
    from transformers import (DeepseekV3Config, DeepseekV3ForCausalLM, MixtralConfig, MixtralForCausalLM, OlmoeConfig,
                              OlmoeForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM)
    from transformers.conversion_mapping import (get_checkpoint_conversion_mapping,
                                                 register_checkpoint_conversion_mapping)
except ImportError:  # the routers alone
    DeepseekV3Config = None

    def __getattr__(name):
        if name.startswith("Switchyard"):
            raise ImportError(f"{name} needs transformers 5.0 or later; pip install -U transformers")
        raise AttributeError(name)

if DeepseekV3Config is not None:

    class SwitchyardMixtralConfig(MixtralConfig):
        model_type = "switchyard_mixtral"
        routed_scaling_factor: float = 1.0
        norm_topk_prob: bool = True
        router: dict | None = None

    class SwitchyardMixtralForCausalLM(WithRouter, MixtralForCausalLM):
        config_class = SwitchyardMixtralConfig
        forward = with_router_losses(MixtralForCausalLM.forward)

    class SwitchyardQwen3MoeConfig(Qwen3MoeConfig):
        model_type = "switchyard_qwen3_moe"
        routed_scaling_factor: float = 1.0
        router: dict | None = None

    class SwitchyardQwen3MoeForCausalLM(WithRouter, Qwen3MoeForCausalLM):
        config_class = SwitchyardQwen3MoeConfig
        forward = with_router_losses(Qwen3MoeForCausalLM.forward)

    class SwitchyardDeepseekV3Config(DeepseekV3Config):
        model_type = "switchyard_deepseek_v3"
        own_scores = "sigmoid"
        router: dict | None = None

    class SwitchyardDeepseekV3ForCausalLM(WithRouter, DeepseekV3ForCausalLM):
        config_class = SwitchyardDeepseekV3Config
        forward = with_router_losses(DeepseekV3ForCausalLM.forward)

    class SwitchyardOlmoeConfig(OlmoeConfig):
        model_type = "switchyard_olmoe"
        routed_scaling_factor: float = 1.0
        router: dict | None = None

    class SwitchyardOlmoeForCausalLM(WithRouter, OlmoeForCausalLM):
        config_class = SwitchyardOlmoeConfig
        forward = with_router_losses(OlmoeForCausalLM.forward)

    for _config in (SwitchyardMixtralConfig, SwitchyardQwen3MoeConfig, SwitchyardDeepseekV3Config, SwitchyardOlmoeConfig):
        # How checkpoints' tensors, one an expert, become those of the modules.
        register_checkpoint_conversion_mapping(
            _config.model_type, get_checkpoint_conversion_mapping(_config.__base__.model_type), overwrite=True)
