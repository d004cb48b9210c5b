"""Every router of switchyard in plain PyTorch: the definitions that tests/golden/router_* hold the C++ to.

Written to be read and compared with the formulas, not to be fast: choices are masks over all experts, div(mu) is
T x T, gradients come from autograd, and any float dtype works. What the formulas leave open is decided in
docs/router-reference.md.

  T tokens, D hidden size, E experts, K slots a token, d latent size. Inside a router T counts real tokens only:
  padding (token -1) is taken out before and put back as free slots after, so that it can count nowhere.

    router = make_router(options, shape, rows)      rows: {name below the gate: tensor}
    result = router.forward(x_TD, token_T, seq_len, epsilon=...)
    state = router.after_step(result.count_E)
"""

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

COMMON = {"balance_coef": 0.0, "balance_scope": "global_batch", "z_loss_coef": 0.0, "variance_coef": 0.0,
          "orthogonality_coef": 0.0, "capacity_factor": None, "logit_norm": 0.0, "num_hash_layers": 0}
# What the rules of a bias read.
RULES = {"bias_update_speed": 1e-3, "bias_kappa": 2.0, "bias_momentum": 0.5, "phi_strength": 1.0, "phi_decay": 0.99}
GATE = {"simbal_coef": 0.0}  # of every router with a linear gate
OWN = {
    "softmax_topk": {"balance_coef": 0.001} | GATE,
    "sigmoid_group": GATE | {"balance_coef": 0.0001, "balance_scope": "sequence", "score_function": "sigmoid",
                             "bias": "sign", "bias_mean_free": False} | RULES,
    "quantile": GATE | {"score_function": "sigmoid", "bias": "quantile", "bias_mean_free": True,
                        "bias_ema": 0.0, "bias_solves": 0} | RULES,
    "top_p": GATE | {"balance_coef": 0.001, "p": 0.4, "max_experts": None, "entropy_coef": 1e-4, "renormalise": False},
    "dynamic_k": GATE | {"balance_coef": 0.001, "min_experts": 1, "max_experts": None, "flops_target": 0.0,
                  "estimator": "activation_norm_l2", "threshold": None, "statistics_decay": 0.99},
    "expert_threshold": GATE | {"score_function": "sigmoid", "threshold_decay": 0.99, "max_experts": None},
    "kmeans": {"mean_decay": 0.99},
    "lpr": {"latent_dim": 16, "similarity": "cosine", "sigma": 1.0, "num_heads": 1, "unit_ball": False,
            "prototype_addend": True, "prototype_routing": True,
            "reg_coef": 0.01, "div_weight": 1.0, "diversity": "orthogonal", "diversity_lambda": 1.0,
            "kl_weight": 0.01, "align_weight": 0.05, "reg_scope": "global_batch", "key_update": "gradient",
            "ema_decay": 0.8, "bias": "none", "bias_mean_free": True, "bias_ema": 0.0, "bias_solves": 0} | RULES,
}


@dataclass
class Shape:
    hidden_size: int
    n_experts: int
    n_slots: int  # num_experts_per_tok
    n_group: int = 1
    topk_group: int = 1
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0


@dataclass
class Choice:
    """What one router decides, before capacity."""
    chosen_TE: torch.Tensor            # bool
    weight_TE: torch.Tensor            # 0 where not chosen
    probability_TE: torch.Tensor       # for the balance loss
    logits_TE: torch.Tensor            # for the z-loss
    addend_TD: torch.Tensor = None     # None: the experts see x
    loss: torch.Tensor = 0.0           # the router's own, coefficient included


@dataclass
class Result:
    expert_TK: torch.Tensor            # by decreasing weight, then by expert; -1: free
    weight_TK: torch.Tensor
    addend_TD: torch.Tensor
    count_E: torch.Tensor              # kept slots
    n_chosen: int                      # slots before capacity
    router_loss: torch.Tensor
    balance_loss: torch.Tensor
    z_loss: torch.Tensor


@dataclass
class Closeness:
    """How close each kind of decision came to falling otherwise: the smallest distance seen."""
    smallest: dict = field(default_factory=dict)

    def note(self, kind, distances):
        if distances.numel():
            least = distances.detach().abs().min().item()
            self.smallest[kind] = min(least, self.smallest.get(kind, math.inf))


class Router:
    state_names = ()  # rows that are not learned by gradient

    def __init__(self, options, shape, rows):
        self.options, self.shape, self.rows = options, shape, rows
        self.closeness = Closeness()
        self.dx_TD = None  # of the last forward pass's real tokens: to be set before after_step

    @property
    def max_experts(self):
        return self.options.get("max_experts") or self.shape.n_slots

    def trained(self):
        return {name: row for name, row in self.rows.items() if name not in self.state_names}

    def choose(self, x_TD, **given):
        raise NotImplementedError

    def logits(self, x_TD):
        """Of the gate; with logit_norm as Skywork-MoE has them, arXiv 2406.06563."""
        logits_TE, factor = x_TD @ self.rows["weight"].T, self.options["logit_norm"]
        if factor == 0:
            return logits_TE
        mean_T1, variance_T1 = logits_TE.mean(-1, keepdim=True), logits_TE.var(-1, correction=0, keepdim=True)
        return factor * (logits_TE - mean_T1) / (variance_T1 + 1e-12).sqrt()

    def after_step(self, count_E):
        """The state rows after the step whose forward pass was the last one. count_E: of the global batch."""
        return {}

    def forward(self, x_TD, token_T, seq_len, **given):
        """given: epsilon_Td, attention_entropy_T, id_T (the tokens), for the routers that need them."""
        real = token_T >= 0
        sequence_T = (torch.arange(len(token_T)) // seq_len)[real]
        choice = self.choose(x_TD[real], **{name: tensor[real] for name, tensor in given.items()})
        choice.weight_TE = choice.weight_TE * self.shape.routed_scaling_factor
        kept_TE = self.within_capacity(choice)
        weight_TE = torch.where(kept_TE, choice.weight_TE, torch.zeros_like(choice.weight_TE))
        expert_TK, weight_TK = slots(kept_TE, weight_TE, self.max_experts)
        zero = x_TD.new_zeros(())
        return Result(
            expert_TK=put_back(expert_TK, real, -1), weight_TK=put_back(weight_TK, real, 0.0),
            addend_TD=None if choice.addend_TD is None else put_back(choice.addend_TD, real, 0.0),
            count_E=kept_TE.sum(0), n_chosen=int(choice.chosen_TE.sum()),
            router_loss=zero + choice.loss + self.gate_loss() + self.variance_loss(choice.probability_TE, sequence_T),
            balance_loss=zero + self.balance(kept_TE, choice.probability_TE, sequence_T),
            z_loss=zero + self.options["z_loss_coef"] * choice.logits_TE.logsumexp(-1).pow(2).mean())

    def gate_loss(self):
        """SimBal: how far the gate's rows are from an orthonormal set, entry by entry."""
        coef = self.options.get("simbal_coef", 0)
        if coef == 0:
            return 0.0
        R_DE = self.rows["weight"].T
        difference_EE = R_DE.T @ R_DE - torch.eye(R_DE.shape[1], dtype=R_DE.dtype)
        self.closeness.note("simbal", difference_EE)
        return coef * difference_EE.abs().sum()

    def variance_loss(self, probability_TE, sequence_T):
        """How much a token's probabilities differ from the mean of its sequence (arXiv 2505.22323), rewarded."""
        total = probability_TE.new_zeros(())
        for s in sequence_T.unique():
            of_sequence_TE = probability_TE[sequence_T == s]
            total = total + (of_sequence_TE - of_sequence_TE.mean(0)).pow(2).sum()
        return -self.options["variance_coef"] * total / len(probability_TE)

    def within_capacity(self, choice):
        factor = self.options["capacity_factor"]
        if factor is None:
            return choice.chosen_TE
        n_tokens, n_experts = choice.chosen_TE.shape
        most = math.ceil(factor * n_tokens * self.max_experts / n_experts)
        kept_TE = torch.zeros_like(choice.chosen_TE)
        for e in range(n_experts):
            tokens = choice.chosen_TE[:, e].nonzero().flatten()
            weights = choice.weight_TE[tokens, e].detach()
            order = weights.argsort(descending=True, stable=True)
            if len(order) > most:
                self.closeness.note("capacity", weights[order[most - 1]] - weights[order[most]])
            kept_TE[tokens[order[:most]], e] = True
        return kept_TE

    def balance(self, kept_TE, probability_TE, sequence_T):
        n_experts, K = self.shape.n_experts, self.max_experts

        def of(kept_TE, probability_TE, scale):
            f_E = n_experts * kept_TE.sum(0).to(probability_TE.dtype) / (scale * len(kept_TE))
            return (f_E * probability_TE.mean(0)).sum()

        scope, coef = self.options["balance_scope"], self.options["balance_coef"]
        if scope == "sequence":
            parts = [of(kept_TE[sequence_T == s], probability_TE[sequence_T == s], K) for s in sequence_T.unique()]
            return coef * torch.stack(parts).mean()
        if scope == "model":  # as transformers: K when balanced
            return coef * of(kept_TE, probability_TE, 1)
        return coef * of(kept_TE, probability_TE, K)  # `layer`, `global_batch`: the same for one micro-batch

    def largest(self, score_TE, k_T):
        """Mask of each token's k_T largest scores; of equal ones the lower expert first."""
        sorted_TE, order_TE = score_TE.sort(dim=-1, descending=True, stable=True)
        n_experts = score_TE.shape[-1]
        k_T = torch.as_tensor(k_T).expand(len(score_TE))
        for row, k in zip(sorted_TE.detach(), k_T.tolist()):
            if 0 < k < n_experts:
                self.closeness.note("choice", row[k - 1] - row[k])
        return order_TE.argsort(-1) < k_T.unsqueeze(-1)


def slots(kept_TE, weight_TE, K):
    """[T,K] experts and weights, by decreasing weight, then by expert; free slots last: -1 and 0."""
    key_TE = torch.where(kept_TE, weight_TE.detach(), torch.full_like(weight_TE, -math.inf))
    expert_TK = key_TE.sort(dim=-1, descending=True, stable=True).indices[:, :K]
    kept_TK = kept_TE.gather(1, expert_TK)
    weight_TK = weight_TE.gather(1, expert_TK) * kept_TK
    return torch.where(kept_TK, expert_TK, torch.full_like(expert_TK, -1)), weight_TK


def overlap(output_KD):
    """Of the outputs that one token has of its experts: the mean squared cosine of two of them (arXiv 2505.22323)."""
    n = len(output_KD)
    if n < 2:
        return output_KD.new_zeros(())
    unit_KD = output_KD / (output_KD.pow(2).sum(-1, keepdim=True) + 1e-20).sqrt()
    pairs = ~torch.eye(n, dtype=torch.bool)
    return (unit_KD @ unit_KD.T)[pairs].pow(2).mean()


def put_back(values, real, filler):
    whole = torch.full((len(real), *values.shape[1:]), filler, dtype=values.dtype)
    whole[real] = values
    return whole


def softmax_over(mask_TE, logits_TE):
    return torch.where(mask_TE, logits_TE, torch.full_like(logits_TE, -math.inf)).softmax(-1)


def over_sum(weight_TE):
    return weight_TE / (weight_TE.sum(-1, keepdim=True) + 1e-20)


def scores_of(score_function, logits_TE):
    """Scores, and the probabilities that they stand for in the balance loss."""
    if score_function == "softmax":
        P_TE = logits_TE.softmax(-1)
        return P_TE, P_TE
    S_TE = logits_TE.sigmoid() if score_function == "sigmoid" else logits_TE.exp().log1p().sqrt()
    return S_TE, S_TE / S_TE.sum(-1, keepdim=True)


# ---- the quantile of a statistic, from a histogram that is finest around zero ----

BINS_A_SIDE, SMALLEST_EDGE, LARGEST_EDGE = 512, 1e-6, 100.0


def side_edges():
    """Edges of the bins of one side: 0, then evenly spaced in the logarithm."""
    steps = torch.arange(BINS_A_SIDE, dtype=torch.float64) / (BINS_A_SIDE - 1)
    return torch.cat([torch.zeros(1, dtype=torch.float64),
                      SMALLEST_EDGE * (LARGEST_EDGE / SMALLEST_EDGE) ** steps])


def histogram(gap_TE):
    """[E, 2 * BINS_A_SIDE] counts, from the most negative gap to the largest."""
    bin_TE = torch.bucketize(gap_TE.detach().abs().double(), side_edges(), right=True) - 1
    bin_TE = bin_TE.clamp(max=BINS_A_SIDE - 1)
    bin_TE = torch.where(gap_TE >= 0, BINS_A_SIDE + bin_TE, BINS_A_SIDE - 1 - bin_TE)
    return torch.stack([torch.bincount(column, minlength=2 * BINS_A_SIDE) for column in bin_TE.T])


def quantile_of(count_EB, share):
    """[E]: the value below which `share` of an expert's counts lie, straight inside a bin."""
    right = side_edges()
    edges = torch.cat([-right.flip(0), right[1:]])
    values = []
    for count_B in count_EB.double():
        target = share * count_B.sum()
        before = count_B.cumsum(0) - count_B
        bins = ((before + count_B >= target) & (count_B > 0)).nonzero().flatten()
        if not len(bins):  # no token at all
            values.append(0.0)
            continue
        b = bins[0]
        values.append((edges[b] + (edges[b + 1] - edges[b]) * (target - before[b]) / count_B[b]).item())
    return torch.tensor(values, dtype=torch.float64)


class GapQuantile:
    """The state value of each expert is moved by a quantile of what lies between it and the tokens."""

    def __init__(self, closeness):
        self.closeness = closeness
        self.count_EB = None

    def see(self, gap_TE):
        inexact = gap_TE.detach().double().abs()
        inexact = inexact[inexact > 0]  # the (K+1)-th score is its own cutoff
        self.closeness.note("bin", inexact.unsqueeze(-1) - side_edges())
        self.count_EB = histogram(gap_TE)

    def solve(self, share, dtype):
        return quantile_of(self.count_EB, share).to(dtype)


class ChoiceBias:
    """A bias that chooses with the scores, and the rules by which a step moves it."""

    def __init__(self, router):
        self.router, self.rule, self.gaps = router, router.options["bias"], GapQuantile(router.closeness)
        self.state_names = ("e_score_correction_bias",) + {"smebu": ("bias_momentum",), "phi": ("expert_load",)}.get(
            self.rule, ())

    @property
    def value_E(self):
        return self.router.rows["e_score_correction_bias"]

    def choose(self, S_TE):
        """Mask of the K largest S + b, of training: with b solved again on these tokens, bias_solves times."""
        K, n_experts = self.router.shape.n_slots, self.router.shape.n_experts
        bias_E = self.value_E
        if self.rule != "quantile" or K == n_experts:
            return self.router.largest(S_TE + bias_E, K)
        self.gaps.see(self.gap(S_TE + bias_E, K))
        for _ in range(self.router.options["bias_solves"]):
            own = GapQuantile(self.router.closeness)
            own.see(self.gap(S_TE + bias_E, K))
            bias_E = bias_E + own.solve(K / n_experts, bias_E.dtype)
            bias_E = bias_E - bias_E.mean()
        return self.router.largest(S_TE + bias_E, K)

    @staticmethod
    def gap(biased_TE, K):
        return biased_TE.sort(dim=-1, descending=True).values[:, K].unsqueeze(-1) - biased_TE

    def after_step(self, count_E):
        """count_E: slots on each expert, of the global batch."""
        options, bias_E = self.router.options, self.value_E
        n_E = count_E.to(bias_E.dtype)
        nbar = n_E.mean()
        if self.rule == "quantile":
            return {"e_score_correction_bias": self.solved(bias_E)}
        if self.rule == "sign":
            move_E = torch.sign(nbar - n_E)
            if options["bias_mean_free"]:
                move_E = move_E - move_E.mean()
            return {"e_score_correction_bias": bias_E + options["bias_update_speed"] * move_E}
        if self.rule == "smebu":
            beta = options["bias_momentum"]
            u_E = options["bias_update_speed"] * torch.tanh(options["bias_kappa"] * (nbar - n_E) / nbar)
            u_E = u_E - u_E.mean()
            m_E = beta * self.router.rows["bias_momentum"] + (1 - beta) * u_E
            return {"e_score_correction_bias": bias_E + m_E, "bias_momentum": m_E}
        if self.rule == "phi":
            decay = options["phi_decay"]
            load_E = decay * self.router.rows["expert_load"] + (1 - decay) * n_E / nbar
            # grad phi of the negative entropy is 1 + log; what is the same for all experts chooses nothing.
            gradient_E = load_E.clamp(min=1e-6).log()
            return {"e_score_correction_bias": -options["phi_strength"] * (gradient_E - gradient_E.mean()),
                    "expert_load": load_E}
        raise ValueError(f"no rule {self.rule}")

    def solved(self, bias_E):
        """b such that each expert would be chosen by K/E of the tokens."""
        shape = self.router.shape
        if shape.n_slots == shape.n_experts:
            return bias_E.clone()
        solved_E = bias_E + self.gaps.solve(shape.n_slots / shape.n_experts, bias_E.dtype)
        old = self.router.options["bias_ema"]
        return old * bias_E + (1 - old) * (solved_E - solved_E.mean())


# ---- layers whose experts are chosen by a table ----

class HashLayer(Router):
    """Of a layout whose own scores are a softmax. tid2eid: the experts of each token of the vocabulary, in a row."""
    state_names = ("tid2eid",)

    def choose(self, x_TD, id_T):
        logits_TE = self.logits(x_TD)
        S_TE, _ = scores_of(self.options.get("score_function", "softmax"), logits_TE)
        expert_TK = self.rows["tid2eid"].long().unflatten(0, (-1, self.shape.n_slots))[id_T.long()]
        chosen_TE = torch.zeros_like(S_TE, dtype=torch.bool).scatter(1, expert_TK, True)
        weight_TE = S_TE * chosen_TE
        if self.shape.norm_topk_prob:
            weight_TE = over_sum(weight_TE)
        # What does not choose is not balanced.
        return Choice(chosen_TE, weight_TE, torch.zeros_like(S_TE), logits_TE)

    def after_step(self, count_E):
        return {"tid2eid": self.rows["tid2eid"].clone()}


# ---- linear routers ----

class SoftmaxTopK(Router):
    def choose(self, x_TD):
        logits_TE = self.logits(x_TD)
        P_TE = logits_TE.softmax(-1)
        chosen_TE = self.largest(P_TE, self.shape.n_slots)
        weight_TE = P_TE * chosen_TE
        if self.shape.norm_topk_prob:
            weight_TE = weight_TE / weight_TE.sum(-1, keepdim=True)
        return Choice(chosen_TE, weight_TE, P_TE, logits_TE)


class SigmoidGroup(Router):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.bias = ChoiceBias(self)
        self.state_names = self.bias.state_names

    def choose(self, x_TD):
        shape = self.shape
        logits_TE = self.logits(x_TD)
        S_TE, probability_TE = scores_of(self.options["score_function"], logits_TE)
        biased_TE = S_TE + self.bias.value_E
        grouped = biased_TE.unflatten(-1, (shape.n_group, -1))
        group_score = grouped.topk(min(2, grouped.shape[-1]), dim=-1).values.sum(-1)
        kept = self.largest(group_score, shape.topk_group).unsqueeze(-1)
        allowed_TE = torch.where(kept, grouped, torch.full_like(grouped, -math.inf)).flatten(-2)
        chosen_TE = self.largest(allowed_TE, shape.n_slots)
        weight_TE = S_TE * chosen_TE
        if shape.norm_topk_prob:
            weight_TE = over_sum(weight_TE)
        return Choice(chosen_TE, weight_TE, probability_TE, logits_TE)

    def after_step(self, count_E):
        return self.bias.after_step(count_E)


class Quantile(Router):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.bias = ChoiceBias(self)
        self.state_names = self.bias.state_names

    def choose(self, x_TD):
        logits_TE = self.logits(x_TD)
        S_TE, probability_TE = scores_of(self.options["score_function"], logits_TE)
        chosen_TE = self.bias.choose(S_TE)
        weight_TE = S_TE * chosen_TE
        if self.shape.norm_topk_prob:
            weight_TE = over_sum(weight_TE)
        return Choice(chosen_TE, weight_TE, probability_TE, logits_TE)

    def after_step(self, count_E):
        return self.bias.after_step(count_E)


class TopP(Router):
    def choose(self, x_TD):
        p = self.options["p"]
        logits_TE = self.logits(x_TD)
        P_TE = logits_TE.softmax(-1)
        sorted_TE = P_TE.sort(dim=-1, descending=True).values
        before_TE = sorted_TE.cumsum(-1) - sorted_TE
        self.closeness.note("p", before_TE[:, 1 : self.max_experts] - p)
        # An expert is taken while those before it do not reach p; the first always.
        k_T = (before_TE < p).sum(-1).clamp(min=1, max=self.max_experts)
        chosen_TE = self.largest(P_TE, k_T)
        weight_TE = P_TE * chosen_TE
        if self.options["renormalise"]:
            weight_TE = weight_TE / weight_TE.sum(-1, keepdim=True)
        entropy_T = -(P_TE * P_TE.log()).sum(-1)
        return Choice(chosen_TE, weight_TE, P_TE, logits_TE, loss=self.options["entropy_coef"] * entropy_T.mean())


class DynamicK(Router):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.by_token = self.options["estimator"] == "loss_gradient"
        self.state_names = ("complexity_mean", "complexity_var") + (("complexity_by_token",) if self.by_token else ())

    def raw_T(self, x_TD, logits_TE, attention_entropy_T, id_T):
        estimator = self.options["estimator"]
        if estimator == "loss_gradient":
            known_T = self.rows["complexity_by_token"][id_T.long()]
            return torch.where(known_T == 0, self.rows["complexity_mean"], known_T)
        if estimator == "activation_norm_l2" or estimator == "threshold":
            return x_TD.norm(dim=-1)
        if estimator == "activation_norm_l1":
            return x_TD.abs().sum(-1)
        if estimator == "router_entropy":
            P_TE = logits_TE.softmax(-1)
            return -(P_TE * P_TE.log()).sum(-1)
        if estimator == "hidden_entropy":
            P_TD = x_TD.softmax(-1)
            return -(P_TD * P_TD.log()).sum(-1)
        if estimator == "attention_entropy":
            return attention_entropy_T
        raise ValueError(f"no estimator {estimator}")

    def complexity_T(self, raw_T):
        if self.options["estimator"] == "threshold":
            self.closeness.note("threshold", raw_T - self.options["threshold"])
            return (raw_T > self.options["threshold"]).to(raw_T.dtype)
        mean, var = self.rows["complexity_mean"], self.rows["complexity_var"]
        if var.item() == 0:  # not calibrated yet
            return torch.full_like(raw_T, 0.5)
        return ((raw_T - mean) / var.sqrt()).sigmoid()

    def choose(self, x_TD, attention_entropy_T=None, id_T=None):
        least, most = self.options["min_experts"], self.max_experts
        if self.options["flops_target"] > 0:  # the mean of k, halfway between its ends, saves that share
            least = most * (1 - 2 * self.options["flops_target"])
        logits_TE = self.logits(x_TD)
        with torch.no_grad():  # a whole number has no gradient
            self.last_raw_T, self.last_id_T = self.raw_T(x_TD, logits_TE, attention_entropy_T, id_T), id_T
            exact_T = least + (most - least) * self.complexity_T(self.last_raw_T) + 0.5
            if self.options["estimator"] != "threshold" and self.rows["complexity_var"].item() != 0:
                self.closeness.note("k", exact_T - exact_T.round())
            k_T = exact_T.floor().long()
        chosen_TE = self.largest(logits_TE, k_T)
        return Choice(chosen_TE, softmax_over(chosen_TE, logits_TE), logits_TE.softmax(-1), logits_TE)

    def after_step(self, count_E):
        mean, var = self.rows["complexity_mean"], self.rows["complexity_var"]
        if self.options["estimator"] == "threshold":
            return {"complexity_mean": mean.clone(), "complexity_var": var.clone()}
        seen_T = self.last_raw_T
        if self.by_token:
            seen_T = seen_T[self.rows["complexity_by_token"][self.last_id_T.long()] != 0]
        new_mean = seen_T.mean().reshape(1)
        new_var = seen_T.var(correction=0).reshape(1)
        decay = 0.0 if var.item() == 0 else self.options["statistics_decay"]
        state = {"complexity_mean": decay * mean + (1 - decay) * new_mean,
                 "complexity_var": decay * var + (1 - decay) * new_var}
        return state | self.table_after_step() if self.by_token else state

    def table_after_step(self):
        """Each token's mean norm of its rows of dx, as if the loss were a sum over tokens."""
        token_T, table_V = self.last_id_T.long(), self.rows["complexity_by_token"]
        norm_T = len(token_T) * self.dx_TD.norm(dim=-1)
        new_V = table_V.clone()
        for token in token_T.unique():
            decay = 0.0 if table_V[token] == 0 else self.options["statistics_decay"]
            new_V[token] = decay * table_V[token] + (1 - decay) * norm_T[token_T == token].mean()
        return {"complexity_by_token": new_V}


def attention_entropy(probability_HTT, length_T):
    """[T], what `attention_entropy` measures: entropy of each row, mean over heads, divided by the log of how many
    positions the row sees; 0 where that is one."""
    entropy_T = -torch.xlogy(probability_HTT, probability_HTT).sum(-1).mean(0)
    return torch.where(length_T > 1, entropy_T / length_T.clamp(min=2).log(), torch.zeros_like(entropy_T))


class ExpertThreshold(Router):
    state_names = ("thresholds",)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.gaps = GapQuantile(self.closeness)

    def choose(self, x_TD):
        logits_TE = self.logits(x_TD)
        S_TE, probability_TE = scores_of(self.options["score_function"], logits_TE)
        gap_TE = S_TE - self.rows["thresholds"]
        self.closeness.note("threshold", gap_TE)
        self.gaps.see(gap_TE)
        above_TE = gap_TE > 0
        k_T = above_TE.sum(-1).clamp(max=self.max_experts)
        chosen_TE = self.largest(torch.where(above_TE, S_TE, torch.full_like(S_TE, -math.inf)), k_T)
        return Choice(chosen_TE, S_TE * chosen_TE, probability_TE, logits_TE)

    def after_step(self, count_E):
        thresholds_E = self.rows["thresholds"]
        share = 1 - self.shape.n_slots / self.shape.n_experts
        move_E = self.gaps.solve(share, thresholds_E.dtype)
        return {"thresholds": thresholds_E + (1 - self.options["threshold_decay"]) * move_E}


class KMeans(Router):
    state_names = ("means",)

    def choose(self, x_TD):
        S_TE = F.normalize(x_TD, dim=-1, eps=1e-12) @ F.normalize(self.rows["means"], dim=-1, eps=1e-12).T
        chosen_TE = self.largest(S_TE, self.shape.n_slots)
        self.last = (x_TD.detach(), chosen_TE)
        return Choice(chosen_TE, softmax_over(chosen_TE, S_TE), S_TE.softmax(-1), S_TE)

    def after_step(self, count_E):
        x_TD, chosen_TE = self.last
        means_ED = self.rows["means"].clone()
        decay = self.options["mean_decay"]
        for e in range(len(means_ED)):
            if chosen_TE[:, e].any():
                means_ED[e] = decay * means_ED[e] + (1 - decay) * x_TD[chosen_TE[:, e]].mean(0)
        return {"means": means_ED}


# ---- latent prototype routing ----

MIN_VARIANCE, ROOT_FLOOR = 1e-6, 1e-6


def kl_of(mean_t, var_t, mean_k, var_k):
    return 0.5 * (var_k.log() - var_t.log() + (var_t + (mean_t - mean_k) ** 2) / var_k - 1).sum(-1)


def distance_of(similarity, mean_t, var_t, mean_k, var_k):
    if similarity == "kl":
        return kl_of(mean_t, var_t, mean_k, var_k)
    if similarity == "js":
        mean_m, var_m = (mean_t + mean_k) / 2, (var_t + var_k) / 2
        return 0.5 * kl_of(mean_t, var_t, mean_m, var_m) + 0.5 * kl_of(mean_k, var_k, mean_m, var_m)
    if similarity == "hellinger":
        sum_ = var_t + var_k
        factors = (2 * (var_t * var_k).sqrt() / sum_).sqrt() * torch.exp(-(mean_t - mean_k) ** 2 / (4 * sum_))
        return (1 - factors.prod(-1) + ROOT_FLOOR).sqrt()
    if similarity == "wasserstein":
        squares = (mean_t - mean_k) ** 2 + (var_t.sqrt() - var_k.sqrt()) ** 2
        return (squares.sum(-1) + ROOT_FLOOR).sqrt()
    raise ValueError(f"no distance {similarity}")


def rms_norm(y, weight):
    return weight * y * (y.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()


def diversity(kind, Y):
    """div(Y) over all pairs of rows, as defined."""
    n = len(Y)
    if n < 2:
        return Y.new_zeros(())
    off_diagonal = ~torch.eye(n, dtype=torch.bool)
    if kind == "euclidean":
        difference = Y.unsqueeze(1) - Y.unsqueeze(0)
        square = difference.pow(2).sum(-1)
        return -square[off_diagonal].sqrt().mean()
    N = F.normalize(Y, dim=-1, eps=1e-12)
    products = N @ N.T
    if kind == "cosine":
        return products[off_diagonal].mean()
    if kind == "orthogonal":
        return (products - torch.eye(n, dtype=Y.dtype)).pow(2).mean()
    raise ValueError(f"no diversity {kind}")


class LatentPrototype(Router):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.bias = ChoiceBias(self) if self.options["bias"] != "none" else None
        self.state_names = (self.bias.state_names if self.bias else ()) + (
            ("expert_keys", "ema_sums", "ema_counts") if self.options["key_update"] == "ema" else ())

    def similarity(self, mu_Td, logvar_Td):
        """S [T,E] and V [T,d]."""
        kind, keys_Ed = self.options["similarity"], self.rows["expert_keys"]
        if kind == "cross_attention":
            return self.cross_attention(mu_Td, keys_Ed)
        values_Ed = keys_Ed
        if kind == "cosine":
            S_TE = F.cosine_similarity(mu_Td.unsqueeze(1), keys_Ed.unsqueeze(0), dim=-1)
        elif kind == "dot":
            S_TE = mu_Td @ keys_Ed.T
        elif kind == "gaussian":
            square = (mu_Td.unsqueeze(1) - keys_Ed).pow(2).sum(-1)
            S_TE = torch.exp(-square / (2 * self.options["sigma"] ** 2))
        elif kind == "mahalanobis":
            scale_d = torch.exp(-self.rows["similarity_func.log_sigma"])
            S_TE = 1 / (1 + ((mu_Td.unsqueeze(1) - keys_Ed).pow(2) * scale_d).sum(-1))
        else:
            var_Td = logvar_Td.exp().clamp(min=MIN_VARIANCE)
            var_Ed = self.rows["similarity_func.key_log_var"].exp().clamp(min=MIN_VARIANCE)
            S_TE = -distance_of(kind, mu_Td.unsqueeze(1), var_Td.unsqueeze(1), keys_Ed, var_Ed)
            values_Ed = F.linear(keys_Ed, self.rows["similarity_func.proj.weight"],
                                 self.rows["similarity_func.proj.bias"])
        return S_TE, S_TE.softmax(-1) @ values_Ed

    def cross_attention(self, mu_Td, keys_Ed):
        heads = self.options["num_heads"]

        def project(name, Y):
            return F.linear(Y, self.rows[f"similarity_func.{name}.weight"], self.rows[f"similarity_func.{name}.bias"])

        def split(Y):  # [H, rows, d/H]
            return Y.unflatten(-1, (heads, -1)).transpose(0, 1)

        q = split(rms_norm(project("q_proj", mu_Td), self.rows["similarity_func.q_norm.weight"]))
        k = split(rms_norm(project("k_proj", keys_Ed), self.rows["similarity_func.k_norm.weight"]))
        v = split(project("v_proj", keys_Ed) if heads > 1 else keys_Ed)
        S_HTE = q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])
        V_Td = (S_HTE.softmax(-1) @ v).transpose(0, 1).flatten(1)
        return S_HTE.mean(0), V_Td

    def regularisation(self, mu_Td, logvar_Td, R_TE, z_Td):
        options, keys_Ed = self.options, self.rows["expert_keys"]
        div = diversity(options["diversity"], mu_Td) + diversity(options["diversity"], keys_Ed)
        kl = (-0.5 * (1 + logvar_Td - mu_Td.pow(2) - logvar_Td.exp()).sum(-1)).mean()
        difference = keys_Ed - (R_TE.T @ z_Td).detach()
        self.closeness.note("alignment", difference)
        return options["reg_coef"] * (options["div_weight"] * options["diversity_lambda"] * div
                                      + options["kl_weight"] * kl
                                      + options["align_weight"] * difference.abs().mean())

    def choose(self, x_TD, epsilon_Td):
        rows = self.rows
        a_TD = F.silu(F.layer_norm(x_TD, x_TD.shape[-1:], rows["norm.weight"], rows["norm.bias"], eps=1e-5))
        mu_Td, logvar_Td = F.linear(a_TD, rows["encoder.weight"], rows["encoder.bias"]).chunk(2, dim=-1)
        z_Td = mu_Td + epsilon_Td * torch.exp(logvar_Td / 2)
        S_TE, V_Td = self.similarity(mu_Td, logvar_Td)
        # What chooses and weighs; in the prototypes' place a linear gate.
        choice_TE = S_TE if self.options["prototype_routing"] else self.logits(x_TD)
        chosen_TE = self.bias.choose(choice_TE) if self.bias else self.largest(choice_TE, self.shape.n_slots)
        R_TE = (S_TE * chosen_TE).softmax(-1).detach()
        self.last = (R_TE, z_Td.detach())
        return Choice(chosen_TE, softmax_over(chosen_TE, choice_TE), choice_TE.softmax(-1), choice_TE,
                      addend_TD=F.linear(V_Td, rows["out_proj.weight"], rows["out_proj.bias"])
                      if self.options["prototype_addend"] else None,
                      loss=self.regularisation(mu_Td, logvar_Td, R_TE, z_Td))

    def after_step(self, count_E):
        state = {}
        if self.bias:
            state |= self.bias.after_step(count_E)
        if self.options["key_update"] == "ema":
            R_TE, z_Td = self.last
            decay = self.options["ema_decay"]
            sums_Ed = decay * self.rows["ema_sums"] + (1 - decay) * (R_TE.T @ z_Td)
            counts_E = decay * self.rows["ema_counts"] + (1 - decay) * R_TE.sum(0)
            state |= {"ema_sums": sums_Ed, "ema_counts": counts_E,
                      "expert_keys": sums_Ed / counts_E.clamp(min=1e-6).unsqueeze(-1)}
        return state


ROUTERS = {
    "softmax_topk": SoftmaxTopK, "sigmoid_group": SigmoidGroup, "quantile": Quantile, "top_p": TopP,
    "dynamic_k": DynamicK, "expert_threshold": ExpertThreshold, "kmeans": KMeans, "lpr": LatentPrototype,
}


def with_defaults(options):
    """The router section with every key; an unknown one is a ValueError."""
    whole = {"type": options["type"]} | COMMON | OWN[options["type"]]
    unknown = options.keys() - whole.keys()
    if unknown:
        raise ValueError(f"{options['type']} has no option {', '.join(sorted(unknown))}")
    return whole | options


def make_router(options, shape, rows):
    options = with_defaults(options)
    return (HashLayer if options["num_hash_layers"] else ROUTERS[options["type"]])(options, shape, rows)
